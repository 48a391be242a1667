//! The lock that allows one worker: a lock on a file, held for the worker's lifetime.
//!
//! It is a record lock (fcntl), not flock(2), so a hook can find out who holds it without taking
//! it: 100 hooks that ask do not prevent a worker from starting, and the result names the process.
//! The kernel releases the lock with the process, so no stale lock remains. A record lock is also
//! released when its process closes any descriptor of the file, so only this module opens it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::{Flock, FlockType};

/// The mode of the lock file. Other users could otherwise hold a lock on it.
const MODE: u32 = 0o600;

/// The lock, held while a worker runs.
#[derive(Debug)]
pub struct WorkerLock {
    _file: OwnedFd,
}

/// The reason why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another worker runs.
    #[error("a worker already runs{}; `hookrun status` shows it", pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Held {
        /// The process id of the worker, if it is visible from here.
        pid: Option<i32>,
    },
    /// The file cannot be opened.
    #[error("{} cannot be locked ({error}); run the worker as the user that owns the state directory", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The error of the system.
        #[source]
        error: std::io::Error,
    },
}

impl WorkerLock {
    /// Takes the lock, if no other process holds it.
    ///
    /// # Errors
    /// Another worker runs, or the file cannot be opened or locked.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let io =
            |error: rustix::io::Errno| LockError::Io { path: path.to_owned(), error: error.into() };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = hookrun_system::stat::mode(MODE);
        let file = rustix::fs::open(path, flags, mode).map_err(io)?;
        // The file may be of an earlier release, or of a process with another umask.
        if hookrun_system::stat::mode_of(&rustix::fs::fstat(&file).map_err(io)?) & 0o777 != MODE {
            rustix::fs::fchmod(&file, mode).map_err(io)?;
        }
        match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {
                Err(LockError::Held { pid: holder_of(&file) })
            }
            Err(error) => Err(io(error)),
        }
    }
}

/// Returns whether a worker holds the lock, without taking it. If the file does not exist or this
/// user may not read it, the result is false.
pub fn is_held(path: &Path) -> bool {
    holder(path).is_some()
}

/// Returns the process that holds the lock; 0 if it is not visible from here (another PID
/// namespace).
pub fn holder(path: &Path) -> Option<i32> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    rustix::process::fcntl_getlk(&file, &Flock::from(FlockType::WriteLock))
        .ok()?
        .map(|lock| lock.pid.map_or(0, rustix::process::Pid::as_raw_pid))
}

/// Returns whether this user can find out who holds the lock. If the file does not exist, nobody
/// holds it.
pub fn can_be_seen(path: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    !matches!(
        rustix::fs::open(path, flags, Mode::empty()),
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM)
    )
}

fn holder_of(file: &OwnedFd) -> Option<i32> {
    let lock = rustix::process::fcntl_getlk(file, &Flock::from(FlockType::WriteLock)).ok()??;
    lock.pid.map(rustix::process::Pid::as_raw_pid)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    /// The other process of the next test, which holds the lock until its standard input ends. It
    /// is not a test itself.
    #[test]
    #[ignore = "started by `only_one_worker_holds_the_lock` as another process"]
    fn other_process() {
        let path = std::env::var_os("LOCK_FILE").expect("run by `only_one_worker_holds_the_lock`");
        let _lock = WorkerLock::take(Path::new(&path)).unwrap();
        println!("\nlocked");
        let _ended = std::io::stdin().read_line(&mut String::new());
    }

    #[test]
    fn only_one_worker_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("worker.lock");
        assert!(!is_held(&path), "no file");
        let mut other = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "lock::tests::other_process", "--ignored", "--nocapture"])
            .env("LOCK_FILE", &path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(other.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line == "locked"));
        assert!(is_held(&path));
        let pid = i32::try_from(other.id()).unwrap();
        assert!(
            matches!(WorkerLock::take(&path), Err(LockError::Held { pid: Some(holder) }) if holder == pid)
        );
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(!is_held(&path), "the lock is released with its process");
        WorkerLock::take(&path).unwrap();
    }
}
