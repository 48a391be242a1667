//! Open files by their numbers.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use rustix::fs::OFlags;
use rustix::net::SendFlags;

use crate::os;

/// Opens a directory to resolve paths below it, without the right to list it.
pub const LOCATE: OFlags = os::LOCATE;

/// For sending to a stream: a closed peer causes an error, not a signal.
pub const NO_SIGNAL: SendFlags = os::NO_SIGNAL;

/// Sets or clears the close-on-exec flag. Returns whether the descriptor is open.
/// Async-signal-safe.
pub fn set_close_on_exec(number: RawFd, on: bool) -> bool {
    let flag = if on { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: `fcntl` with F_SETFD takes plain numbers and touches no memory; a number that is not
    // open is an error value.
    unsafe { libc::fcntl(number, libc::F_SETFD, flag) == 0 }
}

/// Duplicates `from` to `number`, which must not be a descriptor that a value of this process owns.
/// It is closed on exec.
///
/// # Errors
/// Returns the error of the system.
pub fn duplicate_to(from: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    // SAFETY: `from` is open, and no value owns `number`, as the caller guarantees.
    if unsafe { libc::dup2(from.as_raw_fd(), number) } < 0 {
        return Err(io::Error::last_os_error());
    }
    set_close_on_exec(number, true);
    Ok(())
}

/// Closes all descriptors from `first` to `last`. No value in this process may own one of them.
///
/// Linux before 5.9 cannot do this; then they stay open.
pub fn close_range(first: u32, last: u32) {
    if first <= last {
        os::close_range(first, last);
    }
}

/// Opens what `path` names below `directory`, without following a symbolic link and without leaving
/// the directory.
///
/// # Errors
/// Returns the error of the system; `ENOSYS` where it cannot do that in one step (Linux before 5.6,
/// macOS).
pub fn open_beneath(
    directory: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    os::open_beneath(directory, path, flags)
}

/// Returns a path that opens the file of a descriptor, even if its name has changed.
pub fn path_of(file: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("{}/{}", os::DESCRIPTORS, file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_descriptor_leads_to_its_file_after_the_name_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::File::create(&path).unwrap().write_all(b"text").unwrap();
        let open = std::fs::File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut again = std::fs::File::open(path_of(open.as_fd())).unwrap();
        let mut text = String::new();
        again.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
    }

    #[test]
    fn a_number_that_is_not_open_is_detected() {
        let open = std::fs::File::open("/").unwrap();
        assert!(set_close_on_exec(open.as_raw_fd(), true));
        assert!(!set_close_on_exec(RawFd::MAX, true));
    }
}
