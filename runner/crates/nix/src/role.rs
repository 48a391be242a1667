//! Decides which role a process plays: one of Nix's three hooks, or the command line.
//!
//! Both programs, `hookrun` and `hookrun-hook`, call this first. The decision depends only on the
//! arguments and on two facts about the process ([`Invocation`]). It is made before the
//! command-line parser, an async runtime or the engine are used, because Nix waits for the hooks.
//! Every call has a role, so that an unexpected one does not fail a build.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use crate::event::HookKind;

/// Link names that select a role. In Nix 2.8 to 2.34, argv\[0\] of `post-build-hook` and
/// `diff-hook` is the value of the setting; for `build-hook` it is the last component of that.
const LINKS: [(&[u8], HookKind); 3] = [
    (b"hookrun-post-build", HookKind::PostBuild),
    (b"hookrun-diff", HookKind::Diff),
    (b"hookrun-build-hook", HookKind::BuilderSelection),
];

/// The link that Nix's own build hook finds first in its `PATH` (`ssh` of `hookrun-builders`).
const SSH: &[u8] = b"ssh";

/// The word after `hookrun hook` that `hookrun-hook` uses to have the gates run.
pub const GATE: &str = "gate";

/// The words after `hookrun hook`.
const WORDS: [(&[u8], HookKind); 3] = [
    (b"post-build", HookKind::PostBuild),
    (b"diff", HookKind::Diff),
    (b"build-hook", HookKind::BuilderSelection),
];

/// Arguments of the diff hook since Nix 2.3: previous result, current result, derivation, build
/// directory.
pub const DIFF_ARGUMENTS: usize = 4;

/// Nix's default verbosity (`lvlInfo`), for a build hook called without one.
const DEFAULT_VERBOSITY: u64 = 3;

/// The role of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Nix's `post-build-hook`. All its input is in the environment.
    PostBuild,
    /// Nix's `diff-hook`, with its arguments (as many as were given).
    Diff(Vec<OsString>),
    /// Nix's `build-hook`, with Nix's verbosity.
    BuildHook {
        /// 0 error, 3 info (the default), 7 vomit.
        verbosity: u64,
    },
    /// The gates, on an event that `hookrun-hook` has handed over, with the arguments of
    /// `hookrun-queue`'s `HookResult`.
    Gate(Vec<OsString>),
    /// The ssh of Nix's own build hook, which hookrun started, with its arguments.
    Ssh(Vec<OsString>),
    /// A command that a user or a script runs.
    CommandLine,
}

/// The input of the decision.
#[derive(Debug, Clone, Copy)]
pub struct Invocation<'a> {
    /// argv, with argv\[0\].
    pub argv: &'a [OsString],
    /// Whether `DRV_PATH` is in the environment and not empty.
    pub drv_path: bool,
    /// Whether standard input is a pipe.
    pub stdin_is_pipe: bool,
}

impl Role {
    /// Returns the role of this process.
    pub fn of_this_process() -> Self {
        let argv: Vec<OsString> = std::env::args_os().collect();
        Self::of(Invocation {
            argv: &argv,
            drv_path: std::env::var_os("DRV_PATH").is_some_and(|path| !path.is_empty()),
            // Only a call with a single argument depends on this.
            stdin_is_pipe: argv.len() == 2 && crate::stdin_is_pipe(),
        })
    }

    /// Returns the role of a process that was called like this.
    pub fn of(call: Invocation<'_>) -> Self {
        let (program, arguments) = match call.argv.split_first() {
            Some((program, arguments)) => (program.as_bytes(), arguments),
            None => (&b""[..], &[][..]),
        };
        let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or(program);
        if let Some((_, hook)) = LINKS.iter().find(|(link, _)| *link == name) {
            return hook.role(arguments);
        }
        if name == SSH {
            return Self::Ssh(arguments.to_vec());
        }
        match arguments {
            [] if call.drv_path => Self::PostBuild,
            [number] if call.stdin_is_pipe && decimal(number).is_some() => {
                HookKind::BuilderSelection.role(arguments)
            }
            [hook, gate, rest @ ..] if hook == "hook" && gate == GATE => Self::Gate(rest.to_vec()),
            [hook, word, rest @ ..] if hook == "hook" => {
                match WORDS.iter().find(|(known, _)| *known == word.as_bytes()) {
                    Some((_, hook)) => hook.role(rest),
                    None => Self::CommandLine,
                }
            }
            [_, _, _, _] if arguments.iter().all(|argument| path_like(argument)) => {
                Self::Diff(arguments.to_vec())
            }
            _ => Self::CommandLine,
        }
    }
}

