//! How many slots of a machine are busy, from the lock files of Nix's own build hook, so that
//! builds started by other Nix processes count too.
//!
//! `build-remote.cc` keeps one file a slot, `<state directory>/current-load/<store URI with _ for
//! />-<number>`, and holds an exclusive `flock` on it while it builds. This module tries each lock
//! without waiting and lets go at once. It never creates a file, never blocks, and counts what it
//! cannot read as free: the stock hook takes the real lock and has the last word.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags};

use super::slots;

/// The directory, below Nix's state directory.
const CURRENT_LOAD: &str = "current-load";
/// Locked by the stock hook while it tries slots and chooses.
const MAIN_LOCK: &str = "main-lock";
/// Most slots looked at for one machine; a column 4 beyond it is a slip of the pen.
const MAX_SLOTS: u32 = 4096;
/// How long to wait for a stock hook that is choosing. While it chooses, a lock held by this probe
/// would look like a build to it; after this time the probe is made all the same, since a choice
/// takes less than a millisecond a machine.
const MAIN_LOCK_PATIENCE: Duration = Duration::from_millis(20);

/// Reads load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotFiles {
    directory: PathBuf,
}

impl SlotFiles {
    /// The slot files below Nix's state directory.
    pub fn below(state_dir: &Path) -> Self {
        Self { directory: state_dir.join(CURRENT_LOAD) }
    }

