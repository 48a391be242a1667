//! Files in memory, without a name. On macOS a file in the temporary directory whose name is
//! removed at once.

use std::fs::File;
use std::io::{self, Write as _};

use crate::os;

/// Makes an empty file; `name` is for diagnostics.
///
/// # Errors
/// What the system says.
pub fn file(name: &str) -> io::Result<File> {
    os::memory_file(name)
}

/// Makes a file with `bytes` that nobody can change (on macOS: that nobody else can reach).
///
/// # Errors
/// What the system says.
pub fn sealed(name: &str, bytes: &[u8]) -> io::Result<File> {
    let mut file = os::sealable_file(name)?;
    file.write_all(bytes)?;
    os::seal(&file)?;
    Ok(file)
}
