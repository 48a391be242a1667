//! The worker's side of the spool: decides which files are events, and moves the others away.
//!
//! The directories are listed once and then processed in batches, so that each file costs the same
//! in a full spool as in an empty one. A long listing takes several scans, which take root's events
//! as soon as they are found. Files that arrive meanwhile are reported by name ([`Reader::came`])
//! or found by the next listing, which [`Reader::look_again`] requests. The directories may change
//! between two batches: names that do not exist any longer are skipped, and each name is examined
//! when its turn comes. After that it has left the spool or is ignored, so the listings come to an
//! end.
//!
//! Directories are held by descriptor and all operations are relative to it, because other users
//! may change the target of a path.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hookrun_system::stat::mode_of;
use rustix::fs::{FileType, Stat};

use super::listing::{self, Listed, Queue};
use super::rejected::{RejectResult, Rejected};
use crate::envelope;
use crate::trust::{Owner, Trust};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::Event;
use hookrun_nix::layout::{self, Directory, Use};

/// The time after which an incomplete file of a trusted owner counts as left by a killed hook.
pub(super) const ABANDONED: Duration = Duration::from_hours(1);
/// The same time for other users, who may leave any number of files. A hook takes two seconds.
const ABANDONED_BY_OTHERS: Duration = Duration::from_mins(1);
/// The size at which a batch ends. An event usually has a few KiB, and at most 4 MiB.
const BATCH_BYTES: u64 = 16 << 20;
/// The number of names that one scan lists. It limits the time that an event of root, which is
/// reported by name meanwhile, waits for a long listing.
const LISTED_AT_ONCE: usize = 16_384;
/// The number of files that are ignored because they can neither be taken nor moved.
const MOST_IGNORED: usize = 10_000;
/// The bit that lets the owner write. Hooks create files that their owner can write. Files of the
/// Nix store also belong to root and have contents that a user chose, but nobody can write them.
/// If `fs.protected_hardlinks` is off, a user may link such a file, have Nix delete the other name,
/// and move the link here.
const OWNER_WRITES: u32 = 0o200;
/// The user number for the turn of all files that cannot be events. They share one turn, because a
/// plain user may own files under many uids (subuid(5)). No user has this number.
const NO_EVENTS: u32 = u32::MAX;

/// An event that was read from the spool.
#[derive(Debug)]
pub struct Spooled {
    directory: Directory,
    number: usize,
    /// The event.
    pub event: Event,
    /// The file's owner.
    pub uid: u32,
    /// Whether the owner is root or the worker's own user.
    pub is_trusted: bool,
    /// The file's size.
    pub bytes: u64,
}

impl Spooled {
    /// Returns the path of the file, for messages.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join(&self.event.id)
    }

    /// Removes the file, after the event was added to the journal.
    ///
    /// # Errors
    /// Returns the error of the system.
    pub fn remove(&self) -> std::io::Result<()> {
        self.directory.remove(self.event.id.as_bytes())
    }
}

/// The result of reading some files of the spool.
#[derive(Debug, Default)]
pub struct Scan {
    /// The events, the oldest of each owner first.
    pub events: Vec<Spooled>,
    /// The reasons for rejected files, with their names.
    pub rejected: Vec<String>,
}

/// A directory that is read.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    /// The required owner, for a directory in a place where every user may create one.
    owner: Option<u32>,
    /// The open directory, at the time when it was listed.
    open: Option<Directory>,
}

impl Source {
    fn open(&self) -> Option<Directory> {
        let directory = Directory::open(&self.path, Use::List).ok()?;
        let is_right = match self.owner {
            Some(uid) => directory.stat().is_ok_and(|stat| layout::is_of_user_alone(&stat, uid)),
            // Its files are checked by their owners.
            None => true,
        };
        is_right.then_some(directory)
    }
}

/// Reads the spool and its fallback directories.
#[derive(Debug)]
pub struct Reader {
    sources: Vec<Source>,
    rejected: Rejected,
    trust: Trust,
    ignored: BTreeSet<Listed>,
    /// Users whose files are not taken for now.
    held_back: BTreeSet<u32>,
    /// Names that were found and not read yet.
    queue: Queue,
    /// Whether the directories must be listed again after that.
    again: bool,
    /// The listing in progress.
    listing: Option<Listing>,
    /// The number of names that one scan lists.
    at_once: usize,
}

/// A listing in progress.
struct Listing {
    directory: usize,
    names: Box<dyn Iterator<Item = Vec<u8>> + Send>,
}

