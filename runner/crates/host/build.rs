//! Builds the bundled plugins to WebAssembly components, so that `cargo install` gives a binary
//! that has them.
//!
//! A nested cargo builds them in a target directory of its own (the outer cargo holds the lock of
//! the other one), from the same lock file and, if the outer cargo was offline, offline. Nothing of
//! the outer build's flags reaches it: they are meant for another target.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

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
    let variable = |name: &str| {
        std::env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("cargo did not set {name}"))
    };
    let workspace = variable("CARGO_MANIFEST_DIR")?.join("../../..");
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
    let plugins = plugins(&workspace)?;
    for plugin in &plugins {
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
        return Err(explain(output.status, &String::from_utf8_lossy(&output.stderr)));
    }
    let mut table = Vec::new();
    for plugin in &plugins {
        let built = target_dir
            .join(TARGET)
            .join("release")
            .join(format!("{}.wasm", plugin.replace('-', "_")));
        let component = out.join(format!("{plugin}.wasm"));
        copy(&built, &component)?;
        let component = component.to_str().ok_or("the target directory's path is not UTF-8")?;
        table.push(format!("({plugin:?}, include_bytes!({component:?}))"));
    }
    std::fs::write(out.join("components.rs"), format!("&[{}]", table.join(",\n")))
        .map_err(|error| format!("cannot write in {} ({error})", out.display()))
}

/// The crates in `plugins/`. Each directory's name is its package's.
fn plugins(workspace: &Path) -> Result<Vec<String>, String> {
    let directory = workspace.join("plugins");
    let unreadable = |error| format!("cannot list {} ({error})", directory.display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&directory).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if entry.path().join("Cargo.toml").exists() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
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
fn explain(status: ExitStatus, errors: &str) -> String {
    let missing = errors.contains("can't find crate for `core`")
        || errors.contains("can't find crate for `std`");
    if missing || errors.contains("target may not be installed") {
        return format!(
            "the bundled plugins need the target {TARGET}; run `rustup target add {TARGET}`"
        );
    }
    format!("the bundled plugins do not build (cargo ended with {status}):\n{errors}")
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    std::fs::copy(from, to)
        .map(|_| ())
        .map_err(|error| format!("cannot copy {} to {} ({error})", from.display(), to.display()))
}
