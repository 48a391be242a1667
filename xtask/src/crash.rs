//! `cargo xtask crash`: runs the long crash tests and prints their figures.

use anyhow::Result;

use crate::machine::{self, Need};
use crate::process::{self, CommandExt as _, cargo};

/// Options of `cargo xtask crash`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Events to hand over.
    #[arg(long, default_value_t = 10_000)]
    events: usize,
    /// Hooks and workers to kill: 1,000, or 100 with `--cache`.
    #[arg(long)]
    kills: Option<usize>,
    /// The seed that an earlier run printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Kill workers while they upload to an S3 server instead; needs 8 GiB of disk.
    #[arg(long)]
    cache: bool,
    /// With `--cache`: small paths.
    #[arg(long, default_value_t = 500)]
    paths: usize,
    /// With `--cache`: sizes of large paths in MiB.
    #[arg(long, default_value = "256,256,256,2048")]
    large: String,
    /// Let two installations push to one bucket so many times instead.
    #[arg(long, value_name = "PUSHES")]
    installations: Option<usize>,
    /// Upload a million small files and a sparse file of 10 GiB instead.
    #[arg(long)]
    odd_paths: bool,
}

/// Runs it.
pub(crate) fn run(options: &Options) -> Result<()> {
    machine::prepare(Need::Nix)?;
    process::build_workspace()?;
    let mut command = cargo();
    command.args(["test", "--workspace", "--test", "integration", "--"]);
    let (tests, kills) = if options.cache {
        ("stores::kills::", options.kills.unwrap_or(100))
    } else if options.installations.is_some() {
        ("stores::installations::", 0)
    } else if options.odd_paths {
        ("stores::odd_paths::", 0)
    } else {
        ("crash::no_event", options.kills.unwrap_or(1000))
    };
    command.args([tests, "--ignored", "--nocapture"]);
    command.env("HOOKRUN_CRASH_EVENTS", options.events.to_string());
    command.env("HOOKRUN_CRASH_KILLS", kills.to_string());
    command.env("HOOKRUN_CRASH_PATHS", options.paths.to_string());
    command.env("HOOKRUN_CRASH_LARGE", &options.large);
    if let Some(pushes) = options.installations {
        command.env("HOOKRUN_CRASH_PUSHES", pushes.to_string());
    }
    if let Some(seed) = options.seed {
        command.env("HOOKRUN_CRASH_SEED", seed.to_string());
    }
    command.run()
}
