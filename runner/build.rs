//! Builds the bundled plugins to WebAssembly components, so that `cargo install` gives a binary
//! that has them.
//!
//! A nested cargo builds them in a target directory of its own (the outer cargo holds the lock of
//! the other one), from the same lock file and, if the outer cargo was offline, offline. Nothing of
//! the outer build's flags reaches it: they are meant for another target.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The crates in `plugins/`.
const PLUGINS: &[&str] = &["email-on-nondeterminism", "s3-upload", "speed-factor"];

/// The target of components.
const TARGET: &str = "wasm32-wasip2";

/// The profile, as `--config` flags: small code, and no time spent on optimising what runs at build
/// time.
const PROFILE: &[&str] = &[
    "profile.release.opt-level=\"s\"",
    "profile.release.lto=true",
    "profile.release.codegen-units=1",
    "profile.release.panic=\"abort\"",
    "profile.release.strip=true",
    "profile.release.debug=false",
    "profile.release.build-override.opt-level=0",
    "profile.release.build-override.debug=false",
];

fn main() {
    if let Err(message) = build() {
        eprintln!("error: {message}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    // A hook is a process of milliseconds, and a good part of them is the loader reading 1.5 MB of
    // relocations: packed (`DT_RELR`, glibc 2.36) they are 20 KB. Linkers that do not know it warn
    // and go on.
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    let variable = |name: &str| {
        std::env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("cargo did not set {name}"))
    };
    let workspace = variable("CARGO_MANIFEST_DIR")?.join("..");
    let out = variable("OUT_DIR")?;
    for watched in ["plugins", "plugin-sdk"] {
        println!("cargo::rerun-if-changed={}", workspace.join(watched).display());
    }
    let target_dir = out.join("plugins");
    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .current_dir(&workspace)
        .args(["build", "--release", "--target", TARGET, "--target-dir"])
        .arg(&target_dir);
    for plugin in PLUGINS {
        cargo.args(["--package", plugin]);
    }
    for setting in PROFILE {
        cargo.args(["--config", setting]);
    }
    scrub(&mut cargo);
    let output = cargo
        .output()
        .map_err(|error| format!("cannot run cargo for the bundled plugins ({error})"))?;
    if !output.status.success() {
        return Err(explain(&String::from_utf8_lossy(&output.stderr)));
    }
    for plugin in PLUGINS {
        let built = target_dir
            .join(TARGET)
            .join("release")
            .join(format!("{}.wasm", plugin.replace('-', "_")));
        copy(&built, &out.join(format!("{plugin}.wasm")))?;
    }
    Ok(())
}

/// Removes what the outer cargo set for its own build. Where things are (`CARGO_HOME`, `RUSTUP_*`)
/// and how to reach them (`CARGO_NET_*`, `CARGO_HTTP_*`, `CARGO_REGISTR*`) stays.
fn scrub(cargo: &mut Command) {
    const KEPT: &[&str] =
        &["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_"];
    const OUTER: &[&str] = &[
        "CARGO",
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "RUSTC",
        "TARGET",
        "HOST",
        "PROFILE",
        "OPT_LEVEL",
        "DEBUG",
    ];
    for (name, _) in std::env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let outer = OUTER.contains(&text)
            || text.starts_with("CARGO_")
            || text.starts_with("RUSTC_")
            || text.starts_with("DEP_");
        if outer && !KEPT.iter().any(|kept| text.starts_with(kept)) {
            cargo.env_remove(&name);
        }
    }
}

/// What to do about a build that failed.
fn explain(errors: &str) -> String {
    let missing = errors.contains("can't find crate for `core`")
        || errors.contains("can't find crate for `std`");
    if missing || errors.contains("target may not be installed") {
        return format!(
            "the bundled plugins need the target {TARGET}; run `rustup target add {TARGET}`"
        );
    }
    format!("the bundled plugins do not build:\n{errors}")
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    std::fs::copy(from, to)
        .map(|_| ())
        .map_err(|error| format!("cannot copy {} to {} ({error})", from.display(), to.display()))
}
