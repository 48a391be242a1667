//! The interfaces of Nix to its hooks, the start of Nix programs, and the types that all other
//! crates share.
//!
//! Comments cite facts about Nix with file and version.
//!
//! * [`role`]: which hook a process is, or the command line.
//! * Nix's formats: [`post_build`], [`diff`], [`wire`] (input of the hooks), [`derivation`],
//!   [`database`], [`nar`], [`narinfo`], [`machines`], [`store_uri`].
//! * [`caller`], [`installed`]: the calling and the installed Nix. [`versions`]: how versions
//!   differ. [`bounded`]: runs a program with a time limit.
//! * [`event`]: the events of hooks. [`evidence`]: the differences between two trees. [`outcome`]:
//!   the result of a plugin's run. [`selection`]: the question to a policy and its answer.
//! * [`dirs`]: the places of files. [`layout`]: their owners and modes. [`process`]: signals and
//!   file descriptors. [`sqlite`]: versions of databases. [`terminal`]: escapes text from outside.
//!   [`exit_code`]: exit codes of all commands.

// Standard output belongs to commands, and Nix reads the standard error of hooks, so only
// `hookrun_nix::terminal::say` writes there.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod bounded;
pub mod caller;
pub mod database;
pub mod derivation;
pub mod diff;
pub mod dirs;
pub mod event;
pub mod evidence;
pub mod exit_code;
pub mod installed;
pub mod layout;
pub mod machines;
pub mod nar;
pub mod narinfo;
pub mod outcome;
pub mod post_build;
pub mod process;
pub mod role;
pub mod selection;
pub mod sqlite;
pub mod store_uri;
pub mod terminal;
pub mod versions;
pub mod wire;

use std::ffi::OsStr;
use std::process::Command;

use crate::event::{NixDirs, Output};

/// The variable that hookrun sets for every program that it starts. A hook that finds it was called
/// by a Nix that hookrun started.
pub const NESTED: &str = "HOOKRUN_NESTED";

/// Variables of hooks that no child may inherit. A Nix below would pass the *outer* `DRV_PATH` to
/// its own hooks, because Nix sets its variables only if they are not set (seen with 2.8.0).
/// `NIX_CONFIG` contains every setting, including access tokens and the hook itself.
pub const HOOK_VARIABLES: [&str; 3] = ["DRV_PATH", "OUT_PATHS", "NIX_CONFIG"];

/// Settings that prevent a Nix from calling hooks again. If the user is trusted, they are sent to a
/// daemon as overrides.
const NO_HOOKS: &str = "post-build-hook =\nrun-diff-hook = false\n";

/// Returns a command for `program` that does not call hookrun again. Use it for every Nix that
/// hookrun starts.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    scrub(&mut command);
    command.env("NIX_CONFIG", NO_HOOKS);
    command
}

/// Removes the variables of a hook from the environment of a child, and marks the child as started
/// by hookrun.
pub fn scrub(command: &mut Command) -> &mut Command {
    for name in HOOK_VARIABLES {
        command.env_remove(name);
    }
    command.env(NESTED, "1")
}

/// Returns whether this process was started by a Nix that hookrun started.
pub fn is_nested() -> bool {
    std::env::var_os(NESTED).is_some_and(|value| !value.is_empty())
}

/// Returns whether standard input is a pipe, as it is for a build hook.
pub fn stdin_is_pipe() -> bool {
    rustix::fs::fstat(rustix::stdio::stdin()).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo
    })
}

/// The length of the hash part of a store path's name.
const HASH_LENGTH: usize = 32;
/// The longest name after the hash that Nix accepts (`StorePath::MaxPathLen`).
const MAX_NAME_LENGTH: usize = 211;

