//! The worker's side of the spool: which files are events, and what becomes of the others.
//!
//! The directories are listed once, and then worked through a batch at a time, so that a full spool
//! costs as much for each of its files as an empty one. A long listing takes several scans, which
//! take root's events as soon as they are found. What comes meanwhile is told by name
//! ([`Reader::came`]) or found by the next listing, which [`Reader::look_again`] asks for. Between
//! two batches anything may happen to the directories: a name that is gone is passed over, and
//! whatever a name stands for is looked at when its turn comes. A name leaves the spool when it was
//! looked at, or is ignored from then on; so listing after listing comes to an end.
//!
//! Directories are held by descriptor, and everything is done relative to it: other users may
//! change what a path means.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hookrun_system::stat::mode_of;
use rustix::fs::{FileType, Stat};

use super::listing::{self, Listed, Queue};
use super::rejected::{Fate, Rejected};
use crate::envelope;
use crate::trust::{Owner, Trust};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::Event;
use hookrun_nix::layout::{self, Directory, Use};

/// A file of a trusted owner that still has no final name after this long was left by a hook that
/// was killed.
pub(super) const ABANDONED: Duration = Duration::from_hours(1);
/// The same for others, who may leave any number of them: a hook takes two seconds.
const ABANDONED_BY_OTHERS: Duration = Duration::from_mins(1);
/// A batch ends with the file that makes it larger than this. An event is a few KiB, and 4 MiB at
/// most.
const BATCH_BYTES: u64 = 16 << 20;
/// Names that one scan finds, if there are more: so long does an event of root wait that is told
/// by name meanwhile.
const LISTED_AT_ONCE: usize = 16_384;
/// Files that are left where they are because they can be neither taken nor moved.
const MOST_IGNORED: usize = 10_000;
/// Hooks make files that their owner can write. Files of the Nix store are root's too, with
/// contents of a user's choice, and cannot be written. Where `fs.protected_hardlinks` is off, a
/// user may link one, have Nix delete the other name, and move the link here.
const OWNER_WRITES: u32 = 0o200;
/// The share of everything that cannot be an event, whoever owns it: a plain user may own files as
/// any number of users (subuid(5)). No user has this number.
const NO_EVENTS: u32 = u32::MAX;

/// A file of the spool, taken for an event.
#[derive(Debug)]
pub struct Spooled {
    directory: Directory,
    number: usize,
    /// The event.
    pub event: Event,
    /// The file's owner.
    pub uid: u32,
    /// Whether that is root or the worker's own user.
    pub is_trusted: bool,
    /// The file's size.
    pub bytes: u64,
}

impl Spooled {
    /// Where it was found; for messages.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join(&self.event.id)
    }

    /// Removes the file, once the event is in the journal.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove(&self) -> std::io::Result<()> {
        self.directory.remove(self.event.id.as_bytes())
    }
}

/// What a look at some files of the spool found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Events; of each owner the oldest first.
    pub events: Vec<Spooled>,
    /// Files set aside: the reason, naming the file.
    pub rejected: Vec<String>,
}

/// A directory that is read.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    /// The user whose it must be, for a directory in a place where everybody may make one.
    owner: Option<u32>,
    /// As it was when it was listed.
    open: Option<Directory>,
}

impl Source {
    fn open(&self) -> Option<Directory> {
        let directory = Directory::open(&self.path, Use::List).ok()?;
        let is_right = match self.owner {
            Some(uid) => directory.stat().is_ok_and(|stat| layout::is_of_user_alone(&stat, uid)),
            // Whose files are in it, their owners tell.
            None => true,
        };
        is_right.then_some(directory)
    }
}

/// The reading side.
#[derive(Debug)]
pub struct Reader {
    sources: Vec<Source>,
    rejected: Rejected,
    trust: Trust,
    ignored: BTreeSet<Listed>,
    /// Users whose files are left where they are for now.
    held_back: BTreeSet<u32>,
    /// Found and not looked at yet.
    queue: Queue,
    /// Whether the directories are to be listed after all of that.
    again: bool,
    /// A listing that has begun.
    listing: Option<Listing>,
    /// Names looked at in one scan.
    at_once: usize,
}

/// How far a listing is.
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
    /// Reads the spool of `dirs` and its fallbacks, those of users that `trust` believes included.
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

    /// The directories that hooks put events into, to be watched.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.sources.iter().map(|source| source.path.as_path())
    }

    /// Something may have come since the directories were listed: they are listed once more, after
    /// what was found is looked at.
    pub fn look_again(&mut self) {
        self.again = true;
        self.held_back.clear();
    }

    /// A file came into the directory with this number.
    pub fn came(&mut self, directory: usize, name: Vec<u8>) {
        let open = self.sources.get(directory).and_then(|source| source.open.clone());
        let Some(open) = open else { return self.again = true };
        self.add(&open, directory, name);
    }

    /// Is there something to look at? If not, [`scan`](Self::scan) finds nothing before
    /// [`look_again`](Self::look_again).
    pub fn has_more(&self) -> bool {
        self.again || self.listing.is_some() || !self.queue.is_empty()
    }

    /// Looks at the next files, `limit` at most: takes what is an event, and sets aside what is
    /// none. The caller removes, rejects or ignores each that was taken before the next call, or
    /// holds back its user.
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
                        Fate::Gone => scan.rejected.push(shown),
                        Fate::Smaller => self.again = true,
                        Fate::Stays => {
                            self.ignore_name(listed);
                            scan.rejected.push(shown);
                        }
                    }
                }
            }
        }
        scan
    }

    /// Looks at a file no more: it can be neither removed nor set aside.
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

    /// Leaves the files of a user where they are until the next listing is asked for.
    pub fn hold_back(&mut self, uid: u32) {
        self.held_back.insert(uid);
        self.queue.forget(uid);
    }

    /// Opens the first directory that is there, from this number on.
    fn open(&mut self, first: usize) -> Option<Listing> {
        for (number, source) in self.sources.iter_mut().enumerate().skip(first) {
            source.open = source.open();
            if let Some(directory) = &source.open {
                return Some(Listing { directory: number, names: Box::new(directory.names()) });
            }
        }
        None
    }

    /// Finds some more of the names in all directories.
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

    /// Adds a name, if it is to be looked at.
    fn add(&mut self, open: &Directory, directory: usize, name: Vec<u8>) {
        let Ok(stat) = open.stat_of(&name) else { return };
        let is_trusted = self.is_trusted(&stat);
        // Of those in the making there may be any number; they must not take the place of events.
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

    /// The user whose share of the time a file takes; none for those that come first.
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

    /// The event in one file; none if it is not to be looked at (yet, or any more).
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
            return Err(format!("it has {} hard links; an event file has one", stat.st_nlink));
        }
        let owner = self.trust.owner(stat.st_uid, stat.st_gid)?;
        if mode_of(&stat) & OWNER_WRITES == 0 {
            return Err("its owner cannot write it; hooks write files with mode 0644".into());
        }
        // One byte more, so that the end is found without another buffer.
        let size = u64::try_from(stat.st_size).unwrap_or(0).min(envelope::MAX_SIZE);
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
        let read = file.take(envelope::MAX_SIZE + 1).read_to_end(&mut bytes);
        read.map_err(|error| unreadable(&error))?;
        if bytes.len() as u64 > envelope::MAX_SIZE {
            return Err(format!(
                "it has more than {} MiB, the most that an event has",
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
    // Its owner may have set the time to any year.
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && now.abs_diff(modified) <= limit
}

#[cfg(test)]
mod tests;
