//! Step 3: a derivation that has a different result in every build is built again with `--check`.
//! Nix calls hookrun as its diff-hook, and hookrun writes a mail.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::demo::StepResult;
use crate::demo::stage::{Stage, ended};

/// Builds twice, waits for the worker, and prints the mail.
pub(super) fn run(stage: &mut Stage) -> Result<StepResult> {
    if !rustix::process::geteuid().is_root() {
        // Before Nix starts a diff-hook, it drops supplementary groups, which needs root
        // (libutil/util.cc, runProgram2).
        return Ok(StepResult::Impossible(
            "a Nix that does not run as root cannot start a diff-hook (`setgroups failed: Operation not permitted`); run the demo \
             as root, or use a Nix with a daemon"
                .into(),
        ));
    }
    let first = stage.build("dice", &[])?;
    if !first.status.success() {
        return Ok(StepResult::Broken(format!("`nix-build` {}", ended(first.status))));
    }
    let second = stage.build("dice", &["--check"])?;
    if second.status.success() || !second.stderr.contains("may not be deterministic") {
        return Ok(StepResult::Broken(
            "Nix did not report that the derivation may not be deterministic".into(),
        ));
    }
    stage.drain()?;
    stage.hookrun(&["log", "--plugin", "nondeterminism"])?;
    let maildir = stage.path("state/mail/default/new");
    let mail = newest_file(&maildir)
        .with_context(|| format!("no mail was found in {}", maildir.display()))?;
    stage.show.command(&format!("cat {}", mail.display()));
    let message = std::fs::read_to_string(&mail)
        .with_context(|| format!("cannot read {}", mail.display()))?;
    // The HTML part has the same contents.
    stage.show.file(message.split("Content-Type: text/html").next().unwrap_or(&message));
    stage.show.plain("(and an HTML part)");
    Ok(StepResult::Works(format!(
        "a mail is in {}; the result of Nix is unchanged",
        maildir.display()
    )))
}

fn newest_file(directory: &Path) -> Result<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        files.push((entry.metadata()?.modified()?, entry.path()));
    }
    files.into_iter().max().map(|(_, path)| path).context("it is empty")
}
