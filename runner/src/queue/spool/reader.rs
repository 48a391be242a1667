//! The worker's side of the spool: which files are events, oldest first, and what becomes of the
//! others.
//!
//! The directories are listed once, and then worked through a batch at a time, so that a full spool
//! costs as much for each of its files as an empty one. Between two batches anything may happen to
//! them: a name that is gone is passed over, one that came is found by the next listing, which
//! [`Reader::look_again`] asks for, and whatever a name stands for is looked at when its turn
//! comes. A name leaves the spool when it was looked at, or is ignored from then on; so listing
//! after listing comes to an end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

use super::listing::{self, Listed, Oldest};
use super::rejected::set_aside;
use super::{fallback_directory, names, open_directory};
use crate::dirs::Dirs;
use crate::event::Event;
use crate::queue::envelope;
use crate::queue::trust::{Owner, Trust};

/// A file still without its final name after this long was left by a hook that was killed.
pub(super) const ABANDONED: Duration = Duration::from_hours(1);
/// A batch ends with the file that makes it larger than this. An event is a few KiB, and 4 MiB at
/// most.
const BATCH_BYTES: u64 = 16 << 20;

/// A file of the spool, taken for an event.
#[derive(Debug)]
pub struct Spooled {
    /// The file; unlink it once the event is in the journal.
    pub path: PathBuf,
    /// The event.
    pub event: Event,
    /// The file's owner.
    pub uid: u32,
    /// Is that root or the worker's own user?
    pub is_trusted: bool,
    /// The file's size.
    pub bytes: u64,
}

/// What a look at some files of the spool found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Events, oldest first.
    pub events: Vec<Spooled>,
    /// Files set aside: the reason, naming the file.
    pub rejected: Vec<String>,
}

/// The reading side.
#[derive(Debug)]
pub struct Reader {
    directories: Vec<PathBuf>,
    rejected: PathBuf,
    trust: Trust,
    ignored: BTreeSet<PathBuf>,
    /// Found by the last listing and not looked at yet, oldest first.
    listed: VecDeque<Listed>,
    /// Are the directories to be listed when all of that has been looked at?
    again: bool,
    /// Names kept of one listing.
    most: usize,
}

impl Reader {
    /// Reads the spool of `dirs` and the fallback directories of those that `trust` believes.
    pub fn new(dirs: &Dirs, trust: Trust) -> Self {
        let fallbacks = trust.uids().map(|uid| fallback_directory(dirs, uid));
        let directories = std::iter::once(dirs.spool()).chain(fallbacks).collect();
        Self {
            directories,
            rejected: dirs.rejected(),
            trust,
            ignored: BTreeSet::new(),
            listed: VecDeque::new(),
            again: true,
            most: listing::MOST,
        }
    }

    /// Something may have come since the directories were listed: they are listed once more, after
    /// what was found is looked at.
    pub fn look_again(&mut self) {
        self.again = true;
    }

    /// Is there something to look at? If not, [`scan`](Self::scan) finds nothing before
    /// [`look_again`](Self::look_again).
    pub fn has_more(&self) -> bool {
        self.again || !self.listed.is_empty()
    }

    /// Looks at the next files, `limit` at most: takes what is an event, and sets aside what is
    /// none. The caller removes, rejects or ignores each that was taken before the next call.
    pub fn scan(&mut self, limit: usize) -> Scan {
        if self.listed.is_empty() && self.again {
            self.list();
        }
        let mut scan = Scan::default();
        let mut open: BTreeMap<usize, rustix::io::Result<OwnedFd>> = BTreeMap::new();
        let (mut looked, mut bytes) = (0, 0);
        while looked < limit && bytes < BATCH_BYTES {
            let Some(Listed { name, directory: number }) = self.listed.pop_front() else { break };
            looked += 1;
            let Some(directory) = self.directories.get(number) else { continue };
            let path = directory.join(std::ffi::OsStr::from_bytes(&name));
            let Ok(descriptor) = open.entry(number).or_insert_with(|| open_directory(directory))
            else {
                continue;
            };
            match self.read(descriptor, &path, &name) {
                Ok(Some(spooled)) => {
                    bytes += spooled.bytes;
                    scan.events.push(spooled);
                }
                Ok(None) => {}
                Err(reason) => scan.rejected.push(self.reject(&path, &reason)),
            }
        }
        scan
    }

