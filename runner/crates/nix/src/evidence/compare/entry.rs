//! The entries of the two trees, read by descriptor and without following links.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Instant;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, openat, statat};

/// The bytes of memory that a name needs in addition to its own length.
pub(super) const NODE: usize = 64;
/// The number of names that are listed between two checks of the deadline.
const LOOK_AT_THE_CLOCK: usize = 4096;

/// One value for each of the two trees.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sides<T> {
    pub(super) previous: T,
    pub(super) current: T,
}

impl<T> Sides<T> {
    /// Applies `act` to both values, and returns the error of the first one for which it fails.
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

/// The location of an entry: a name relative to an open directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Location<'a> {
    pub(super) directory: BorrowedFd<'a>,
    pub(super) name: &'a Path,
}

/// The properties of an entry that a NAR contains.
pub(super) struct TreeEntry {
    pub(super) kind: FileType,
    pub(super) executable: bool,
    pub(super) size: u64,
}

/// The contents of a directory.
pub(super) struct Listing {
    pub(super) names: BTreeMap<Box<OsStr>, FileType>,
    /// Whether `names` is complete.
    pub(super) is_whole: bool,
}

pub(super) fn stat(place: Location<'_>) -> std::io::Result<TreeEntry> {
    let stat: Stat = statat(place.directory, place.name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(TreeEntry {
        kind: FileType::from_raw_mode(stat.st_mode),
        // The bit that Nix reads (`S_IXUSR`, `archive.cc`).
        executable: Mode::from_raw_mode(stat.st_mode).contains(Mode::XUSR),
        size: u64::try_from(stat.st_size).unwrap_or(0),
    })
}

pub(super) fn target(place: Location<'_>) -> std::io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(place.directory, place.name, Vec::new())?.into_bytes())
}

pub(super) fn open_file(place: Location<'_>) -> std::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    Ok(File::from(openat(place.directory, place.name, flags, Mode::empty())?))
}

/// Opens a directory. A symbolic link in its place is not followed.
pub(super) fn open_directory(place: Location<'_>) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::DIRECTORY;
    Ok(openat(place.directory, place.name, flags, Mode::empty())?)
}

/// Lists the names in a directory, without `.` and `..`, within limits of memory and time.
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

/// Returns the approximate memory for a name: its length and a node of the tree.
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
