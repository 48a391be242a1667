//! Reads below one store path: from its own descriptor, a component at a time, never through a symlink.
//!
//! `openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS` would do the same in one call, but is missing before Linux 5.6, under
//! some container runtimes' filters, and elsewhere than on Linux; with no `..` and no symlink among the components, walking is
//! as safe.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Entry;
use crate::capability::CapabilityError;

/// The most entries of one directory. The largest of Nixpkgs have some ten thousand.
const MAX_ENTRIES: usize = 100_000;

/// What opening something in the store needs: it is read, never created, never waited for (a FIFO), never left behind in a child.
const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// The components of a path that a guest gave: relative, and without `.` and `..`.
///
/// # Errors
/// `invalid` for any other.
pub fn components(relative: &str) -> Result<Vec<&str>, CapabilityError> {
    if relative.is_empty() {
        return Ok(Vec::new());
    }
    let components: Vec<&str> = relative.split('/').collect();
    if components.iter().any(|component| matches!(*component, "" | "." | "..") || component.contains('\0')) {
        let shown = relative.escape_debug();
        return Err(CapabilityError::invalid(format!(
            "`{shown}` is no path below a store path; write it without `.`, `..` and leading, doubled or trailing slashes"
        )));
    }
    Ok(components)
}

/// Opens `relative` below `path`; both as in messages.
fn open(path: &Path, relative: &str) -> Result<OwnedFd, CapabilityError> {
    let components = components(relative)?;
    let shown = shown(path, relative);
    let failed = |errno: Errno| match errno {
        Errno::NOENT | Errno::NOTDIR => CapabilityError::not_found(format!("{shown} does not exist")),
        Errno::LOOP => {
            CapabilityError::invalid(format!("{shown} is or passes a symlink, and none is followed; read its target"))
        }
        errno => CapabilityError::transient(format!("{shown} cannot be opened ({errno})")),
    };
    let mut here = rustix::fs::open(path, FLAGS, Mode::empty()).map_err(failed)?;
    for component in components {
        here = rustix::fs::openat(&here, component, FLAGS, Mode::empty()).map_err(failed)?;
    }
    Ok(here)
}

fn shown(path: &Path, relative: &str) -> String {
    if relative.is_empty() { path.display().to_string() } else { format!("{}/{}", path.display(), relative.escape_debug()) }
}

/// The entries of a directory, sorted by name.
///
/// # Errors
/// `not-found`, `invalid` for what is no directory, `limit` for a directory of more than [`MAX_ENTRIES`].
pub fn list(path: &Path, relative: &str) -> Result<Vec<Entry>, CapabilityError> {
    let shown = shown(path, relative);
    let directory = open(path, relative)?;
    let failed = |errno: Errno| match errno {
        Errno::NOTDIR => CapabilityError::invalid(format!("{shown} is no directory")),
        errno => CapabilityError::transient(format!("{shown} cannot be listed ({errno})")),
    };
    let mut entries = Vec::new();
    for entry in Dir::read_from(&directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if entries.len() >= MAX_ENTRIES {
            return Err(CapabilityError::limit(format!(
                "{shown} has more than {MAX_ENTRIES} entries; list what is below it"
            )));
        }
        let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let (kind, target) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => ("regular", None),
            FileType::Directory => ("directory", None),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&directory, name, Vec::new()).map_err(failed)?;
                ("symlink", Some(target.to_string_lossy().into_owned()))
            }
            // Nix puts nothing else into its store.
            _ => continue,
        };
        let regular = kind == "regular";
        entries.push(Entry {
            name: name.to_string_lossy().into_owned(),
            kind,
            size: if regular { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
            // As Nix tells it when it makes a NAR: the owner's bit.
            executable: regular && stat.st_mode & 0o100 != 0,
            target,
        });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// At most `length` bytes of a regular file from `offset`. Memory is that of what is there, not of what was asked.
///
/// # Errors
/// `not-found`, or `invalid` for what is no regular file.
pub fn read(path: &Path, relative: &str, offset: u64, length: u64) -> Result<Vec<u8>, CapabilityError> {
    let shown = shown(path, relative);
    let mut file = std::fs::File::from(open(path, relative)?);
    let failed = |error: std::io::Error| CapabilityError::transient(format!("{shown} cannot be read ({error})"));
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(CapabilityError::invalid(format!("{shown} is no regular file; list it instead")));
    }
    file.seek(SeekFrom::Start(offset)).map_err(|_| CapabilityError::invalid(format!("{shown} has no offset {offset}")))?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}
