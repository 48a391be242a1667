//! Every file of Rust begins with a comment that says what the module is for.
//!
//! rustc's `missing_docs` asks for a comment at every public item, which in this workspace (but for
//! the SDK, which has the lint) mostly repeats the item's name.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process::{CommandExt as _, repository};

/// Names every module without a head. Tests need none: their names say what they are for.
pub(crate) fn check() -> Result<()> {
    eprintln!("$ every module begins with a comment");
    let files = Command::new("git").args(["ls-files", "*.rs"]).current_dir(repository()).read()?;
    let mut bare = Vec::new();
    for file in files.lines().filter(|file| !file.contains("tests")) {
        let path = repository().join(file);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if !text.starts_with("//!") {
            bare.push(file);
        }
    }
    if bare.is_empty() {
        return Ok(());
    }
    bail!("modules without a comment at their head (`//!`); add one:\n{}", bare.join("\n"))
}
