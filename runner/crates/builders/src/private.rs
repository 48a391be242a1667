//! The directory `builders/` and everything in it belong to the user that Nix builds as, and no
//! other user may enter: a user who can open a lock file can hold its lock, and one who can write
//! the file of a session can act for that session.
//!
//! Directories have mode 0700 and files 0600, independent of the umask and of what an earlier
//! release created. Files of another user are not used, and builds continue without history. Other
//! users cannot read anything, so `hookrun builders` must be run as the owner.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};

/// The mode of directories.
const DIRECTORY: Mode = Mode::RWXU;
/// The mode of files.
const FILE: Mode = Mode::RUSR.union(Mode::WUSR);
/// The interval between attempts to take a lock that another session holds.
const TRY_EVERY: Duration = Duration::from_millis(2);

/// Opens a directory that only this user may enter, and creates it if there is none.
///
/// # Errors
/// It cannot be created, or belongs to another user.
pub(crate) fn directory(path: &Path) -> io::Result<OwnedFd> {
    if let Some(parent) = path.parent() {
        // Other parts of hookrun use the state directory too.
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let directory = opened(path)?;
    let found = rustix::fs::fstat(&directory)?;
    if found.st_mode & 0o7777 != DIRECTORY.bits() {
        rustix::fs::fchmod(&directory, DIRECTORY)?;
    }
    Ok(directory)
}

/// Opens an existing directory of this user.
///
/// # Errors
/// It does not exist, or belongs to another user.
pub(crate) fn opened(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    if !is_own(&rustix::fs::fstat(&directory)?) {
        let text = format!("{} belongs to another user", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(directory)
}

/// Returns whether this belongs to the user of this process.
pub(crate) fn is_own(found: &rustix::fs::Stat) -> bool {
    found.st_uid == rustix::process::geteuid().as_raw()
}

/// Opens a file below `directory` that only this user may open, and creates it if there is none.
///
/// # Errors
/// It cannot be created, is not a regular file, or belongs to another user.
pub(crate) fn file(directory: &OwnedFd, name: &str, more: OFlags) -> io::Result<OwnedFd> {
    // Opening does not block on a FIFO in its place.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(directory, name, flags | OFlags::NONBLOCK | more, FILE)?;
    let found = rustix::fs::fstat(&file)?;
    if !is_own(&found)
        || rustix::fs::FileType::from_raw_mode(found.st_mode) != rustix::fs::FileType::RegularFile
    {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    if found.st_mode & 0o7777 != FILE.bits() {
        rustix::fs::fchmod(&file, FILE)?;
    }
    Ok(file)
}

/// Takes the lock of a file. Waits at most `patience` if another process holds it.
pub(crate) fn lock_within(file: &OwnedFd, patience: Duration) -> bool {
    let began = Instant::now();
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return true,
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR)
                if began.elapsed() < patience =>
            {
                std::thread::sleep(TRY_EVERY);
            }
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o7777
    }

    #[test]
    fn directories_and_files_are_closed_to_others_also_those_of_an_earlier_release() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("builders");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(path.join("queue.lock"), "").unwrap();
        let opened = directory(&path).unwrap();
        file(&opened, "queue.lock", OFlags::empty()).unwrap();
        file(&opened, "new", OFlags::empty()).unwrap();
        assert_eq!(mode(&path), 0o700);
        assert_eq!((mode(&path.join("queue.lock")), mode(&path.join("new"))), (0o600, 0o600));
    }

    #[test]
    fn a_link_or_a_fifo_is_not_used() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("target");
        std::fs::create_dir(&target).unwrap();
        let link = place.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(directory(&link).is_err(), "a symbolic link may lead to another user's directory");
        let opened = directory(&target).unwrap();
        // macOS has no `mknodat`.
        let made = std::process::Command::new("mkfifo").arg(target.join("fifo")).status().unwrap();
        assert!(made.success());
        assert!(file(&opened, "fifo", OFlags::empty()).is_err());
    }

    #[test]
    fn the_wait_for_a_held_lock_is_bounded() {
        let place = tempfile::tempdir().unwrap();
        let opened = directory(place.path()).unwrap();
        let held = file(&opened, "lock", OFlags::empty()).unwrap();
        assert!(lock_within(&held, Duration::ZERO));
        let other = file(&opened, "lock", OFlags::empty()).unwrap();
        assert!(!lock_within(&other, Duration::from_millis(20)));
        drop(held);
        assert!(lock_within(&other, Duration::ZERO));
    }
}
