//! Reads below one store path: beneath a descriptor of its store directory, never through a
//! symlink.
//!
//! The kernel resolves the whole path in one step that cannot leave the descriptor ([`openat2(2)`],
//! Linux 5.6), so that a symlink that is created between a check and a use has no effect. If
//! `openat2` is missing, or a container's filter forbids it, the path is walked one component at a
//! time with `O_NOFOLLOW`, which is equally safe if no component is `..`.
//!
//! Every opened file is then examined through its descriptor: only regular files are read and only
//! directories are listed. Opening never blocks, so that a FIFO or a device is refused and cannot
//! hang a worker.
//!
//! [`openat2(2)`]: https://man7.org/linux/man-pages/man2/openat2.2.html

use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use hookrun_system::descriptor::{self, LOCATE};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{Budget, DirectoryEntry};
use crate::CapabilityError;

/// Maximum number of entries of one directory. The largest ones of Nixpkgs have about ten thousand.
const MAX_ENTRIES: usize = 100_000;

/// Flags for opening files in the store: read only, never create, never block (a FIFO), never leak
/// into a child process.
const FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// Returns the components of a path from a guest, which must be relative and without `.` and `..`.
///
/// # Errors
/// Returns `invalid` for any other path.
pub(super) fn components(relative: &str) -> Result<Vec<&str>, CapabilityError> {
    if relative.is_empty() {
        return Ok(Vec::new());
    }
    let components: Vec<&str> = relative.split('/').collect();
    if components
        .iter()
        .any(|component| matches!(*component, "" | "." | "..") || component.contains('\0'))
    {
        let shown = relative.escape_debug();
        return Err(CapabilityError::invalid(format!(
            "`{shown}` is not a path below a store path; write it without `.`, `..`, NUL and leading, doubled or trailing slashes"
        )));
    }
    Ok(components)
}