/// Returns whether `path` is a store path, `<store_dir>/<hash>-<name>`, and not a path below one.
/// This is the rule of Nix's `StorePath` (2.8 `libstore/path.cc`): 32 characters of Nix's base 32,
/// a dash, then at most 211 letters, digits and `+-._?=`.
pub fn is_store_path(store_dir: &str, path: &str) -> bool {
    let base = path.strip_prefix(store_dir).and_then(|rest| rest.strip_prefix('/'));
    let Some((hash, name)) = base.and_then(|base| base.split_at_checked(HASH_LENGTH)) else {
        return false;
    };
    let Some(name) = name.strip_prefix('-') else { return false };
    hash.bytes().all(|byte| {
        matches!(byte, b'0'..=b'9' | b'a'..=b'z') && !matches!(byte, b'e' | b'o' | b'u' | b't')
    }) && (1..=MAX_NAME_LENGTH).contains(&name.len())
        && name.bytes().all(|byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.' | b'_' | b'?' | b'=')
        })
}

/// Returns the output's name according to its path, for use if the derivation does not contain it:
/// `<hash>-<name>` is `out` and `<hash>-<name>-dev` is `dev` (Nix's `outputPathName`). Returns none
/// if the path belongs to another derivation.
pub fn output_name_from_path<'a>(drv_path: &str, output_path: &'a str) -> Option<&'a str> {
    let name = crate::event::derivation_name(drv_path);
    match crate::event::derivation_name(output_path).strip_prefix(name)? {
        "" => Some("out"),
        rest => rest.strip_prefix('-').filter(|output| !output.is_empty()),
    }
}

/// Returns the outputs of the derivation at `drv_path` whose paths are known, by name. The file may
/// have at most `most` bytes.
///
/// # Errors
/// The derivation cannot be read; see [`derivation::Derivation::read_in`].
pub fn outputs_of(
    dirs: &NixDirs,
    drv_path: &str,
    most: u64,
) -> Result<Vec<Output>, derivation::DerivationError> {
    let derivation = derivation::Derivation::read_in(dirs, drv_path, most)?;
    Ok(derivation
        .outputs
        .into_iter()
        .filter_map(|output| output.path.map(|path| Output { name: output.name, path }))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";

    #[test]
    fn store_paths_are_recognised() {
        let is = |rest: &str| is_store_path("/nix/store", &format!("/nix/store/{HASH}{rest}"));
        assert!(is("-hello-2.12.drv") && is("-a") && is("-a.check"));
        assert!(
            !is("")
                && !is("-")
                && !is("-a/b")
                && !is("-a b")
                && !is("-\u{fc}")
                && !is(&format!("-{}", "a".repeat(212)))
        );
        assert!(!is_store_path("/nix/store", &format!("/nix/storex/{HASH}-a")));
        assert!(!is_store_path(
            "/nix/store",
            "/nix/store/../../etc/passwd-0000000000000000000000000"
        ));
        assert!(!is_store_path("/nix/store", &format!("/nix/store/{}-a", "e".repeat(32))));
    }

    #[test]
    fn output_names_are_taken_from_store_paths() {
        let drv_path = format!("/nix/store/{HASH}-b-1.0.drv");
        let name = |output| output_name_from_path(&drv_path, output);
        assert_eq!(name("/nix/store/cvar8nqq71gb8af77ichz56mh6f9hd65-b-1.0"), Some("out"));
        assert_eq!(name("/nix/store/cvar8nqq71gb8af77ichz56mh6f9hd65-b-1.0-dev"), Some("dev"));
        assert_eq!(name("/nix/store/cvar8nqq71gb8af77ichz56mh6f9hd65-b-1.0x"), None);
    }

    #[test]
    fn children_do_not_inherit_the_variables_of_a_hook() {
        let command = command("nix-store");
        let env: Vec<_> = command.get_envs().collect();
        assert!(
            env.contains(&(OsStr::new("DRV_PATH"), None))
                && env.contains(&(OsStr::new("OUT_PATHS"), None))
        );
        assert!(env.contains(&(OsStr::new(NESTED), Some(OsStr::new("1")))));
        assert!(env.contains(&(OsStr::new("NIX_CONFIG"), Some(OsStr::new(NO_HOOKS)))));
    }
}
