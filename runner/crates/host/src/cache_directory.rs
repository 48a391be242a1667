//! A directory of files that only this user and root can have written: compiled plugins
//! ([`super::compiled_cache`]) and examinations ([`super::examination_cache`]). A file is written
//! completely or not at all, its age is reset when it is used, and it is removed when nothing needs
//! it.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Component as PathPart, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hookrun_nix::layout;
use hookrun_system::descriptor::LOCATE;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps};

use super::compiled_cache::KEY_LENGTH;

/// Mode of the entries. Any process that gets the descriptor of an entry may read it: the runner
/// opens it as root and maps it as another user, which reopens it through `/proc`. The mode of the
/// directory keeps all other users away.
pub(super) const ENTRY_MODE: Mode =
    Mode::RUSR.union(Mode::WUSR).union(Mode::RGRP).union(Mode::ROTH);

/// How many entries of plugins that are not configured are kept. Each change of a plugin or of
/// hookrun leaves such entries.
#[derive(Debug, Clone, Copy)]
pub struct Leftovers {
    /// The maximum number of entries that are kept, youngest first.
    pub most: usize,
    /// Entries beyond `most` are also kept if they were used within this time.
    pub young: Duration,
    /// Entries among `most` are kept only if they were used within this time.
    pub old: Duration,
}

const DAY: Duration = Duration::from_hours(24);
/// For a cache of configured plugins: a plugin that is configured again soon is still cached.
pub const OF_CONFIGURATION: Leftovers =
    Leftovers { most: 64, young: DAY, old: Duration::from_hours(30 * 24) };
/// For a cache of plugins under test, of which nothing needs to be kept.
pub const OF_TESTS: Leftovers = Leftovers { most: 64, young: Duration::ZERO, old: DAY };

/// The recorded time of use of an entry may be this much too early, so that a hook that finds an
/// entry rarely has to write.
const RENEWED_AFTER: Duration = Duration::from_hours(1);

