//! A durable record of the paths that are known to be in a cache, so that a push does not ask for
//! each of them again.
//!
//! The file `present` in the directory of the record: the 16 bytes of [`MAGIC`], then records of 24
//! bytes, which processes append: a [`Name`] and the time in milliseconds since 1970, 8 bytes in
//! little-endian order. Only presence is recorded, and it is believed for [`BELIEVED`], because
//! others may delete objects. A record that is lost costs a request. [`Presence::forget`] appends a
//! record for the whole cache; older records of that cache are not believed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// How long presence is believed.
const BELIEVED: Duration = Duration::from_hours(24);
/// The beginning of the file, with the version of the format.
const MAGIC: [u8; 16] = *b"hookrun-present1";
/// How far in the future a record may be, in milliseconds.
const CLOCK_SKEW: u64 = 2000;
/// The size of a record.
const RECORD: usize = 24;
/// The number of paths that are remembered. When there are more, the oldest half is forgotten.
const MAX_PATHS: usize = 500_000;
/// The number of records from which on the file is written anew without those that expired.
const MAX_RECORDS: u64 = 2 * MAX_PATHS as u64;

/// What is known to be present: a hash of the place of the cache and of the values given to
/// [`name`].
pub(super) type Name = [u8; 16];

/// Returns the name of `parts` in the cache at `place`. Different parts have different names.
pub(super) fn name<'a>(place: &'a str, parts: impl IntoIterator<Item = &'a str>) -> Name {
    let mut hasher = blake3::Hasher::new();
    for part in [place].into_iter().chain(parts) {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    let mut name = Name::default();
    hasher.finalize_xof().fill(&mut name);
    name
}

/// The record of this process, and what it has read of the file.
#[derive(Debug, Default)]
pub(super) struct Presence {
    /// The file; none if nothing is durable.
    path: Option<PathBuf>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    seen: HashMap<Name, u64>,
    /// The file that was read, by inode, and how much of it.
    read: Option<(u64, u64)>,
}

impl Presence {
    /// A record in `directory`, which need not exist.
    pub(super) fn below(directory: &Path) -> Self {
        Self { path: Some(directory.join("present")), known: Mutex::default() }
    }

    /// Reads what other processes have recorded. A file that cannot be read is an empty one.
    pub(super) fn refresh(&self) {
        let Some(path) = &self.path else { return };
        let mut known = self.lock();
        if let Err(error) = known.read_from(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %path.display(), "the record of present paths cannot be read");
        }
    }

    /// Returns whether this was recorded a short while ago, after the cache at `place` was last
    /// forgotten.
    pub(super) fn has(&self, place: &str, name: &Name) -> bool {
        let known = self.lock();
        let forgotten = known.seen.get(&self::name(place, [])).copied().unwrap_or_default();
        let oldest = now().saturating_sub(believed_ms());
        known.seen.get(name).is_some_and(|seen| *seen > forgotten && *seen >= oldest)
    }

    /// Notes that this is present now, for this process.
    pub(super) fn note(&self, name: Name) {
        let mut known = self.lock();
        known.seen.insert(name, now());
        known.bound();
    }

    /// Records what was noted, for other processes.
    pub(super) fn record(&self, names: &[Name]) {
        let Some(path) = self.path.as_ref().filter(|_| !names.is_empty()) else { return };
        if let Err(error) = Known::append(path, names, now()) {
            tracing::debug!(%error, path = %path.display(), "present paths could not be recorded");
        }
    }

    /// Forgets everything about the cache at `place`.
    pub(super) fn forget(&self, place: &str) {
        let name = self::name(place, []);
        let now = now();
        let mut known = self.lock();
        known.seen.insert(name, now);
        if let Some(path) = &self.path {
            let _lost = Known::append(path, &[name], now);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn read_from(&mut self, path: &Path) -> io::Result<()> {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        let offset = match self.read {
            Some((inode, offset)) if inode == metadata.ino() && offset <= metadata.len() => offset,
            _ => {
                let mut magic = [0; MAGIC.len()];
                file.read_exact(&mut magic)?;
                if magic != MAGIC {
                    return Err(io::Error::other("it has another format"));
                }
                MAGIC.len() as u64
            }
        };
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(MAX_RECORDS * 2 * RECORD as u64).read_to_end(&mut bytes)?;
        let oldest = now().saturating_sub(believed_ms());
        let records = bytes.chunks_exact(RECORD);
        let whole = bytes.len() - records.remainder().len();
        for record in records {
            let (name, time) = record.split_at(size_of::<Name>());
            if let (Ok(name), Ok(time)) = (Name::try_from(name), time.try_into()) {
                let time = u64::from_le_bytes(time);
                // A time in the future is of a clock that was wrong.
                if (oldest..=now() + CLOCK_SKEW).contains(&time) {
                    let seen = self.seen.entry(name).or_default();
                    *seen = time.max(*seen);
                }
            }
        }
        self.read = Some((metadata.ino(), offset + whole as u64));
        let is_torn = whole != bytes.len();
        if is_torn || metadata.len() > MAX_RECORDS * RECORD as u64 {
            self.write_anew(path)?;
        }
        self.bound();
        Ok(())
    }

    fn append(path: &Path, names: &[Name], time: u64) -> io::Result<()> {
        let is_new = !path.exists();
        if is_new {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(records(names.iter().map(|name| (name, time))));
            return create(path, &bytes);
        }
        let mut file = File::options().append(true).open(path)?;
        // One write, so that records of several processes are not mixed.
        file.write_all(&records(names.iter().map(|name| (name, time))))
    }

    /// Replaces the file by one with what is known and has not expired.
    fn write_anew(&mut self, path: &Path) -> io::Result<()> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(records(self.seen.iter().map(|(name, time)| (name, *time))));
        let fresh = path.with_extension(format!("{}.new", std::process::id()));
        create(&fresh, &bytes)?;
        std::fs::rename(&fresh, path)?;
        self.read = None;
        Ok(())
    }

    fn bound(&mut self) {
        if self.seen.len() <= MAX_PATHS {
            return;
        }
        let mut times: Vec<u64> = self.seen.values().copied().collect();
        let middle = times.len() / 2;
        let (_, median, _) = times.select_nth_unstable(middle);
        let median = *median;
        self.seen.retain(|_, time| *time > median);
    }
}

