//! What a machine needs to build and test hookrun: installed where that can be done (Debian, root),
//! else the exact command.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{CommandExt as _, repository};

/// Package and proof, one a line; the one list that CI and the tests' lab use too.
const DEBIAN_PACKAGES: &str = include_str!("../debian-packages.txt");
/// What plugins are compiled for.
const WASM_TARGET: &str = "wasm32-wasip2";

/// How much is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// To compile only.
    Compiler,
    /// To run Nix too.
    Nix,
}

/// A package and what shows that it is there.
struct Package {
    name: &'static str,
    proof: &'static str,
}

impl Package {
    fn is_here(&self) -> bool {
        if self.proof.starts_with('/') {
            Path::new(self.proof).exists()
        } else {
            find_program(self.proof).is_some()
        }
    }
}

/// The names of all that is needed, on a Debian.
pub(crate) fn debian_packages() -> impl Iterator<Item = &'static str> {
    packages().map(|package| package.name)
}

/// The packages that a Debian in a directory lacks.
pub(crate) fn missing_below(root: &Path) -> Vec<&'static str> {
    let programs = ["usr/local/bin", "usr/bin", "usr/sbin"];
    let missing = packages().filter(|package| match package.proof.strip_prefix('/') {
        Some(file) => !root.join(file).exists(),
        None => !programs.iter().any(|place| root.join(place).join(package.proof).exists()),
    });
    missing.map(|package| package.name).collect()
}

fn packages() -> impl Iterator<Item = Package> {
    DEBIAN_PACKAGES.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (name, proof) = (words.next()?, words.next()?);
        (!name.starts_with('#')).then_some(Package { name, proof })
    })
}

/// The first program of this name in `PATH`, or in the directories of root that a plain user's
/// `PATH` lacks.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places.map(|place: PathBuf| place.join(name)).find(|program| program.is_file())
}

/// Installs what is missing.
///
/// # Errors
/// It cannot be installed here: names the command.
pub(crate) fn prepare(need: Need) -> Result<()> {
    let debian = Path::new("/etc/debian_version").exists();
    let missing: Vec<Package> = packages()
        // A file tells something on Debian only.
        .filter(|package| debian || !package.proof.starts_with('/'))
        .filter(|package| need == Need::Nix || matches!(package.name, "gcc" | "libc6-dev"))
        .filter(|package| !package.is_here())
        .collect();
    if !missing.is_empty() {
        install(debian, &missing)?;
    }
    wasm_target()
}

fn install(debian: bool, missing: &[Package]) -> Result<()> {
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    if !debian {
        let proofs: Vec<&str> = missing.iter().map(|package| package.proof).collect();
        bail!(
            "missing: {}; on Debian `apt-get install -y --no-install-recommends {}` brings them; Nix elsewhere: \
             https://nixos.org/download",
            proofs.join(", "),
            names.join(" ")
        );
    }
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    if !is_root()? {
        bail!(
            "missing packages; run `sudo apt-get install -y --no-install-recommends {}` and try again",
            names.join(" ")
        );
    }
    apt(&["update", "-qq"]).run()?;
    apt(&["install", "-y", "-qq", "--no-install-recommends"]).args(&names).run()
}

/// Returns whether this process runs as root.
pub(crate) fn is_root() -> Result<bool> {
    Ok(Command::new("id").arg("-u").read()?.trim() == "0")
}

/// Adds [`WASM_TARGET`] where it is missing.
fn wasm_target() -> Result<()> {
    let mut rustc = Command::new("rustc");
    rustc.current_dir(repository());
    let libraries = rustc.args(["--print", "target-libdir", "--target", WASM_TARGET]).read()?;
    if Path::new(libraries.trim()).is_dir() {
        return Ok(());
    }
    if find_program("rustup").is_none() {
        bail!(
            "the Rust target {WASM_TARGET} is missing and there is no `rustup`; install the `rust-std` of your Rust for \
             {WASM_TARGET}, or use rustup (https://rustup.rs)"
        );
    }
    Command::new("rustup").args(["target", "add", WASM_TARGET]).current_dir(repository()).run()
}
