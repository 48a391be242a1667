//! The guest programs of the tests, `tests/guests/NAME`, as components.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use super::machine::locked;

/// What guests are compiled for.
const TARGET: &str = "wasm32-wasip2";
/// All of them.
const NAMES: [&str; 2] = ["faulty", "good"];

/// The component of a guest. Cargo compiles all guests on first use, and sees at once later that nothing is to be done.
pub fn guest(name: &str) -> PathBuf {
    static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| locked(compile));
    assert!(NAMES.contains(&name), "there is no guest `{name}` in tests/guests");
    DIRECTORY.join(format!("guest_{name}.wasm"))
}

/// As `runner/build.rs` builds the bundled plugins: no time spent on optimising the macros, which run once.
const PROFILE: [&str; 4] = [
    "profile.release.opt-level=1",
    "profile.release.lto=false",
    "profile.release.strip=true",
    "profile.release.build-override.opt-level=0",
];

fn compile() -> PathBuf {
    // target/debug/deps/limits-0123456789abcdef; a directory of their own, so that a cargo that runs meanwhile is not waited for.
    let test = std::env::current_exe().unwrap();
    let target = test.ancestors().nth(3).unwrap().join("guests");
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace).args(["build", "--release", "--quiet", "--target", TARGET, "--target-dir"]).arg(&target);
    // Flags of the outer build are meant for another target.
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    for name in NAMES {
        command.args(["--package", &format!("guest-{name}")]);
    }
    for setting in PROFILE {
        command.args(["--config", setting]);
    }
    super::Ran::of(&mut command).expect_success();
    target.join(TARGET).join("release")
}
