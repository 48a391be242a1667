//! `hookrun demo`: shows the main functions with real Nix, in a private store that does not affect
//! the user's own.
//!
//! Called only by the command line. Each step runs the installed Nix with this program as its
//! hooks, shows the output of Nix and hookrun, and checks the result on disk.

pub mod private_nix;
mod show;
mod stage;
mod steps;

use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use hookrun_nix::exit_code::Exit;
use show::Show;
use stage::Stage;

/// How the demo is to run.
#[derive(Debug, Clone, Default)]
pub struct DemoOptions {
    /// The working directory, which must not exist or must be empty. By default, a new directory
    /// below the temporary directory.
    pub dir: Option<PathBuf>,
    /// Remove the directory at the end instead of keeping it for inspection.
    pub remove: bool,
}

/// The result of a step.
pub(crate) enum StepResult {
    /// The step succeeded, with the observed result.
    Works(String),
    /// The step failed, with the expected and the observed result.
    Broken(String),
    /// The step is not possible for this user on this machine, with the reason and the requirement.
    Impossible(String),
}

/// Runs all steps. Returns [`Exit::Failed`] if one failed, and [`Exit::Environment`] if one was not
/// possible.
///
/// # Errors
/// Nix is not installed, or the private Nix cannot be created. All these errors are errors of the
/// environment.
pub fn run(options: &DemoOptions) -> Result<Exit> {
    let version = private_nix::nix_version()?;
    let directory = working_directory(options)?;
    let show = Show::for_stdout();
    show.title(&format!("hookrun demo: real Nix ({version}) in {}", directory.display()));
    show.plain(
        "Store, state and configuration are in this directory; /nix and your own files are not changed.",
    );
    let mut stage = Stage::make(&directory, show)?;

    let (mut broken, mut impossible) = (0, 0);
    let mut verdicts = Vec::new();
    for (number, step) in steps::ALL.iter().enumerate() {
        show.step(number + 1, step.title);
        let verdict =
            (step.run)(&mut stage).unwrap_or_else(|error| StepResult::Broken(format!("{error:#}")));
        show.verdict(&verdict);
        match &verdict {
            StepResult::Works(_) => {}
            StepResult::Broken(_) => broken += 1,
            StepResult::Impossible(_) => impossible += 1,
        }
        verdicts.push((step.title, verdict));
    }

    show.plain("");
    show.title("Summary");
    for (number, (title, verdict)) in verdicts.iter().enumerate() {
        show.summary(number + 1, title, verdict);
    }
    if options.remove {
        stage.wait_for_worker();
        private_nix::remove_tree(&directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
    } else {
        stage.where_to_look();
    }
    Ok(match (broken, impossible) {
        (0, 0) => Exit::Done,
        (0, _) => Exit::Environment,
        _ => Exit::Failed,
    })
}

fn working_directory(options: &DemoOptions) -> Result<PathBuf> {
    let (directory, made) = match &options.dir {
        Some(directory) => (directory.clone(), std::fs::create_dir_all(directory)),
        None => {
            // The path is short, because Nix creates sockets below it. Programs run in it as this
            // user, so the name must be new: other users may have created any other name in the
            // temporary directory.
            let id = uuid::Uuid::new_v4().simple().to_string();
            let name = format!("hookrun-demo-{}", id.get(..8).unwrap_or(&id));
            let directory = std::env::temp_dir().join(name);
            let made = std::fs::DirBuilder::new().mode(0o755).create(&directory);
            (directory, made)
        }
    };
    made.with_context(|| {
        format!(
            "cannot create {}; name a directory that you may write to with --dir",
            directory.display()
        )
    })?;
    let directory = std::fs::canonicalize(&directory)
        .with_context(|| format!("cannot find {}", directory.display()))?;
    if std::fs::read_dir(&directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .next()
        .is_some()
    {
        anyhow::bail!("{} is not empty; name a new directory with --dir", directory.display());
    }
    Ok(directory)
}