impl std::fmt::Debug for Listing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listing").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Reader {
    /// Returns a reader of the spool of `dirs` and its fallbacks, including those of the users that
    /// `trust` accepts.
    pub fn new(dirs: &Dirs, trust: Trust) -> Self {
        let source = |path: PathBuf, owner: Option<u32>| Source { path, owner, open: None };
        let common = layout::fallbacks(dirs).into_iter().map(|path| source(path, None));
        // Root never uses one of these.
        let own = trust.uids().filter(|uid| *uid != 0);
        let own = own.map(|uid| source(layout::own_fallback(dirs, uid), Some(uid)));
        let sources = std::iter::once(source(dirs.spool(), None)).chain(common).chain(own);
        Self {
            sources: sources.collect(),
            rejected: Rejected::new(dirs.rejected()),
            trust,
            ignored: BTreeSet::new(),
            held_back: BTreeSet::new(),
            queue: Queue::new(listing::MOST, listing::MOST_EACH),
            again: true,
            listing: None,
            at_once: LISTED_AT_ONCE,
        }
    }

    /// Returns the directories into which hooks write events, so that they can be watched.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.sources.iter().map(|source| source.path.as_path())
    }

    /// Requests another listing after the known names were read, because files may have arrived.
    pub fn look_again(&mut self) {
        self.again = true;
        self.held_back.clear();
    }

    /// Adds a file that arrived in the directory with this index.
    pub fn came(&mut self, directory: usize, name: Vec<u8>) {
        let open = self.sources.get(directory).and_then(|source| source.open.clone());
        let Some(open) = open else { return self.again = true };
        self.add(&open, directory, name);
    }

    /// Returns whether there are names to read. If not, [`scan`](Self::scan) finds nothing before
    /// [`look_again`](Self::look_again).
    pub fn has_more(&self) -> bool {
        self.again || self.listing.is_some() || !self.queue.is_empty()
    }

    /// Reads the next files, at most `limit`: returns events, and moves other files away. Before
    /// the next call, the caller must remove, reject or ignore each event, or hold back its user.
    pub fn scan(&mut self, limit: usize) -> Scan {
        if self.queue.is_empty() && self.again && self.listing.is_none() {
            self.again = false;
            self.listing = self.open(0);
        }
        self.list();
        let mut scan = Scan::default();
        let (mut looked, mut bytes) = (0, 0);
        while looked < limit && bytes < BATCH_BYTES {
            // While the rest of a full spool is listed, root's events do not wait for it.
            let next = match self.listing {
                Some(_) => self.queue.pop_trusted(),
                None => self.queue.pop(),
            };
            let Some(listed) = next else { break };
            looked += 1;
            let open = self.sources.get(listed.directory).and_then(|source| source.open.clone());
            let Some(directory) = open else { continue };
            match self.read(&directory, &listed) {
                Ok(Some(spooled)) => {
                    bytes += spooled.bytes;
                    scan.events.push(spooled);
                }
                Ok(None) => {}
                Err(reason) => {
                    let (shown, fate) = self.rejected.set_aside(&directory, &listed.name, &reason);
                    match fate {
                        RejectResult::Gone => scan.rejected.push(shown),
                        RejectResult::Smaller => self.again = true,
                        RejectResult::Stays => {
                            self.ignore_name(listed);
                            scan.rejected.push(shown);
                        }
                    }
                }
            }
        }
        scan
    }

    /// Ignores a file from now on, because it can neither be removed nor moved.
    pub fn ignore(&mut self, spooled: &Spooled) {
        let name = spooled.event.id.clone().into_bytes();
        self.ignore_name(Listed { name, directory: spooled.number });
    }

    fn ignore_name(&mut self, listed: Listed) {
        if self.ignored.len() < MOST_IGNORED {
            self.ignored.insert(listed);
        } else {
            // Otherwise each listing would find it again.
            self.hold_back(NO_EVENTS);
        }
    }

    /// Leaves the files of a user in place until the next listing is requested.
    pub fn hold_back(&mut self, uid: u32) {
        self.held_back.insert(uid);
        self.queue.forget(uid);
    }

    /// Opens the first directory that exists, from this index on.
    fn open(&mut self, first: usize) -> Option<Listing> {
        for (number, source) in self.sources.iter_mut().enumerate().skip(first) {
            source.open = source.open();
            if let Some(directory) = &source.open {
                return Some(Listing { directory: number, names: Box::new(directory.names()) });
            }
        }
        None
    }

    /// Continues the listing with the next names.
    fn list(&mut self) {
        for _ in 0..self.at_once {
            let Some(listing) = &mut self.listing else { return };
            let number = listing.directory;
            match listing.names.next() {
                Some(name) => {
                    let open = self.sources.get(number).and_then(|source| source.open.clone());
                    if let Some(directory) = open {
                        self.add(&directory, number, name);
                    }
                }
                None => {
                    self.listing = self.open(number + 1);
                    if self.listing.is_none() {
                        self.again |= self.queue.take_more();
                    }
                }
            }
        }
    }

    /// Adds a name, unless it is ignored.
    fn add(&mut self, open: &Directory, directory: usize, name: Vec<u8>) {
        let Ok(stat) = open.stat_of(&name) else { return };
        let is_trusted = self.is_trusted(&stat);
        // There may be any number of incomplete files, which must not displace events.
        if is_unfinished(&name) && is_in_the_making(&stat, is_trusted) {
            return;
        }
        let listed = Listed { name, directory };
        let user = self.share(&stat);
        let is_held_back = user.is_some_and(|uid| self.held_back.contains(&uid));
        if !is_held_back && !self.ignored.contains(&listed) {
            self.queue.add(listed, user);
        }
    }

    /// Returns the user whose turn a file uses; none for trusted users, who come first.
    fn share(&self, stat: &Stat) -> Option<u32> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Some(NO_EVENTS);
        }
        match self.trust.owner(stat.st_uid, stat.st_gid) {
            Ok(Owner::Trusted) => None,
            Ok(Owner::BuildUser) => Some(stat.st_uid),
            Err(_) => Some(NO_EVENTS),
        }
    }

    fn is_trusted(&self, stat: &Stat) -> bool {
        self.trust.owner(stat.st_uid, stat.st_gid) == Ok(Owner::Trusted)
    }

    /// Reads the event in one file; returns none if the file is to be skipped now.
    fn read(&self, directory: &Directory, listed: &Listed) -> Result<Option<Spooled>, String> {
        let name = listed.name.as_slice();
        let unreadable = |error: &dyn std::fmt::Display| format!("it cannot be read ({error})");
        if is_unfinished(name) {
            return match directory.stat_of(name) {
                Ok(stat) if is_in_the_making(&stat, self.is_trusted(&stat)) => Ok(None),
                Ok(_) => Err("it was never completed; its hook was killed".into()),
                Err(rustix::io::Errno::NOENT) => Ok(None),
                Err(error) => Err(unreadable(&error)),
            };
        }
        let (file, stat) = match directory.read(name) {
            Ok(opened) => opened,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::LOOP) => {
                return Err("it is not a regular file".into());
            }
            Err(error) => return Err(unreadable(&error)),
        };
        if stat.st_nlink > 1 {
            return Err(format!(
                "it has {} hard links, but an event file must have one",
                stat.st_nlink
            ));
        }
        let owner = self.trust.owner(stat.st_uid, stat.st_gid)?;
        if mode_of(&stat) & OWNER_WRITES == 0 {
            return Err("its owner cannot write it; hooks write files with mode 0644".into());
        }
        // One byte more, so that the end is found without another read.
        let size = u64::try_from(stat.st_size).unwrap_or(0).min(envelope::MAX_SIZE);
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
        let read = file.take(envelope::MAX_SIZE + 1).read_to_end(&mut bytes);
        read.map_err(|error| unreadable(&error))?;
        if bytes.len() as u64 > envelope::MAX_SIZE {
            return Err(format!(
                "it has more than {} MiB, the limit of an event",
                envelope::MAX_SIZE >> 20
            ));
        }
        let event = envelope::open(&bytes).map_err(|error| error.to_string())?;
        if event.id.as_bytes() != name {
            return Err("its name is not the id of its event".into());
        }
        self.trust.admit(owner, &event)?;
        Ok(Some(Spooled {
            directory: directory.clone(),
            number: listed.directory,
            event,
            uid: stat.st_uid,
            is_trusted: owner == Owner::Trusted,
            bytes: bytes.len() as u64,
        }))
    }
}

/// Returns whether a file has this name only while its hook writes it.
fn is_unfinished(name: &[u8]) -> bool {
    name.starts_with(b".")
}

/// Returns whether the hook of an unfinished file may still be writing.
fn is_in_the_making(stat: &Stat, is_trusted: bool) -> bool {
    let limit = if is_trusted { ABANDONED } else { ABANDONED_BY_OTHERS };
    let modified = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // The owner may have set any time.
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && now.abs_diff(modified) <= limit
}

#[cfg(test)]
mod tests;
