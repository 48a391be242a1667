//! `hookrun-hook`: the post-build hook and the diff hook in a small program.
//!
//! Every build pays for starting its hook, so this program has no engine, no async runtime and no
//! command-line parser, and is linked statically where that is possible (`build.rs`). It is a part
//! of `hookrun`, which must be in the same directory: hookrun-hook executes it for gates and for
//! every other role, and starts it as the worker.
//!
//! With glibc the program has the C entry point: what the standard library does before its own
//! `main` (alternative signal stack, reading `/proc/self/maps`) would be a tenth of a hook's time.

#![cfg_attr(target_env = "gnu", no_main)]

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use hookrun_nix::exit_code::Exit;
use hookrun_nix::role::Role;
use hookrun_nix::terminal::say;
use hookrun_queue::guard::Ended;
use hookrun_queue::{hand_over, spawn};

/// Called by the C library. The arguments are in [`std::env::args_os`], which glibc fills before.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "exports the symbol that the C library calls")]
// SAFETY: no other function of the program has this name, and it has the type that C wants.
#[unsafe(no_mangle)]
extern "C" fn main(
    _count: std::ffi::c_int,
    _arguments: *const *const std::ffi::c_char,
) -> std::ffi::c_int {
    // As the standard library does: a write to a closed pipe is an error, not a signal.
    hookrun_system::signals::ignore_broken_pipes();
    // A defect must not fail the build.
    let exit = std::panic::catch_unwind(run).unwrap_or(Exit::Done);
    exit.code().into()
}

#[cfg(not(target_env = "gnu"))]
fn main() -> std::process::ExitCode {
    run().into()
}

fn run() -> Exit {
    match Role::of_this_process() {
        // A build that hookrun itself started is not reported again.
        Role::PostBuild | Role::Diff(_) if hookrun_nix::is_nested() => Exit::Done,
        Role::PostBuild => gates(hand_over::post_build()),
        Role::Diff(arguments) => {
            hand_over::diff(&arguments);
            Exit::Done
        }
        _ => everything_else(),
    }
}

/// Has `hookrun` run the gates, if there may be any.
fn gates(handed_over: Ended) -> Exit {
    if !handed_over.may_have_gate() {
        return Exit::Done;
    }
    let program = spawn::hookrun_beside().unwrap_or_else(|| spawn::PROGRAM.into());
    let error = handed_over.exec_gates(&program);
    say(&format!(
        "the build is stopped: a plugin may have `gate = true`, and {} cannot be executed ({error}); \
         install hookrun in the directory of {}",
        program.display(),
        spawn::THIN_PROGRAM,
    ));
    Exit::Failed
}

/// Becomes `hookrun`, with the same name and arguments.
fn everything_else() -> Exit {
    let program = spawn::hookrun_beside().unwrap_or_else(|| spawn::PROGRAM.into());
    let mut argv = std::env::args_os();
    let mut command = Command::new(&program);
    command.arg0(argv.next().unwrap_or_else(|| spawn::PROGRAM.into())).args(argv);
    let error = command.exec();
    say(&format!(
        "{} cannot be executed ({error}); {} has the post-build hook and the diff hook only, and \
         needs hookrun in its directory for everything else",
        program.display(),
        spawn::THIN_PROGRAM,
    ));
    Exit::Environment
}
