//! Tests whether the user that runs plugins can use the services of the configuration. `hookrun
//! check` starts a process that enters the same sandbox as a runner and tries them there.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::needs;
use hookrun_capability::grants::Effective;
use hookrun_capability::{CapabilityError, ErrorKind, Services};
use hookrun_config::{Config, Grant, MailTransport};
use hookrun_host::wall::Identity;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::NixDirs;
use hookrun_nix::exit_code::Exit;
use hookrun_system::process::describe_start;

/// The name of the hidden command of that process.
pub const COMMAND: &str = "try-services";
/// The time limit for one service.
const LIVE_LIMIT: Duration = Duration::from_mins(1);

/// The result for one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Trial {
    /// The keys of the configuration that the result is about.
    pub keys: Vec<String>,
    /// One line, which ends with the fix if the service failed.
    pub message: String,
    /// The outcome of the trial.
    pub outcome: TrialOutcome,
}

/// The outcome of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrialOutcome {
    /// The service can be used.
    Good,
    /// The service can be used, but there is a warning.
    Warning,
    /// The service cannot be used with this configuration.
    Failed,
    /// The server does not answer, or not at the moment.
    Unreachable,
}

/// Tries all services of the configuration in a separate process, and with `live` also their
/// servers.
///
/// # Errors
/// The process cannot be started, or cannot enter its sandbox.
pub fn try_all(dirs: &Dirs, live: bool) -> Result<Vec<Trial>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("services cannot be tried ({error})");
    let mut command = hookrun_system::process::this_program();
    command.arg("--state-dir").arg(&dirs.state);
    // A named configuration must exist.
    if dirs.config.exists() {
        command.arg("--config").arg(&dirs.config);
    }
    command.arg(COMMAND).args(live.then_some("--live")).stdin(Stdio::null());
    let output = command.stderr(Stdio::inherit()).output().map_err(|error| {
        failed(&format!("the process cannot be started: {}", describe_start(&command, &error)))
    })?;
    serde_json::from_slice::<Result<Vec<Trial>, String>>(&output.stdout)
        .map_err(|error| {
            failed(&if output.status.success() {
                format!("the answer of the process cannot be parsed: {error}")
            } else {
                format!("the process ended with {}", output.status)
            })
        })?
        .map_err(|error| failed(&error))
}

/// Runs that process. Standard output is the pipe.
pub fn child(dirs: &Dirs, live: bool) -> Exit {
    let tried = Config::in_force(dirs)
        .map_err(|error| error.to_string())
        .and_then(|config| trials(&config, dirs, live));
    match serde_json::to_writer(std::io::stdout().lock(), &tried) {
        Ok(()) => Exit::Done,
        Err(_) => Exit::Internal,
    }
}

/// The results so far.
#[derive(Default)]
struct Trials(Vec<Trial>);

impl Trials {
    fn add(&mut self, keys: [&str; 3], outcome: TrialOutcome, message: String) {
        let keys = keys.map(str::to_owned).to_vec();
        self.0.push(Trial { keys, message, outcome });
    }
}

fn trials(config: &Config, dirs: &Dirs, live: bool) -> Result<Vec<Trial>, String> {
    let services = Services::new(config, dirs);
    let identity = needs::identity(config)?;
    let mut trials = Trials::default();
    let mut stores = BTreeSet::new();
    for name in config.object_stores.keys() {
        let needs = services.object_stores().needs_of(name);
        if let Some(directory) = needs.missing_directory(dirs) {
            let message = missing_store(name, directory, &identity);
            trials.add(["object-stores", name, "url"], TrialOutcome::Failed, message);
        } else if services.object_stores().hold(name).is_ok() {
            // The caller reports errors in the settings.
            stores.insert(name.clone());
        }
    }
    for name in config.mail.keys() {
        services.mail().hold(name);
    }
    let grant = Grant {
        object_store: stores.iter().cloned().collect(),
        mail: config.mail.keys().cloned().collect(),
        ..Grant::default()
    };
    let effective = Effective { grant, policy: false };
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let nix = NixDirs::from_env();
    let wall = needs::wall(&[&effective], &services, dirs, &nix, identity, variable);
    // As in a worker, directories below the state directory belong to the user that runs plugins.
    let mut own = wall.clone();
    own.write.retain(|directory| directory.starts_with(&dirs.state));
    needs::make_directories(&own, dirs)?;
    wall.raise().map_err(|error| error.to_string())?;
    writable(config, &services, &stores, &mut trials);
    if live {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        runtime.block_on(servers(config, &services, &stores, &mut trials));
    }
    Ok(trials.0)
}