fn records<'a>(records: impl Iterator<Item = (&'a Name, u64)>) -> Vec<u8> {
    records.flat_map(|(name, time)| name.iter().copied().chain(time.to_le_bytes())).collect()
}

/// Creates a file with these contents that the owner of its directory can write, also if root
/// creates it for a command.
fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file =
        File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    if rustix::process::geteuid().is_root()
        && let Some(directory) = path.parent()
    {
        let owner = std::fs::metadata(directory)?;
        std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
    }
    file.write_all(bytes)
}

fn now() -> u64 {
    milliseconds(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

fn believed_ms() -> u64 {
    milliseconds(BELIEVED)
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(presence: &Presence, name: Name) {
        presence.note(name);
        presence.record(&[name]);
    }

    const PLACE: &str = "s3://bucket";

    fn record(directory: &Path, seen: &[(Name, u64)]) {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(records(seen.iter().map(|(name, time)| (name, *time))));
        std::fs::write(directory.join("present"), bytes).unwrap();
    }

    #[test]
    fn another_process_finds_what_was_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (Presence::below(dir.path()), Presence::below(dir.path()));
        there.refresh();
        let (first, second) = (name(PLACE, ["a", "b"]), name(PLACE, ["ab"]));
        add(&here, first);
        assert!(here.has(PLACE, &first) && !here.has(PLACE, &second) && !there.has(PLACE, &first));
        there.refresh();
        assert!(there.has(PLACE, &first));
        add(&here, second);
        there.refresh();
        assert!(there.has(PLACE, &second));
        assert!(!there.has(PLACE, &name("s3://other", ["ab"])));
    }

    #[test]
    fn records_expire_and_a_wrong_clock_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let [old, future, good] = ["old", "future", "good"].map(|part| name(PLACE, [part]));
        let day = believed_ms();
        record(
            dir.path(),
            &[(old, now() - day - 1), (future, now() + day), (good, now() - day + 60_000)],
        );
        let presence = Presence::below(dir.path());
        presence.refresh();
        let found = [old, future, good].map(|name| presence.has(PLACE, &name));
        assert_eq!(found, [false, false, true]);
    }

    #[test]
    fn a_forgotten_cache_is_asked_again_and_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (name(PLACE, ["a"]), name("s3://other", ["a"]));
        record(dir.path(), &[(here, now() - 5), (there, now() - 5)]);
        let presence = Presence::below(dir.path());
        presence.refresh();
        presence.forget(PLACE);
        let another = Presence::below(dir.path());
        another.refresh();
        for presence in [presence, another] {
            assert!(!presence.has(PLACE, &here) && presence.has("s3://other", &there));
        }
    }

    #[test]
    fn a_torn_record_or_another_file_does_not_spoil_later_records() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("present");
        let (before, after) = (name(PLACE, ["before"]), name(PLACE, ["after"]));
        add(&Presence::below(dir.path()), before);
        let mut torn = std::fs::read(&path).unwrap();
        torn.extend([7; 11]);
        std::fs::write(&path, torn).unwrap();
        let presence = Presence::below(dir.path());
        presence.refresh();
        add(&presence, after);
        let another = Presence::below(dir.path());
        another.refresh();
        assert!(another.has(PLACE, &before) && another.has(PLACE, &after));
        std::fs::write(&path, "something of another kind").unwrap();
        let presence = Presence::below(dir.path());
        presence.refresh();
        assert!(!presence.has(PLACE, &before));
    }

    #[test]
    fn memory_is_bounded() {
        let presence = Presence::default();
        {
            let mut known = presence.lock();
            for number in 0..=MAX_PATHS as u64 {
                known.seen.insert(
                    name(PLACE, [number.to_string().as_str()]),
                    now() - 60_000 + number % 50_000,
                );
            }
        }
        add(&presence, name(PLACE, ["latest"]));
        assert!(presence.lock().seen.len() <= MAX_PATHS);
        assert!(presence.has(PLACE, &name(PLACE, ["latest"])));
    }
}
