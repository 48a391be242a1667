//! Who waits and who builds right now: one small file for each session that has accepted a build, locked for as long as the session
//! lives.
//!
//! The lock (`flock`) is what counts. The kernel drops it with the process, however that ends, so a dead session frees its place; its
//! file is swept away by whoever sees it next. A file is locked before it has its name, so nobody sees an unlocked one of the living.
//! Sessions write; `hookrun builders list` and the policy's busy times read ([`live`]).

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};

/// The directory, below [`Dirs::builders`](crate::dirs::Dirs::builders).
const SESSIONS: &str = "sessions";
/// What a finished file's name ends in.
const SUFFIX: &str = ".json";
/// Largest file that is read; a waiting session names each machine that it waits for.
const MAX_SIZE: u64 = 1 << 20;

/// The Nix process that asked: what builds are shared out between. Its start makes it unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Command {
    /// Process.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`; 0 where there is none.
    pub started: u64,
}

impl Command {
    /// The parent of this process.
    pub fn of_parent() -> Self {
        let pid = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
        Self { pid, started: stat(pid).map_or(0, |(_, started)| started) }
    }

    /// Has the process ended that `text` names (as this is displayed)? `false` where that cannot be known.
    pub fn is_gone(text: &str) -> bool {
        let named = text.split_once('-').and_then(|(pid, start)| Some((pid.parse().ok()?, start.parse::<u64>().ok()?)));
        match named.map(|(pid, start)| (pid, start, stat(pid))) {
            None | Some((_, 0, _)) => false,
            // One that is a zombie is only waited for.
            Some((_, start, Some((state, now)))) => now != start || matches!(state, 'Z' | 'X'),
            // It is gone, or other users' processes are not shown here (proc(5), `hidepid`).
            Some((pid, ..)) => {
                let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
                pid.is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
            }
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.pid, self.started)
    }
}

/// State and start of a process. proc(5): the second field, in parentheses, may hold anything.
fn stat(pid: u32) -> Option<(char, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.nth(18)?.parse().ok()?))
}

/// A machine that a build may go to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Store URI.
    pub machine: String,
    /// Builds at once.
    pub slots: u32,
}

/// What a session does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activity {
    /// It waits for a slot on one of these, the first the best.
    Waiting(Vec<Wanted>),
    /// It has a slot on this machine, by URI.
    Building(String),
}

/// A session that has accepted a build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// Its process.
    pub pid: u32,
    /// Which Nix process asked.
    pub command: Command,
    /// Full store path of the `.drv`.
    pub drv_path: String,
    /// The derivation's name.
    pub name: String,
    /// How many derivations stand one after another behind it.
    pub depth: Option<u32>,
    /// How long it should take on the machine it builds on, or (waiting) at speed factor 1.
    pub expected_seconds: Option<f64>,
    /// Since when it waits, or builds; milliseconds since 1970.
    pub since_ms: u64,
    /// What it does.
    pub activity: Activity,
}

/// This session's file. Dropping it takes it away.
#[derive(Debug)]
pub struct Lease {
    /// Held locked.
    _file: OwnedFd,
    path: PathBuf,
}

impl Lease {
    /// Its name, which no other one has.
    pub fn name(&self) -> &std::ffi::OsStr {
        self.path.file_name().unwrap_or_default()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}

/// The files of the sessions below `builders`, the directory of what is known about machines.
pub fn directory(builders: &Path) -> PathBuf {
    builders.join(SESSIONS)
}

/// Lets the others know, for as long as the lease is kept.
///
/// # Errors
/// The directory cannot be written.
pub fn announce(directory: &Path, live: &Live) -> io::Result<Lease> {
    use std::os::unix::fs::DirBuilderExt as _;
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("{}-{}-{number}", std::process::id(), live.since_ms);
    let hidden = directory.join(format!(".{name}"));
    let path = directory.join(name + SUFFIX);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(&hidden, flags, Mode::from_raw_mode(0o644))?;
    let publish = || -> io::Result<()> {
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let text = serde_json::to_vec(live).map_err(io::Error::other)?;
        std::fs::File::from(file.try_clone()?).write_all(&text)?;
        std::fs::rename(&hidden, &path)
    };
    publish().inspect_err(|_| {
        let _gone = std::fs::remove_file(&hidden);
    })?;
    Ok(Lease { _file: file, path })
}

/// All living sessions. What the dead left is swept away where this user may.
pub fn live(directory: &Path) -> Vec<Live> {
    named(directory).into_iter().map(|(_, live)| live).collect()
}

/// The same, each with the name of its file.
pub(super) fn named(directory: &Path) -> Vec<(std::ffi::OsString, Live)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let finished = |entry: &std::fs::DirEntry| entry.file_name().as_encoded_bytes().ends_with(SUFFIX.as_bytes());
    entries.filter(finished).filter_map(|entry| Some((entry.file_name(), read(&entry.path())?))).collect()
}

fn read(path: &Path) -> Option<Live> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    // A shared lock: two that look at once do not take each other for the owner.
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        let _gone = std::fs::remove_file(path);
        return None;
    }
    let mut text = Vec::new();
    std::fs::File::from(file).take(MAX_SIZE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(name: &str) -> Live {
        Live {
            pid: std::process::id(),
            command: Command::of_parent(),
            drv_path: format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}.drv"),
            name: name.to_owned(),
            depth: Some(3),
            expected_seconds: None,
            since_ms: 1,
            activity: Activity::Waiting(vec![Wanted { machine: "ssh://m".to_owned(), slots: 2 }]),
        }
    }

    #[test]
    fn the_living_are_seen_and_the_dead_swept() {
        let directory = tempfile::tempdir().unwrap();
        let sessions = super::directory(directory.path());
        assert!(live(&sessions).is_empty());
        let (one, two) = (announce(&sessions, &session("one")).unwrap(), announce(&sessions, &session("two")).unwrap());
        let mut names: Vec<String> = live(&sessions).into_iter().map(|live| live.name).collect();
        names.sort();
        assert_eq!(names, ["one", "two"]);
        drop(two);
        assert_eq!(live(&sessions), [session("one")]);
        // As if its process had been killed: the lock goes, the file stays.
        let left = sessions.join("left.json");
        std::fs::copy(&one.path, &left).unwrap();
        std::fs::write(sessions.join("not-ours"), "x").unwrap();
        assert_eq!(live(&sessions).len(), 1);
        assert!(!left.exists() && sessions.join("not-ours").exists());
    }

    #[test]
    fn a_command_is_one_process() {
        let command = Command::of_parent();
        assert!(command.pid > 0);
        assert_eq!(command, Command::of_parent());
        assert!(!Command::is_gone(&command.to_string()));
        assert_eq!(Command::is_gone(&format!("{}-{}", command.pid, command.started + 1)), command.started != 0);
        assert!(!Command::is_gone("") && !Command::is_gone("1-0") && !Command::is_gone("another text"));
        assert_eq!(stat(std::process::id()).is_some(), cfg!(target_os = "linux"));
    }
}
