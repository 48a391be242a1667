//! Waiting and running builds: one small file for each session that has accepted a build, which is
//! valid as long as the session lives ([`crate::slots::live_file`]).
//!
//! Sessions write; `hookrun builders list` and the policy's busy times read ([`live`]).

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use hookrun_system::process;
use serde::{Deserialize, Serialize};

use crate::slots::live_file::{self, LiveFile};
use hookrun_config::Amounts;

/// The directory, below [`Dirs::builders`](hookrun_nix::dirs::Dirs::builders).
const SESSIONS: &str = "sessions";

/// A Nix process that asks. Slots are shared between these. Its start time makes it unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Command {
    /// The process id.
    pub pid: u32,
    /// The time when it was started ([`process::started`]); 0 if it is not known.
    pub started: u64,
}

impl Command {
    /// Returns the parent of this process.
    pub fn of_parent() -> Self {
        let pid = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        let started = process::started(pid).map_or(0, |started| started.time);
        Self { pid: pid.unsigned_abs(), started }
    }

    /// Returns whether the process that `text` names (as displayed by this type) has ended; `false`
    /// if that is not known.
    pub fn is_gone(text: &str) -> bool {
        let named = text
            .split_once('-')
            .and_then(|(pid, start)| Some((pid.parse().ok()?, start.parse::<u64>().ok()?)));
        match named.map(|(pid, start)| (pid, start, process::started(pid))) {
            None | Some((_, 0, _)) => false,
            // A zombie has ended.
            Some((_, start, Some(now))) => now.time != start || now.is_zombie,
            // The process has ended, or processes of other users are hidden (proc(5), `hidepid`).
            Some((pid, ..)) => rustix::process::Pid::from_raw(pid).is_some_and(|pid| {
                rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH)
            }),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.pid, self.started)
    }
}

/// A machine that a build may go to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedMachine {
    /// The store URI.
    pub machine: String,
    /// The number of concurrent builds.
    pub slots: u32,
}

/// The current activity of a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activity {
    /// It waits for a slot on one of these machines, the best first.
    Waiting(Vec<WantedMachine>),
    /// It has a slot on this machine, by URI.
    Building(String),
}

/// A session that has accepted a build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionState {
    /// The process id.
    pub pid: u32,
    /// The Nix process that asked.
    pub command: Command,
    /// The full store path of the `.drv` file.
    pub drv_path: String,
    /// The derivation's name.
    pub name: String,
    /// The length of the longest chain of derivations that depend on it.
    pub depth: Option<u32>,
    /// The expected duration on its machine, or at speed factor 1 while it waits.
    pub expected_seconds: Option<f64>,
    /// The start of the wait or of the build, in milliseconds since 1970.
    pub since_ms: u64,
    /// The resources that it uses besides a slot.
    #[serde(default)]
    pub takes: Amounts,
    /// Its activity.
    pub activity: Activity,
}

/// Returns the directory of the sessions below `builders`.
pub fn directory(builders: &Path) -> PathBuf {
    builders.join(SESSIONS)
}

/// Announces a session to others, until the returned file is dropped.
///
/// # Errors
/// The directory cannot be written.
pub fn announce(directory: &Path, live: &SessionState) -> io::Result<LiveFile> {
    LiveFile::make(directory, live)
}

/// Returns all living sessions, and deletes files of dead ones if this user may.
pub fn live(directory: &Path) -> Vec<SessionState> {
    named(directory).into_iter().map(|(_, live)| live).collect()
}

/// Like [`live`], with the names of the files.
pub(crate) fn named(directory: &Path) -> Vec<(OsString, SessionState)> {
    live_file::living(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(name: &str) -> SessionState {
        SessionState {
            pid: std::process::id(),
            command: Command::of_parent(),
            drv_path: format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}.drv"),
            name: name.to_owned(),
            depth: Some(3),
            expected_seconds: None,
            since_ms: 1,
            takes: Amounts::default(),
            activity: Activity::Waiting(vec![WantedMachine {
                machine: "ssh://m".into(),
                slots: 2,
            }]),
        }
    }

    #[test]
    fn only_living_sessions_are_listed() {
        let directory = tempfile::tempdir().unwrap();
        let sessions = super::directory(directory.path());
        assert!(live(&sessions).is_empty());
        let (_one, two) = (
            announce(&sessions, &session("one")).unwrap(),
            announce(&sessions, &session("two")).unwrap(),
        );
        let mut names: Vec<String> = live(&sessions).into_iter().map(|live| live.name).collect();
        names.sort();
        assert_eq!(names, ["one", "two"]);
        drop(two);
        assert_eq!(live(&sessions), [session("one")]);
        // The form that an earlier release wrote.
        let mut earlier = serde_json::to_value(session("earlier")).unwrap();
        earlier.as_object_mut().unwrap().remove("takes");
        assert_eq!(serde_json::from_value::<SessionState>(earlier).unwrap(), session("earlier"));
    }

    #[test]
    fn a_command_is_a_process_with_its_start_time() {
        let command = Command::of_parent();
        assert!(command.pid > 0);
        assert_eq!(command, Command::of_parent());
        assert!(!Command::is_gone(&command.to_string()));
        assert_eq!(
            Command::is_gone(&format!("{}-{}", command.pid, command.started + 1)),
            command.started != 0
        );
        assert!(
            !Command::is_gone("") && !Command::is_gone("1-0") && !Command::is_gone("another text")
        );
    }
}
