//! Files in memory, without a name. On macOS a file in the temporary directory whose name is
//! removed immediately.

use std::fs::File;
use std::io::{self, Write as _};

use crate::os;

/// Creates an empty file; `name` is for diagnostics.
///
/// # Errors
/// Returns the error of the system.
pub fn file(name: &str) -> io::Result<File> {
    os::memory_file(name)
}

/// Creates a file with `bytes` that cannot be changed (on macOS: that no other process can open).
///
/// # Errors
/// Returns the error of the system.
pub fn sealed(name: &str, bytes: &[u8]) -> io::Result<File> {
    let mut file = os::sealable_file(name)?;
    file.write_all(bytes)?;
    os::seal(&file)?;
    Ok(file)
}
