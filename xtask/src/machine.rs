//! Installs what is needed to build and test hookrun (on Debian, as root), or names the command
//! that installs it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{CommandExt as _, repository};

/// Packages with their proofs, one per line. CI and the end-to-end tests use the same list.
const DEBIAN_PACKAGES: &str = include_str!("../debian-packages.txt");
/// The packages of `cargo xtask cross`: a cross compiler, an emulator, and Python, whose package
/// index has zig.
const CROSS_PACKAGES: [Package; 4] = [
    Package { name: "gcc-aarch64-linux-gnu", proof: "aarch64-linux-gnu-gcc" },
    Package { name: "libc6-dev-arm64-cross", proof: "/usr/aarch64-linux-gnu/include/stdlib.h" },
    Package { name: "qemu-user", proof: "qemu-aarch64" },
    Package { name: "python3-venv", proof: "/var/lib/dpkg/info/python3-venv.list" },
];
/// The target of plugins.
const WASM_TARGET: &str = "wasm32-wasip2";

/// What the machine is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// To compile only.
    Compiler,
    /// To run Nix too.
    Nix,
    /// To compile for other platforms, and to run programs of aarch64 Linux.
    Cross,
}

/// A package, and a program or file that shows that it is installed.
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

/// Returns the names of the packages to build and test hookrun on Debian.
pub(crate) fn debian_packages() -> impl Iterator<Item = &'static str> {
    packages().map(|package| package.name)
}

/// Returns the packages that are not installed in the Debian below `root`.
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

/// Finds a program in `PATH`, or in the directories for root that the `PATH` of a plain user lacks.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places.map(|place: PathBuf| place.join(name)).find(|program| program.is_file())
}

/// Installs what is missing.
///
/// # Errors
/// It cannot be installed; the error names the command.
pub(crate) fn prepare(need: Need) -> Result<()> {
    let debian = Path::new("/etc/debian_version").exists();
    let missing: Vec<Package> = packages()
        .filter(|package| need == Need::Nix || matches!(package.name, "gcc" | "libc6-dev"))
        .chain(CROSS_PACKAGES.into_iter().filter(|_| need == Need::Cross))
        // A file is a proof only on Debian.
        .filter(|package| debian || !package.proof.starts_with('/'))
        .filter(|package| !package.is_here())
        .collect();
    if !missing.is_empty() {
        install(debian, &missing)?;
    }
    rust_target(WASM_TARGET)
}

fn install(debian: bool, missing: &[Package]) -> Result<()> {
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    if !debian {
        let proofs: Vec<&str> = missing.iter().map(|package| package.proof).collect();
        bail!(
            "missing: {}; on Debian run `apt-get install -y --no-install-recommends {}`; for Nix on \
             other systems see https://nixos.org/download",
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
            "packages are missing; run `sudo apt-get install -y --no-install-recommends {}` and try again",
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

/// Adds a target of Rust if it is missing.
pub(crate) fn rust_target(target: &str) -> Result<()> {
    let mut rustc = Command::new("rustc");
    rustc.current_dir(repository());
    let libraries = rustc.args(["--print", "target-libdir", "--target", target]).read()?;
    if Path::new(libraries.trim()).is_dir() {
        return Ok(());
    }
    if find_program("rustup").is_none() {
        bail!(
            "the Rust target {target} is missing and there is no `rustup`; install the `rust-std` \
             of your Rust for {target}, or use rustup (https://rustup.rs)"
        );
    }
    Command::new("rustup").args(["target", "add", target]).current_dir(repository()).run()
}
