//! Checks the state directory that a command reads: whether it exists, and whether this user may
//! read its journal. Without these checks, another user's queue or a mistyped name would look like
//! an empty queue.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use super::{CliError, Context};
use hookrun_config::suggestion;
use hookrun_nix::dirs::SYSTEM_STATE;
use hookrun_queue::journal::Journal;
use hookrun_queue::{guard, lock};

/// The time limit for the first access to the state directory; a busy disk takes seconds.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Checks that the file system of the state directory answers. If it does not, no signal ends a
/// process that accesses it, so another process does this.
///
/// # Errors
/// The file system does not answer in time.
pub(super) fn answers(context: &Context) -> Result<(), CliError> {
    let dirs = &context.dirs;
    // The time of these steps must not depend on the number of spool files, because any user can
    // add files.
    let look = || {
        let _held = lock::is_held(&dirs.worker_lock());
        if let Ok(Some(journal)) = Journal::open_read_only(dirs) {
            let _open = journal.breakers();
        }
    };
    match guard::ends_within(ANSWERS_WITHIN, look) {
        Ok(false) => Err(CliError::environment(anyhow::anyhow!(
            "the file system of {} did not answer in {} s; check that its disk or server works, and that it is not frozen (`fsfreeze --unfreeze`)",
            dirs.state.display(),
            ANSWERS_WITHIN.as_secs()
        ))),
        // If no other process can be started, the access has no time limit.
        Ok(true) | Err(_) => Ok(()),
    }
}

/// Opens the journal for reading; returns none if nothing is recorded yet.
///
/// # Errors
/// The named state directory does not exist, or this user may not read it.
pub(super) fn journal(context: &Context) -> Result<Option<Journal>, CliError> {
    check(context)?;
    Journal::open_read_only(&context.dirs).map_err(CliError::environment)
}

/// Checks that the state directory exists and that this user may read it.
///
/// # Errors
/// Returns the errors of [`journal`].
pub(super) fn check(context: &Context) -> Result<(), CliError> {
    let state = &context.dirs.state;
    let wrong = |message: String| Err(CliError::environment(anyhow::Error::msg(message)));
    match std::fs::metadata(state) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if context.state_is_chosen {
                return wrong(format!(
                    "there is no state directory {}; check --state-dir and HOOKRUN_STATE_DIR",
                    state.display()
                ));
            }
            let system = Path::new(SYSTEM_STATE);
            if state != system && system.exists() {
                return wrong(format!(
                    "this user has no queue in {}, and the system's in {SYSTEM_STATE} is readable \
                     for root only (permission denied); run this command with sudo",
                    state.display()
                ));
            }
            return Ok(());
        }
        Err(error) => return wrong(denied(state, &error)),
        Ok(_) => {}
    }
    // Without permission to search the directory, a journal in it seems not to exist.
    let journal = context.dirs.journal();
    match std::fs::read_dir(&journal) {
        Err(error) if error.kind() != ErrorKind::NotFound => wrong(denied(&journal, &error)),
        _ => Ok(()),
    }
}

fn denied(directory: &Path, error: &std::io::Error) -> String {
    let owner = std::fs::metadata(directory)
        .map(|found| format!(" of uid {}", found.uid()))
        .unwrap_or_default();
    let what = match error.kind() {
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    };
    format!(
        "{} cannot be read ({what}); run this command as its owner{owner}, for example with sudo",
        directory.display()
    )
}

/// Checks the plugin name of a filter: the plugin must be configured, or the journal must have
/// tasks of it.
///
/// # Errors
/// A usage error that lists the known names.
pub(super) fn known_plugin(
    context: &Context,
    journal: Option<&Journal>,
    name: Option<&str>,
) -> Result<(), CliError> {
    let Some(name) = name else { return Ok(()) };
    let mut known = match journal {
        Some(journal) => journal.plugins().map_err(CliError::environment)?,
        None => Vec::new(),
    };
    // The journal is shown even if the configuration is not valid.
    known.extend(context.config().into_iter().flat_map(|config| config.plugins.into_keys()));
    known.sort();
    known.dedup();
    if known.iter().any(|known| known == name) {
        return Ok(());
    }
    let hint = suggestion(name, known.iter().map(String::as_str));
    Err(CliError::usage(format!(
        "no plugin `{name}` is configured or has tasks in the queue; {hint}"
    )))
}
