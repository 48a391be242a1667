//! `hookrun builders`: the machines that build for this one, and the policy that chooses between them.

mod check;
mod fleet;
mod simulate;
mod trace;

use super::{CliError, Context};
use crate::exit_code::Exit;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Can each machine really build for us? Tries it
    Check(check::Args),
    /// Play a trace of builds by Nix's own rule and by policies, and compare
    Simulate(simulate::Args),
    /// Export recorded builds, or generate some, as a trace (JSON lines)
    Trace(trace::Args),
}

pub(super) fn run(context: &Context, command: &Command) -> Result<Exit, CliError> {
    match command {
        Command::Check(args) => check::run(context, args),
        Command::Simulate(args) => simulate::run(context, args),
        Command::Trace(args) => trace::run(context, args),
    }
}