fn missing_store(name: &str, directory: &Path, identity: &Identity) -> String {
    let shown = directory.display();
    let owner = match identity {
        Identity::User(user) => format!(" -o {} -g {}", user.uid, user.gid),
        Identity::Powerless => String::new(),
    };
    format!(
        "object store `{name}`: the directory {shown} does not exist; run `install -d{owner} {shown}`"
    )
}

/// Checks the directories inside the sandbox, as the user that runs plugins.
fn writable(config: &Config, services: &Services, stores: &BTreeSet<String>, trials: &mut Trials) {
    for name in stores {
        let needs = services.object_stores().needs_of(name);
        if let Some(message) = needs::unwritable("object store", name, &needs) {
            trials.add(["object-stores", name, "url"], TrialOutcome::Failed, message);
        }
    }
    for (name, settings) in &config.mail {
        let needs = services.mail().needs_of(name);
        if let Some(message) = needs::unwritable("mail transport", name, &needs) {
            trials.add(["mail", name, "directory"], TrialOutcome::Failed, message);
        }
        let program = settings.program.as_deref().unwrap_or(Path::new("/usr/sbin/sendmail"));
        if settings.transport == MailTransport::Sendmail && !program.exists() {
            let message = format!(
                "mail transport `{name}`: the program {} does not exist; install it, or name another in `program`",
                program.display()
            );
            trials.add(["mail", name, "program"], TrialOutcome::Failed, message);
        }
    }
}

/// Connects to all servers at the same time.
async fn servers(
    config: &Config,
    services: &Services,
    stores: &BTreeSet<String>,
    trials: &mut Trials,
) {
    let refused: BTreeSet<String> =
        trials.0.iter().filter_map(|tried| tried.keys.get(1).cloned()).collect();
    let stores = stores.iter().filter(|name| !refused.contains(*name)).map(|name| async move {
        let tried = within(services.object_stores().try_out(name)).await;
        let (outcome, message) = match tried {
            Ok(None) => (
                TrialOutcome::Good,
                format!("object store {name}: an object was written, read and removed"),
            ),
            Ok(Some(warning)) => (TrialOutcome::Warning, warning),
            Err(error) => failed(error),
        };
        (["object-stores", name, "url"], outcome, message)
    });
    let smtp = config.mail.iter().filter(|(_, mail)| mail.transport == MailTransport::Smtp);
    let mails = smtp.map(|(name, settings)| async move {
        let (outcome, message) = match within(services.mail().log_in(name)).await {
            Ok(()) if settings.username.is_none() => {
                (TrialOutcome::Good, format!("mail {name}: the server answers"))
            }
            Ok(()) => (TrialOutcome::Good, format!("mail {name}: the server accepts this login")),
            Err(error) => failed(error),
        };
        (["mail", name, "url"], outcome, message)
    });
    let (stores, mails) = futures_util::future::join(
        futures_util::future::join_all(stores),
        futures_util::future::join_all(mails),
    )
    .await;
    for (keys, outcome, message) in stores.into_iter().chain(mails) {
        trials.add(keys, outcome, message);
    }
}

fn failed(error: CapabilityError) -> (TrialOutcome, String) {
    let outcome = match error.kind {
        ErrorKind::Transient => TrialOutcome::Unreachable,
        _ => TrialOutcome::Failed,
    };
    (outcome, error.message)
}

async fn within<T>(
    trial: impl Future<Output = Result<T, CapabilityError>>,
) -> Result<T, CapabilityError> {
    tokio::time::timeout(LIVE_LIMIT, trial).await.unwrap_or_else(|_| {
        let limit = humantime::format_duration(LIVE_LIMIT);
        Err(CapabilityError::transient(format!(
            "the server did not answer within {limit}; check that it is running and reachable"
        )))
    })
}