/// Opens `relative` below `path`, with the flags of `kind` in addition to [`FLAGS`].
fn open(path: &Path, relative: &str, kind: OFlags) -> Result<OwnedFd, CapabilityError> {
    let below = components(relative)?;
    let shown = shown(path, relative);
    let failed = |errno: Errno| match errno {
        Errno::NOTDIR if kind.contains(OFlags::DIRECTORY) => {
            CapabilityError::invalid(format!("{shown} is not a directory"))
        }
        Errno::NOENT | Errno::NOTDIR => {
            CapabilityError::not_found(format!("{shown} does not exist"))
        }
        Errno::LOOP => CapabilityError::invalid(format!(
            "{shown} is a symlink or leads through one, and symlinks are not followed; read the target"
        )),
        Errno::NAMETOOLONG => {
            CapabilityError::invalid(format!("{shown} is longer than a path may be"))
        }
        // `open` returns this error for a socket.
        Errno::NXIO => neither(&shown),
        errno => CapabilityError::transient(format!("{shown} cannot be opened ({errno})")),
    };
    let (Some(store), Some(name)) =
        (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return Err(CapabilityError::invalid(format!("{shown} is not a store path")));
    };
    let store =
        rustix::fs::open(store, LOCATE | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let components: Vec<&str> = std::iter::once(name).chain(below).collect();
    beneath(store.map_err(failed)?.as_fd(), &components, FLAGS | kind).map_err(failed)
}

/// Opens `components` below `directory`.
fn beneath(
    directory: BorrowedFd<'_>,
    components: &[&str],
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    // With O_NOFOLLOW, O_DIRECTORY would take precedence for a symlink. RESOLVE_NO_SYMLINKS covers
    // all components.
    let kernel = flags - OFlags::NOFOLLOW;
    match descriptor::open_beneath(directory, &components.join("/"), kernel) {
        // The kernel is older than Linux 5.6, or a container's filter does not know the call
        // (EPERM).
        Err(Errno::NOSYS | Errno::PERM) => walk(directory, components, flags),
        // Only a symlink that was created meanwhile can lead out of the store directory.
        Err(Errno::XDEV) => Err(Errno::LOOP),
        result => result,
    }
}

/// Opens like [`beneath`], one component at a time.
fn walk(directory: BorrowedFd<'_>, components: &[&str], flags: OFlags) -> Result<OwnedFd, Errno> {
    let Some((last, above)) = components.split_last() else { return Err(Errno::INVAL) };
    let mut here: Option<OwnedFd> = None;
    for component in above {
        let step = LOCATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let next = rustix::fs::openat(
            here.as_ref().map_or(directory, AsFd::as_fd),
            *component,
            step,
            Mode::empty(),
        )?;
        // O_PATH opens a symlink itself instead of refusing it.
        if FileType::from_raw_mode(rustix::fs::fstat(&next)?.st_mode) == FileType::Symlink {
            return Err(Errno::LOOP);
        }
        here = Some(next);
    }
    let here = here.as_ref().map_or(directory, AsFd::as_fd);
    match rustix::fs::openat(here, *last, flags, Mode::empty()) {
        // The kernel checks O_DIRECTORY before O_NOFOLLOW.
        Err(Errno::NOTDIR) if is_symlink(here, last) => Err(Errno::LOOP),
        result => result,
    }
}

fn is_symlink(directory: BorrowedFd<'_>, name: &str) -> bool {
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

fn neither(shown: &str) -> CapabilityError {
    CapabilityError::invalid(format!(
        "{shown} is neither a regular file nor a directory, which Nix does not create in its store; find out which program created it"
    ))
}

fn shown(path: &Path, relative: &str) -> String {
    if relative.is_empty() {
        path.display().to_string()
    } else {
        format!("{}/{}", path.display(), relative.escape_debug())
    }
}

/// Returns the entries of a directory, sorted by name.
///
/// # Errors
/// Returns `not-found`, `invalid` if it is not a directory, and `limit` for a directory of more
/// than [`MAX_ENTRIES`] or one that exceeds `budget`.
pub(super) fn list(
    path: &Path,
    relative: &str,
    budget: &mut Budget,
) -> Result<Vec<DirectoryEntry>, CapabilityError> {
    let shown = shown(path, relative);
    let directory = open(path, relative, OFlags::DIRECTORY)?;
    let failed =
        |errno: Errno| CapabilityError::transient(format!("{shown} cannot be listed ({errno})"));
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
        let stat =
            rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let (kind, target) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => ("regular", None),
            FileType::Directory => ("directory", None),
            FileType::Symlink => {
                let target =
                    rustix::fs::readlinkat(&directory, name, Vec::new()).map_err(failed)?;
                ("symlink", Some(target.to_string_lossy().into_owned()))
            }
            // Nix creates no other kinds of files in its store.
            _ => continue,
        };
        let regular = kind == "regular";
        let name = name.to_string_lossy().into_owned();
        let target_length = target.as_ref().map_or(0, String::len);
        budget.take((size_of::<DirectoryEntry>() + name.len() + target_length) as u64)?;
        entries.push(DirectoryEntry {
            name,
            kind,
            size: if regular { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
            // Nix uses the owner's bit when it creates a NAR.
            executable: regular && stat.st_mode & 0o100 != 0,
            target,
        });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Reads at most `length` bytes of a regular file from `offset`. The memory in use depends on the
/// size of the file, not on the requested length.
///
/// # Errors
/// Returns `not-found`, or `invalid` for anything but a regular file.
pub(super) fn read(
    path: &Path,
    relative: &str,
    offset: u64,
    length: u64,
) -> Result<Vec<u8>, CapabilityError> {
    let shown = shown(path, relative);
    let mut file = std::fs::File::from(open(path, relative, OFlags::empty())?);
    let failed = |error: std::io::Error| {
        CapabilityError::transient(format!("{shown} cannot be read ({error})"))
    };
    let kind = file.metadata().map_err(failed)?.file_type();
    if kind.is_dir() {
        return Err(CapabilityError::invalid(format!(
            "{shown} is not a regular file; list it instead"
        )));
    }
    if !kind.is_file() {
        return Err(neither(&shown));
    }
    file.seek(SeekFrom::Start(offset))
        .map_err(|_| CapabilityError::invalid(format!("{shown} has no offset {offset}")))?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way of opening gives the same result for each path.
    #[test]
    fn both_ways_of_opening_agree() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("p/a/b")).unwrap();
        std::fs::write(dir.path().join("p/a/file"), "x").unwrap();
        for (target, link) in [
            ("a", "to-dir"),
            ("a/file", "to-file"),
            ("..", "up"),
            ("/etc", "away"),
            ("gone", "dangling"),
        ] {
            std::os::unix::fs::symlink(target, dir.path().join("p").join(link)).unwrap();
        }
        let store =
            rustix::fs::open(dir.path(), LOCATE | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for path in [
            "p",
            "p/a",
            "p/a/b",
            "p/a/file",
            "p/a/file/x",
            "p/none",
            "p/none/x",
            "p/to-dir",
            "p/to-dir/file",
            "p/to-file",
            "p/up",
            "p/up/p",
            "p/away",
            "p/away/passwd",
            "p/dangling",
            "q",
        ] {
            let components: Vec<&str> = path.split('/').collect();
            for kind in [OFlags::empty(), OFlags::DIRECTORY] {
                let found = |result: Result<OwnedFd, Errno>| {
                    result.map(|file| rustix::fs::fstat(file).unwrap().st_ino)
                };
                let kernel = found(beneath(store.as_fd(), &components, FLAGS | kind));
                let walked = found(walk(store.as_fd(), &components, FLAGS | kind));
                assert_eq!(kernel, walked, "{path} {kind:?}");
            }
        }
    }
}
