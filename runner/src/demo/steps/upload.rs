//! Step 1: two derivations are built. Nix calls hookrun for each, and its worker uploads the signed
//! output.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::demo::StepResult;
use crate::demo::stage::{Stage, ended};

/// Builds, waits for the worker, and looks for signed narinfos in the cache.
pub(super) fn run(stage: &mut Stage) -> Result<StepResult> {
    let said = stage.build("letter", &[])?;
    if !said.status.success() {
        return Ok(StepResult::Broken(format!("`nix-build` {}", ended(said.status))));
    }
    let letter = PathBuf::from(said.stdout.lines().last().unwrap_or_default());
    stage.drain()?;
    stage.hookrun(&["log", "--plugin", "cache"])?;

    let narinfo = stage.cache().join(format!("{}.narinfo", hash_part(&letter)));
    let Ok(text) = std::fs::read_to_string(&narinfo) else {
        return Ok(StepResult::Broken(format!("{} does not exist", narinfo.display())));
    };
    stage.show.command(&format!("cat {}", narinfo.display()));
    stage.show.file(&text);
    let key = stage.public_key.split(':').next().unwrap_or_default();
    if !text.lines().any(|line| line.starts_with(&format!("Sig: {key}:"))) {
        return Ok(StepResult::Broken(format!("{} has no signature of {key}", narinfo.display())));
    }
    stage.uploaded = Some(letter);
    Ok(StepResult::Works(format!(
        "both outputs are in {}, signed by {key}",
        stage.cache().display()
    )))
}

/// Returns the hash part of a store path, which is the name of its narinfo in a binary cache.
fn hash_part(store_path: &Path) -> String {
    let base = store_path.file_name().unwrap_or_default().to_string_lossy();
    base.split('-').next().unwrap_or_default().to_owned()
}
