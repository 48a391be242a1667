//! `hookrun cache`: looks after a binary cache in a plain bucket or directory.

mod copy;
mod gc;
mod info;
mod paths;
mod pin;
mod place;
mod progress;
mod push;
mod sign;
mod verify;

use super::{CliError, Context};
use hookrun_cache::CacheError;
use hookrun_nix::exit_code::Exit;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Upload store paths, or what installables build, with all that they need
    Push(push::Args),
    /// Show what is in a cache: paths, bytes, compressions, signatures, pins
    Info(info::Args),
    /// Find damage in a cache, and repair it
    Verify(verify::Args),
    /// Remove what no root needs, in two runs
    Gc(gc::Args),
    /// Keep paths and all that they need, under a name
    Pin(pin::PinArgs),
    /// List the pins
    Pins(pin::ListArgs),
    /// Remove pins
    Unpin(pin::UnpinArgs),
    /// Add a signature to paths that are in a cache
    Sign(sign::Args),
    /// Copy paths to another cache
    Copy(copy::Args),
}

pub(super) fn run(context: &Context, command: &Command) -> Result<Exit, CliError> {
    let runtime = super::runtime()?;
    runtime.block_on(async {
        match command {
            Command::Push(args) => push::run(context, args).await,
            Command::Info(args) => info::run(context, args).await,
            Command::Verify(args) => verify::run(context, args).await,
            Command::Gc(args) => gc::run(context, args).await,
            Command::Pin(args) => pin::pin(context, args).await,
            Command::Pins(args) => pin::list(context, args).await,
            Command::Unpin(args) => pin::unpin(context, args).await,
            Command::Sign(args) => sign::run(context, args).await,
            Command::Copy(args) => copy::run(context, args).await,
        }
    })
}

impl From<CacheError> for CliError {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Usage(message) => Self::usage(message),
            error => Self::environment(error),
        }
    }
}
