//! The spool: a directory into which hooks put events, one file each, and out of which the worker takes them.
//!
//! # Writing
//!
//! A file is written under a name that begins with a dot, renamed to the event's id (the commit: the worker sees it from then on) and
//! then synced, once. One `fsync` after the rename is enough where syncing a new file also makes its name durable: ext4 and XFS
//! commit the transaction that holds creation and rename (both touch the inode that is synced), btrfs logs a new inode together
//! with its names, F2FS does so in its default `fsync_mode=posix`, ZFS writes all creations and renames before it to its intent log. POSIX
//! would have the directory synced as well; hooks cannot, since the directory is not readable for them, and it would double
//! the cost. A crash between rename and sync can leave a name without its contents: the checksum tells
//! ([`super::envelope`]), and no hook had promised anything yet. On tmpfs nothing survives a power failure.
//!
//! The directory is made by root with mode 1733 (anybody may add, nobody may list, only the owner removes: build users hand
//! over events of the diff hook), by a plain user with 0700.
//!
//! # Reading
//!
//! Anybody may have put anything there. A file is taken only if it is a regular file with one link, of bounded size, of a
//! trusted owner ([`super::trust`]), whole, and says what such an owner may say. Anything else is moved to the directory
//! `rejected` beside the spool, with its reason; it is never deleted and never in the way of others.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use sha2::{Digest as _, Sha256};

use super::envelope;
use super::trust::{Owner, Trust};
use crate::dirs::Dirs;
use crate::event::Event;

/// Mode of the spool of a system installation; see the module.
const SYSTEM_MODE: u32 = 0o1733;
/// Mode of a plain user's spool.
const USER_MODE: u32 = 0o700;
/// Mode of an event: the worker may be another user, and nobody else can guess the name in a directory that cannot be listed.
const EVENT_MODE: u32 = 0o644;
/// A file still without its final name after this long was left by a hook that was killed.
const ABANDONED: Duration = Duration::from_hours(1);
/// Where events go when the spool cannot be written. Survives a restart of the machine, unlike /tmp (FHS 3.0, 5.15).
const FALLBACK_PARENT: &str = "/var/tmp";

/// Where an event was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the spool.
    Spool,
    /// In the fallback directory: the spool could not be written.
    Fallback {
        /// The file.
        path: PathBuf,
        /// Why, with the fix.
        reason: String,
    },
}

/// An event could not be put anywhere.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct PutError(Vec<String>);

/// Puts an event into the spool, or, if that cannot be written, into this user's fallback directory. Durable when it returns.
///
/// # Errors
/// If neither can be written.
pub fn put(dirs: &Dirs, event: &Event) -> Result<Place, PutError> {
    let bytes =
        envelope::seal(event).map_err(|error| PutError(vec![format!("the event cannot be written as JSON ({error})")]))?;
    let spool = dirs.spool();
    let first = match write(&spool, &event.id, &bytes) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            make_directory(&spool).and_then(|()| write(&spool, &event.id, &bytes))
        }
        result => result,
    };
    let Err(error) = first else { return Ok(Place::Spool) };
    let reason = format!("the spool {} cannot be written ({error}): {}", spool.display(), fix(&error));
    match put_fallback(dirs, event, &bytes) {
        Ok(path) => Ok(Place::Fallback { path, reason }),
        Err(error) => Err(PutError(vec![reason, error])),
    }
}

/// Puts an event into this user's fallback directory; gives the file. For a hook whose spool does not answer.
///
/// # Errors
/// One line.
pub fn rescue(dirs: &Dirs, event: &Event) -> Result<PathBuf, String> {
    let bytes = envelope::seal(event).map_err(|error| error.to_string())?;
    put_fallback(dirs, event, &bytes)
}

fn put_fallback(dirs: &Dirs, event: &Event, bytes: &[u8]) -> Result<PathBuf, String> {
    let fallback = fallback_directory(dirs, rustix::process::getuid().as_raw());
    let written = own_directory(&fallback).and_then(|()| write(&fallback, &event.id, bytes));
    written.map(|()| fallback.join(&event.id)).map_err(|error| format!("nor can {} ({error})", fallback.display()))
}

/// What to do about a spool that cannot be written.
fn fix(error: &std::io::Error) -> &'static str {
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => "make space there",
        Some(rustix::io::Errno::ROFS) => "mount it writable, or set HOOKRUN_STATE_DIR to another directory",
        Some(rustix::io::Errno::NOENT) => "run `hookrun check` as root once, which makes it",
        _ => "its mode must be 1733 and its owner root, or 0700 and its owner the user that builds",
    }
}

/// The commit; see the module.
fn write(directory: &Path, id: &str, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = directory.join(format!(".{id}"));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file = File::from(rustix::fs::open(&temporary, flags, Mode::from_raw_mode(EVENT_MODE))?);
    let renamed = file.write_all(bytes).and_then(|()| std::fs::rename(&temporary, directory.join(id)));
    if renamed.is_err() {
        // What was begun is not left behind; if that fails too, the worker sets it aside.
        let _removed = std::fs::remove_file(&temporary);
    }
    renamed?;
    file.sync_all()
}

