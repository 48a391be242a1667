//! `hookrun demo`.

use std::path::PathBuf;

use super::CliError;
use hookrun_nix::exit_code::Exit;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hookrun demo --dir /tmp/hookrun-demo")]
pub(super) struct Args {
    /// The directory to work in, which is kept for inspection [default: a new directory below the
    /// temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Remove the directory at the end
    #[arg(long)]
    remove: bool,
}

pub(super) fn run(args: &Args) -> Result<Exit, CliError> {
    let options = crate::demo::DemoOptions { dir: args.dir.clone(), remove: args.remove };
    crate::demo::run(&options).map_err(CliError::environment)
}
