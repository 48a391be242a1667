//! `hookrun completions` and `hookrun man`.

use std::path::PathBuf;

use anyhow::Context as _;

use super::{CliError, help, man};
use hookrun_nix::exit_code::Exit;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  hookrun completions bash > /usr/share/bash-completion/completions/hookrun"
)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hookrun man /usr/share/man/man1")]
pub(super) struct ManArgs {
    /// The directory for the pages
    directory: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut help::command(), "hookrun", &mut script);
    std::io::Write::write_all(&mut std::io::stdout(), &script)?;
    Ok(Exit::Done)
}

pub(super) fn manual(args: &ManArgs) -> Result<Exit, CliError> {
    std::fs::create_dir_all(&args.directory)
        .and_then(|()| man::write(&args.directory))
        .with_context(|| {
            format!(
                "cannot write manual pages to {}; name a directory that you may write to",
                args.directory.display()
            )
        })
        .map_err(CliError::environment)?;
    Ok(Exit::Done)
}