impl HookKind {
    fn role(self, arguments: &[OsString]) -> Role {
        match self {
            Self::PostBuild => Role::PostBuild,
            Self::Diff => Role::Diff(arguments.to_vec()),
            // Nix appends the verbosity to the words of the setting.
            Self::BuilderSelection => Role::BuildHook {
                verbosity: arguments
                    .last()
                    .and_then(|word| decimal(word))
                    .unwrap_or(DEFAULT_VERBOSITY),
            },
        }
    }
}

/// Returns whether the argument is an absolute path, as all four arguments of the diff hook are.
fn path_like(argument: &OsStr) -> bool {
    argument.as_bytes().starts_with(b"/")
}

fn decimal(argument: &OsStr) -> Option<u64> {
    argument.to_str().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(argv: &[&str], drv_path: bool, stdin_is_pipe: bool) -> Role {
        let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
        Role::of(Invocation { argv: &argv, drv_path, stdin_is_pipe })
    }

    fn diff(arguments: &[&str]) -> Role {
        Role::Diff(arguments.iter().map(OsString::from).collect())
    }

    const FOUR: [&str; 4] =
        ["/nix/store/a", "/nix/store/a.check", "/nix/store/a.drv", "/tmp/nix-build-a.drv-0"];

    #[test]
    fn each_link_name_selects_its_role() {
        assert_eq!(role(&["/x/hookrun-post-build"], false, false), Role::PostBuild);
        assert_eq!(role(&["hookrun-post-build", "--help"], true, false), Role::PostBuild);
        assert_eq!(role(&["/x/hookrun-diff", "only-one"], false, false), diff(&["only-one"]));
        assert_eq!(
            role(&["hookrun-build-hook", "7"], true, false),
            Role::BuildHook { verbosity: 7 }
        );
        assert_eq!(
            role(&["hookrun-build-hook", "word", "4"], false, true),
            Role::BuildHook { verbosity: 4 }
        );
        assert_eq!(role(&["hookrun-build-hook"], false, true), Role::BuildHook { verbosity: 3 });
        assert_eq!(
            role(&["ssh", "m", "true"], false, true),
            Role::Ssh(vec!["m".into(), "true".into()])
        );
        assert_eq!(role(&["/hookrun-diff/hookrun"], false, false), Role::CommandLine);
    }

    #[test]
    fn calls_of_nix_are_recognised() {
        assert_eq!(role(&["/x/hookrun"], true, true), Role::PostBuild);
        assert_eq!(
            role(&["hookrun", FOUR[0], FOUR[1], FOUR[2], FOUR[3]], false, false),
            diff(&FOUR)
        );
        assert_eq!(
            role(&["hookrun", "3"], true, true),
            Role::BuildHook { verbosity: 3 },
            "the daemon may have DRV_PATH"
        );
        assert_eq!(
            role(&["hookrun", "3"], false, false),
            Role::CommandLine,
            "a number, but standard input is not a pipe"
        );
        assert_eq!(role(&["hookrun", "+3"], false, true), Role::CommandLine);
    }

    #[test]
    fn hook_subcommands_select_their_role() {
        assert_eq!(role(&["hookrun", "hook", "post-build"], false, false), Role::PostBuild);
        assert_eq!(role(&["hookrun", "hook", "diff", "a", "b"], false, false), diff(&["a", "b"]));
        assert_eq!(
            role(&["hookrun", "hook", "build-hook", "5"], false, false),
            Role::BuildHook { verbosity: 5 }
        );
        assert_eq!(
            role(&["hookrun", "hook", "gate", "3", "late"], true, false),
            Role::Gate(vec!["3".into(), "late".into()])
        );
        assert_eq!(role(&["hookrun", "hook", "other"], true, true), Role::CommandLine);
    }

    #[test]
    fn other_arguments_select_the_command_line() {
        assert_eq!(role(&["hookrun"], false, true), Role::CommandLine);
        assert_eq!(
            role(&["hookrun", "status"], true, true),
            Role::CommandLine,
            "inside a shell that kept DRV_PATH"
        );
        assert_eq!(role(&["hookrun", "test", "/a", "/b", "/c"], false, false), Role::CommandLine);
        assert_eq!(role(&[], false, false), Role::CommandLine);
        assert_eq!(role(&[], true, false), Role::PostBuild);
    }
}
