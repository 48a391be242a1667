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

fn compile() -> PathBuf {
    // target/debug/deps/limits-0123456789abcdef; the same target directory, which has the macros compiled already.
    let test = std::env::current_exe().unwrap();
    let target = test.ancestors().nth(4).unwrap();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace).args(["build", "--quiet", "--target", TARGET, "--target-dir"]).arg(target);
    for name in NAMES {
        command.args(["--package", &format!("guest-{name}")]);
    }
    super::Ran::of(&mut command).expect_success();
    target.join(TARGET).join("debug")
}
