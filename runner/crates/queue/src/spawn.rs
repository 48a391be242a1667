//! Starts a detached worker from a hook, if the configuration asks for it and none runs.
//!
//! The post-build and diff hooks call this after the event is in the spool. Nix waits until all
//! processes have closed its hook's standard output and error. It kills the hook's process group
//! when the client disconnects, and sets a parent-death signal for the hook. So the worker gets its
//! own session and none of the hook's descriptors. fork(2) does not inherit the parent-death signal
//! (prctl(2)).

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hookrun_system::child::Preparation;
use hookrun_system::process;
use rustix::fs::Access;

use super::lock;
use hookrun_config::{ConfigText, Start};
use hookrun_nix as nix;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::terminal::STAMPED;

/// The flag of a worker that a hook starts.
pub const SPAWNED: &str = "--spawned";
/// The flag of a process that waits to start one.
pub const WAITS: &str = "--waits";
/// The arguments of a worker that a hook starts. The command is hidden from help texts.
pub const ARGUMENTS: [&str; 2] = ["worker", SPAWNED];
/// The worker's log is rotated at this size; one old log is kept.
const MAX_LOG_SIZE: u64 = 1 << 20;

/// Returns whether no worker runs and this user may write the journal.
pub fn may_start(dirs: &Dirs) -> bool {
    // The cheapest check is first: usually a worker already runs.
    !lock::is_held(&dirs.worker_lock()) && may_write_journal(dirs)
}

/// Starts a worker if the configuration says `start = "spawn"`. Called if [`may_start`].
///
/// # Errors
/// The configuration is wrong, or the program cannot be started; one line.
pub fn if_wanted(dirs: &Dirs, text: &ConfigText) -> Result<(), String> {
    match text.parse().map_err(|error| error.to_string())?.worker.start {
        Start::Spawn => start(dirs).map_err(|error| match hookrun_beside() {
            Some(program) => {
                format!("{} cannot be started ({error}); install it there", program.display())
            }
            None => {
                format!("hookrun cannot be started ({error}); run `hookrun drain` to run the tasks")
            }
        }),
        Start::Service | Start::None => Ok(()),
    }
}

/// Build users may not; their events wait for the next worker.
fn may_write_journal(dirs: &Dirs) -> bool {
    let writable =
        |path: &std::path::Path| rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK);
    match writable(&dirs.journal()) {
        Err(rustix::io::Errno::NOENT) => writable(&dirs.state).is_ok(),
        result => result.is_ok(),
    }
}

fn start(dirs: &Dirs) -> std::io::Result<()> {
    detached(dirs, &ARGUMENTS)
}

/// Starts `hookrun worker` with the arguments of this process, but with another flag. The other
/// arguments stay, so that it uses the same directories.
///
/// # Errors
/// The program cannot be started.
pub fn successor(dirs: &Dirs, flag: &str) -> std::io::Result<()> {
    let known = |argument: &OsString| argument == SPAWNED || argument == WAITS;
    let arguments: Vec<OsString> = std::env::args_os()
        .skip(1)
        .map(|argument| if known(&argument) { flag.into() } else { argument })
        .collect();
    detached(dirs, &arguments)
}

/// Starts a detached `hookrun` with `arguments`: in a new session, without inherited descriptors,
/// and with the worker's log as standard error.
///
/// # Errors
/// The program cannot be started.
pub fn detached(dirs: &Dirs, arguments: &[impl AsRef<OsStr>]) -> std::io::Result<()> {
    let mut command = match hookrun_beside().or_else(replacement) {
        Some(program) => Command::new(program),
        None => process::this_program(),
    };
    nix::scrub(&mut command);
    command
        .arg0("hookrun")
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    match log_file(dirs) {
        Ok(log) => command.stderr(log).env(STAMPED, "1"),
        Err(_) => command.stderr(Stdio::null()),
    };
    let preparation = Preparation { session: true, closes_others: true, ..Preparation::default() };
    // This process does not wait for the worker; init reaps it.
    preparation.add_to(&mut command).spawn().map(drop)
}

