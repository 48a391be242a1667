//! Messages that attack terminals and parsers.

use std::time::Duration;

use hookrun_sdk::log::{self, Level};
use hookrun_sdk::{Failure, Outcome};

/// Clears the screen, sets the title of the window, breaks the line, reverses the direction of
/// text, and ends a string in C.
const ESCAPES: &str =
    "\u{1b}[2J\u{1b}]0;owned\u{7}\r\nerror: forged\n\u{9b}31m\u{202e}desrever\u{0}";

pub(crate) fn fail_escapes() -> Result<Outcome, Failure> {
    Err(Failure::permanent(ESCAPES))
}

pub(crate) fn fail_long() -> Result<Outcome, Failure> {
    Err(Failure::permanent("long ".repeat(100_000)))
}

pub(crate) fn fail_centuries() -> Result<Outcome, Failure> {
    Err(Failure::transient("later").retry_after(Duration::MAX))
}

pub(crate) fn escapes() -> Result<Outcome, Failure> {
    log::write(Level::Warn, ESCAPES, &[(ESCAPES, ESCAPES)]);
    print!("{ESCAPES}");
    Ok(Outcome::new(ESCAPES).detail(ESCAPES, ESCAPES))
}
