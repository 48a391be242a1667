//! Finds problems of the spool, for `hookrun status` and `hookrun doctor`. Changes nothing.
//!
//! Facts and judgement are separate: [`Look`] holds what the system reports, and [`judge`] is a
//! pure function of it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, StatVfsMountFlags};

use super::spool;
use hookrun_config::Start;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::layout;

/// Below this much space for ordinary users a spool counts as full soon: a few thousand events, and
/// the journal beside it.
const LITTLE_SPACE: u64 = 16 << 20;
/// Below this many free inodes likewise: an event is a file.
const FEW_INODES: u64 = 1000;

/// What the system says about one spool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Look {
    /// Type and permissions; none: there is nothing.
    mode: Option<u32>,
    owner: u32,
    /// Why its entries cannot be listed, if so.
    unlistable: Option<rustix::io::Errno>,
    /// Bytes that ordinary users may still write.
    free: Option<u64>,
    /// Inodes that are left; none where the file system has no fixed number.
    inodes: Option<u64>,
    read_only: bool,
}

/// The spool and the places beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Could the spool be listed? If not, nobody here knows how many events wait.
    pub listed: bool,
    /// Events in fallback directories.
    pub elsewhere: usize,
    /// One line for each thing that is wrong, with the fix.
    pub problems: Vec<String>,
}

/// A worker that a hook starts has this long to appear before its absence is a problem.
const WORKER_START: Duration = Duration::from_secs(30);

/// What is wrong if no worker runs although `waiting` events and due tasks wait, the oldest of them
/// for `age`; with the fix.
pub fn stalled(start: Start, waiting: u64, age: Duration) -> Option<String> {
    let what = match waiting {
        0 => return None,
        1 => "1 event or task waits".to_owned(),
        count => format!("{count} events or tasks wait"),
    };
    match start {
        Start::Service => Some(format!(
            "{what} and no worker runs, although `start = \"service\"`; run `systemctl enable --now \
             hookrun`, or once `hookrun drain`"
        )),
        Start::None => Some(format!(
            "{what} and no worker runs, because `start = \"none\"`; run `hookrun drain`"
        )),
        // A hook starts one, which takes a moment.
        Start::Spawn if age < WORKER_START => None,
        Start::Spawn => Some(format!(
            "{what} since {} and no worker runs; run `hookrun drain`, or wait for the next hook, \
             which starts a worker",
            humantime::format_duration(Duration::from_secs(age.as_secs()))
        )),
    }
}

/// Looks at the spool of `dirs` and at the fallback directories; `worker`: one runs.
pub fn check(dirs: &Dirs, worker: bool) -> Health {
    let spool = dirs.spool();
    let seen = look(&spool);
    let mut problems = judge(&spool, &seen, rustix::process::geteuid().as_raw(), worker);
    problems.extend(layout::examine(dirs).into_iter().map(|wrong| wrong.message));
    let elsewhere = elsewhere(dirs);
    problems.extend(elsewhere.iter().map(|(directory, count)| {
        format!(
            "events that the spool could not hold are in {}: {count}; the worker takes them from there",
            directory.display()
        )
    }));
    let elsewhere = elsewhere.into_iter().map(|(_, count)| count).sum();
    Health { listed: seen.unlistable.is_none(), elsewhere, problems }
}

