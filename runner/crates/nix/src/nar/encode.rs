//! Encodes a file system tree as a NAR (Nix `libutil/archive.cc`, `dump`).
//!
//! The walk is iterative and keeps one directory open at a time, so like Nix it has no limit on the
//! depth of a tree. A child is opened relative to its directory, without following a symlink, and
//! `..` must lead back to the directory that was left. Memory grows with the names in the
//! directories on the path from the root to the current one.

use std::ffi::{CString, OsStr};
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// The flags for opening a node: it is read, symlinks are not followed, and a FIFO does not block.
const FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);
/// The number of bytes that are read from a file at once.
const CHUNK: usize = 64 << 10;

/// The reason why a tree was not encoded completely.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// A file that is not a regular file, a directory or a symlink.
    #[error("{} is neither a regular file, a directory nor a symlink", .0.display())]
    Unsupported(PathBuf),
    /// A file was replaced between two accesses.
    #[error("{} changed while it was read", .0.display())]
    Changed(PathBuf),
    /// The tree cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The path that cannot be read.
        path: PathBuf,
        /// The error of the system.
        #[source]
        error: io::Error,
    },
    /// The writer failed.
    #[error(transparent)]
    Write(io::Error),
}

/// A directory on the path to the current node.
struct Level {
    /// Its name; empty for the root.
    name: CString,
    device: u64,
    inode: u64,
    /// The entries that are not written yet, in reverse order.
    left: Vec<CString>,
}

/// Writes the NAR of the tree at `root`.
///
/// # Errors
/// The tree cannot be read, changes meanwhile, contains something that a NAR cannot, or the writer
/// fails.
pub(super) fn encode(mut out: impl Write, root: &Path) -> Result<(), EncodeError> {
    let out = &mut out;
    let mut walk = Walk { root, levels: Vec::new(), buffer: vec![0; CHUNK] };
    let name = CString::new(root.as_os_str().as_bytes())
        .map_err(|error| walk.failed(None, io::Error::other(error)))?;
    token(out, b"nix-archive-1")?;
    let mut directory = walk.node(out, CWD, &name)?;
    while let Some(current) = directory.take() {
        let Some(level) = walk.levels.last_mut() else { break };
        directory = match level.left.pop() {
            Some(name) => {
                for word in [&b"entry"[..], b"(", b"name", name.as_bytes(), b"node"] {
                    token(out, word)?;
                }
                let entered = walk.node(out, current.as_fd(), &name)?;
                if entered.is_none() {
                    token(out, b")")?;
                }
                Some(entered.unwrap_or(current))
            }
            None => {
                token(out, b")")?;
                let parent = walk.leave(&current)?;
                if parent.is_some() {
                    token(out, b")")?;
                }
                parent
            }
        };
    }
    Ok(())
}

struct Walk<'a> {
    root: &'a Path,
    levels: Vec<Level>,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    /// Writes the node `name` of `directory`: a complete file or symlink, or the beginning of a
    /// directory, which is then returned.
    fn node(
        &mut self,
        out: &mut impl Write,
        directory: BorrowedFd<'_>,
        name: &CString,
    ) -> Result<Option<OwnedFd>, EncodeError> {
        let found = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| self.failed(Some(name), errno.into()))?;
        token(out, b"(")?;
        token(out, b"type")?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => self.regular(out, directory, name)?,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(directory, name, Vec::new())
                    .map_err(|errno| self.failed(Some(name), errno.into()))?;
                for word in [&b"symlink"[..], b"target", target.as_bytes()] {
                    token(out, word)?;
                }
            }
            FileType::Directory => {
                token(out, b"directory")?;
                return self.enter(directory, name).map(Some);
            }
            _ => return Err(EncodeError::Unsupported(self.path(Some(name)))),
        }
        token(out, b")")?;
        Ok(None)
    }

    fn regular(
        &mut self,
        out: &mut impl Write,
        directory: BorrowedFd<'_>,
        name: &CString,
    ) -> Result<(), EncodeError> {
        let (file, found) = self.open(directory, name, FLAGS)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(EncodeError::Changed(self.path(Some(name))));
        }
        token(out, b"regular")?;
        // Nix uses the owner's bit.
        if found.st_mode & 0o100 != 0 {
            token(out, b"executable")?;
            token(out, b"")?;
        }
        token(out, b"contents")?;
        let size = u64::try_from(found.st_size).unwrap_or(0);
        out.write_all(&size.to_le_bytes()).map_err(EncodeError::Write)?;
        let mut file = std::fs::File::from(file).take(size.saturating_add(1));
        let mut copied = 0_u64;
        loop {
            let read = match file.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.failed(Some(name), error)),
            };
            copied += read as u64;
            if copied > size {
                break;
            }
            out.write_all(self.buffer.get(..read).unwrap_or_default())
                .map_err(EncodeError::Write)?;
        }
        if copied != size {
            return Err(EncodeError::Changed(self.path(Some(name))));
        }
        padding(out, size)
    }

    /// Opens the directory `name` and reads its entries.
    fn enter(&mut self, directory: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd, EncodeError> {
        let (entered, found) = self.open(directory, name, FLAGS | OFlags::DIRECTORY)?;
        let mut left = Vec::new();
        let entries =
            Dir::read_from(&entered).map_err(|errno| self.failed(Some(name), errno.into()))?;
        for entry in entries {
            let entry = entry.map_err(|errno| self.failed(Some(name), errno.into()))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                left.push(entry.file_name().to_owned());
            }
        }
        left.sort_unstable_by(|a, b| b.cmp(a));
        let name = if self.levels.is_empty() { CString::default() } else { name.clone() };
        let (device, inode) = identity(&found);
        self.levels.push(Level { name, device, inode, left });
        Ok(entered)
    }

    /// Returns to the parent of `current`; returns none if `current` is the root.
    fn leave(&mut self, current: &OwnedFd) -> Result<Option<OwnedFd>, EncodeError> {
        self.levels.pop();
        let Some(level) = self.levels.last() else { return Ok(None) };
        let (device, inode) = (level.device, level.inode);
        let (parent, found) = self.open(current.as_fd(), c"..", FLAGS | OFlags::DIRECTORY)?;
        if identity(&found) != (device, inode) {
            return Err(EncodeError::Changed(self.path(None)));
        }
        Ok(Some(parent))
    }

    fn open(
        &self,
        directory: BorrowedFd<'_>,
        name: &std::ffi::CStr,
        flags: OFlags,
    ) -> Result<(OwnedFd, Stat), EncodeError> {
        let opened = rustix::fs::openat(directory, name, flags, Mode::empty())
            .and_then(|file| rustix::fs::fstat(&file).map(|found| (file, found)));
        opened.map_err(|errno| match errno {
            // The type has changed since the last check.
            Errno::LOOP | Errno::NOTDIR | Errno::NXIO => {
                EncodeError::Changed(self.path(Some(name)))
            }
            errno => self.failed(Some(name), errno.into()),
        })
    }

    /// Returns the path of the current directory, or of `name` in it.
    fn path(&self, name: Option<&std::ffi::CStr>) -> PathBuf {
        let mut path = self.root.to_owned();
        if self.levels.is_empty() {
            return path;
        }
        let names = self.levels.iter().map(|level| level.name.as_c_str()).chain(name);
        path.extend(names.map(|name| OsStr::from_bytes(name.to_bytes())));
        path
    }

    fn failed(&self, name: Option<&std::ffi::CStr>, error: io::Error) -> EncodeError {
        EncodeError::Read { path: self.path(name), error }
    }
}

