//! Finds problems of the spool, for `hookrun status` and `hookrun doctor`. Changes nothing.
//!
//! Facts and judgement are separate: [`SpoolFacts`] contains what the system reports, and [`judge`]
//! is a pure function of it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, StatVfsMountFlags};

use super::spool;
use hookrun_config::Start;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::layout;

/// If ordinary users have less space than this, the spool will soon be full: a few thousand events,
/// and the journal beside it.
const LITTLE_SPACE: u64 = 16 << 20;
/// If there are fewer free inodes than this, the spool will soon be full, because each event is a
/// file.
const FEW_INODES: u64 = 1000;

/// Facts about a spool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct SpoolFacts {
    /// The type and permissions; none if it does not exist.
    mode: Option<u32>,
    owner: u32,
    /// The error when its entries were listed.
    unlistable: Option<rustix::io::Errno>,
    /// The space that ordinary users may still use, in bytes.
    free: Option<u64>,
    /// The number of free inodes; none if the file system has no fixed number.
    inodes: Option<u64>,
    read_only: bool,
}

/// The state of the spool and of the fallback directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether the spool could be listed. If not, the number of waiting events is not known.
    pub listed: bool,
    /// The number of events in fallback directories.
    pub elsewhere: usize,
    /// One line for each problem, with the fix.
    pub problems: Vec<String>,
}

/// The time for a worker that a hook has started to appear, before its absence is a problem.
const WORKER_START: Duration = Duration::from_secs(30);

/// Returns the problem if no worker runs although `waiting` events and due tasks wait, the oldest
/// for `age`; with the fix.
pub fn stalled(start: Start, waiting: u64, age: Duration) -> Option<String> {
    let what = match waiting {
        0 => return None,
        1 => "1 event or task waits".to_owned(),
        count => format!("{count} events or tasks wait"),
    };
    match start {
        Start::Service => Some(format!(
            "{what}, but no worker runs, although `start = \"service\"`; run `systemctl enable --now hookrun`, or run `hookrun drain` once"
        )),
        Start::None => Some(format!(
            "{what}, but no worker runs, because `start = \"none\"`; run `hookrun drain`"
        )),
        // A hook has started one, which takes a moment.
        Start::Spawn if age < WORKER_START => None,
        Start::Spawn => Some(format!(
            "{what} since {}, but no worker runs; run `hookrun drain`, or wait for the next hook, \
             which starts a worker",
            humantime::format_duration(Duration::from_secs(age.as_secs()))
        )),
    }
}

/// Checks the spool of `dirs` and the fallback directories. `worker` is whether one runs.
pub fn check(dirs: &Dirs, worker: bool) -> Health {
    let spool = dirs.spool();
    let seen = look(&spool);
    let mut problems = judge(&spool, &seen, rustix::process::geteuid().as_raw(), worker);
    problems.extend(layout::examine(dirs).into_iter().map(|wrong| wrong.message));
    let elsewhere = elsewhere(dirs);
    problems.extend(elsewhere.iter().map(|(directory, count)| {
        format!(
            "{count} events that could not be written to the spool are in {}; the worker takes them from there",
            directory.display()
        )
    }));
    let elsewhere = elsewhere.into_iter().map(|(_, count)| count).sum();
    Health { listed: seen.unlistable.is_none(), elsewhere, problems }
}

/// Returns the fallback directories that contain events, with their number.
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

/// Returns the number of events in fallback directories.
pub fn waiting_elsewhere(dirs: &Dirs) -> usize {
    elsewhere(dirs).iter().map(|(_, count)| count).sum()
}

fn look(spool: &Path) -> SpoolFacts {
    let found = std::fs::symlink_metadata(spool).ok();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let unlistable = found.as_ref().filter(|found| found.is_dir());
    let unlistable = unlistable.and_then(|_| rustix::fs::open(spool, flags, Mode::empty()).err());
    // If it does not exist yet, the file system of its nearest parent is examined.
    let place = spool.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let system = rustix::fs::statvfs(place).ok();
    SpoolFacts {
        mode: found.as_ref().map(std::fs::Metadata::mode),
        owner: found.as_ref().map_or(0, std::fs::Metadata::uid),
        unlistable,
        free: system.as_ref().map(|system| system.f_bavail.saturating_mul(system.f_frsize)),
        inodes: system.as_ref().filter(|system| system.f_files > 0).map(|system| system.f_favail),
        read_only: system.is_some_and(|system| system.f_flag.contains(StatVfsMountFlags::RDONLY)),
    }
}

