//! `cargo xtask dist`: what a package of hookrun holds, in `target/dist`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::machine::{self, Need};
use crate::process::{CommandExt as _, cargo, repository, target_directory};

/// Shells and the names of their completion files.
const COMPLETIONS: [(&str, &str); 3] =
    [("bash", "hookrun.bash"), ("zsh", "_hookrun"), ("fish", "hookrun.fish")];

/// Builds the release and puts the programs, completions, man pages, examples and licences
/// together.
pub(crate) fn run() -> Result<()> {
    machine::prepare(Need::Compiler)?;
    cargo().args(["build", "--release", "--package", "hookrun"]).run()?;
    let target = target_directory()?;
    let (program, dist) = (target.join("release/hookrun"), target.join("dist"));
    if dist.exists() {
        std::fs::remove_dir_all(&dist)
            .with_context(|| format!("cannot empty {}", dist.display()))?;
    }
    for directory in ["bin", "completions", "man", "examples"] {
        make(&dist.join(directory))?;
    }
    for name in ["hookrun", "hookrun-hook"] {
        copy(&program.with_file_name(name), &dist.join("bin").join(name))?;
    }
    for (shell, file) in COMPLETIONS {
        let text = Command::new(&program).args(["completions", shell]).read()?;
        std::fs::write(dist.join("completions").join(file), text)?;
    }
    Command::new(&program).arg("man").arg(dist.join("man")).read()?;
    for name in ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        copy(&repository().join(name), &dist.join(name))?;
    }
    copy_tree(&repository().join("examples"), &dist.join("examples"))?;
    let size = |name: &str| -> Result<u64> {
        Ok(std::fs::metadata(dist.join("bin").join(name))?.len() / 1024)
    };
    println!(
        "{} (hookrun: {} KiB, hookrun-hook: {} KiB)",
        dist.display(),
        size("hookrun")?,
        size("hookrun-hook")?
    );
    Ok(())
}

fn make(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    make(to)?;
    for entry in
        std::fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?
    {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            copy(&entry.path(), &target)?;
        }
    }
    Ok(())
}
