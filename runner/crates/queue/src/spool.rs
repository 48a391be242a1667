//! The spool: the directory into which hooks put events, one file each, and from which the worker
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
//! between rename and sync can leave a name without its contents. The checksum shows this
//! ([`super::envelope`]), and the hook had not returned yet. On tmpfs nothing survives a power
//! failure.
//!
//! [`hookrun_nix::layout`] makes the directory. In a system installation it has mode 1733: every
//! user may add files, only the owner of a file may remove it, and only the directory's owner may
//! list it, because build users hand over events of the diff hook. For a plain user it has mode
//! 0700. All operations are relative to its descriptor.
//!
//! If the spool cannot be written, the event goes to a fallback ([`places`]), which is a spool like
//! this one in another place. The worker reads them all.
//!
//! # Reading
//!
//! Every user may put files there. [`Reader`] takes a file only if it is a complete regular file
//! with one link and of bounded size, if its owner is accepted ([`super::trust`]), and if this
//! owner may report its event. Any other file is moved to the directory `rejected` beside the
//! spool, with the reason, or removed if too many are kept already. It never delays other files.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use super::envelope;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::Event;
use hookrun_nix::layout::{self, Directory, Use};

/// Mode of an event: the worker may be another user, and nobody else can guess the name in a
/// directory that cannot be listed.
const EVENT_MODE: u32 = 0o644;
/// No user has more [`places`].
pub const MOST_PLACES: usize = 3;
/// Mode of a fallback in a place where others may make one.
const OWN_MODE: u32 = 0o700;

/// Where an event was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the spool.
    Spool,
    /// In a fallback directory: the spool could not be written.
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

/// Puts an event into the spool, or, if that cannot be written, into the first fallback that can.
/// Durable when it returns.
///
/// # Errors
/// If none can be written.
pub fn put(dirs: &Dirs, event: &Event) -> Result<Place, PutError> {
    let bytes = envelope::seal(event).map_err(|error| {
        PutError(vec![format!("the event cannot be written as JSON ({error})")])
    })?;
    put_sealed(dirs, &event.id, &bytes)
}

/// As [`put`], of an event that is sealed.
///
/// # Errors
/// As [`put`].
pub fn put_sealed(dirs: &Dirs, id: &str, bytes: &[u8]) -> Result<Place, PutError> {
    let Err(error) = put_in_spool(dirs, id, bytes) else { return Ok(Place::Spool) };
    let spool = dirs.spool();
    let reason =
        format!("the spool {} cannot be written ({error}): {}", spool.display(), fix(&error));
    let mut reasons = vec![reason.clone()];
    for place in places(dirs) {
        match put_in(&place, id, bytes) {
            Ok(path) => return Ok(Place::Fallback { path, reason }),
            Err(error) => reasons.push(error),
        }
    }
    Err(PutError(reasons))
}

/// Puts a sealed event into the spool and nowhere else; returns the file.
///
/// # Errors
/// What the system says.
pub fn put_in_spool(dirs: &Dirs, id: &str, bytes: &[u8]) -> std::io::Result<PathBuf> {
    let spool = dirs.spool();
    open_or_make(&spool).and_then(|directory| write(&directory, id, bytes))?;
    Ok(spool.join(id))
}

/// Where this user's events go when the spool cannot be written, the best first.
pub fn places(dirs: &Dirs) -> Vec<PathBuf> {
    let mut places = layout::fallbacks(dirs);
    let uid = rustix::process::geteuid();
    if !uid.is_root() {
        places.push(layout::own_fallback(dirs, uid.as_raw()));
    }
    places
}

/// Puts a sealed event into one of the [`places`]; returns the file.
///
/// # Errors
/// One line.
pub fn put_in(place: &Path, id: &str, bytes: &[u8]) -> Result<PathBuf, String> {
    let written = fallback(place).and_then(|directory| write(&directory, id, bytes));
    written
        .map(|()| place.join(id))
        .map_err(|error| format!("nor can {} ({error})", place.display()))
}

/// A fallback directory, made if it is missing. Another user may have made it first.
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
        Err(std::io::Error::new(ErrorKind::PermissionDenied, "somebody else made it; remove it"))
    }
}

/// What to do about a spool that cannot be written.
fn fix(error: &std::io::Error) -> &'static str {
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => "make space there",
        Some(rustix::io::Errno::ROFS) => {
            "mount it writable, or set HOOKRUN_STATE_DIR to another directory"
        }
        Some(rustix::io::Errno::NOTDIR) => {
            "it must be a directory and not a symbolic link; `hookrun status` says more"
        }
        _ => "run `hookrun check` as root, or as the user that builds, which sets it right",
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

/// The commit; see the module.
fn write(directory: &Directory, id: &str, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = format!(".{id}");
    let mut file = directory.create(temporary.as_bytes(), EVENT_MODE)?;
    let renamed = file
        .write_all(bytes)
        .and_then(|()| directory.rename(temporary.as_bytes(), directory, id.as_bytes()));
    if renamed.is_err() {
        // What was begun is not left behind; if that fails too, the worker removes it.
        let _removed = directory.remove(temporary.as_bytes());
    }
    renamed?;
    file.sync_all()
}

/// How many events wait in the spool.
pub fn depth(dirs: &Dirs) -> usize {
    count(&dirs.spool())
}

/// When the hook was called for the oldest event that waits in the spool, as the file names tell;
/// milliseconds since 1970.
pub fn oldest_ms(dirs: &Dirs) -> Option<u64> {
    let directory = Directory::open(&dirs.spool(), Use::List).ok()?;
    let time = |name: Vec<u8>| {
        let id = uuid::Uuid::try_parse_ascii(&name).ok()?;
        let (seconds, nanoseconds) = id.get_timestamp()?.to_unix();
        Some(seconds.saturating_mul(1000).saturating_add(u64::from(nanoseconds / 1_000_000)))
    };
    directory.names().filter_map(time).min()
}

/// Events in one of the directories: hidden files are not finished.
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
