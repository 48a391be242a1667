//! Starts a worker when a build user hands over an event.
//!
//! The diff hook runs as a build user, who cannot start root's worker. So a worker that root's hook
//! has started leaves this process behind when it has no more work. It is a small process without
//! the engine, which sleeps until a build user's file arrives in the spool. Then it starts a
//! worker, which later leaves the next such process behind. It also ends when the spool is removed.

use rustix::event::{PollFd, PollFlags, poll};

use super::arrivals::Arrivals;
use super::lock::{self, LockError, WorkerLock};
use super::spool::Reader;
use super::trust::{Owner, Trust};
use super::{spawn, spool};
use hookrun_config::{Config, Plugin, Start};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::HookKind;
use hookrun_nix::layout::{Directory, Use};

/// Starts such a process if a plugin takes events of build users and only hooks start workers.
///
/// # Errors
/// The program cannot be started.
pub fn leave_behind(dirs: &Dirs, config: &Config) -> std::io::Result<()> {
    let root = rustix::process::geteuid().is_root();
    if !root || !wants(config) || lock::is_held(&dirs.waiter_lock()) {
        return Ok(());
    }
    spawn::successor(dirs, spawn::WAITS)
}

fn wants(config: &Config) -> bool {
    // A plugin without `hooks` has those of its metadata, which is not read here.
    let diff = |plugin: &Plugin| plugin.hooks.is_empty() || plugin.hooks.contains(&HookKind::Diff);
    config.worker.start == Start::Spawn && config.plugins.values().any(diff)
}

/// Waits, starts a worker, and returns. Returns immediately if another such process runs.
///
/// # Errors
/// An error message on one line.
pub fn run(dirs: &Dirs) -> Result<(), String> {
    let _lock = match WorkerLock::take(&dirs.waiter_lock()) {
        Ok(lock) => lock,
        Err(LockError::Held { .. }) => return Ok(()),
        Err(error @ LockError::Io { .. }) => return Err(error.to_string()),
    };
    let trust = Trust::from_env();
    let reader = Reader::new(dirs, trust.clone());
    let directories: Vec<_> = reader.directories().map(std::path::Path::to_owned).collect();
    drop(reader);
    let watch = || Arrivals::new(directories.iter().map(std::path::PathBuf::as_path));
    let mut arrivals = watch()
        .map_err(|error| format!("{} cannot be watched ({error})", dirs.spool().display()))?;
    let is_of_build_user = |directory: &Directory, name: &[u8]| {
        !name.starts_with(b".")
            && directory
                .stat_of(name)
                .is_ok_and(|stat| trust.owner(stat.st_uid, stat.st_gid) == Ok(Owner::BuildUser))
    };
    let open = |number: usize| Directory::open(directories.get(number)?, Use::List).ok();
    // Files that arrived before the directories were watched.
    let mut found = (0..directories.len())
        .filter_map(open)
        .any(|directory| directory.names().any(|name| is_of_build_user(&directory, &name)));
    while !found {
        let slept = poll(&mut [PollFd::new(&arrivals, PollFlags::IN)], None);
        if !matches!(slept, Ok(_) | Err(rustix::io::Errno::INTR)) {
            return Err("it cannot wait for the spool".to_owned());
        }
        let arrived = arrivals.look();
        if arrived.gone {
            return Ok(());
        }
        // If there are too many files at once, they are not root's, and a worker handles them.
        found = arrived.more
            || arrived.files.iter().any(|(number, name)| {
                open(*number).is_some_and(|directory| is_of_build_user(&directory, name))
            });
        // A running worker has noticed the file.
        found &= !lock::is_held(&dirs.worker_lock());
    }
    // The configuration may have changed since this process started.
    let config = Config::in_force(dirs).map_err(|error| error.to_string())?;
    if wants(&config) && spool::depth(dirs) + super::health::waiting_elsewhere(dirs) > 0 {
        spawn::successor(dirs, spawn::SPAWNED)
            .map_err(|error| format!("no worker was started ({error})"))?;
    }
    Ok(())
}