fn identity(found: &Stat) -> (u64, u64) {
    hookrun_system::stat::identity_of(found)
}

fn token(out: &mut impl Write, word: &[u8]) -> Result<(), EncodeError> {
    let size = word.len() as u64;
    out.write_all(&size.to_le_bytes())
        .and_then(|()| out.write_all(word))
        .map_err(EncodeError::Write)?;
    padding(out, size)
}

/// Pads to a multiple of 8 bytes, as all parts of a NAR are.
fn padding(out: &mut impl Write, size: u64) -> Result<(), EncodeError> {
    let missing = usize::try_from(size.wrapping_neg() % 8).unwrap_or(0);
    out.write_all([0; 8].get(..missing).unwrap_or_default()).map_err(EncodeError::Write)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use nix_archive::nar::{CaseHack, encode_path};

    use super::*;

    #[test]
    fn a_tree_is_the_same_as_by_another_encoder() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("b/empty")).unwrap();
        for (name, contents) in [("a", ""), ("b/x", "1234567"), ("b/y", "12345678"), ("b.c", "1")] {
            std::fs::write(root.join(name), contents).unwrap();
        }
        std::fs::write(root.join("large"), vec![7; 3 * CHUNK + 5]).unwrap();
        std::fs::write(root.join(OsStr::from_bytes(b"\xff")), "not UTF-8").unwrap();
        std::fs::set_permissions(root.join("b/x"), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("b/x", root.join("link")).unwrap();
        std::os::unix::fs::symlink("/nowhere", root.join("b/dangling")).unwrap();
        for path in ["", "a", "b/x", "link", "b/empty"].map(|name| root.join(name)) {
            let path: PathBuf = path.components().collect();
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            encode(&mut ours, &path).unwrap();
            encode_path(&mut theirs, &path, CaseHack::Disabled).unwrap();
            assert!(ours == theirs, "{}", path.display());
        }
    }

    #[test]
    fn deep_trees_are_encoded() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        // Deeper than the longest path that the kernel accepts.
        let mut here = rustix::fs::open(&root, OFlags::DIRECTORY, Mode::empty()).unwrap();
        let depth = 3000;
        for _ in 0..depth {
            rustix::fs::mkdirat(&here, "d", Mode::RWXU).unwrap();
            here = rustix::fs::openat(&here, "d", OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        rustix::fs::symlinkat("end", &here, "l").unwrap();
        let mut nar = Vec::new();
        encode(&mut nar, &root).unwrap();
        let count = |word: &[u8]| nar.windows(word.len()).filter(|part| *part == word).count();
        assert_eq!((count(b"directory"), count(b"symlink")), (depth + 1, 1));
        // Parentheses are balanced. Each takes 16 bytes: a length and the character.
        let parenthesis =
            |character: u8| count(&[1, 0, 0, 0, 0, 0, 0, 0, character, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(parenthesis(b'('), parenthesis(b')'));
    }

    #[test]
    fn files_that_a_nar_cannot_hold_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("a")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("a/s")).unwrap();
        let error = encode(io::sink(), &root).unwrap_err();
        assert!(matches!(&error, EncodeError::Unsupported(path) if *path == root.join("a/s")));
        let error = encode(io::sink(), &root.join("none")).unwrap_err();
        assert!(
            matches!(&error, EncodeError::Read { error, .. } if error.kind() == io::ErrorKind::NotFound),
            "{error}"
        );
    }
}
