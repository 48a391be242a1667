//! Which role this process plays.

use crate::exit_code::Exit;

/// Finds the role and plays it.
pub fn run() -> Exit {
    Exit::Usage
}
