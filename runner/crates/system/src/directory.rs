//! Directories. Entries are changed through the C library, not by direct system calls, so that the
//! crash tests can replace its functions.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::Path;

use crate::os;

/// Returns whether programs can be started in this directory: its file system is not mounted
/// `noexec`.
pub fn allows_programs(path: &Path) -> bool {
    os::allows_programs(path)
}

/// Renames an entry of `from` into `into`.
///
/// # Errors
/// Returns the error of the system.
pub fn rename(
    from: BorrowedFd<'_>,
    old: &CStr,
    into: BorrowedFd<'_>,
    new: &CStr,
) -> io::Result<()> {
    // SAFETY: two open descriptors and two C strings that outlive the call.
    let result =
        unsafe { libc::renameat(from.as_raw_fd(), old.as_ptr(), into.as_raw_fd(), new.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Removes an entry that is not a directory.
///
/// # Errors
/// Returns the error of the system.
pub fn remove(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    unlink(directory, name, 0)
}

/// Removes an empty directory.
///
/// # Errors
/// Returns the error of the system.
pub fn remove_directory(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    unlink(directory, name, libc::AT_REMOVEDIR)
}

fn unlink(directory: BorrowedFd<'_>, name: &CStr, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: an open descriptor and a C string that outlives the call.
    let result = unsafe { libc::unlinkat(directory.as_raw_fd(), name.as_ptr(), flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
