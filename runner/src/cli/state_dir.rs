//! The state directory that a command reads: is it there, and may this user read the journal in it?
//! Without these questions a command that reads would take somebody else's queue, or a mistyped
//! name, for an empty one.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use super::{CliError, Context};
use hookrun_config::suggestion;
use hookrun_nix::dirs::SYSTEM_STATE;
use hookrun_queue::journal::Journal;
use hookrun_queue::{guard, lock};

/// The longest that a first look into the state directory may take: a busy disk takes seconds.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Checks that the file system of the state directory answers. If it does not, no signal ends a
/// process that looks at it; so another one does.
///
/// # Errors
/// It does not answer in time.
pub(super) fn answers(context: &Context) -> Result<(), CliError> {
    let dirs = &context.dirs;
    // Nothing that takes longer the more there is: anybody may fill the spool.
    let look = || {
        let _held = lock::is_held(&dirs.worker_lock());
        if let Ok(Some(journal)) = Journal::open_read_only(dirs) {
            let _open = journal.breakers();
        }
    };
    match guard::ends_within(ANSWERS_WITHIN, look) {
        Ok(false) => Err(CliError::environment(anyhow::anyhow!(
            "the file system of {} did not answer in {} s; see that its disk or server works, and \
             that it is not frozen (`fsfreeze --unfreeze`)",
            dirs.state.display(),
            ANSWERS_WITHIN.as_secs()
        ))),
        // Without another process it is tried without a bound.
        Ok(true) | Err(_) => Ok(()),
    }
}

/// Opens the journal for reading; none if nothing is recorded yet.
///
/// # Errors
/// The state directory that was named is not there, or this user may not read it.
pub(super) fn journal(context: &Context) -> Result<Option<Journal>, CliError> {
    check(context)?;
    Journal::open_read_only(&context.dirs).map_err(CliError::environment)
}

/// Checks that there is a state directory and that this user may read it.
///
/// # Errors
/// As [`journal`].
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
    // Without permission to search the directory, a journal in it looks as if it were not there.
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

/// A plugin that a filter names has to be in the configuration, or to have been there: the journal
/// still has its tasks.
///
/// # Errors
/// Usage, with the names that are known.
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
    // The journal is shown even if the configuration is broken.
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
