//! `hookrun check`: checks the configuration file, every plugin, grant, secret and service, and the
//! state directory.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;

use super::output::{self, Format};
use super::{CliError, Context, sandbox};
use crate::doctor::secrets;
use crate::supervise::needs;
use crate::supervise::tryout::{self, Trial, TrialOutcome};
use hookrun_capability::{ServiceFinding, Services};
use hookrun_config::{Config, KeyError, SecretFile};
use hookrun_host::wall::{Identity, Wall};
use hookrun_host::{Compiler, Host, PluginError, bundled};
use hookrun_nix::exit_code::Exit;
use hookrun_nix::layout::{self, Directory, Repaired, Use};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Loads every plugin, reads every key and password, opens the settings of every object store, and
checks that the user that runs plugins can write to their directories. Sends nothing without --live.
Run it as the user that runs the worker.

Exit code 0: everything is valid. 3: the configuration is not valid. 4: the environment has a
problem, such as a directory that cannot be written, or a server that does not answer.

Examples:
  hookrun check --config ./hookrun.toml
  hookrun check --live         also test object stores and mail servers")]
pub(super) struct Args {
    /// Also test servers as the user that runs plugins: write, read and remove a small object in
    /// every object store, and log in to every SMTP server
    #[arg(long)]
    live: bool,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// The arguments of the hidden command that tries services.
#[derive(Debug, clap::Args)]
pub(super) struct TryArgs {
    #[arg(long)]
    pub(super) live: bool,
}

/// A problem that was found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct CheckProblem {
    #[serde(skip)]
    exit: Exit,
    message: String,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct CheckReport {
    config: String,
    /// The parts that are valid, one line each.
    good: Vec<String>,
    problems: Vec<CheckProblem>,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let mut report =
        CheckReport { config: context.dirs.config.display().to_string(), ..CheckReport::default() };
    match context.config() {
        Ok(config) => {
            let origin = config.origin();
            report.good.push(format!("configuration {}{origin}", config.path.display()));
            all(context, &config, args.live, &mut report);
        }
        Err(error) => {
            report.problems.push(CheckProblem { exit: error.exit, message: error.to_string() });
        }
    }
    match args.format {
        Format::Json => output::json(&report)?,
        Format::Text => {
            for line in &report.good {
                output::print(&format!("ok  {}\n", output::printable(line)))?;
            }
            for problem in &report.problems {
                let level = if problem.exit == Exit::Done { "warning" } else { "error" };
                eprintln!("{level}: {}", output::printable(&problem.message.replace('\n', " ")));
            }
        }
    }
    Ok(report
        .problems
        .iter()
        .map(|problem| problem.exit)
        .find(|exit| *exit != Exit::Done)
        .unwrap_or(Exit::Done))
}

fn all(context: &Context, config: &Config, live: bool, report: &mut CheckReport) {
    // Without a state directory, services would report the same problem again.
    let state = state(context, report);
    if state {
        services(context, config, report);
    }
    // The following checks run as the user that guests run as.
    if let Err(message) = needs::identity(config) {
        report.problems.push(CheckProblem { exit: Exit::Configuration, message });
        return;
    }
    if state {
        as_plugins(context, config, live, report);
    }
    report.good.push(format!("guests run as {}", sandbox::guests(Some(config))));
    for message in sandbox::problems(config) {
        let exit = if config.worker.require_sandbox { Exit::Environment } else { Exit::Done };
        report.problems.push(CheckProblem { exit, message });
    }
    plugins(context, config, report);
}

/// Checks which services the user that runs plugins can use.
fn as_plugins(context: &Context, config: &Config, live: bool, report: &mut CheckReport) {
    match tryout::try_all(&context.dirs, live) {
        Ok(tried) => {
            for Trial { keys, message, outcome } in tried {
                let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                let error = || config.error(&keys, message.as_str()).to_string();
                let exit = match outcome {
                    TrialOutcome::Good => {
                        report.good.push(message);
                        continue;
                    }
                    TrialOutcome::Warning => Exit::Done,
                    TrialOutcome::Failed => Exit::Configuration,
                    TrialOutcome::Unreachable => Exit::Environment,
                };
                report.problems.push(CheckProblem { exit, message: error() });
            }
        }
        Err(message) => report.problems.push(CheckProblem { exit: Exit::Environment, message }),
    }
}

/// Checks the plugins. This must be the last check, because guest code is mapped in this process
/// (but not run), and after that no file can be opened.
fn plugins(context: &Context, config: &Config, report: &mut CheckReport) {
    let host = Host::new(&context.dirs, Compiler::Contained(config.worker.user.clone()));
    let wrong =
        |error: PluginError| CheckProblem { exit: Exit::Configuration, message: error.to_string() };
    let ready: Vec<_> =
        config.plugins.values().map(|plugin| host.prepare(plugin, config)).collect();
    if let Err(error) = Wall::closed(Identity::Powerless).reading(context.dirs.artifacts()).raise()
    {
        report.problems.push(CheckProblem { exit: Exit::Environment, message: error.to_string() });
        return;
    }
    for (name, ready) in config.plugins.keys().zip(ready) {
        match ready.and_then(|ready| ready.link(config)) {
            Ok(linked) => {
                let hooks: Vec<&str> = linked.hooks().iter().map(|hook| hook.as_str()).collect();
                let metadata = linked.metadata();
                report.good.push(format!(
                    "plugin {name}: {} {}, {}",
                    metadata.name,
                    metadata.version,
                    hooks.join(", ")
                ));
            }
            Err(error) => report.problems.push(wrong(error)),
        }
    }
}

fn services(context: &Context, config: &Config, report: &mut CheckReport) {
    let services = Services::new(config, &context.dirs);
    let wrong = |keys: &[&str], message: &str| CheckProblem {
        exit: Exit::Configuration,
        message: config.error(keys, message).to_string(),
    };
    let mut failed = BTreeSet::new();
    for finding in services.check(config, &context.dirs) {
        let (exit, KeyError { keys, message }) = match finding {
            ServiceFinding::Good(line) => {
                report.good.push(line);
                continue;
            }
            ServiceFinding::Warning(error) => (Exit::Done, error),
            ServiceFinding::Problem(error) => (Exit::Configuration, error),
        };
        let words: Vec<&str> = keys.iter().map(String::as_str).collect();
        let message = config.error(&words, message).to_string();
        report.problems.push(CheckProblem { exit, message });
        failed.insert(keys);
    }
    for (SecretFile { keys, .. }, message) in secrets::exposed(config) {
        // A file that is not a key is reported once.
        if keys.first().is_some_and(|key| key == "signing-keys") && failed.contains(&keys) {
            continue;
        }
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        report.problems.push(wrong(&keys, &message));
    }
    for plugin in config.plugins.values() {
        if let Some((key, message)) = bundled::beyond_grants(plugin) {
            report.problems.push(wrong(&["plugins", &plugin.name, "config", key], &message));
        }
    }
}

/// Checks that the state directory can be written.
fn state(context: &Context, report: &mut CheckReport) -> bool {
    let directory = context.dirs.spool();
    let mut notices = Vec::new();
    let mut probe = || -> std::io::Result<()> {
        notices = layout::prepare(&context.dirs)?;
        // Created and removed at once.
        tempfile_in(&directory)
    };
    let writable = probe();
    let place = context.dirs.state.display();
    report.problems.extend(notices.into_iter().map(|Repaired { message, done }| CheckProblem {
        exit: if done { Exit::Done } else { Exit::Environment },
        message,
    }));
    match &writable {
        Ok(()) => report.good.push(format!("state directory {place}")),
        Err(error) => report.problems.push(CheckProblem {
            exit: Exit::Environment,
            message: format!(
                "the state directory {place} cannot be written ({error}); run as the user that owns it, or name another with \
                 --state-dir or HOOKRUN_STATE_DIR"
            ),
        }),
    }
    writable.is_ok()
}

fn tempfile_in(directory: &Path) -> std::io::Result<()> {
    let directory = Directory::open(directory, Use::Add)?;
    // Other users may add files to the spool, so the name must be unique.
    let name = format!(".check-{}", uuid::Uuid::new_v4());
    drop(directory.create(name.as_bytes(), 0o600)?);
    directory.remove(name.as_bytes())
}
