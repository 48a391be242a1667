//! The slots of machines, as lock files of Nix's own build hook: counts busy slots, and takes one.
//! Builds of other Nix processes count too.
//!
//! `build-remote.cc` keeps one file for each slot, `<state directory>/current-load/<store URI with
//! _ for />-<number>`, and holds an exclusive `flock` on it while it builds. [`SlotFiles::loads`]
//! tries each lock without waiting and releases it immediately. It never creates a file, never
//! blocks, and counts a slot that it cannot read as free, because the stock hook takes the real
//! lock and decides.
//!
//! A session holds its slot itself ([`SlotFiles::take`]), from before it connects until it ends, so
//! that no other session and no other Nix can take it in between. Nix's own hook, which the session
//! then starts, needs a slot too. It gets one with another name, by a URI with the same meaning
//! ([`Slot::line`]).

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags};

use hookrun_nix::machines::MachineLine;

/// The directory, below Nix's state directory.
const CURRENT_LOAD: &str = "current-load";
/// Locked by the stock hook while it tries slots and chooses.
const MAIN_LOCK: &str = "main-lock";
/// The number of slots that are checked for one machine. A larger column 4 is a mistake.
const MAX_SLOTS: u32 = 4096;
/// The time to wait for a stock hook that is choosing, because it would mistake a lock held by this
/// check for a build. After this time slots are checked anyway; a choice takes less than a
/// millisecond for each machine.
const MAIN_LOCK_PATIENCE: Duration = Duration::from_millis(20);

/// A parameter that every store accepts since Nix 2.0 (`libstore/store-api.hh`) and that has no
/// effect on a hook, which asks for each path once.
const NEUTRAL: &str = "path-info-cache-size";
/// The default of that parameter. The number of the slot is added to it, so that the other name is
/// as exclusive as the slot.
const NEUTRAL_DEFAULT: u32 = 65536;
/// The longest name of a file on Linux (`NAME_MAX`).
const MAX_NAME: usize = 255;
/// The suffix of the longest name that Nix's own hook makes from a URI.
const UPLOAD_LOCK: &str = ".upload-lock";
/// The length up to which a URI is short enough, whatever is added.
const SHORT_URI: usize = 150;

/// The slot files of one Nix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotFiles {
    directory: PathBuf,
}

impl SlotFiles {
    /// Returns the slot files below Nix's state directory.
    pub fn below(state_dir: &Path) -> Self {
        Self { directory: state_dir.join(CURRENT_LOAD) }
    }

