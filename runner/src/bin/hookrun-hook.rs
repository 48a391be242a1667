//! `hookrun-hook`: the post-build hook and the diff hook in a small program.
//!
//! Each build waits for its hook to start, so this program has no engine, async runtime or
//! command-line parser, and is linked statically where that is possible (`build.rs`). `hookrun`
//! must be in the same directory: hookrun-hook executes it for gates and for all other roles, and
//! starts it as the worker.
//!
//! With glibc the program uses the C entry point, because the start-up code of the standard library
//! (alternative signal stack, reading `/proc/self/maps`) takes a tenth of a hook's time.

#![cfg_attr(target_env = "gnu", no_main)]

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use hookrun_nix::exit_code::Exit;
use hookrun_nix::role::Role;
use hookrun_nix::terminal::say;
use hookrun_queue::guard::HookResult;
use hookrun_queue::{hand_over, spawn};

/// Called by the C library. The arguments are in [`std::env::args_os`], which glibc fills earlier.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "exports the symbol that the C library calls")]
// SAFETY: no other function of the program has this name, and it has the type that C requires.
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
        Role::PostBuild => gates(hand_over::post_build()),
        Role::Diff(arguments) => {
            hand_over::diff(&arguments);
            Exit::Done
        }
        _ => everything_else(),
    }
}

/// Executes `hookrun`, which runs the gates, if there may be any.
fn gates(handed_over: HookResult) -> Exit {
    if !handed_over.may_have_gate() {
        return Exit::Done;
    }
    let program = hookrun();
    let error = handed_over.exec_gates(&program);
    say(&format!(
        "the build fails: {} cannot be executed ({error}), and a plugin may have `gate = true`; \
         install hookrun in the directory of {}",
        program.display(),
        spawn::SMALL_HOOK,
    ));
    Exit::Failed
}

/// Returns the path of `hookrun`: in the directory of this program, whatever the name of this one.
fn hookrun() -> PathBuf {
    std::env::current_exe().unwrap_or_default().with_file_name(spawn::PROGRAM)
}

/// Becomes `hookrun`, with the same name and arguments.
fn everything_else() -> Exit {
    let program = hookrun();
    let mut argv = std::env::args_os();
    let mut command = Command::new(&program);
    command.arg0(argv.next().unwrap_or_else(|| spawn::PROGRAM.into())).args(argv);
    let error = command.exec();
    say(&format!(
        "{} cannot be executed ({error}); install hookrun in the directory of {}, which contains \
         only the post-build hook and the diff hook",
        program.display(),
        spawn::SMALL_HOOK,
    ));
    Exit::Environment
}
