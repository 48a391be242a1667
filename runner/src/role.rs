//! Runs the role of this process ([`hookrun_nix::role`]). [`crate::main`] calls this first.

use crate::supervise::policy::{self, PluginPolicy};
use crate::{cli, gate};
use hookrun_builders as builders;
use hookrun_nix::exit_code::Exit;
use hookrun_nix::role::Role;
use hookrun_queue as queue;
use hookrun_queue::guard::HookResult;

/// Determines the role of this process and runs it.
pub fn run() -> Exit {
    match Role::of_this_process() {
        // Only a gate can change the exit code.
        Role::PostBuild => gate::run(&queue::hand_over::post_build()),
        Role::Gate(arguments) => gate::run(&HookResult::inherited(&arguments)),
        Role::Diff(arguments) => {
            queue::hand_over::diff(&arguments);
            Exit::Done
        }
        Role::BuildHook { verbosity } => builders::hook::main(verbosity, || {
            builders::hook::SelectionSetup::load(policy::may_choose, PluginPolicy::load)
        }),
        Role::Ssh(arguments) => builders::ssh::client::main(&arguments),
        Role::CommandLine => cli::main(std::env::args_os().skip(1)),
    }
}
