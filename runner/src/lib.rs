//! hookrun: one program that Nix calls as `post-build-hook`, `diff-hook` and `build-hook`, and that
//! passes each call as a typed event to sandboxed WebAssembly plugins.
//!
//! This crate is the program: it finds its role, and contains the commands and the processes. The
//! other parts are in the crates below `runner/crates/`; ARCHITECTURE.md lists which crate may
//! depend on which.
//!
//! * [`role`]: which of the three hooks, or the command line, this process runs as.
//! * [`gate`]: plugins whose failure fails the build.
//! * [`supervise`]: the process in which guests run, as a child of the worker.
//! * [`cli`]: one file per command. [`doctor`]: checks whether Nix calls hookrun.
//! * [`demo`]: the main functions with real Nix in a private store. [`testing`]: `hookrun test`.

pub mod cli;
pub mod demo;
pub mod doctor;
pub mod gate;
pub mod role;
pub mod supervise;
pub mod testing;

/// Finds the role, plays it, and returns its exit code.
pub fn main() -> std::process::ExitCode {
    role::run().into()
}