/// Rotates the worker's log if it is too long and is standard error of this process. Several
/// processes append through one descriptor, so the file is copied and truncated, not renamed.
pub fn bound_log(dirs: &Dirs) {
    use std::os::unix::fs::MetadataExt as _;
    let path = dirs.worker_log();
    let (Ok(open), Ok(named)) =
        (rustix::fs::fstat(rustix::stdio::stderr()), std::fs::symlink_metadata(&path))
    else {
        return;
    };
    let is_ours = hookrun_system::stat::identity_of(&open) == (named.dev(), named.ino());
    if is_ours && named.len() > MAX_LOG_SIZE && std::fs::copy(&path, old_log(&path)).is_ok() {
        // If this fails, the log stays too long until the next attempt.
        let _emptied = rustix::fs::ftruncate(rustix::stdio::stderr(), 0);
    }
}

fn old_log(path: &Path) -> PathBuf {
    path.with_added_extension("1")
}

/// The name of the small hook program. It executes [`PROGRAM`] for all other roles.
pub const SMALL_HOOK: &str = "hookrun-hook";
/// The name of the program with all roles, in the same directory.
pub const PROGRAM: &str = "hookrun";

/// Returns the path of [`PROGRAM`] if this process runs [`SMALL_HOOK`].
fn hookrun_beside() -> Option<PathBuf> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    beside(&process::program_of(own)?)
}

/// Returns the path of [`PROGRAM`] in the directory of `program`, if that is [`SMALL_HOOK`].
pub fn beside(program: &Path) -> Option<PathBuf> {
    let name = program.file_name()?.to_str()?;
    let name = name.strip_suffix(process::DELETED).unwrap_or(name);
    (name == SMALL_HOOK).then(|| program.with_file_name(PROGRAM))
}

/// Returns whether another file now has the name of the running program. False if the program was
/// only removed: a new process would then be the same program, in an endless loop.
pub fn is_replaced() -> bool {
    replacement().is_some()
}

/// Returns the file that has replaced the running program.
fn replacement() -> Option<PathBuf> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    successor_of(&process::program_of(own)?)
}

/// The file under the name of a program, if `link`, from `/proc/PID/exe`, leads to an older one.
fn successor_of(link: &Path) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt as _;
    let name = link.as_os_str().as_bytes().strip_suffix(process::DELETED.as_bytes())?;
    Some(PathBuf::from(OsStr::from_bytes(name))).filter(|path| path.is_file())
}

/// Returns whether `/proc/PID/exe` leads to a file that was removed or replaced.
pub fn is_deleted(link: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    link.as_os_str().as_bytes().ends_with(process::DELETED.as_bytes())
}

fn log_file(dirs: &Dirs) -> std::io::Result<File> {
    let path = dirs.worker_log();
    if std::fs::symlink_metadata(&path).is_ok_and(|found| found.len() > MAX_LOG_SIZE) {
        std::fs::rename(&path, old_log(&path))?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_small_program_starts_the_one_beside_it() {
        let hookrun = Some(PathBuf::from("/a/hookrun"));
        assert_eq!(beside(Path::new("/a/hookrun-hook")), hookrun);
        assert_eq!(beside(Path::new("/a/hookrun-hook (deleted)")), hookrun, "it was replaced");
        assert_eq!(beside(Path::new("/a/hookrun")), None);
    }

    #[test]
    fn a_program_that_was_removed_has_no_successor() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("hookrun");
        let link = PathBuf::from(format!("{} (deleted)", program.display()));
        assert_eq!(successor_of(&link), None, "it was removed");
        std::fs::write(&program, "new").unwrap();
        assert_eq!(successor_of(&link), Some(program.clone()), "it was replaced");
        assert_eq!(successor_of(&program), None, "it is the one that runs");
    }

    #[test]
    fn a_configuration_error_is_one_line_and_starts_no_worker() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs { config: dir.path().join("hookrun.toml"), state: dir.path().to_owned() };
        std::fs::write(&dirs.config, "[worker]\nstrat = 1\n").unwrap();
        let start = || if_wanted(&dirs, &ConfigText::in_force(&dirs).unwrap());
        assert!(may_start(&dirs));
        let error = start().unwrap_err().replace(&dir.path().display().to_string(), "DIR");
        insta::assert_snapshot!(error, @"DIR/hookrun.toml:2: unknown key `strat`; did you mean `start`?");
        std::fs::write(&dirs.config, "[worker]\nstart = \"none\"\n").unwrap();
        assert_eq!(start(), Ok(()));
        assert!(!dirs.worker_log().exists());
    }
}
