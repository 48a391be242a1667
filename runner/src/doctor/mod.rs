//! Finds out whether this Nix calls hookrun, and whether that works. `hookrun doctor` gathers facts
//! about Nix, its configuration, users and directories ([`gather`]) and turns them into findings
//! ([`findings`]), each with the line to write and where.
//!
//! Nothing is changed and nothing is built.

pub mod findings;
pub mod gather;
pub mod secrets;

pub use findings::{Finding, Level, examine};
pub use gather::facts;

use std::path::PathBuf;

use hookrun_nix::installed::{Flavour, Version};
use hookrun_queue::worker::Running;

/// Facts about this machine. [`findings`] decides what they mean.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Whether this process is root.
    pub root: bool,
    /// The Nix of this machine, or why it cannot be asked.
    pub nix: Result<NixFacts, String>,
    /// The file that the daemon reads.
    pub nix_conf: PathBuf,
    /// The value of `build-hook` in that file, whatever Nix makes of it.
    pub build_hook_in_file: Option<String>,
    /// Whether `nix.conf` was changed after the running daemon read it.
    pub daemon_is_older: bool,
    /// What is wrong with hookrun's configuration.
    pub config_error: Option<String>,
    /// The file of that configuration.
    pub config: PathBuf,
    /// `[worker] start`.
    pub start: hookrun_config::Start,
    /// The worker that runs.
    pub worker: Option<Running>,
    /// Whether a process waits to start one for build users.
    pub waiter_runs: bool,
    /// What `systemctl is-active hookrun` says, where there is a systemd.
    pub service: Option<String>,
    /// Whether the built-in configuration is used, because there is no file.
    pub config_is_embedded: bool,
    /// Events and due tasks that wait although no worker runs, with the fix.
    pub stalled: Option<String>,
    /// Secrets that others can read or replace; each with its fix.
    pub secrets: Vec<String>,
    /// What is wrong with the wall round guests, and with `worker.user`; each with its fix.
    pub sandbox: Vec<String>,
    /// The state directory.
    pub state: PathBuf,
    /// Why a build user cannot reach the spool; each with its fix.
    pub spool: Vec<String>,
    /// The directory of this program, where links to it would be.
    pub links: PathBuf,
}

/// A Nix.
#[derive(Debug, Clone, PartialEq)]
pub struct NixFacts {
    /// The output of `nix --version`.
    pub says: String,
    /// Nix or Lix.
    pub flavour: Flavour,
    /// Its version.
    pub version: Version,
    /// What `post-build-hook` is.
    pub post_build_hook: Hook,
    /// What to do to have `hookrun-hook` as `post-build-hook`, if it is installed and not used.
    pub faster_post_build_hook: Option<String>,
    /// What `diff-hook` is.
    pub diff_hook: Hook,
    /// The same for `diff-hook`.
    pub faster_diff_hook: Option<String>,
    /// `run-diff-hook`.
    pub run_diff_hook: bool,
    /// What `build-hook` is.
    pub build_hook: Hook,
    /// Machines in `builders`.
    pub machines: usize,
    /// What is wrong with those machines.
    pub machine_warnings: Vec<String>,
    /// One of them has a fraction as speed factor.
    pub fractions: bool,
    /// `build-users-group`, and how many members it has; none if there is no such group.
    pub build_users: Option<(String, Option<usize>)>,
}

/// What a hook's setting names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hook {
    /// Nothing, or Nix's own.
    Unset,
    /// hookrun, as this text.
    Hookrun(String),
    /// Another program, as this text.
    Other(String),
    /// A file that is not there, or cannot be executed: the text and why.
    Unusable(String, String),
}
