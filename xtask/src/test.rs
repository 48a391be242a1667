//! `cargo xtask test`: runs all tests; the summary of the end-to-end tests comes last.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::machine::{self, Need};
use crate::process::{self, CommandExt as _, cargo};

/// Names the file to which tests append that they were skipped (`tests/src/lab/need.rs`).
const SKIPPED: &str = "HOOKRUN_TESTS_SKIPPED";

/// Prepares the machine, builds the program that the end-to-end tests run, and runs all tests.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    machine::prepare(Need::Nix)?;
    // The end-to-end tests run `hookrun` from the target directory, but do not build it.
    process::build_workspace()?;
    let skipped = process::target_directory()?.join("skipped-tests.txt");
    std::fs::write(&skipped, "").with_context(|| format!("cannot write {}", skipped.display()))?;
    let result = run_tests(arguments, &skipped);
    report_skipped(&skipped)?;
    result
}

fn run_tests(arguments: &[String], skipped: &Path) -> Result<()> {
    if arguments.is_empty() {
        // First, so that the summary of the other tests is the end of the output. nextest does not
        // run doc tests.
        cargo().args(["test", "--workspace", "--doc", "--quiet"]).run()?;
    }
    if has_nextest() {
        return cargo()
            .args(["nextest", "run", "--workspace", "--no-fail-fast"])
            .args(arguments)
            .env(SKIPPED, skipped)
            .run();
    }
    eprintln!(
        "note: `cargo install --locked cargo-nextest` installs a faster test runner with one \
         summary; continuing with `cargo test`"
    );
    // `cargo test` prints a summary for each program, so the end-to-end tests run last.
    let unit_tests = cargo_test(&["--lib", "--bins"], arguments, skipped);
    let end_to_end_tests = cargo_test(&["--test", "*"], arguments, skipped);
    unit_tests.and(end_to_end_tests)
}

fn cargo_test(targets: &[&str], arguments: &[String], skipped: &Path) -> Result<()> {
    cargo()
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(targets)
        .arg("--")
        .args(arguments)
        .env(SKIPPED, skipped)
        .run()
}

/// Prints which tests were skipped, if any were.
fn report_skipped(file: &Path) -> Result<()> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    match text.lines().count() {
        0 => {}
        1 => eprint!("1 test was skipped:\n{text}"),
        count => eprint!("{count} tests were skipped:\n{text}"),
    }
    Ok(())
}

fn has_nextest() -> bool {
    let version = Command::new("cargo").args(["nextest", "--version"]).output();
    version.is_ok_and(|output| output.status.success())
}
