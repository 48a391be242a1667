//! Builds on this machine: the number of running ones, and their durations.
//!
//! Nix does not tell a build hook what it builds itself. A build runs while Nix holds a lock on its
//! outputs (`libstore`, `PathLocks`), which it takes before it asks the hook and keeps until the
//! build has ended. The end of a build is in Nix's database, and more exactly in its log.
//!
//! Errors are ignored: a build that cannot be examined is not counted.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::history::History;
use crate::history::{LocalBuild, now_ms};
use hookrun_nix::database::Database;
use hookrun_nix::derivation::Derivation;
use hookrun_nix::event::NixDirs;
use hookrun_nix::selection::Candidate;

/// The number of bytes of the machine's locks that are read. A lock takes about 70 bytes.
const MAX_LOCKS: u64 = 4 << 20;

/// The number of times that a missing lock is looked for. The kernel returns its list in pieces
/// (`fs/seq_file.c`), and a lock is missed if others end between two of them.
const LOOKS: usize = 3;

/// Returns the file that Nix keeps locked while it builds `derivation`
/// (`DerivationGoal::tryToBuild`, 2.4 to 2.35): that of its first output, or one beside the `.drv`
/// if the output's path is not known before the build.
pub fn lock_of(derivation: &Derivation, nix_dirs: &NixDirs) -> Option<String> {
    let output = derivation.outputs.first()?;
    let locked =
        output.path.clone().unwrap_or_else(|| format!("{}.{}", derivation.path, output.name));
    Some(nix_dirs.real_path(&(locked + ".lock")).to_string_lossy().into_owned())
}

/// Returns the number of builds that `command` was told to do on this machine, and that run or are
/// about to start.
pub fn running(history: &mut History, command: &str, except: &str) -> u32 {
    let open = history.open_local();
    let files = open.iter().filter(|build| {
        build.command == command && build.drv_path != except && !build.lock.is_empty()
    });
    let mut unlocked: Vec<(u64, u64)> = files
        .filter_map(|build| std::fs::symlink_metadata(&build.lock).ok())
        .map(|found| (found.dev(), found.ino()))
        .collect();
    let all = unlocked.len();
    for _ in 0..LOOKS {
        if unlocked.is_empty() {
            break;
        }
        let locked = locked(&hookrun_system::process::locks(MAX_LOCKS));
        unlocked.retain(|file| !locked.contains(file));
    }
    u32::try_from(all - unlocked.len()).unwrap_or(u32::MAX)
}

/// Returns device and inode of every file that is locked by flock(2): `1: FLOCK ADVISORY WRITE 1234
/// fe:00:5678 0 EOF`. In the line of a process that waits for a lock, an arrow follows the number.
pub fn locked(locks: &str) -> Vec<(u64, u64)> {
    let file = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(1);
        if words.next()? != "FLOCK" {
            return None;
        }
        let mut parts = words.nth(3)?.split(':');
        let (major, minor) = (parts.next()?, parts.next()?);
        let (major, minor) =
            (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
        Some((hookrun_system::stat::device(major, minor), parts.next()?.parse().ok()?))
    };
    locks.lines().filter_map(file).collect()
}

/// Records in `history` that Nix is told to build `candidate` on this machine.
pub fn left(
    history: &mut History,
    candidate: &Candidate,
    command: String,
    lock: Option<String>,
    willing: bool,
) {
    let build = LocalBuild {
        drv_path: candidate.drv_path.clone(),
        command,
        lock: lock.unwrap_or_default(),
        declined_ms: now_ms(),
        willing,
    };
    history.left_here(candidate.clone(), build);
}

/// Records which of these builds have ended, and their durations. This takes some milliseconds and
/// must not be called while Nix waits for an answer.
pub fn settle(history: &mut History, nix_dirs: &NixDirs) {
    let open = history.open_local();
    if open.is_empty() {
        return;
    }
    let Ok(database) = Database::open(nix_dirs) else { return };
    let logs = log_dir(nix_dirs);
    for build in open {
        let Ok(Some(registered)) = database.built_here(&build.drv_path) else { continue };
        let registered_ms = registered.saturating_mul(1000);
        // Times are whole seconds, rounded down. An earlier time belongs to a previous build.
        if registered_ms.saturating_add(1000) <= build.declined_ms {
            continue;
        }
        let ended_ms = log_ended(&logs, &build.drv_path)
            .filter(|ended| (build.declined_ms..registered_ms.saturating_add(2000)).contains(ended))
            .unwrap_or_else(|| registered_ms.saturating_add(500).max(build.declined_ms));
        let took = std::time::Duration::from_millis(ended_ms.saturating_sub(build.declined_ms))
            .as_secs_f64();
        // The duration of a build that had to wait for a slot is not known.
        history.ended_here(&build.drv_path, ended_ms, build.willing.then_some(took));
    }
}

/// Returns the directory of build logs: `NIX_LOG_DIR`, or one beside the state directory.
fn log_dir(nix_dirs: &NixDirs) -> PathBuf {
    match std::env::var_os("NIX_LOG_DIR").filter(|value| !value.is_empty()) {
        Some(named) => PathBuf::from(named),
        None => nix_dirs.state.parent().unwrap_or(Path::new("/nix/var")).join("log/nix"),
    }
}

/// Returns the time when the log of a build was last written, which is its end
/// (`DerivationGoal::openLogFile`: `drvs/<2>/<rest>.drv`, with or without `.bz2`).
fn log_ended(logs: &Path, drv_path: &str) -> Option<u64> {
    let name = drv_path.rsplit('/').next()?;
    let (first, rest) = name.split_at_checked(2)?;
    let written = [".bz2", ""].into_iter().find_map(|end| {
        std::fs::symlink_metadata(logs.join("drvs").join(first).join(format!("{rest}{end}")))
            .ok()?
            .modified()
            .ok()
    })?;
    u64::try_from(written.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn locks_are_read_as_the_kernel_writes_them() {
        let text = "1: FLOCK  ADVISORY  WRITE 7034 fe:00:1573 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 7035 fe:00:99 0 EOF\n\
                    2: POSIX  ADVISORY  READ 33 00:1a:4 128 128\n3: FLOCK ADVISORY\n";
        assert_eq!(locked(text), [(hookrun_system::stat::device(0xfe, 0), 1573)]);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text: String) {
            locked(&text);
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_build_runs_while_its_lock_is_held() {
        let directory = tempfile::tempdir().unwrap();
        let mut history =
            History::new(directory.path().join("builders"), std::time::Duration::from_secs(1));
        let locks: Vec<std::fs::File> = ["a", "b"]
            .into_iter()
            .map(|name| {
                let lock = directory.path().join(format!("{name}.lock"));
                let file = std::fs::File::create(&lock).unwrap();
                let candidate = Candidate {
                    drv_path: format!("/s/{name}.drv"),
                    pname: name.to_owned(),
                    ..Candidate::default()
                };
                left(
                    &mut history,
                    &candidate,
                    "7-1".to_owned(),
                    lock.to_str().map(str::to_owned),
                    true,
                );
                file
            })
            .collect();
        history.save();
        assert_eq!(running(&mut history, "7-1", ""), 0, "nothing is locked");
        for file in &locks {
            let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
            rustix::fs::flock(file, exclusive).unwrap();
        }
        assert_eq!(running(&mut history, "7-1", ""), 2);
        assert_eq!(running(&mut history, "7-1", "/s/a.drv"), 1, "the excepted one does not count");
        assert_eq!(running(&mut history, "8-1", ""), 0, "of another command");
    }
}
