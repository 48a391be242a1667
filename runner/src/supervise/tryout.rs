//! Can the user that runs plugins use the services of the configuration? `hookrun check` asks a
//! process of its own, which goes behind the same wall as a runner and tries them there.

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

/// The hidden command of that process.
pub const COMMAND: &str = "try-services";
/// One service may take this long to answer in all.
const LIVE_LIMIT: Duration = Duration::from_mins(1);

/// What became of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tried {
    /// The keys of the configuration to look at.
    pub keys: Vec<String>,
    /// One line; of a failure, with the fix.
    pub message: String,
    /// How it went.
    pub outcome: TriedAs,
}

/// How a trial went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TriedAs {
    /// It can be used.
    Good,
    /// It can be used, and something is worth knowing.
    Warning,
    /// It cannot be used as it is configured.
    Failed,
    /// Its server does not answer, or not now.
    Unreachable,
}

/// Tries all services of the configuration in a process of its own; with `live` their servers as
/// well.
///
/// # Errors
/// The process cannot be started, or cannot put up its sandbox.
pub fn try_all(dirs: &Dirs, live: bool) -> Result<Vec<Tried>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("services cannot be tried ({error})");
    let mut command = hookrun_system::process::this_program();
    command.arg("--state-dir").arg(&dirs.state);
    // A configuration that is named has to be there.
    if dirs.config.exists() {
        command.arg("--config").arg(&dirs.config);
    }
    command.arg(COMMAND).args(live.then_some("--live")).stdin(Stdio::null());
    let output = command.stderr(Stdio::inherit()).output().map_err(|error| {
        failed(&format!("the process cannot be started: {}", describe_start(&command, &error)))
    })?;
    serde_json::from_slice::<Result<Vec<Tried>, String>>(&output.stdout)
        .map_err(|error| {
            failed(&if output.status.success() {
                format!("the answer of the process cannot be parsed: {error}")
            } else {
                format!("the process ended with {}", output.status)
            })
        })?
        .map_err(|error| failed(&error))
}

/// The life of that process. Standard output is the pipe.
pub fn child(dirs: &Dirs, live: bool) -> Exit {
    let tried = Config::in_force(dirs)
        .map_err(|error| error.to_string())
        .and_then(|config| trials(&config, dirs, live));
    match serde_json::to_writer(std::io::stdout().lock(), &tried) {
        Ok(()) => Exit::Done,
        Err(_) => Exit::Internal,
    }
}

/// Collects what was tried.
#[derive(Default)]
struct Trials(Vec<Tried>);

impl Trials {
    fn add(&mut self, keys: [&str; 3], outcome: TriedAs, message: String) {
        let keys = keys.map(str::to_owned).to_vec();
        self.0.push(Tried { keys, message, outcome });
    }
}

fn trials(config: &Config, dirs: &Dirs, live: bool) -> Result<Vec<Tried>, String> {
    let services = Services::new(config, dirs);
    let identity = needs::identity(config)?;
    let mut trials = Trials::default();
    let mut stores = BTreeSet::new();
    for name in config.object_stores.keys() {
        let needs = services.object_stores().needs_of(name);
        if let Some(directory) = needs.missing_directory(dirs) {
            let message = missing_store(name, directory, &identity);
            trials.add(["object-stores", name, "url"], TriedAs::Failed, message);
        } else if services.object_stores().hold(name).is_ok() {
            // What is wrong with the settings is for the caller to say.
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
    // As a worker does: what is below the state directory belongs to the user that runs plugins.
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
        "object store `{name}`: the directory {shown} is not there; run `install -d{owner} {shown}`"
    )
}

/// Asks behind the wall: as the user that runs plugins.
fn writable(config: &Config, services: &Services, stores: &BTreeSet<String>, trials: &mut Trials) {
    for name in stores {
        let needs = services.object_stores().needs_of(name);
        if let Some(message) = needs::unwritable("object store", name, &needs) {
            trials.add(["object-stores", name, "url"], TriedAs::Failed, message);
        }
    }
    for (name, settings) in &config.mail {
        let needs = services.mail().needs_of(name);
        if let Some(message) = needs::unwritable("mail transport", name, &needs) {
            trials.add(["mail", name, "directory"], TriedAs::Failed, message);
        }
        let program = settings.program.as_deref().unwrap_or(Path::new("/usr/sbin/sendmail"));
        if settings.transport == MailTransport::Sendmail && !program.exists() {
            let message = format!(
                "mail transport `{name}`: there is no program {}; install it, or name another by `program`",
                program.display()
            );
            trials.add(["mail", name, "program"], TriedAs::Failed, message);
        }
    }
}

/// Talks to the servers, to all at the same time.
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
                TriedAs::Good,
                format!("object store {name}: an object was written, read and removed"),
            ),
            Ok(Some(warning)) => (TriedAs::Warning, warning),
            Err(error) => failed(error),
        };
        (["object-stores", name, "url"], outcome, message)
    });
    let smtp = config.mail.iter().filter(|(_, mail)| mail.transport == MailTransport::Smtp);
    let mails = smtp.map(|(name, settings)| async move {
        let (outcome, message) = match within(services.mail().log_in(name)).await {
            Ok(()) if settings.username.is_none() => {
                (TriedAs::Good, format!("mail {name}: the server answers"))
            }
            Ok(()) => (TriedAs::Good, format!("mail {name}: the server takes this login")),
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

fn failed(error: CapabilityError) -> (TriedAs, String) {
    let outcome = match error.kind {
        ErrorKind::Transient => TriedAs::Unreachable,
        _ => TriedAs::Failed,
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
