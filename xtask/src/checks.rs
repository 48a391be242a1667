//! `cargo xtask checks`: what CI wants besides tests. All use the same compiled metadata of the dependencies.

use std::process::Command;

use anyhow::Result;

use crate::machine::{self, Need};
use crate::process::{CommandExt as _, cargo};

/// Formatting, lints, documentation, dependencies; ends at the first that fails.
pub fn run() -> Result<()> {
    machine::prepare(Need::Compiler)?;
    cargo().args(["fmt", "--all", "--check"]).run()?;
    cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]).run()?;
    cargo()
        .args(["doc", "--workspace", "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "-D warnings")
        .run()?;
    if Command::new("cargo").args(["deny", "--version"]).output().is_ok_and(|output| output.status.success()) {
        cargo().args(["deny", "check"]).run()
    } else {
        eprintln!("note: licences and advisories not checked; `cargo install --locked cargo-deny` brings the check");
        Ok(())
    }
}
