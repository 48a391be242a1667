//! `cargo xtask test`: every test, and the runner's summary last.

use std::process::Command;

use anyhow::Result;

use crate::machine::{self, Need};
use crate::process::{self, CommandExt as _, cargo};

/// Prepares the machine, builds the program that the end-to-end tests run, and runs all tests.
pub fn run(arguments: &[String]) -> Result<()> {
    machine::prepare(Need::Nix)?;
    // The end-to-end tests find `hookrun` beside them in the target directory; no test target of
    // theirs builds it.
    process::build_workspace()?;
    if arguments.is_empty() {
        // Before the others, so that the summary of these closes the output; the test runner does
        // not know doc tests.
        cargo().args(["test", "--workspace", "--doc", "--quiet"]).run()?;
    }
    if has_nextest() {
        cargo().args(["nextest", "run", "--workspace", "--no-fail-fast"]).args(arguments).run()
    } else {
        eprintln!(
            "note: `cargo install --locked cargo-nextest` brings a faster runner with a summary; going on without it"
        );
        cargo()
            .args(["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast", "--"])
            .args(arguments)
            .run()
    }
}

fn has_nextest() -> bool {
    let version = Command::new("cargo").args(["nextest", "--version"]).output();
    version.is_ok_and(|output| output.status.success())
}
