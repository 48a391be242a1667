//! `hookrun demo`: the main job on real Nix, in a private store that touches nothing of the user's.
//!
//! Called by the command line only. Each step drives the machine's own Nix with this very program
//! as its hooks, shows what Nix said and what hookrun did, and checks the result by what is on the
//! disk, never by what was printed.

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
    /// Where to work; must not exist or be empty. By default a new directory below the temporary
    /// directory.
    pub dir: Option<PathBuf>,
    /// Remove the directory at the end instead of leaving it for a look around.
    pub remove: bool,
}

/// How a step ended.
pub(crate) enum Verdict {
    /// It worked: what was seen on the disk.
    Works(String),
    /// It did not: what was expected and what was there.
    Broken(String),
    /// It cannot be done by this user on this machine: why, and what would be needed.
    Impossible(String),
}

/// Runs all steps. [`Exit::Failed`] if one did not work; [`Exit::Environment`] if one could not be
/// tried.
///
/// # Errors
/// There is no Nix, or the private one cannot be made; all such errors are the environment's.
pub fn run(options: &DemoOptions) -> Result<Exit> {
    let version = private_nix::nix_version()?;
    let directory = working_directory(options)?;
    let show = Show::for_stdout();
    show.title(&format!("hookrun demo: real Nix ({version}) in {}", directory.display()));
    show.plain(
        "Store, state and configuration are private to this directory; nothing below /nix and nothing of yours is touched.",
    );
    let mut stage = Stage::make(&directory, show)?;

    let (mut broken, mut impossible) = (0, 0);
    let mut verdicts = Vec::new();
    for (number, step) in steps::ALL.iter().enumerate() {
        show.step(number + 1, step.title);
        let verdict =
            (step.run)(&mut stage).unwrap_or_else(|error| Verdict::Broken(format!("{error:#}")));
        show.verdict(&verdict);
        match &verdict {
            Verdict::Works(_) => {}
            Verdict::Broken(_) => broken += 1,
            Verdict::Impossible(_) => impossible += 1,
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
            // Short: Nix puts sockets below it. Programs of this user run in it, so it must be new:
            // in this place anybody may have made one of any name.
            let id = uuid::Uuid::new_v4().simple().to_string();
            let name = format!("hookrun-demo-{}", id.get(..8).unwrap_or(&id));
            let directory = std::env::temp_dir().join(name);
            let made = std::fs::DirBuilder::new().mode(0o755).create(&directory);
            (directory, made)
        }
    };
    made.with_context(|| {
        format!("cannot make {}; name a directory you may write to with --dir", directory.display())
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