    /// Looks at a file no more: it can be neither removed nor set aside.
    pub fn ignore(&mut self, path: PathBuf) {
        self.ignored.insert(path);
    }

    /// Sets a file aside that is not wanted; gives the reason, naming the file.
    pub fn reject(&mut self, path: &Path, reason: &str) -> String {
        let (shown, moved) = set_aside(&self.rejected, path, reason);
        if !moved {
            self.ignored.insert(path.to_owned());
        }
        shown
    }

    /// Finds the oldest names of all directories.
    fn list(&mut self) {
        let mut oldest = Oldest::new(self.most);
        for (number, directory) in self.directories.iter().enumerate() {
            let Ok(descriptor) = open_directory(directory) else { continue };
            for name in names(&descriptor) {
                // Of those in the making there may be any number; they must not take the place of
                // events.
                if !self.ignored.contains(&directory.join(std::ffi::OsStr::from_bytes(&name)))
                    && (!is_unfinished(&name)
                        || look_at(&descriptor, &name).is_ok_and(|stat| !is_in_the_making(&stat)))
                {
                    oldest.add(Listed { name, directory: number });
                }
            }
        }
        (self.listed, self.again) = oldest.into_names();
    }

    /// The event in one file; none if it is not to be looked at (yet, or any more).
    fn read(
        &self,
        directory: &OwnedFd,
        path: &Path,
        name: &[u8],
    ) -> Result<Option<Spooled>, String> {
        let gone_or = |error: rustix::io::Errno| match error {
            rustix::io::Errno::NOENT => Ok(None),
            error => Err(format!("it cannot be read ({error})")),
        };
        // Looked at before it is opened: opening a device or a FIFO can have effects.
        let stat = match look_at(directory, name) {
            Ok(stat) => stat,
            Err(error) => return gone_or(error),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err("it is no regular file".into());
        }
        if is_unfinished(name) {
            return if is_in_the_making(&stat) {
                Ok(None)
            } else {
                Err("it was never completed; its hook was killed".into())
            };
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(error) => return gone_or(error),
        };
        // What was opened counts, not what was looked at.
        let stat =
            rustix::fs::fstat(&file).map_err(|error| format!("it cannot be read ({error})"))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err("it is no regular file".into());
        }
        if stat.st_nlink > 1 {
            return Err(format!("it has {} links; an event has one", stat.st_nlink));
        }
        let owner = self.trust.owner(stat.st_uid, stat.st_gid)?;
        // One byte more, so that the end is found without another buffer.
        let size = u64::try_from(stat.st_size).unwrap_or(0).min(envelope::MAX_SIZE);
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
        let read = File::from(file).take(envelope::MAX_SIZE + 1).read_to_end(&mut bytes);
        read.map_err(|error| format!("it cannot be read ({error})"))?;
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
            path: path.to_owned(),
            event,
            uid: stat.st_uid,
            is_trusted: owner == Owner::Trusted,
            bytes: bytes.len() as u64,
        }))
    }
}

/// Is it a name that a file has while its hook writes it?
fn is_unfinished(name: &[u8]) -> bool {
    name.starts_with(b".")
}

fn look_at(directory: &OwnedFd, name: &[u8]) -> rustix::io::Result<Stat> {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// May its hook still write an unfinished file?
fn is_in_the_making(stat: &Stat) -> bool {
    let modified = u64::try_from(stat.st_mtime).unwrap_or(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && now.saturating_sub(Duration::from_secs(modified)) <= ABANDONED
}

#[cfg(test)]
mod tests;