fn judge(spool: &Path, look: &SpoolFacts, me: u32, worker: bool) -> Vec<String> {
    let SpoolFacts { mode, owner, unlistable, free, inodes, read_only } = look;
    let shown = spool.display();
    let mut problems = Vec::new();
    match mode {
        // Before the first event, the spool does not exist.
        None if !worker => {}
        None => problems.push(format!(
            "the spool {shown} was removed while a worker runs, and its events are lost; the next hook of its owner creates it again, and `hookrun sync` queues what was built"
        )),
        // `layout` reports a wrong mode.
        Some(_) => {}
    }
    if let Some(error) = unlistable {
        problems.push(if *owner == me {
            format!("the spool {shown} cannot be read ({error}); run `chmod u+rwx {shown}`")
        } else {
            format!("only uid {owner}, the owner of {shown}, can count the events there; run this command as that user")
        });
    }
    if *read_only {
        problems.push(format!(
            "the file system of {shown} is mounted read-only, so hooks cannot hand over events; mount it writable, or set HOOKRUN_STATE_DIR to another directory"
        ));
    } else if free.is_some_and(|free| free < LITTLE_SPACE) {
        let free = bytesize::ByteSize(free.unwrap_or_default()).display().iec().to_string();
        problems.push(format!(
            "the file system of {shown} has {free} left, which is too little for events and the journal; make space there"
        ));
    } else if let Some(left) = inodes.filter(|left| *left < FEW_INODES) {
        problems
            .push(format!("the file system of {shown} has {left} free inodes, but every event needs one; remove files there"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `S_IFDIR`, whose type differs between systems.
    const DIRECTORY: u32 = 0o040_000;

    fn seen(look: &SpoolFacts, me: u32, worker: bool) -> String {
        judge(Path::new("/s/spool"), look, me, worker).join("\n")
    }

    fn directory(mode: u32, owner: u32) -> SpoolFacts {
        SpoolFacts {
            mode: Some(DIRECTORY | mode),
            owner,
            free: Some(u64::MAX),
            ..SpoolFacts::default()
        }
    }

    #[test]
    fn a_healthy_spool_has_no_findings() {
        assert_eq!(seen(&directory(0o1733, 0), 0, true), "");
        assert_eq!(seen(&directory(0o700, 1000), 1000, false), "");
        assert_eq!(
            seen(&SpoolFacts { free: Some(u64::MAX), ..SpoolFacts::default() }, 0, false),
            "",
            "no event was handed over yet"
        );
    }

    #[test]
    fn problems_of_the_spool_are_reported_with_the_fix() {
        let plain = directory(0o1733, 0);
        insta::assert_snapshot!(seen(
            &SpoolFacts { free: Some(u64::MAX), ..SpoolFacts::default() },
            0,
            true
        ));
        insta::assert_snapshot!(seen(
            &SpoolFacts { unlistable: Some(rustix::io::Errno::ACCESS), ..plain.clone() },
            1000,
            false
        ));
        insta::assert_snapshot!(seen(&SpoolFacts { free: Some(4096), ..plain.clone() }, 0, false));
        insta::assert_snapshot!(seen(&SpoolFacts { inodes: Some(3), ..plain.clone() }, 0, false));
        insta::assert_snapshot!(seen(
            &SpoolFacts { read_only: true, free: Some(0), ..plain },
            0,
            false
        ));
    }

    #[test]
    fn events_that_wait_without_a_worker_are_reported_with_the_fix() {
        let minute = Duration::from_mins(1);
        assert_eq!(stalled(Start::Service, 0, minute), None);
        assert_eq!(stalled(Start::Spawn, 2, Duration::from_secs(1)), None, "it is being started");
        insta::assert_snapshot!(stalled(Start::Service, 1, Duration::ZERO).unwrap(), @r#"1 event or task waits, but no worker runs, although `start = "service"`; run `systemctl enable --now hookrun`, or run `hookrun drain` once"#);
        insta::assert_snapshot!(stalled(Start::None, 2, Duration::ZERO).unwrap(), @r#"2 events or tasks wait, but no worker runs, because `start = "none"`; run `hookrun drain`"#);
        insta::assert_snapshot!(stalled(Start::Spawn, 2, 2 * minute).unwrap(), @"2 events or tasks wait since 2m, but no worker runs; run `hookrun drain`, or wait for the next hook, which starts a worker");
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
