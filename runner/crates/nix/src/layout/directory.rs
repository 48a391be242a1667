//! A directory that is held by its descriptor, so that operations in it do not depend on the target
//! of its path. Another user may replace a path by a symbolic link between a check and an
//! operation.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hookrun_system::descriptor::LOCATE;
use hookrun_system::directory as system;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

/// The purpose for which a directory is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Adding entries, without the right to list them.
    Add,
    /// Listing entries as well.
    List,
}

/// An open directory. A clone has the same descriptor.
#[derive(Debug, Clone)]
pub struct Directory {
    descriptor: Arc<OwnedFd>,
    path: PathBuf,
}

impl Directory {
    /// Opens the directory at `path`, which must not be a symbolic link.
    ///
    /// # Errors
    /// Returns the error of the system; `ENOTDIR` for a symbolic link.
    pub fn open(path: &Path, purpose: Use) -> rustix::io::Result<Self> {
        let descriptor = rustix::fs::open(path, flags(purpose), Mode::empty())?;
        Ok(Self { descriptor: Arc::new(descriptor), path: path.to_owned() })
    }

    /// Returns the path at which it was opened, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns type, owner and mode of the directory itself.
    ///
    /// # Errors
    /// Returns the error of the system.
    pub fn stat(&self) -> rustix::io::Result<Stat> {
        rustix::fs::fstat(&self.descriptor)
    }

    /// Returns type, owner and mode of an entry. A symbolic link is not followed.
    ///
    /// # Errors
    /// Returns the error of the system.
    pub fn stat_of(&self, name: &[u8]) -> rustix::io::Result<Stat> {
        rustix::fs::statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Opens a regular file for reading, and returns its status. Symbolic links are not followed,
    /// and FIFOs and devices are not opened.
    ///
    /// # Errors
    /// Returns the error of the system; `EINVAL` if it is not a regular file.
    pub fn read(&self, name: &[u8]) -> rustix::io::Result<(File, Stat)> {
        // Opening a device can have effects, so its type is checked before.
        regular(self.stat_of(name)?)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::openat(&self.descriptor, name, flags, Mode::empty())?;
        let stat = regular(rustix::fs::fstat(&file)?)?;
        Ok((File::from(file), stat))
    }

    /// Opens a directory in this one, which must not be a symbolic link.
    ///
    /// # Errors
    /// Returns the error of the system.
    pub fn below(&self, name: &[u8]) -> rustix::io::Result<Self> {
        use std::os::unix::ffi::OsStrExt as _;
        let descriptor =
            rustix::fs::openat(&self.descriptor, name, flags(Use::List), Mode::empty())?;
        let path = self.path.join(std::ffi::OsStr::from_bytes(name));
        Ok(Self { descriptor: Arc::new(descriptor), path })
    }

    /// Creates a file that must not exist yet, with exactly this mode.
    ///
    /// # Errors
    /// Returns the error of the system.
    pub fn create(&self, name: &[u8], mode: u32) -> rustix::io::Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = hookrun_system::stat::mode(mode);
        let file = rustix::fs::openat(&self.descriptor, name, flags, mode)?;
        // The umask removes bits from the mode of a new file.
        rustix::fs::fchmod(&file, mode)?;
        Ok(File::from(file))
    }

    /// Renames an entry into a directory, which may be the same one.
    ///
    /// # Errors
    /// Returns the error of the system.
    pub fn rename(&self, from: &[u8], into: &Self, to: &[u8]) -> std::io::Result<()> {
        let (from, to) = (CString::new(from)?, CString::new(to)?);
        system::rename(self.as_fd(), &from, into.as_fd(), &to)
    }

    /// Removes an entry that is not a directory.
    ///
    /// # Errors
    /// Returns the error of the system.
    pub fn remove(&self, name: &[u8]) -> std::io::Result<()> {
        system::remove(self.as_fd(), &CString::new(name)?)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// Returns the error of the system.
    pub fn remove_directory(&self, name: &[u8]) -> std::io::Result<()> {
        system::remove_directory(self.as_fd(), &CString::new(name)?)
    }

    /// Returns the names of its entries, without `.` and `..`.
    pub fn names(&self) -> impl Iterator<Item = Vec<u8>> + use<> {
        let entries = rustix::fs::Dir::read_from(&self.descriptor).into_iter().flatten();
        let names =
            entries.map_while(Result::ok).map(|entry| entry.file_name().to_bytes().to_vec());
        names.filter(|name| name != b"." && name != b"..")
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn flags(purpose: Use) -> OFlags {
    let access = match purpose {
        Use::Add => LOCATE,
        Use::List => OFlags::RDONLY,
    };
    access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn regular(stat: Stat) -> rustix::io::Result<Stat> {
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
        Ok(stat)
    } else {
        Err(rustix::io::Errno::INVAL)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_path_that_is_replaced_after_opening_has_no_effect() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        for path in [&ours, &theirs] {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join("a"), path.to_str().unwrap()).unwrap();
        }
        let directory = Directory::open(&ours, Use::List).unwrap();
        std::fs::rename(&ours, dir.path().join("away")).unwrap();
        symlink(&theirs, &ours).unwrap();
        directory.rename(b"a", &directory, b"b").unwrap();
        assert_eq!(directory.names().collect::<Vec<_>>(), [b"b"]);
        directory.remove(b"b").unwrap();
        assert!(theirs.join("a").exists());
        assert_eq!(Directory::open(&ours, Use::Add).unwrap_err(), rustix::io::Errno::NOTDIR);
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path(), Use::List).unwrap();
        // macOS has no `mknodat`.
        let fifo = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(fifo).status().unwrap().success());
        symlink("file", dir.path().join("link")).unwrap();
        let file = directory.create(b"file", 0o604).unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o604);
        assert!(directory.read(b"file").is_ok());
        for name in [b"fifo".as_slice(), b"link"] {
            assert_eq!(directory.read(name).unwrap_err(), rustix::io::Errno::INVAL);
        }
    }
}