    /// Returns the number of busy slots of each of `machines` (store URI and number of slots), in
    /// the same order.
    pub fn loads<'a>(&self, machines: impl IntoIterator<Item = (&'a str, u32)>) -> Vec<u32> {
        let _quiet = self.lock_against_choosing();
        let there = self.names();
        if !there.iter().any(|name| may_be_slot(name.as_encoded_bytes())) {
            return machines.into_iter().map(|_| 0).collect();
        }
        machines.into_iter().map(|(uri, slots)| self.load(uri, slots, &there)).collect()
    }

    /// Returns the names in the directory. Few of thousands of machines have files, and reading the
    /// directory is cheaper than thousands of attempts to open one.
    fn names(&self) -> HashSet<OsString> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).collect()
    }

    /// Returns their directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Creates the directory, as the stock hook does.
    pub(crate) fn make(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.directory)
    }

    /// Blocks stock hooks that would choose during the check. The lock is shared, so that checks do
    /// not block each other.
    fn lock_against_choosing(&self) -> Option<OwnedFd> {
        self.main_lock(FlockOperation::NonBlockingLockShared)
    }

    /// Blocks stock hooks and checks, because a session that takes a slot would mistake their locks
    /// for builds.
    pub(crate) fn lock_against_checks(&self) -> Option<OwnedFd> {
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

    /// Returns the number of busy slots of one machine.
    pub(crate) fn load_now(&self, uri: &str, slots: u32) -> u32 {
        self.load(uri, slots, &self.names())
    }

    fn load(&self, uri: &str, slots: u32, there: &HashSet<OsString>) -> u32 {
        let by_nix = self.busy(&file_names(uri), slots, there);
        // A session holds one of them, and Nix's own hook, which it has started, the other, not
        // always with the same number.
        own_name(uri).map_or(by_nix, |own| by_nix.max(self.busy(&[own], slots, there)))
    }

    fn busy(&self, names: &[String], slots: u32, there: &HashSet<OsString>) -> u32 {
        let mut load = 0;
        for slot in 0..slots.min(MAX_SLOTS) {
            let of_slot = names.iter().map(|name| format!("{name}-{slot}"));
            let files: Vec<OwnedFd> = of_slot
                .filter(|name| there.contains(OsStr::new(name)))
                .filter_map(|name| self.open(&name))
                .collect();
            // The stock hook opens (and so creates) all slots from 0 upwards when it considers a
            // machine, so there are none after the first missing one.
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

/// Returns the names, without the number, that slot files of `uri` may have: its text up to Nix
/// 2.22, and the form that `StoreReference::render` gives it from 2.23 on. Builds of both may run
/// at once, so both count.
pub(crate) fn file_names(uri: &str) -> Vec<String> {
    forms(uri).into_iter().map(|form| form.replace('/', "_")).collect()
}

/// Returns `uri` as it was written, and in the form of Nix 2.23 and later if that differs.
pub(crate) fn forms(uri: &str) -> Vec<String> {
    let mut forms = vec![uri.to_owned()];
    if !is_normal(uri) {
        forms.push(normalised(uri));
        forms.dedup();
    }
    forms
}

/// Returns whether [`normalised`] certainly changes nothing. This is true for nearly all machines,
/// and there may be thousands.
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

/// Returns `StoreReference::render(StoreReference::parse(uri))` (`libstore/store-reference.cc`,
/// 2.23): scheme, authority, and sorted parameters.
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

/// A slot that this process holds. Dropping it frees it.
#[derive(Debug)]
pub struct Slot {
    _files: Vec<OwnedFd>,
    number: u32,
    /// Whether Nix's own hook takes a slot with another name beside it.
    renames: bool,
}

/// The result of [`SlotFiles::take`].
#[derive(Debug)]
pub enum SlotResult {
    /// The slot.
    Slot(Slot),
    /// All slots are busy.
    Full,
    /// The lock files cannot be used, so only Nix's own hook can take a slot.
    Unknown,
}

impl SlotFiles {
    /// Takes a free slot of `uri`.
    pub fn take(&self, uri: &str, slots: u32) -> SlotResult {
        if self.make().is_err() {
            return SlotResult::Unknown;
        }
        let _quiet = self.lock_against_checks();
        let own = own_name(uri);
        let renames = own.is_none();
        if !renames && self.load_now(uri, slots) >= slots {
            return SlotResult::Full;
        }
        let names = own.map_or_else(|| file_names(uri), |own| vec![own]);
        for number in 0..slots {
            let lock = |name: &String| self.lock(&format!("{name}-{number}"));
            match names.iter().map(lock).collect::<io::Result<Option<Vec<OwnedFd>>>>() {
                Ok(Some(files)) => {
                    return SlotResult::Slot(Slot { _files: files, number, renames });
                }
                Ok(None) => {}
                Err(_) => return SlotResult::Unknown,
            }
        }
        SlotResult::Full
    }

    /// Returns `None` if the lock is held.
    fn lock(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        // The same flags as in `openLockFile` (`libutil`, pathlocks).
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            rustix::fs::open(self.directory().join(name), flags, Mode::from_raw_mode(0o600))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the lock files that Nix's own hook created for [`Slot::line`].
    pub fn forget(&self, machine: &MachineLine, slot: &Slot) {
        if !slot.renames {
            return;
        }
        for name in file_names(&slot.uri(&machine.uri)) {
            for end in ["-0", UPLOAD_LOCK] {
                let _gone = std::fs::remove_file(self.directory().join(format!("{name}{end}")));
            }
        }
    }
}

impl Slot {
    /// Returns the machine for Nix's own hook: with the other name and one slot, if the URI has
    /// room for it.
    pub fn line(&self, machine: &MachineLine) -> MachineLine {
        if self.renames {
            MachineLine { uri: self.uri(&machine.uri), max_jobs: 1, ..machine.clone() }
        } else {
            machine.clone()
        }
    }

    /// Returns the URI for Nix's own hook.
    pub fn uri(&self, uri: &str) -> String {
        if self.renames { renamed(uri, self.number) } else { uri.to_owned() }
    }
}

fn renamed(uri: &str, number: u32) -> String {
    let separator = if uri.contains('?') { '&' } else { '?' };
    format!("{uri}{separator}{NEUTRAL}={}", u64::from(NEUTRAL_DEFAULT) + u64::from(number))
}

/// Returns the name of hookrun's own lock files, without the number, for a machine whose URI has no
/// room for another parameter in a file name, or has that parameter already.
pub(crate) fn own_name(uri: &str) -> Option<String> {
    let has_room = || {
        let fits = |name: &String| name.len() + UPLOAD_LOCK.len() <= MAX_NAME;
        uri.len() <= SHORT_URI || file_names(&renamed(uri, u32::MAX)).iter().all(fits)
    };
    let renames = !uri.contains(NEUTRAL) && has_room();
    (!renames).then(|| format!("hookrun-{}", blake3::hash(uri.as_bytes()).to_hex()))
}

/// Returns whether closing a file with this name may free a slot. It does not if Nix's own hook
/// created the file for itself.
pub fn may_be_slot(name: &[u8]) -> bool {
    let contains = |part: &str| name.windows(part.len()).any(|window| window == part.as_bytes());
    !contains(NEUTRAL) && !name.ends_with(b"-lock") && !name.starts_with(b".")
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

        // No slot stays locked.
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
    fn uris_are_normalised_as_nix_does() {
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
        fn a_normal_uri_is_not_changed(uri in "(ssh://)?[a-c/]{0,3}(\\?[a-c&=]{0,7})?") {
            proptest::prop_assert!(!is_normal(&uri) || normalised(&uri) == uri);
        }
    }

    fn line(uri: &str) -> MachineLine {
        hookrun_nix::machines::parse(&format!("{uri} x86_64-linux - 4"), "x86_64-linux")
            .machines
            .remove(0)
    }

    #[test]
    fn slots_are_taken_and_freed() {
        let state = tempfile::tempdir().unwrap();
        let files = SlotFiles::below(state.path());
        let take = |slots| files.take("ssh://m", slots);
        let SlotResult::Slot(first) = take(2) else { unreachable!() };
        let SlotResult::Slot(second) = take(2) else { unreachable!() };
        assert!(matches!(take(2), SlotResult::Full));
        assert_eq!(files.loads([("ssh://m", 2)]), [2], "as others see it");
        assert_eq!((first.number, second.number), (0, 1));
        drop(first);
        assert_eq!(files.loads([("ssh://m", 2)]), [1]);
        let SlotResult::Slot(again) = take(2) else { unreachable!() };
        assert_eq!(again.number, 0);
        assert!(matches!(
            SlotFiles::below(std::path::Path::new("/proc/nowhere")).take("ssh://m", 1),
            SlotResult::Unknown
        ));
    }

    /// Returns a URI as long as the name of an upload lock allows, one that has the parameter
    /// already, and one that is only slightly too long.
    fn without_room() -> [String; 3] {
        let long = |length: usize| format!("ssh://m?ssh-key=/{}", "k".repeat(length - 17));
        [long(MAX_NAME - UPLOAD_LOCK.len()), "ssh://m?path-info-cache-size=1".to_owned(), long(212)]
    }

    #[test]
    fn a_uri_without_room_for_another_name_keeps_its_own() {
        for uri in without_room() {
            let state = tempfile::tempdir().unwrap();
            let files = SlotFiles::below(state.path());
            let SlotResult::Slot(first) = files.take(&uri, 2) else { panic!("no slot of {uri}") };
            assert_eq!(first.line(&line(&uri)), line(&uri));
            let SlotResult::Slot(second) = files.take(&uri, 2) else { panic!("no slot of {uri}") };
            assert!(matches!(files.take(&uri, 2), SlotResult::Full));
            assert_eq!(files.loads([(uri.as_str(), 2)]), [2], "before Nix's own hook has begun");
            // Nix's own hook takes the first slot that it finds, which may be another one.
            let by_nix = |number: u32| {
                let name = format!("{}-{number}", file_names(&uri)[0]);
                files.lock(&name).unwrap().unwrap()
            };
            let of_second = by_nix(0);
            assert_eq!(files.loads([(uri.as_str(), 2)]), [2]);
            drop(first);
            assert_eq!(files.loads([(uri.as_str(), 2)]), [1], "a build counts once");
            drop(second);
            // Other commands build without hookrun.
            let _other = by_nix(1);
            assert!(matches!(files.take(&uri, 2), SlotResult::Full));
            drop(of_second);
            assert!(matches!(files.take(&uri, 2), SlotResult::Slot(_)));
        }
    }

    #[test]
    fn file_names_fit_for_uris_of_any_length() {
        for length in 20..300 {
            let uri = format!("/{}", "d".repeat(length));
            let longest = file_names(&renamed(&uri, u32::MAX))
                .iter()
                .map(|name| name.len() + UPLOAD_LOCK.len())
                .max();
            assert_eq!(own_name(&uri).is_none(), longest.unwrap() <= MAX_NAME, "{length}");
        }
    }

    #[test]
    fn the_other_name_means_the_same_machine() {
        let slot = Slot { _files: Vec::new(), number: 3, renames: true };
        let renamed = slot.line(&line("ssh://m"));
        assert_eq!(
            (renamed.uri.as_str(), renamed.max_jobs),
            ("ssh://m?path-info-cache-size=65539", 1)
        );
        assert_eq!(
            slot.uri("ssh://m?compress=true"),
            "ssh://m?compress=true&path-info-cache-size=65539"
        );
        assert!(!may_be_slot(b"ssh:__m?path-info-cache-size=65539-0"));
        assert!(!may_be_slot(b"main-lock") && !may_be_slot(b"ssh:__m.upload-lock"));
        assert!(may_be_slot(b"ssh:__m-0"));
    }
}
