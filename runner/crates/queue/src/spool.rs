//! The spool: the directory into which hooks write events, one file each, and from which the worker
//! takes them.
//!
//! # Writing
//!
//! A file is written under a name that begins with a dot, renamed to the event's id, and then
//! synced once. The rename commits it: from then on the worker sees it. One `fsync` after the
//! rename is enough on file systems where syncing a new file also makes its name durable. ext4 and
//! XFS commit the transaction that contains creation and rename (both change the synced inode),
//! btrfs logs a new inode together with its names, F2FS does so in its default `fsync_mode=posix`,
//! and ZFS writes all earlier creations and renames to its intent log. POSIX would require to sync
//! the directory as well. Hooks cannot do that, because they may not read the directory, and it
//! would double the cost. A crash between rename and sync can leave a name without its contents.
//! The checksum detects this ([`super::envelope`]), and in that case the hook had not returned yet.
//! On tmpfs nothing survives a power failure.
//!
//! [`hookrun_nix::layout`] creates the directory. In a system installation it has mode 1733: every
//! user may add files, only the owner of a file may remove it, and only the directory's owner may
//! list it, because build users hand over events of the diff hook. For a plain user it has the mode
//! 0700. All operations are relative to its descriptor.
//!
//! If the spool cannot be written, the event goes to a fallback directory ([`places`]), which is a
//! spool in another place. The worker reads all of them.
//!
//! # Reading
//!
//! Every user may add files. [`Reader`] takes a file only if it is a complete regular file with one
//! link and limited size, if its owner is accepted ([`super::trust`]), and if this owner may report
//! its event. Other files are moved to the directory `rejected` beside the spool, with the reason,
//! or removed if too many are kept already. They never delay other files.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use super::envelope;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::Event;
use hookrun_nix::layout::{self, Directory, Use};

/// The mode of an event's file. The worker may be another user, and nobody else can guess the name
/// in a directory that cannot be listed.
const EVENT_MODE: u32 = 0o644;
/// The maximum number of [`places`] of a user.
pub const MOST_PLACES: usize = 3;
/// The mode of a fallback in a directory where other users may create entries.
const OWN_MODE: u32 = 0o700;

/// The place where an event was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpoolPlace {
    /// In the spool.
    Spool,
    /// A fallback directory, because the spool could not be written.
    Fallback {
        /// The file.
        path: PathBuf,
        /// The reason, with the fix.
        reason: String,
    },
}

/// The event could not be written anywhere. Contains a reason for each place.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct PutError(Vec<String>);

/// Writes an event into the spool, or if that is not possible, into the first fallback that can be
/// written. The event is durable when it returns.
///
/// # Errors
/// No place can be written.
pub fn put(dirs: &Dirs, event: &Event) -> Result<SpoolPlace, PutError> {
    let bytes = envelope::seal(event).map_err(|error| {
        PutError(vec![format!("the event cannot be written as JSON ({error})")])
    })?;
    put_sealed(dirs, &event.id, &bytes)
}

/// Like [`put`], for a sealed event.
///
/// # Errors
/// Returns the errors of [`put`].
pub fn put_sealed(dirs: &Dirs, id: &str, bytes: &[u8]) -> Result<SpoolPlace, PutError> {
    let Err(error) = put_in_spool(dirs, id, bytes) else { return Ok(SpoolPlace::Spool) };
    let spool = dirs.spool();
    let reason =
        format!("the spool {} cannot be written ({error}): {}", spool.display(), fix(&error));
    let mut reasons = vec![reason.clone()];
    for place in places(dirs) {
        match put_in(&place, id, bytes) {
            Ok(path) => return Ok(SpoolPlace::Fallback { path, reason }),
            Err(error) => reasons.push(error),
        }
    }
    Err(PutError(reasons))
}

/// Writes a sealed event into the spool, without using a fallback; returns the file.
///
/// # Errors
/// Returns the error of the system.
pub fn put_in_spool(dirs: &Dirs, id: &str, bytes: &[u8]) -> std::io::Result<PathBuf> {
    let spool = dirs.spool();
    open_or_make(&spool).and_then(|directory| write(&directory, id, bytes))?;
    Ok(spool.join(id))
}