    /// Busy slots of each of `machines` (store URI and number of slots), in their order.
    pub fn loads<'a>(&self, machines: impl IntoIterator<Item = (&'a str, u32)>) -> Vec<u32> {
        let _quiet = self.while_nobody_chooses();
        let there = self.names();
        if !there.iter().any(|name| slots::may_be_slot(name.as_encoded_bytes())) {
            return machines.into_iter().map(|_| 0).collect();
        }
        machines.into_iter().map(|(uri, slots)| self.load(uri, slots, &there)).collect()
    }

    /// What is in the directory: of thousands of machines few have files, and one look is cheaper
    /// than thousands of attempts.
    fn names(&self) -> HashSet<OsString> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).collect()
    }

    /// Where they are.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes the directory, as the stock hook does.
    pub(super) fn make(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.directory)
    }

    /// Holds off stock hooks that would choose during the probe. Shared, so that probes do not hold
    /// off each other.
    fn while_nobody_chooses(&self) -> Option<OwnedFd> {
        self.main_lock(FlockOperation::NonBlockingLockShared)
    }

    /// Holds off stock hooks and probes, whose locks would look like builds to who takes a slot.
    pub(super) fn while_nobody_looks(&self) -> Option<OwnedFd> {
        self.main_lock(FlockOperation::NonBlockingLockExclusive)
    }

    fn main_lock(&self, operation: FlockOperation) -> Option<OwnedFd> {
        let main = self.open(MAIN_LOCK)?;
        let start = Instant::now();
        loop {
            if rustix::fs::flock(&main, operation).is_ok() {
                return Some(main);
            }
            if start.elapsed() >= MAIN_LOCK_PATIENCE {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Busy slots of one machine.
    pub(super) fn load_now(&self, uri: &str, slots: u32) -> u32 {
        self.load(uri, slots, &self.names())
    }

    fn load(&self, uri: &str, slots: u32, there: &HashSet<OsString>) -> u32 {
        let by_nix = self.busy(&file_names(uri), slots, there);
        // A session holds one, and Nix's own hook, which it has started, the other: not always with
        // the same number.
        slots::own_name(uri).map_or(by_nix, |own| by_nix.max(self.busy(&[own], slots, there)))
    }

    fn busy(&self, names: &[String], slots: u32, there: &HashSet<OsString>) -> u32 {
        let mut load = 0;
        for slot in 0..slots.min(MAX_SLOTS) {
            let of_slot = names.iter().map(|name| format!("{name}-{slot}"));
            let files: Vec<OwnedFd> = of_slot
                .filter(|name| there.contains(OsStr::new(name)))
                .filter_map(|name| self.open(&name))
                .collect();
            // The stock hook opens (and so creates) all slots from 0 up whenever it considers a
            // machine: after the first one that is missing there is none.
            if files.is_empty() {
                break;
            }
            let busy = |file: &OwnedFd| {
                rustix::fs::flock(file, FlockOperation::NonBlockingLockShared)
                    .is_err_and(|error| error == rustix::io::Errno::WOULDBLOCK)
            };
            load += u32::from(files.iter().any(busy));
        }
        load
    }

    fn open(&self, name: &str) -> Option<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::open(self.directory.join(name), flags, Mode::empty()).ok()
    }
}

/// The names, without the number, that slot files of `uri` may have: its text up to Nix 2.22, and
/// the form that `StoreReference::render` gives it from 2.23 on. Builds of both may run at once, so
/// both count.
pub(super) fn file_names(uri: &str) -> Vec<String> {
    forms(uri).into_iter().map(|form| form.replace('/', "_")).collect()
}

/// `uri` as it was written, and as Nix says it from 2.23 on, if that is another.
pub(super) fn forms(uri: &str) -> Vec<String> {
    let mut forms = vec![uri.to_owned()];
    if !is_normal(uri) {
        forms.push(normalised(uri));
        forms.dedup();
    }
    forms
}

/// Is [`normalised`] the same for certain? So it is of nearly all, and there may be thousands.
fn is_normal(uri: &str) -> bool {
    let (base, query) =
        uri.split_once('?').map_or((uri, None), |(base, query)| (base, Some(query)));
    let sorted = |query: &str| {
        query.split('&').is_sorted_by(|a, b| !a.is_empty() && a <= b)
            && !query.is_empty()
            && !query.ends_with('&')
    };
    base.contains("://") && query.is_none_or(sorted)
}

/// `StoreReference::render(StoreReference::parse(uri))` (`libstore/store-reference.cc`, 2.23):
/// scheme, authority, and sorted parameters.
fn normalised(uri: &str) -> String {
    let (base, query) =
        uri.split_once('?').map_or((uri, None), |(base, query)| (base, Some(query)));
    let base = match base {
        "" | "auto" => "auto".to_owned(),
        "daemon" => "unix://".to_owned(),
        "local" => "local://".to_owned(),
        path if path.starts_with('/') => format!("local://{path}"),
        other => other.to_owned(),
    };
    let mut parameters: Vec<&str> = query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .filter(|word| !word.is_empty())
        .collect();
    parameters.sort_unstable();
    if parameters.is_empty() { base } else { format!("{base}?{}", parameters.join("&")) }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, read_dir};

    use super::*;

    fn lock(directory: &Path, name: &str) -> File {
        let file = File::create(directory.join(name)).unwrap();
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        file
    }

    #[test]
    fn counts_locked_slots_in_both_forms_and_creates_nothing() {
        let state = tempfile::tempdir().unwrap();
        let slots = SlotFiles::below(state.path());
        assert_eq!(slots.loads([("ssh://m", 2)]), [0], "no directory yet");
        assert_eq!(read_dir(state.path()).unwrap().count(), 0);

        let directory = state.path().join(CURRENT_LOAD);
        std::fs::create_dir(&directory).unwrap();
        File::create(directory.join(MAIN_LOCK)).unwrap();
        File::create(directory.join("ssh:__m-0")).unwrap();
        let _one = lock(&directory, "ssh:__m-1");
        let _two = lock(&directory, "local:___srv_b-0");
        let _three = lock(&directory, "_srv_b-1");
        let _beyond = lock(&directory, "ssh:__m-3");
        let before = read_dir(&directory).unwrap().count();
        assert_eq!(
            slots.loads([("ssh://m", 4), ("/srv/b", 2), ("ssh://other", u32::MAX), ("ssh://m", 1)]),
            [1, 2, 0, 0]
        );
        assert_eq!(read_dir(&directory).unwrap().count(), before);

        // Nothing stays locked.
        let free = File::open(directory.join("ssh:__m-0")).unwrap();
        rustix::fs::flock(&free, FlockOperation::NonBlockingLockExclusive).unwrap();
        let main = File::open(directory.join(MAIN_LOCK)).unwrap();
        rustix::fs::flock(&main, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(
            slots.loads([("ssh://m", 4)]),
            [2],
            "a stock hook that is choosing does not stop the probe"
        );
    }

    #[test]
    fn forms() {
        let forms = [
            "ssh://h?remote-store=/b&a=1",
            "/exp/r",
            "daemon",
            "local?root=/x",
            "auto",
            "ssh-ng://u@h",
        ]
        .map(normalised);
        let expected = [
            "ssh://h?a=1&remote-store=/b",
            "local:///exp/r",
            "unix://",
            "local://?root=/x",
            "auto",
            "ssh-ng://u@h",
        ];
        assert_eq!(forms, expected);
    }

    proptest::proptest! {
        #[test]
        fn what_is_called_normal_is(uri in "(ssh://)?[a-c/]{0,3}(\\?[a-c&=]{0,7})?") {
            proptest::prop_assert!(!is_normal(&uri) || normalised(&uri) == uri);
        }
    }
}
