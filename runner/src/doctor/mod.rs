//! Finds out whether the installed Nix calls hookrun, and whether hookrun works. `hookrun doctor`
//! gathers facts about Nix, its configuration, users and directories ([`gather`]), and turns them
//! into findings ([`findings`]), each with the line to write and its file.
//!
//! It changes nothing and builds nothing.

pub mod findings;
pub mod gather;
pub mod secrets;

pub use findings::{Finding, Level, examine};
pub use gather::facts;

use std::path::PathBuf;

use hookrun_nix::installed::{Flavour, Version};
use hookrun_queue::worker::Running;

/// Facts about this machine, which [`findings`] interprets.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Whether this process is root.
    pub root: bool,
    /// The Nix of this machine, or the reason why it cannot be asked.
    pub nix: Result<NixFacts, String>,
    /// The nix.conf that the daemon reads.
    pub nix_conf: PathBuf,
    /// The value of `build-hook` in that file, which Nix may ignore.
    pub build_hook_in_file: Option<String>,
    /// Whether `nix.conf` was changed after the running daemon read it.
    pub daemon_is_older: bool,
    /// The error in hookrun's configuration.
    pub config_error: Option<String>,
    /// The file of hookrun's configuration.
    pub config: PathBuf,
    /// The value of `[worker] start`.
    pub start: hookrun_config::Start,
    /// The running worker.
    pub worker: Option<Running>,
    /// Whether a process waits for build users, to start a worker for them.
    pub waiter_runs: bool,
    /// The output of `systemctl is-active hookrun`, if there is a systemd.
    pub service: Option<String>,
    /// Whether the built-in configuration is used, because the file does not exist.
    pub config_is_embedded: bool,
    /// Events and due tasks that wait although no worker runs, with the fix.
    pub stalled: Option<String>,
    /// Secrets that other users can read or replace, each with the fix.
    pub secrets: Vec<String>,
    /// Problems of the sandbox and of `worker.user`, each with the fix.
    pub sandbox: Vec<String>,
    /// The state directory.
    pub state: PathBuf,
    /// Reasons why a build user cannot reach the spool, each with the fix.
    pub spool: Vec<String>,
    /// The directory of this program, in which the links to it are.
    pub links: PathBuf,
}

/// Facts about a Nix.
#[derive(Debug, Clone, PartialEq)]
pub struct NixFacts {
    /// The output of `nix --version`.
    pub version_output: String,
    /// Nix or Lix.
    pub flavour: Flavour,
    /// Its version.
    pub version: Version,
    /// The program in `post-build-hook`.
    pub post_build_hook: ConfiguredHook,
    /// The change that makes `hookrun-hook` the `post-build-hook`, if it is installed and not used.
    pub faster_post_build_hook: Option<String>,
    /// The program in `diff-hook`.
    pub diff_hook: ConfiguredHook,
    /// The change that makes `hookrun-hook` the `diff-hook`, if it is installed and not used.
    pub faster_diff_hook: Option<String>,
    /// The value of `run-diff-hook`.
    pub run_diff_hook: bool,
    /// The program in `build-hook`.
    pub build_hook: ConfiguredHook,
    /// The number of machines in `builders`.
    pub machines: usize,
    /// Problems of these machines.
    pub machine_warnings: Vec<String>,
    /// Whether a machine has a fraction as its speed factor.
    pub fractions: bool,
    /// The value of `build-users-group`, and the number of its members; none if there is no such
    /// group.
    pub build_users: Option<(String, Option<usize>)>,
}

/// The program in the setting of a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfiguredHook {
    /// No program, or Nix's own.
    Unset,
    /// hookrun, with the text of the setting.
    Hookrun(String),
    /// Another program, with the text of the setting.
    Other(String),
    /// A file that does not exist or cannot be executed: the text and the reason.
    Unusable(String, String),
}
