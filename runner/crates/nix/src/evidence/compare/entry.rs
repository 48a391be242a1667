//! The entries of the two trees, read by descriptor and without following links.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Instant;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, openat, statat};

/// Bytes that a name takes besides its own.
pub(super) const NODE: usize = 64;
/// Names that are listed between two looks at the clock.
const LOOK_AT_THE_CLOCK: usize = 4096;

/// Something of each of the two trees.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sides<T> {
    pub(super) previous: T,
    pub(super) current: T,
}

impl<T> Sides<T> {
    /// The same of both; or the error of the first for which it fails.
    pub(super) fn map<U, E>(
        self,
        mut act: impl FnMut(T) -> Result<U, E>,
    ) -> Result<Sides<U>, (Side, E)> {
        let previous = act(self.previous).map_err(|error| (Side::Previous, error))?;
        let current = act(self.current).map_err(|error| (Side::Current, error))?;
        Ok(Sides { previous, current })
    }
}

/// One of the trees.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Previous,
    Current,
}

/// Where something is: relative to the directory that is compared, or a whole tree.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) directory: BorrowedFd<'a>,
    pub(super) name: &'a Path,
}

/// One thing in a tree, as far as a NAR tells.
pub(super) struct Entry {
    pub(super) kind: FileType,
    pub(super) executable: bool,
    pub(super) size: u64,
}

/// What is in a directory.
pub(super) struct Listing {
    pub(super) names: BTreeMap<Box<OsStr>, FileType>,
    /// Whether this list is complete.
    pub(super) is_whole: bool,
}

pub(super) fn stat(place: Place<'_>) -> std::io::Result<Entry> {
    let stat: Stat = statat(place.directory, place.name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(Entry {
        kind: FileType::from_raw_mode(stat.st_mode),
        // The bit that Nix looks at (`S_IXUSR`, `archive.cc`).
        executable: Mode::from_raw_mode(stat.st_mode).contains(Mode::XUSR),
        size: u64::try_from(stat.st_size).unwrap_or(0),
    })
}

pub(super) fn target(place: Place<'_>) -> std::io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(place.directory, place.name, Vec::new())?.into_bytes())
}

pub(super) fn open_file(place: Place<'_>) -> std::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    Ok(File::from(openat(place.directory, place.name, flags, Mode::empty())?))
}

/// A symbolic link in place of the directory is not followed.
pub(super) fn open_directory(place: Place<'_>) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::DIRECTORY;
    Ok(openat(place.directory, place.name, flags, Mode::empty())?)
}

/// The names in a directory, without `.` and `..`, as long as there is room and time for them.
pub(super) fn list(
    directory: &OwnedFd,
    room: usize,
    deadline: Option<Instant>,
) -> std::io::Result<Listing> {
    let (mut names, mut held) = (BTreeMap::new(), 0);
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let name = OsStr::from_bytes(name);
        held += cost(name);
        let late = names.len() % LOOK_AT_THE_CLOCK == LOOK_AT_THE_CLOCK - 1
            && deadline.is_none_or(|deadline| Instant::now() >= deadline);
        if held > room || late {
            return Ok(Listing { names, is_whole: false });
        }
        names.insert(name.into(), entry.file_type());
    }
    Ok(Listing { names, is_whole: true })
}

/// What holding a name takes, about: the name, and a node of the tree that it is in.
pub(super) fn cost(name: &OsStr) -> usize {
    name.len() + NODE
}

pub(super) const fn type_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "regular",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        _ => "other",
    }
}
