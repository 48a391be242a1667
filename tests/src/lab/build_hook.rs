//! Conversations with the build hook without Nix.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use hookrun_nix::wire;

use super::hookrun_program;

/// The output of the hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The directives, one for each candidate.
    pub directives: Vec<String>,
    /// The other lines.
    pub messages: Vec<String>,
    /// The exit code.
    pub code: Option<i32>,
}

/// Returns the command of the hook with its configuration and state in `directory`, and with a
/// `nix` that is this shell script. The parent process is not Nix, so the hook looks for Nix in
/// PATH.
pub fn build_hook(directory: &Path, stock_hook: &str) -> Command {
    let nix = directory.join("nix");
    std::fs::write(&nix, format!("#!/bin/sh\n{stock_hook}\n")).unwrap();
    std::fs::set_permissions(&nix, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new(hookrun_program());
    command
        .args(["hook", "build-hook", "3"])
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", directory.display()))
        .env("HOOKRUN_CONFIG", directory.join("hookrun.toml"))
        .env("HOOKRUN_STATE_DIR", directory.join("state"))
        .env("NIX_STATE_DIR", directory.join("nix-state"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Returns settings and `count` questions as Nix writes them, and the position of each end.
pub fn conversation(builders: &str, count: usize) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = Vec::new();
    for (name, value) in [("builders", builders), ("max-jobs", "0"), ("system", "x86_64-linux")] {
        wire::write_u64(&mut bytes, 1).unwrap();
        wire::write_bytes(&mut bytes, name.as_bytes()).unwrap();
        wire::write_bytes(&mut bytes, value.as_bytes()).unwrap();
    }
    wire::write_u64(&mut bytes, 0).unwrap();
    let mut ends = vec![bytes.len()];
    for number in 0..count {
        wire::write_bytes(&mut bytes, b"try").unwrap();
        wire::write_u64(&mut bytes, 0).unwrap();
        wire::write_bytes(&mut bytes, b"x86_64-linux").unwrap();
        let drv_path = format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{number}.drv");
        wire::write_bytes(&mut bytes, drv_path.as_bytes()).unwrap();
        wire::write_list::<&str>(&mut bytes, &[]).unwrap();
        ends.push(bytes.len());
    }
    (bytes, ends)
}

/// Runs the hook with this input.
pub fn answers(command: &mut Command, bytes: &[u8]) -> Answered {
    let mut child = command.spawn().unwrap();
    // The hook may close its input after the answer.
    let _ = child.stdin.take().unwrap().write_all(bytes);
    let mut text = Vec::new();
    child.stderr.take().unwrap().read_to_end(&mut text).unwrap();
    let text = String::from_utf8_lossy(&text).into_owned();
    let (directives, messages) =
        text.lines().map(str::to_owned).partition(|line| line.starts_with("# "));
    Answered { directives, messages, code: child.wait().unwrap().code() }
}
