//! `cargo xtask crash`: runs the long crash test and prints its figures.

use anyhow::Result;

use crate::machine::{self, Need};
use crate::process::{self, CommandExt as _, cargo};

/// Options of `cargo xtask crash`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Events to hand over.
    #[arg(long, default_value_t = 10_000)]
    events: usize,
    /// Hooks and workers to kill.
    #[arg(long, default_value_t = 1000)]
    kills: usize,
    /// The seed that an earlier run printed.
    #[arg(long)]
    seed: Option<u64>,
}

/// Runs it.
pub(crate) fn run(options: &Options) -> Result<()> {
    machine::prepare(Need::Nix)?;
    process::build_workspace()?;
    let mut command = cargo();
    command.args(["test", "--workspace", "--test", "integration", "--"]);
    command.args(["crash::", "--ignored", "--nocapture"]);
    command.env("HOOKRUN_CRASH_EVENTS", options.events.to_string());
    command.env("HOOKRUN_CRASH_KILLS", options.kills.to_string());
    if let Some(seed) = options.seed {
        command.env("HOOKRUN_CRASH_SEED", seed.to_string());
    }
    command.run()
}
