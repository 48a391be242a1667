//! `hookrun builders`: the machines that build for this one, and the policy that chooses between
//! them.

mod check;
mod explain;
mod fleet;
mod list;
mod measured;
mod render;
mod simulate;
mod trace;

use super::{CliError, Context};
use hookrun_nix::exit_code::Exit;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the machines: slots, load, health, last error, builds
    List(list::Args),
    /// Explain why a machine was chosen and others were not
    Explain(explain::Args),
    /// Build a small derivation on each machine to check that it works
    Check(check::Args),
    /// Simulate a trace of builds with Nix's own rule and with policies
    Simulate(simulate::Args),
    /// Write a machines file for a Nix that does not call hookrun's build hook
    Render(render::Args),
    /// Export recorded or generated builds as a trace (JSON lines)
    Trace(trace::Args),
}

pub(super) fn run(context: &Context, command: &Command) -> Result<Exit, CliError> {
    match command {
        Command::List(args) => list::run(context, args),
        Command::Explain(args) => explain::run(context, args),
        Command::Render(args) => render::run(context, args),
        Command::Check(args) => check::run(context, args),
        Command::Simulate(args) => simulate::run(context, args),
        Command::Trace(args) => trace::run(context, args),
    }
}
