//! Starts a detached worker from a hook, if the configuration asks for it and none runs.
//!
//! The thin hooks call this after the event is in the spool. Nix waits until all processes have
//! closed its hook's standard output and error, kills the hook's process group when the client
//! goes, and asks the kernel to kill the hook with it. So the worker gets a session of its own and
//! none of the hook's descriptors; the parent-death signal is not inherited over fork (prctl(2)).

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
use hookrun_config::{Start, Text};
use hookrun_nix as nix;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::terminal::STAMPED;

/// The flag of a worker that a hook starts.
pub const SPAWNED: &str = "--spawned";
/// The flag of a process that waits to start one.
pub const WAITS: &str = "--waits";
/// The arguments of a worker that a hook starts; a hidden command, not for people.
pub const ARGUMENTS: [&str; 2] = ["worker", SPAWNED];
/// The worker's log is begun anew at this size; one old one is kept.
const MAX_LOG_SIZE: u64 = 1 << 20;

/// Returns whether no worker runs and this user may write the journal.
pub fn may_start(dirs: &Dirs) -> bool {
    // The cheapest first: mostly a worker runs already.
    !lock::is_held(&dirs.worker_lock()) && may_write_journal(dirs)
}

/// Starts a worker if the configuration says `start = "spawn"`. Called if [`may_start`].
///
/// # Errors
/// The configuration is wrong, or the program cannot be started; one line.
pub fn if_wanted(dirs: &Dirs, text: &Text) -> Result<(), String> {
    match text.parse().map_err(|error| error.to_string())?.worker.start {
        Start::Spawn => start(dirs).map_err(|error| match hookrun_beside() {
            Some(program) => {
                format!("{} cannot be started ({error}); install it there", program.display())
            }
            None => format!("cannot start hookrun ({error})"),
        }),
        Start::Service | Start::None => Ok(()),
    }
}

/// Not so for build users, whose events wait for the next worker.
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

/// Starts a process like this one, in which `hookrun worker` has another flag: on the same
/// directories, however they were named.
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

/// Starts `hookrun` with `arguments` and nothing of this process: no standard streams but the
/// worker's log, no descriptors, no session.
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
    // Not waited for: this process ends first, and init takes the worker.
    preparation.add_to(&mut command).spawn().map(drop)
}

/// Begins the worker's log anew if it is too long and this process writes it. Its processes share
/// one descriptor that appends, so the file is copied and emptied, not renamed.
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
        // Else it is too long for a while.
        let _emptied = rustix::fs::ftruncate(rustix::stdio::stderr(), 0);
    }
}

fn old_log(path: &Path) -> PathBuf {
    path.with_added_extension("1")
}

/// The name of the small program that has the thin hooks only. It executes [`PROGRAM`] for
/// everything else.
pub const THIN_PROGRAM: &str = "hookrun-hook";
/// The name of the program with all roles, in the same directory.
pub const PROGRAM: &str = "hookrun";

/// The program with all roles, if this process runs the small one.
pub fn hookrun_beside() -> Option<PathBuf> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    beside(&process::program_of(own)?)
}

/// The program with all roles beside a program, if that is the small one.
pub fn beside(program: &Path) -> Option<PathBuf> {
    let name = program.file_name()?.to_str()?;
    let name = name.strip_suffix(process::DELETED).unwrap_or(name);
    (name == THIN_PROGRAM).then(|| program.with_file_name(PROGRAM))
}

/// Has the program that this process runs been replaced by another one of its name? A program that
/// was only removed has no successor: starting one would start the same program again, for ever.
pub fn is_replaced() -> bool {
    replacement().is_some()
}

/// The program that now has the name of the one that runs.
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
    fn a_broken_configuration_is_one_line_and_starts_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs { config: dir.path().join("hookrun.toml"), state: dir.path().to_owned() };
        std::fs::write(&dirs.config, "[worker]\nstrat = 1\n").unwrap();
        let start = || if_wanted(&dirs, &Text::in_force(&dirs).unwrap());
        assert!(may_start(&dirs));
        let error = start().unwrap_err().replace(&dir.path().display().to_string(), "DIR");
        insta::assert_snapshot!(error, @"DIR/hookrun.toml:2: unknown key `strat`; did you mean `start`?");
        std::fs::write(&dirs.config, "[worker]\nstart = \"none\"\n").unwrap();
        assert_eq!(start(), Ok(()));
        assert!(!dirs.worker_log().exists());
    }
}