/// The fallback directories that have events, and how many.
pub fn elsewhere(dirs: &Dirs) -> Vec<(PathBuf, usize)> {
    let directories = layout::fallbacks(dirs).into_iter().chain(layout::own_fallbacks(dirs));
    directories
        .map(|directory| {
            let count = spool::count(&directory);
            (directory, count)
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// How many events are in fallback directories.
pub fn waiting_elsewhere(dirs: &Dirs) -> usize {
    elsewhere(dirs).iter().map(|(_, count)| count).sum()
}

fn look(spool: &Path) -> Look {
    let found = std::fs::symlink_metadata(spool).ok();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let unlistable = found.as_ref().filter(|found| found.is_dir());
    let unlistable = unlistable.and_then(|_| rustix::fs::open(spool, flags, Mode::empty()).err());
    // Where nothing is yet, the file system that it will be on.
    let place = spool.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let system = rustix::fs::statvfs(place).ok();
    Look {
        mode: found.as_ref().map(std::fs::Metadata::mode),
        owner: found.as_ref().map_or(0, std::fs::Metadata::uid),
        unlistable,
        free: system.as_ref().map(|system| system.f_bavail.saturating_mul(system.f_frsize)),
        inodes: system.as_ref().filter(|system| system.f_files > 0).map(|system| system.f_favail),
        read_only: system.is_some_and(|system| system.f_flag.contains(StatVfsMountFlags::RDONLY)),
    }
}

fn judge(spool: &Path, look: &Look, me: u32, worker: bool) -> Vec<String> {
    let Look { mode, owner, unlistable, free, inodes, read_only } = look;
    let shown = spool.display();
    let mut problems = Vec::new();
    match mode {
        // Before the first event that is how it is.
        None if !worker => {}
        None => problems.push(format!(
            "the spool {shown} is gone while a worker runs: somebody removed it, with what was in it; the next hook of its owner makes it again"
        )),
        // What is wrong with it, `layout` says.
        Some(_) => {}
    }
    if let Some(error) = unlistable {
        problems.push(if *owner == me {
            format!("the spool {shown} cannot be read ({error}); run `chmod u+rwx {shown}`")
        } else {
            format!("only uid {owner}, the owner of {shown}, can see how many events wait there; run this command as that user")
        });
    }
    if *read_only {
        problems.push(format!(
            "the file system of {shown} is mounted read-only, and hooks cannot hand over there; mount it writable, or set HOOKRUN_STATE_DIR to another directory"
        ));
    } else if free.is_some_and(|free| free < LITTLE_SPACE) {
        let free = bytesize::ByteSize(free.unwrap_or_default()).display().iec().to_string();
        problems.push(format!(
            "the file system of {shown} has {free} left, too little for events and the journal; make space there"
        ));
    } else if let Some(left) = inodes.filter(|left| *left < FEW_INODES) {
        problems
            .push(format!("the file system of {shown} has {left} free inodes, and every event needs one; remove files there"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `S_IFDIR`, whose type differs between systems.
    const DIRECTORY: u32 = 0o040_000;

    fn seen(look: &Look, me: u32, worker: bool) -> String {
        judge(Path::new("/s/spool"), look, me, worker).join("\n")
    }

    fn directory(mode: u32, owner: u32) -> Look {
        Look { mode: Some(DIRECTORY | mode), owner, free: Some(u64::MAX), ..Look::default() }
    }

    #[test]
    fn a_healthy_spool_has_no_findings() {
        assert_eq!(seen(&directory(0o1733, 0), 0, true), "");
        assert_eq!(seen(&directory(0o700, 1000), 1000, false), "");
        assert_eq!(
            seen(&Look { free: Some(u64::MAX), ..Look::default() }, 0, false),
            "",
            "nothing has happened yet"
        );
    }

    #[test]
    fn problems_of_the_spool_are_reported_with_the_fix() {
        let plain = directory(0o1733, 0);
        insta::assert_snapshot!(seen(&Look { free: Some(u64::MAX), ..Look::default() }, 0, true));
        insta::assert_snapshot!(seen(
            &Look { unlistable: Some(rustix::io::Errno::ACCESS), ..plain.clone() },
            1000,
            false
        ));
        insta::assert_snapshot!(seen(&Look { free: Some(4096), ..plain.clone() }, 0, false));
        insta::assert_snapshot!(seen(&Look { inodes: Some(3), ..plain.clone() }, 0, false));
        insta::assert_snapshot!(seen(&Look { read_only: true, free: Some(0), ..plain }, 0, false));
    }

    #[test]
    fn events_that_wait_without_a_worker_are_a_problem_with_a_fix() {
        let minute = Duration::from_mins(1);
        assert_eq!(stalled(Start::Service, 0, minute), None);
        assert_eq!(stalled(Start::Spawn, 2, Duration::from_secs(1)), None, "it is being started");
        insta::assert_snapshot!(stalled(Start::Service, 1, Duration::ZERO).unwrap(), @r#"1 event or task waits and no worker runs, although `start = "service"`; run `systemctl enable --now hookrun`, or once `hookrun drain`"#);
        insta::assert_snapshot!(stalled(Start::None, 2, Duration::ZERO).unwrap(), @r#"2 events or tasks wait and no worker runs, because `start = "none"`; run `hookrun drain`"#);
        insta::assert_snapshot!(stalled(Start::Spawn, 2, 2 * minute).unwrap(), @"2 events or tasks wait since 2m and no worker runs; run `hookrun drain`, or wait for the next hook, which starts a worker");
    }

    #[test]
    fn facts_of_a_spool_directory_are_gathered() {
        let state = tempfile::tempdir().unwrap();
        let dirs = Dirs { config: state.path().join("c"), state: state.path().join("not/yet") };
        let health = check(&dirs, false);
        assert!(health.listed && health.elsewhere == 0, "{health:?}");
        std::fs::create_dir_all(dirs.spool()).unwrap();
        assert!(check(&dirs, true).listed);
    }
}
