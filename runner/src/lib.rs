//! hookrun: one program that Nix calls as `post-build-hook`, `diff-hook` and `build-hook`, and that
//! hands each call as a typed event to sandboxed WebAssembly plugins.
//!
//! # The house
//!
//! Data walks one way, `nix -> event -> queue -> plugin -> capability`, and a lower room never
//! imports a higher one:
//!
//! * [`role`]: which of the three hooks, or the command line, this process is.
//! * [`nix`]: what Nix says and hears: the hooks' wire forms, derivations, the store's database,
//!   the machines file.
//! * [`event`]: the typed events.
//! * [`evidence`]: what differs between two trees, bounded.
//! * [`queue`]: spool, journal, worker, roots. An event once handed over is not lost.
//! * [`plugin`]: the sandbox: engine, artifacts, grants, limits, and the one choke point for host
//!   calls.
//! * [`supervise`]: the worker's second process, in which guests run. [`wall`]: what the operating
//!   system refuses to it.
//! * [`capability`]: one file for each interface that plugins are offered.
//! * [`builders`]: builder selection: the pool of machines, the policy, delegation to Nix's own
//!   hook.
//! * [`shared`]: values that many hold. [`config`]: `hookrun.toml`, checked. [`dirs`]: where things
//!   are. [`layout`]: who owns them, and their modes. [`exit_code`]: what commands return.
//!   [`terminal`]: text from outside, made safe to show.
//! * [`doctor`]: will this Nix really call us?
//! * [`cli`]: one file a command. [`demo`]: the main job on real Nix in a private store.
//!   [`testing`]: `hookrun test`.
//!
//! The thin hook is [`role`], [`nix`], [`event`], [`evidence`] and [`queue::spool`]; it touches
//! none of the rest.

pub mod builders;
pub mod capability;
pub mod cli;
pub mod config;
pub mod demo;
pub mod dirs;
pub mod doctor;
pub mod event;
pub mod evidence;
pub mod exit_code;
pub mod gate;
pub mod layout;
pub mod nix;
pub mod outcome;
pub mod plugin;
pub mod process;
pub mod queue;
pub mod role;
pub mod selection;
pub mod shared;
pub mod supervise;
pub mod terminal;
pub mod testing;
pub mod wall;

/// Finds the role, plays it, and returns its exit code.
pub fn main() -> std::process::ExitCode {
    role::run().into()
}