/// Returns the fallback directories for this user, in order of preference.
pub fn places(dirs: &Dirs) -> Vec<PathBuf> {
    let mut places = layout::fallbacks(dirs);
    let uid = rustix::process::geteuid();
    if !uid.is_root() {
        places.push(layout::own_fallback(dirs, uid.as_raw()));
    }
    places
}

/// Writes a sealed event into one of the [`places`]; returns the file.
///
/// # Errors
/// A part of a message, on one line.
pub fn put_in(place: &Path, id: &str, bytes: &[u8]) -> Result<PathBuf, String> {
    let written = fallback(place).and_then(|directory| write(&directory, id, bytes));
    written
        .map(|()| place.join(id))
        .map_err(|error| format!("{} cannot be written either ({error})", place.display()))
}

/// Opens a fallback directory, and creates it if it is missing. Another user may have created it
/// first.
fn fallback(place: &Path) -> std::io::Result<Directory> {
    let uid = rustix::process::geteuid().as_raw();
    let directory = if layout::is_in_common(place) {
        layout::make(place, OWN_MODE)?;
        Directory::open(place, Use::Add)?
    } else {
        open_or_make(place)?
    };
    let stat = directory.stat()?;
    if layout::is_of_user_alone(&stat, uid) || layout::is_shared_by_root(&stat) {
        Ok(directory)
    } else {
        Err(std::io::Error::new(ErrorKind::PermissionDenied, "another user created it; remove it"))
    }
}

/// Returns the fix for a spool that cannot be written.
fn fix(error: &std::io::Error) -> &'static str {
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => "make space there",
        Some(rustix::io::Errno::ROFS) => {
            "mount it writable, or set HOOKRUN_STATE_DIR to another directory"
        }
        Some(rustix::io::Errno::NOTDIR) => {
            "replace it by a directory; `hookrun status` has details"
        }
        _ => "run `hookrun check` as root, or as the user that builds, to correct it",
    }
}

fn open_or_make(path: &Path) -> std::io::Result<Directory> {
    match Directory::open(path, Use::Add) {
        Err(rustix::io::Errno::NOENT) => {
            layout::make_spool(path)?;
            Ok(Directory::open(path, Use::Add)?)
        }
        result => Ok(result?),
    }
}

/// Writes and commits a file; see the module.
fn write(directory: &Directory, id: &str, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = format!(".{id}");
    let mut file = directory.create(temporary.as_bytes(), EVENT_MODE)?;
    let renamed = file
        .write_all(bytes)
        .and_then(|()| directory.rename(temporary.as_bytes(), directory, id.as_bytes()));
    if renamed.is_err() {
        // The incomplete file is removed. If that fails too, the worker removes it.
        let _removed = directory.remove(temporary.as_bytes());
    }
    renamed?;
    file.sync_all()
}

/// Returns the number of events in the spool.
pub fn depth(dirs: &Dirs) -> usize {
    count(&dirs.spool())
}

/// Returns the time of the oldest event in the spool, according to the file names, in milliseconds
/// since 1970.
pub fn oldest_ms(dirs: &Dirs) -> Option<u64> {
    let directory = Directory::open(&dirs.spool(), Use::List).ok()?;
    let time = |name: Vec<u8>| {
        let id = uuid::Uuid::try_parse_ascii(&name).ok()?;
        let (seconds, nanoseconds) = id.get_timestamp()?.to_unix();
        Some(seconds.saturating_mul(1000).saturating_add(u64::from(nanoseconds / 1_000_000)))
    };
    directory.names().filter_map(time).min()
}

/// Returns the number of events in one of the directories. Hidden files are not complete.
pub fn count(directory: &Path) -> usize {
    Directory::open(directory, Use::List)
        .map_or(0, |directory| directory.names().filter(|name| !name.starts_with(b".")).count())
}

mod listing;
mod reader;
mod rejected;

pub use reader::{Reader, Scan, Spooled};
pub use rejected::count as count_rejected;

#[cfg(test)]
mod tests;
