//! Requirements of tests that not every machine meets. A test that cannot run fails, unless tests
//! may be skipped. Then it is counted.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use super::is_root;

/// The variable that allows tests to be skipped if it is `1`.
pub const MAY_SKIP: &str = "HOOKRUN_TESTS_MAY_SKIP";
/// The variable with the path of a file to which skipped tests are appended, one in each line.
/// `cargo xtask test` sets it, and prints their number and the lines after the run.
pub const SKIPPED: &str = "HOOKRUN_TESTS_SKIPPED";

/// A requirement of a test.
#[derive(Debug, Clone, Copy)]
pub enum Need {
    /// Root: mounts, build users, processes of other users.
    Root,
    /// A program in `PATH`.
    Program(&'static str),
}

impl Need {
    fn is_met(self) -> bool {
        match self {
            Self::Root => is_root(),
            Self::Program(name) => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                std::env::split_paths(&path).any(|directory| is_file(&directory, name))
            }
        }
    }

    fn describe(self) -> String {
        match self {
            Self::Root => "root; run the tests with `sudo -E`".to_owned(),
            Self::Program(name) => {
                format!("`{name}` in PATH; `cargo xtask test` installs it on Debian as root")
            }
        }
    }
}

fn is_file(directory: &Path, name: &str) -> bool {
    directory.join(name).is_file()
}

/// Returns true if the machine meets the need. Otherwise the test fails, unless [`MAY_SKIP`] is
/// `1`: then the result is false, and the test is counted as skipped and has to return.
///
/// ```no_run
/// # use hookrun_tests::lab::{Need, require};
/// if !require(Need::Root) {
///     return;
/// }
/// ```
///
/// # Panics
/// If the need is not met and tests may not be skipped.
#[must_use]
#[track_caller]
pub fn require(need: Need) -> bool {
    if need.is_met() {
        return true;
    }
    let missing = need.describe();
    assert!(
        std::env::var_os(MAY_SKIP).is_some_and(|value| value == "1"),
        "this test needs {missing}, or set {MAY_SKIP}=1 to skip it"
    );
    let thread = std::thread::current();
    let line = format!("{}: needs {missing}\n", thread.name().unwrap_or("a test"));
    eprint!("skipped: {line}");
    if let Some(file) = std::env::var_os(SKIPPED) {
        // Other tests write at the same time, so this is one write to a file opened for appending.
        let mut file = OpenOptions::new().create(true).append(true).open(file).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
    false
}
