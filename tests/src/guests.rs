//! Builds the guests of `tests/guests` and the Rust plugins of `examples/plugins` on demand.
//!
//! The build is a nested cargo with its own target directory beside that of the tests, so that
//! later runs only check whether it is up to date.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

/// The target of components.
const TARGET: &str = "wasm32-wasip2";

/// The variable with the directory of built guests, where there is no cargo (`cargo xtask
/// newer-nix`).
const BUILT_ELSEWHERE: &str = "HOOKRUN_GUESTS";

/// The Rust plugins of `examples/plugins`.
pub const EXAMPLES: [&str; 2] = ["build-ledger", "provenance"];

/// Returns the component of a guest of `tests/guests`, such as `good`.
///
/// # Errors
/// If it does not build.
pub fn guest(name: &str) -> Result<PathBuf> {
    component(&format!("guest_{name}.wasm"))
}

/// Returns the component of one of [`EXAMPLES`].
///
/// # Errors
/// If it does not build.
pub fn example(name: &str) -> Result<PathBuf> {
    component(&format!("{}.wasm", name.replace('-', "_")))
}

fn component(file: &str) -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let directory = BUILT
        .get_or_init(|| build().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(anyhow::Error::msg)?;
    let path = directory.join(file);
    ensure!(path.exists(), "the guests and examples have no component {file}");
    Ok(path)
}

/// Returns a copy of the component that every user of the machine can read. Other users may not be
/// able to enter a target directory.
///
/// # Errors
/// If it cannot be built or copied.
pub fn guest_for_all(name: &str) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let component = std::fs::read(guest(name)?)?;
    let user = rustix::process::getuid().as_raw();
    let directory = std::env::temp_dir().join(format!("hookrun-test-guests-{user}"));
    std::fs::create_dir_all(&directory)?;
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755))?;
    // An existing file is not replaced, because workers of other tests would read it again.
    let mut hasher = DefaultHasher::new();
    component.hash(&mut hasher);
    let path = directory.join(format!("{name}-{:016x}.wasm", hasher.finish()));
    if !path.exists() {
        // Tests run at the same time, in processes or threads.
        let own = format!(".{name}-{}-{:?}", std::process::id(), std::thread::current().id());
        let copy = directory.join(own);
        std::fs::write(&copy, component)?;
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o644))?;
        std::fs::rename(&copy, &path)?;
    }
    Ok(path)
}

/// Returns the files of `plugin-sdk/wit` for plugins and their texts. The host comes before the
/// hooks.
///
/// # Panics
/// If they cannot be read.
pub fn sdk_interfaces() -> Vec<(PathBuf, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugin-sdk/wit");
    let files = ["host-0.1.0/host", "post-build-0.1.0/post-build", "diff-0.1.0/diff"];
    let files = files.map(|name| directory.join(name).with_extension("wit"));
    files
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            (path, text)
        })
        .collect()
}

fn build() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os(BUILT_ELSEWHERE) {
        return Ok(PathBuf::from(directory));
    }
    let workspace =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the tests are in a workspace")?;
    // The tests run from `<target>/<profile>/deps`.
    let program = std::env::current_exe()?;
    let target =
        program.ancestors().nth(3).context("the tests run from a target directory")?.join("guests");
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(workspace)
        .args([
            "build",
            "--release",
            "--target",
            TARGET,
            "--package",
            "guest-good",
            "--package",
            "guest-faulty",
        ])
        .args(["--package", "guest-greedy"])
        .args(["--package", "guest-web"])
        .args(["--package", "guest-escape"])
        .args(["--package", "guest-hostile"])
        .args(EXAMPLES.iter().flat_map(|name| ["--package", name]))
        .args([
            "--config",
            "profile.release.lto=false",
            "--config",
            "profile.release.build-override.opt-level=0",
        ])
        .arg("--target-dir")
        .arg(&target)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .output()
        .context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "the guests do not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(target.join(TARGET).join("release"))
}