/// Removes entries that are neither in `configured` nor kept by `leftovers`, and incomplete files
/// of processes that died.
pub(super) fn prune(path: &Path, configured: &BTreeSet<String>, leftovers: Leftovers) {
    let Ok(directory) = open_directory(path) else { return };
    let Ok(listed) = rustix::fs::Dir::read_from(directory.as_fd()) else { return };
    let mut others: Vec<(Duration, OsString)> = Vec::new();
    for entry in listed.flatten() {
        use std::os::unix::ffi::OsStrExt as _;
        let name = entry.file_name().to_bytes();
        let is_entry = name.len() == KEY_LENGTH;
        let is_half_made = name.starts_with(b".") && name != b"." && name != b"..";
        let Ok(stat) = rustix::fs::statat(&directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
        else {
            continue;
        };
        let name = OsStr::from_bytes(name).to_owned();
        let is_configured = name.to_str().is_some_and(|name| configured.contains(name));
        if is_half_made && unused_for(&stat) > DAY {
            let _gone = rustix::fs::unlinkat(&directory, &name, AtFlags::empty());
        } else if is_entry && !is_configured {
            others.push((unused_for(&stat), name));
        }
    }
    others.sort();
    for (index, (unused, name)) in others.into_iter().enumerate() {
        let kept_for = if index < leftovers.most { leftovers.old } else { leftovers.young };
        if unused > kept_for || kept_for.is_zero() {
            let _gone = rustix::fs::unlinkat(&directory, &name, AtFlags::empty());
        }
    }
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens the directory if only this user and root could have written to it.
pub(super) fn open_directory(path: &Path) -> std::result::Result<OwnedFd, String> {
    let user = rustix::process::geteuid().as_raw();
    let failed =
        |what: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", what.display());
    if let Err(error) = layout::make_own(path)
        && !path.is_dir()
    {
        return Err(failed(path, &error));
    }
    let mut reached = PathBuf::from("/");
    let mut directory = rustix::fs::open("/", LOCATE | DIRECTORY, Mode::empty())
        .map_err(|error| failed(&reached, &error))?;
    let absolute = std::path::absolute(path).map_err(|error| failed(path, &error))?;
    let mut parts = absolute.components().filter(|part| *part != PathPart::RootDir).peekable();
    while let Some(part) = parts.next() {
        let stat = rustix::fs::fstat(&directory).map_err(|error| failed(&reached, &error))?;
        if !only_ours(&stat, user, true) {
            return Err(format!("{} can be changed by other users", reached.display()));
        }
        reached.push(part);
        let access = if parts.peek().is_none() { OFlags::RDONLY } else { LOCATE };
        directory =
            rustix::fs::openat(&directory, part.as_os_str(), access | DIRECTORY, Mode::empty())
                .map_err(|error| failed(&reached, &error))?;
    }
    let stat = rustix::fs::fstat(&directory).map_err(|error| failed(path, &error))?;
    if stat.st_uid != user {
        return Err(format!(
            "{} belongs to uid {}, not to uid {user}",
            path.display(),
            stat.st_uid
        ));
    }
    if stat.st_mode & 0o077 != 0 {
        return Err(format!(
            "{} is open to other users; `chmod 700 {}`",
            path.display(),
            path.display()
        ));
    }
    Ok(directory)
}

/// Returns whether only `user` and root can change it. With `sticky`, a directory in which users
/// can rename only their own files is accepted.
pub(super) fn only_ours(stat: &Stat, user: u32, sticky: bool) -> bool {
    let owned = stat.st_uid == user || stat.st_uid == 0;
    let closed = stat.st_mode & 0o022 == 0 || (sticky && stat.st_mode & 0o1000 != 0);
    owned && closed
}

/// Returns the metadata of an open file if only this user can have written it.
pub(super) fn trusted(file: &File) -> Option<Stat> {
    let stat = rustix::fs::fstat(file).ok()?;
    let user = rustix::process::geteuid().as_raw();
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    (regular && stat.st_uid == user && only_ours(&stat, user, false)).then_some(stat)
}

/// Resets the age of a file that is used.
pub(super) fn renew(file: &File) {
    let Ok(stat) = rustix::fs::fstat(file) else { return };
    if unused_for(&stat) > RENEWED_AFTER {
        let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        // A file whose age cannot be reset is still usable.
        let _renewed =
            rustix::fs::futimens(file, &Timestamps { last_access: now, last_modification: now });
    }
}

/// Returns how long ago an entry was written or renewed; zero if the clock was set back.
fn unused_for(stat: &Stat) -> Duration {
    let used = UNIX_EPOCH + Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or_default());
    SystemTime::now().duration_since(used).unwrap_or_default()
}

/// Writes a file to the directory, completely or not at all.
pub(super) fn put(directory: &OwnedFd, name: &str, parts: &[&[u8]]) -> std::io::Result<()> {
    static SEQUENCE: AtomicU64 = AtomicU64::new(0);
    let temporary = format!(".{}-{}", std::process::id(), SEQUENCE.fetch_add(1, Ordering::Relaxed));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // An existing file of this name belongs to a process that died, because process ids are reused.
    let _ = rustix::fs::unlinkat(directory, &*temporary, AtFlags::empty());
    let mut file = File::from(rustix::fs::openat(directory, &*temporary, flags, ENTRY_MODE)?);
    // The umask removes bits from the mode of a new file, so set the mode explicitly.
    rustix::fs::fchmod(&file, ENTRY_MODE)?;
    let written = parts
        .iter()
        .try_for_each(|part| file.write_all(part))
        .and_then(|()| file.sync_all())
        .and_then(|()| Ok(rustix::fs::renameat(directory, &*temporary, directory, name)?));
    if written.is_err() {
        let _ = rustix::fs::unlinkat(directory, &*temporary, AtFlags::empty());
    }
    written
}
