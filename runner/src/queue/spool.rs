//! The spool: a directory into which hooks put events, one file each, and out of which the worker
//! takes them.
//!
//! # Writing
//!
//! A file is written under a name that begins with a dot, renamed to the event's id (the commit:
//! the worker sees it from then on) and then synced, once. One `fsync` after the rename is enough
//! where syncing a new file also makes its name durable: ext4 and XFS commit the transaction that
//! holds creation and rename (both touch the inode that is synced), btrfs logs a new inode together
//! with its names, F2FS does so in its default `fsync_mode=posix`, ZFS writes all creations and
//! renames before it to its intent log. POSIX would have the directory synced as well; hooks
//! cannot, since the directory is not readable for them, and it would double the cost. A crash
//! between rename and sync can leave a name without its contents: the checksum tells
//! ([`super::envelope`]), and no hook had promised anything yet. On tmpfs nothing survives a power
//! failure.
//!
//! The directory is made by root with mode 1733 (anybody may add, nobody may list, only the owner
//! removes: build users hand over events of the diff hook), by a plain user with 0700.
//!
//! # Reading
//!
//! Anybody may have put anything there. A file is taken only if it is a regular file with one link,
//! of bounded size, of a trusted owner ([`super::trust`]), whole, and says what such an owner may
//! say. Anything else is moved to the directory `rejected` beside the spool, with its reason; it is
//! never deleted and never in the way of others. [`Reader`] does so.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use sha2::{Digest as _, Sha256};

use super::envelope;
use crate::dirs::Dirs;
use crate::event::Event;

/// Mode of the spool of a system installation; see the module.
const SYSTEM_MODE: u32 = 0o1733;
/// Mode of a plain user's spool.
const USER_MODE: u32 = 0o700;
/// Mode of an event: the worker may be another user, and nobody else can guess the name in a
/// directory that cannot be listed.
const EVENT_MODE: u32 = 0o644;
/// Where events go when the spool cannot be written. Survives a restart of the machine, unlike /tmp
/// (FHS 3.0, 5.15).
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

/// Puts an event into the spool, or, if that cannot be written, into this user's fallback
/// directory. Durable when it returns.
///
/// # Errors
/// If neither can be written.
pub fn put(dirs: &Dirs, event: &Event) -> Result<Place, PutError> {
    let bytes = envelope::seal(event).map_err(|error| {
        PutError(vec![format!("the event cannot be written as JSON ({error})")])
    })?;
    let spool = dirs.spool();
    let first = match write(&spool, &event.id, &bytes) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            make_directory(&spool).and_then(|()| write(&spool, &event.id, &bytes))
        }
        result => result,
    };
    let Err(error) = first else { return Ok(Place::Spool) };
    let reason =
        format!("the spool {} cannot be written ({error}): {}", spool.display(), fix(&error));
    match put_fallback(dirs, event, &bytes) {
        Ok(path) => Ok(Place::Fallback { path, reason }),
        Err(error) => Err(PutError(vec![reason, error])),
    }
}

/// Puts an event into this user's fallback directory; gives the file. For a hook whose spool does
/// not answer.
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
    written
        .map(|()| fallback.join(&event.id))
        .map_err(|error| format!("nor can {} ({error})", fallback.display()))
}

/// What to do about a spool that cannot be written.
fn fix(error: &std::io::Error) -> &'static str {
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => "make space there",
        Some(rustix::io::Errno::ROFS) => {
            "mount it writable, or set HOOKRUN_STATE_DIR to another directory"
        }
        Some(rustix::io::Errno::NOENT) => "run `hookrun check` as root once, which makes it",
        _ => "its mode must be 1733 and its owner root, or 0700 and its owner the user that builds",
    }
}

/// The commit; see the module.
fn write(directory: &Path, id: &str, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = directory.join(format!(".{id}"));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file =
        File::from(rustix::fs::open(&temporary, flags, Mode::from_raw_mode(EVENT_MODE))?);
    let renamed =
        file.write_all(bytes).and_then(|()| std::fs::rename(&temporary, directory.join(id)));
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
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(if root { 0o755 } else { 0o700 })
            .create(parent)?;
    }
    match std::fs::DirBuilder::new().mode(USER_MODE).create(spool) {
        // The mode is set here, since mkdir's is subject to the umask.
        Ok(()) if root => {
            std::fs::set_permissions(spool, std::fs::Permissions::from_mode(SYSTEM_MODE))
        }
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The fallback directory of a user, for one state directory (of several installations on a
/// machine).
pub fn fallback_directory(dirs: &Dirs, uid: u32) -> PathBuf {
    let digest = Sha256::digest(dirs.state.as_os_str().as_bytes());
    let [a, b, c, d, ..] = <[u8; 32]>::from(digest);
    Path::new(FALLBACK_PARENT).join(format!("hookrun-spool-{uid}-{a:02x}{b:02x}{c:02x}{d:02x}"))
}

/// Makes a directory in a place that all may write to, or checks that the one that is there is this
/// user's alone.
fn own_directory(path: &Path) -> std::io::Result<()> {
    match std::fs::DirBuilder::new().mode(USER_MODE).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let found = std::fs::symlink_metadata(path)?;
            if found.is_dir()
                && found.uid() == rustix::process::geteuid().as_raw()
                && found.mode() & 0o022 == 0
            {
                Ok(())
            } else {
                Err(std::io::Error::new(
                    std::io::ErrorKind::PermissionDenied,
                    "somebody else made it; remove it",
                ))
            }
        }
        result => result,
    }
}

/// How many files wait in the spool.
pub fn depth(dirs: &Dirs) -> usize {
    open_directory(&dirs.spool())
        .map_or(0, |directory| names(&directory).filter(|name| !name.starts_with(b".")).count())
}

/// When the hook was called for the oldest event that waits in the spool, as the file names tell;
/// milliseconds since 1970.
pub fn oldest_ms(dirs: &Dirs) -> Option<u64> {
    let directory = open_directory(&dirs.spool()).ok()?;
    let time = |name: Vec<u8>| {
        let id = uuid::Uuid::try_parse_ascii(&name).ok()?;
        let (seconds, nanoseconds) = id.get_timestamp()?.to_unix();
        Some(seconds.saturating_mul(1000).saturating_add(u64::from(nanoseconds / 1_000_000)))
    };
    names(&directory).filter_map(time).min()
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn names(directory: &OwnedFd) -> impl Iterator<Item = Vec<u8>> + use<> {
    let entries = rustix::fs::Dir::read_from(directory).into_iter().flatten();
    let names = entries.map_while(Result::ok).map(|entry| entry.file_name().to_bytes().to_vec());
    names.filter(|name| name != b"." && name != b"..")
}

mod listing;
mod reader;
mod rejected;

pub use reader::{Reader, Scan, Spooled};
pub use rejected::count as count_rejected;

#[cfg(test)]
mod tests;
