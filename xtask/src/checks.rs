//! `cargo xtask checks`: the checks of CI apart from tests. The commands of Cargo use the same
//! compiled metadata of the dependencies.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::machine::{self, Need};
use crate::process::{CommandExt as _, cargo, repository};
use crate::{module_heads, width};

/// The command that installs cargo-deny.
const INSTALL: &str = "cargo install --locked cargo-deny";
/// The command that installs mdBook.
const INSTALL_MDBOOK: &str = "cargo install --locked mdbook";
/// Messages of cargo-deny if it cannot fetch the database of advisories, a Git repository.
const UNREACHABLE: [&str; 2] =
    ["failed to fetch advisory database", "failed to load advisory database"];

/// Checks formatting, lints, documentation and dependencies; stops at the first failure.
pub(crate) fn run() -> Result<()> {
    machine::prepare(Need::Compiler)?;
    cargo().args(["fmt", "--all", "--check"]).run()?;
    width::check()?;
    module_heads::check()?;
    cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]).run()?;
    cargo()
        .args(["doc", "--workspace", "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "-D warnings")
        .run()?;
    book()?;
    dependencies()
}

/// Builds the book of plugin authors into `target/book`. The tests check its commands and links
/// also where mdBook is missing.
fn book() -> Result<()> {
    if !Command::new("mdbook").arg("--version").output().is_ok_and(|output| output.status.success())
    {
        eprintln!("note: docs/book was NOT built; run `{INSTALL_MDBOOK}` to build it");
        return Ok(());
    }
    Command::new("mdbook").args(["build", "docs/book"]).current_dir(repository()).run()
}

/// Checks licences, bans and sources of all dependencies, and advisories if their database can be
/// reached.
fn dependencies() -> Result<()> {
    if !Command::new("cargo")
        .args(["deny", "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
    {
        eprintln!(
            "note: licences, bans, sources and advisories were NOT checked; run `{INSTALL}` to check them"
        );
        return Ok(());
    }
    cargo().args(["deny", "check", "licenses", "bans", "sources"]).run()?;
    eprintln!("$ cargo deny check advisories");
    let output = cargo()
        .args(["deny", "check", "advisories"])
        .output()
        .context("`cargo deny` does not start")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && UNREACHABLE.iter().any(|words| said.contains(words)) {
        eprintln!("note: advisories were NOT checked: their database cannot be reached from here");
        return Ok(());
    }
    eprint!("{said}");
    if output.status.success() {
        Ok(())
    } else {
        bail!("`cargo deny check advisories` failed ({})", output.status)
    }
}