/// Makes a spool directory and the directories above it, if they are not there.
///
/// # Errors
/// What the system says.
pub fn make_directory(spool: &Path) -> std::io::Result<()> {
    let root = rustix::process::geteuid().is_root();
    if let Some(parent) = spool.parent() {
        // Build users must reach the spool; a plain user's state is its own.
        std::fs::DirBuilder::new().recursive(true).mode(if root { 0o755 } else { 0o700 }).create(parent)?;
    }
    match std::fs::DirBuilder::new().mode(USER_MODE).create(spool) {
        // The mode is set here, since mkdir's is subject to the umask.
        Ok(()) if root => std::fs::set_permissions(spool, std::fs::Permissions::from_mode(SYSTEM_MODE)),
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The fallback directory of a user, for one state directory (of several installations on a machine).
pub fn fallback_directory(dirs: &Dirs, uid: u32) -> PathBuf {
    let digest = Sha256::digest(dirs.state.as_os_str().as_bytes());
    let [a, b, c, d, ..] = <[u8; 32]>::from(digest);
    Path::new(FALLBACK_PARENT).join(format!("hookrun-spool-{uid}-{a:02x}{b:02x}{c:02x}{d:02x}"))
}

/// Makes a directory in a place that all may write to, or checks that the one that is there is this user's alone.
fn own_directory(path: &Path) -> std::io::Result<()> {
    match std::fs::DirBuilder::new().mode(USER_MODE).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let found = std::fs::symlink_metadata(path)?;
            if found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0 {
                Ok(())
            } else {
                Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, "somebody else made it; remove it"))
            }
        }
        result => result,
    }
}

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

/// What a look into the spool found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Events, oldest first.
    pub events: Vec<Spooled>,
    /// Files set aside: the reason, naming the file.
    pub rejected: Vec<String>,
    /// Are there more than were asked for?
    pub more: bool,
}

/// The reading side.
#[derive(Debug)]
pub struct Reader {
    directories: Vec<PathBuf>,
    rejected: PathBuf,
    trust: Trust,
    ignored: BTreeSet<PathBuf>,
}

impl Reader {
    /// Reads the spool of `dirs` and the fallback directories of those that `trust` believes.
    pub fn new(dirs: &Dirs, trust: Trust) -> Self {
        let fallbacks = trust.uids().map(|uid| fallback_directory(dirs, uid));
        let directories = std::iter::once(dirs.spool()).chain(fallbacks).collect();
        Self { directories, rejected: dirs.rejected(), trust, ignored: BTreeSet::new() }
    }

    /// Takes up to `limit` events, and sets aside what is none.
    pub fn scan(&mut self, limit: usize) -> Scan {
        let mut scan = Scan::default();
        for directory in &self.directories {
            let Ok(descriptor) = open_directory(directory) else { continue };
            let mut names = names(&descriptor);
            // Ids are sortable by time.
            names.sort();
            for name in names {
                if scan.events.len() >= limit {
                    scan.more = true;
                    return scan;
                }
                let path = directory.join(std::ffi::OsStr::from_bytes(&name));
                if self.ignored.contains(&path) {
                    continue;
                }
                match self.read(&descriptor, &path, &name) {
                    Ok(Some(spooled)) => scan.events.push(spooled),
                    Ok(None) => {}
                    Err(reason) => {
                        let (shown, moved) = set_aside(&self.rejected, &path, &reason);
                        scan.rejected.push(shown);
                        if !moved {
                            self.ignored.insert(path);
                        }
                    }
                }
            }
        }
        scan
    }

    /// Looks at a file no more: it can be neither removed nor set aside.
    pub fn ignore(&mut self, path: PathBuf) {
        self.ignored.insert(path);
    }

    /// Sets a file aside that was taken for an event and is not wanted; gives the reason, naming the file.
    pub fn reject(&mut self, path: &Path, reason: &str) -> String {
        let (shown, moved) = set_aside(&self.rejected, path, reason);
        if !moved {
            self.ignored.insert(path.to_owned());
        }
        shown
    }

    /// The event in one file; none if it is not to be looked at (yet, or any more).
    fn read(&self, directory: &OwnedFd, path: &Path, name: &[u8]) -> Result<Option<Spooled>, String> {
        let gone_or = |error: rustix::io::Errno| match error {
            rustix::io::Errno::NOENT => Ok(None),
            error => Err(format!("it cannot be read ({error})")),
        };
        // Looked at before it is opened: opening a device or a FIFO can have effects.
        let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(error) => return gone_or(error),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err("it is no regular file".into());
        }
        if name.starts_with(b".") {
            let modified = u64::try_from(stat.st_mtime).unwrap_or(0);
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let abandoned = now.saturating_sub(Duration::from_secs(modified)) > ABANDONED;
            return if abandoned { Err("it was never completed; its hook was killed".into()) } else { Ok(None) };
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(error) => return gone_or(error),
        };
        // What was opened counts, not what was looked at.
        let stat = rustix::fs::fstat(&file).map_err(|error| format!("it cannot be read ({error})"))?;
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
            return Err(format!("it has more than {} MiB, the most that an event has", envelope::MAX_SIZE >> 20));
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

/// How many files wait in the spool.
pub fn depth(dirs: &Dirs) -> usize {
    open_directory(&dirs.spool())
        .map_or(0, |directory| names(&directory).iter().filter(|name| !name.starts_with(b".")).count())
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn names(directory: &OwnedFd) -> Vec<Vec<u8>> {
    let Ok(entries) = rustix::fs::Dir::read_from(directory) else { return Vec::new() };
    let names = entries.map_while(Result::ok).map(|entry| entry.file_name().to_bytes().to_vec());
    names.filter(|name| name != b"." && name != b"..").collect()
}

mod rejected;

pub use rejected::count as count_rejected;
use rejected::set_aside;

#[cfg(test)]
mod tests;
