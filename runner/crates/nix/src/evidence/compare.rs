//! Compares two trees in the store: what differs, bounded in time, memory, bytes, files and number
//! of differences.
//!
//! Called by the diff hook as the build user, in the build's critical path: Nix waits, and kills
//! with SIGKILL. So the comparison ends at its deadline and says what it did not see. Symbolic
//! links are compared, never followed, and nothing but regular files is opened. What counts is what
//! a NAR holds: type, executable bit, contents, link target.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, openat, statat};

use super::excerpt::{self, Contents, Pieces};
use super::{Difference, Evidence};

/// When a comparison ends without having seen everything.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Wall time.
    pub time: Duration,
    /// Bytes read of each side.
    pub bytes: u64,
    /// Files, directories and links.
    pub files: u64,
    /// Differences kept.
    pub differences: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            // Of the hook's cap of two seconds; the rest is for handing over.
            time: Duration::from_millis(1250),
            // More than a disk gives in that time.
            bytes: 16 << 30,
            files: 1_000_000,
            // With [`MAX_VALUES`] and [`MAX_PATHS`] the event stays under 1 MiB.
            differences: 2000,
        }
    }
}

/// Places shown of one file whose contents differ, as long as values take less than
/// [`MANY_VALUES`]; then one.
const PLACES: usize = 3;
/// Bytes of values from which on less is shown of each file.
const MANY_VALUES: usize = 96 << 10;
/// Bytes of values from which on files are only named.
const MAX_VALUES: usize = 256 << 10;
/// Bytes of the paths of all differences.
const MAX_PATHS: usize = 256 << 10;
/// Lines are numbered in files whose first difference is not further in than this.
const MAX_NUMBERED: u64 = 4 << 20;
/// Bytes read at once: large enough for sequential disks, small enough to look at the clock often.
const CHUNK: usize = 128 << 10;
/// Longest value of a difference in bytes. Link targets may have 4096.
const MAX_VALUE: usize = 512;
/// Longest path of a difference in bytes (`PATH_MAX`).
const MAX_PATH: usize = 4096;

/// Bytes that the names of directories may take which are being compared: 300,000 of usual length.
/// More cannot be compared in the time of a hook.
const HELD: usize = 24 << 20;
/// Bytes that a name takes besides its own.
const NODE: usize = 64;
/// Names that are listed between two looks at the clock.
const LOOK_AT_THE_CLOCK: usize = 4096;
/// Directories below each other, whatever may be open.
const MOST_LEVELS: usize = 2000;

/// What differs between the trees `previous` and `current`, sorted by path. Never fails: what
/// cannot be read makes the evidence incomplete.
pub fn compare(previous: &Path, current: &Path, bounds: Bounds) -> Evidence {
    let deadline = Instant::now().checked_add(bounds.time);
    let mut comparison = Comparison {
        bounds,
        deadline,
        levels: Vec::new(),
        most_levels: most_levels(),
        roots: Sides { previous, current },
        held: 0,
        found: Evidence::default(),
        values: 0,
        paths: 0,
    };
    // The end of the walk is in `incomplete`.
    let _ended = comparison.walk();
    let mut evidence = comparison.found;
    evidence
        .differences
        .sort_by(|a, b| (&a.path, &a.kind, a.offset).cmp(&(&b.path, &b.kind, b.offset)));
    evidence
}

/// A bound was reached; which one is in the evidence.
struct Ended;

/// Something of each of the two trees.
#[derive(Debug, Clone, Copy)]
struct Sides<T> {
    previous: T,
    current: T,
}

impl<T> Sides<T> {
    /// The same of both; or the error of the first for which it fails.
    fn map<U, E>(self, mut act: impl FnMut(T) -> Result<U, E>) -> Result<Sides<U>, (Side, E)> {
        let previous = act(self.previous).map_err(|error| (Side::Previous, error))?;
        let current = act(self.current).map_err(|error| (Side::Current, error))?;
        Ok(Sides { previous, current })
    }
}

/// One of the trees.
#[derive(Debug, Clone, Copy)]
enum Side {
    Previous,
    Current,
}

/// Where something is: relative to the directory that is compared, or a whole tree.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    directory: BorrowedFd<'a>,
    name: &'a Path,
}

struct Comparison<'a> {
    bounds: Bounds,
    deadline: Option<Instant>,
    /// The directories that are being compared, each below the one before.
    levels: Vec<Level>,
    most_levels: usize,
    roots: Sides<&'a Path>,
    /// What the names in `levels` take; see [`HELD`].
    held: usize,
    found: Evidence,
    /// Bytes of values so far.
    values: usize,
    /// Bytes of paths so far.
    paths: usize,
}

/// One thing in a tree, as far as a NAR tells.
struct Entry {
    kind: FileType,
    executable: bool,
    size: u64,
}

/// A directory that both trees have. It is held by descriptor and has only the names in it, so that
/// what is held does not grow with the length of paths.
struct Level {
    directories: Rc<Sides<OwnedFd>>,
    /// Its own name; empty for the trees themselves.
    name: Box<OsStr>,
    /// What both have and is still to compare, last first.
    names: Vec<Box<OsStr>>,
}

/// What is in a directory.
struct Listing {
    names: BTreeMap<Box<OsStr>, FileType>,
    /// Whether this list is complete.
    is_whole: bool,
}

impl Comparison<'_> {
    /// Compares the names of each directory in their order, so that the result is the same each
    /// time.
    fn walk(&mut self) -> Result<(), Ended> {
        let roots = Sides {
            previous: Place { directory: CWD, name: self.roots.previous },
            current: Place { directory: CWD, name: self.roots.current },
        };
        self.look(OsStr::new(""), roots)?;
        while let Some(level) = self.levels.last_mut() {
            let Some(name) = level.names.pop() else {
                self.levels.pop();
                continue;
            };
            let directories = Rc::clone(&level.directories);
            self.held = self.held.saturating_sub(cost(&name));
            let places = Sides {
                previous: Place { directory: directories.previous.as_fd(), name: Path::new(&name) },
                current: Place { directory: directories.current.as_fd(), name: Path::new(&name) },
            };
            self.look(&name, places)?;
        }
        Ok(())
    }

    /// Compares one thing; a directory becomes the next level.
    fn look(&mut self, name: &OsStr, places: Sides<Place<'_>>) -> Result<(), Ended> {
        self.check_bounds()?;
        self.found.compared_files += 1;
        let entries = match places.map(stat) {
            Ok(entries) => entries,
            Err(error) => {
                self.unreadable(name, &error);
                return Ok(());
            }
        };
        let kind = entries.previous.kind;
        if kind != entries.current.kind {
            let names =
                Sides { previous: type_name(kind), current: type_name(entries.current.kind) };
            let Sides { previous, current } = names;
            return self.differ(name, "type", previous.into(), current.into(), None);
        }
        match kind {
            FileType::Directory => self.enter(name, places),
            FileType::Symlink => match places.map(target) {
                // As bytes: paths that differ in slashes only are equal as `Path`, and not to a
                // NAR.
                Ok(Sides { previous, current }) if previous != current => {
                    self.differ(name, "link-target", text(&previous), text(&current), None)
                }
                Ok(_) => Ok(()),
                Err(error) => {
                    self.unreadable(name, &error);
                    Ok(())
                }
            },
            FileType::RegularFile => self.files(name, places, &entries),
            // Nix's store holds nothing else.
            _ => Ok(()),
        }
    }

    fn enter(&mut self, name: &OsStr, places: Sides<Place<'_>>) -> Result<(), Ended> {
        if self.levels.len() >= self.most_levels {
            let most = self.most_levels;
            self.incomplete(|| format!("the comparison reached its {most} directories in depth"));
            return Ok(());
        }
        let directories = match places.map(open_directory) {
            Ok(directories) => directories,
            Err(error) => {
                self.unreadable(name, &error);
                return Ok(());
            }
        };
        // Half for each side.
        let room = HELD.saturating_sub(self.held) / 2;
        let deadline = self.deadline;
        let listed = Sides { previous: &directories.previous, current: &directories.current }
            .map(|directory| list(directory, room, deadline));
        let listings = match listed {
            Ok(listings) => listings,
            Err(error) => {
                self.unreadable(name, &error);
                return Ok(());
            }
        };
        self.levels.push(Level {
            directories: Rc::new(directories),
            name: name.into(),
            names: Vec::new(),
        });
        if !(listings.previous.is_whole && listings.current.is_whole) {
            self.check_bounds()?;
            let size = HELD >> 20;
            self.incomplete(|| format!("the comparison reached its {size} MiB of names"));
        }
        let names = self.merge(listings)?;
        self.held += names.iter().map(|name| cost(name)).sum::<usize>();
        if let Some(level) = self.levels.last_mut() {
            level.names = names;
        }
        Ok(())
    }

    /// Reports what only one side has; returns what both have, the last first.
    fn merge(&mut self, listings: Sides<Listing>) -> Result<Vec<Box<OsStr>>, Ended> {
        let Sides { previous, current } = listings;
        let mut both = Vec::new();
        let mut others = current.names;
        for (name, kind) in previous.names {
            let is_there = others.remove(&name).is_some()
                || (!current.is_whole && self.is_there(&name, |sides| &sides.current));
            if is_there {
                both.push(name);
            } else {
                let kind = type_name(kind).into();
                self.differ(&name, "only-in-previous", kind, String::new(), None)?;
            }
        }
        for (name, kind) in others {
            if !previous.is_whole && self.is_there(&name, |sides| &sides.previous) {
                both.push(name);
            } else {
                let kind = type_name(kind).into();
                self.differ(&name, "only-in-current", String::new(), kind, None)?;
            }
        }
        both.sort_unstable_by(|a, b| b.cmp(a));
        Ok(both)
    }

    /// Returns whether one side of the compared directory has this name.
    fn is_there(&self, name: &OsStr, side: impl Fn(&Sides<OwnedFd>) -> &OwnedFd) -> bool {
        self.levels.last().is_some_and(|level| {
            let place =
                Place { directory: side(&level.directories).as_fd(), name: Path::new(name) };
            stat(place).is_ok()
        })
    }

    fn files(
        &mut self,
        name: &OsStr,
        places: Sides<Place<'_>>,
        entries: &Sides<Entry>,
    ) -> Result<(), Ended> {
        let Sides { previous, current } = entries;
        if previous.executable != current.executable {
            // As Nix's store has them: 0444, or 0555 with the executable bit.
            let mode = |entry: &Entry| {
                if entry.executable { "0555".to_owned() } else { "0444".to_owned() }
            };
            self.differ(name, "mode", mode(previous), mode(current), None)?;
        }
        if previous.size != current.size {
            let (previous, current) = (previous.size.to_string(), current.size.to_string());
            self.differ(name, "size", previous, current, None)?;
        }
        let Sides { previous, current } = match places.map(open_file) {
            Ok(files) => files,
            Err(error) => {
                self.unreadable(name, &error);
                return Ok(());
            }
        };
        match self.first_difference(&previous, &current)? {
            Ok(Some(at)) => self.contents(name, &previous, &current, at),
            Ok(None) => Ok(()),
            Err(error) => {
                self.unreadable(name, &(Side::Previous, error));
                Ok(())
            }
        }
    }

    /// The offset of the first byte that differs.
    fn first_difference(
        &mut self,
        mut left: impl Read,
        mut right: impl Read,
    ) -> Result<std::io::Result<Option<u64>>, Ended> {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let mut offset = 0_u64;
        loop {
            a.clear();
            b.clear();
            let read = left
                .by_ref()
                .take(CHUNK as u64)
                .read_to_end(&mut a)
                .and_then(|_| right.by_ref().take(CHUNK as u64).read_to_end(&mut b));
            if let Err(error) = read {
                return Ok(Err(error));
            }
            self.found.compared_bytes =
                self.found.compared_bytes.saturating_add(a.len().max(b.len()) as u64);
            if a != b {
                let at = a.iter().zip(&b).take_while(|(left, right)| left == right).count();
                return Ok(Ok(Some(offset + at as u64)));
            }
            if a.len() < CHUNK {
                return Ok(Ok(None));
            }
            offset += a.len() as u64;
            self.check_bounds()?;
        }
    }

    /// Reports contents that differ first at the byte `at`. What cannot be read again is named
    /// without its contents.
    fn contents(&mut self, name: &OsStr, left: &File, right: &File, at: u64) -> Result<(), Ended> {
        let places = match self.values {
            values if values < MANY_VALUES => PLACES,
            values if values < MAX_VALUES => 1,
            _ => 0,
        };
        let found = if places == 0 { None } else { look(left, right, at, places).ok() };
        let Some(found) = found.filter(|found| !found.contents.excerpts.is_empty()) else {
            return self.differ(name, "content", String::new(), String::new(), Some(at));
        };
        let Found { contents, first_line } = found;
        let mut totals = totals(&contents);
        for excerpt in contents.excerpts {
            let line = first_line.zip(excerpt.lines_before).map(|(first, before)| first + before);
            let mut details: Vec<(String, String)> = [("line", line), ("from", excerpt.from)]
                .into_iter()
                .filter_map(|(key, value)| Some((key.to_owned(), value?.to_string())))
                .collect();
            details.append(&mut totals);
            let offset = Some(excerpt.offset);
            self.differ(name, "content", excerpt.previous, excerpt.current, offset)?;
            if let Some(last) = self.found.differences.last_mut() {
                last.details = details;
            }
        }
        Ok(())
    }

    fn differ(
        &mut self,
        name: &OsStr,
        kind: &str,
        previous: String,
        current: String,
        offset: Option<u64>,
    ) -> Result<(), Ended> {
        if self.found.differences.len() >= self.bounds.differences {
            return Err(self.end(&format!("more than {} differences", self.bounds.differences)));
        }
        let path = self.relative(name);
        self.values += previous.len() + current.len();
        self.paths += path.len();
        if self.paths > MAX_PATHS {
            return Err(self.end(&format!("more than {} KiB of file names", MAX_PATHS >> 10)));
        }
        self.found.differences.push(Difference {
            path,
            kind: kind.into(),
            previous,
            current,
            offset,
            details: Vec::new(),
        });
        Ok(())
    }

    /// The path of something in the directory that is compared, relative to the trees.
    fn relative(&self, name: &OsStr) -> String {
        let mut path = Vec::new();
        for part in self.levels.iter().map(|level| &*level.name).chain([name]) {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(part.as_bytes());
            // No more of it is shown.
            if path.len() > MAX_PATH {
                break;
            }
        }
        truncated(&String::from_utf8_lossy(&path), MAX_PATH)
    }

    /// Goes on: other files may tell more.
    fn unreadable(&mut self, name: &OsStr, (side, error): &(Side, std::io::Error)) {
        let root = match side {
            Side::Previous => self.roots.previous,
            Side::Current => self.roots.current,
        };
        let (root, relative) = (root.display().to_string(), self.relative(name));
        self.incomplete(|| {
            let path = if relative.is_empty() { root } else { format!("{root}/{relative}") };
            format!("{path} cannot be read ({error})")
        });
    }

    /// Notes why something was not seen, of several the first.
    fn incomplete(&mut self, why: impl FnOnce() -> String) {
        if self.found.incomplete.is_none() {
            self.found.incomplete = Some(why());
        }
    }

    fn check_bounds(&mut self) -> Result<(), Ended> {
        if self.deadline.is_none_or(|deadline| Instant::now() >= deadline) {
            return Err(
                self.end(&format!("its time of {}", humantime::format_duration(self.bounds.time)))
            );
        }
        if self.found.compared_files >= self.bounds.files {
            return Err(self.end(&format!("its {} files", self.bounds.files)));
        }
        if self.found.compared_bytes >= self.bounds.bytes && self.found.compared_bytes > 0 {
            return Err(self.end(&format!("its {} bytes", self.bounds.bytes)));
        }
        Ok(())
    }

    fn end(&mut self, bound: &str) -> Ended {
        self.found.incomplete = Some(format!("the comparison reached {bound}"));
        Ended
    }
}

fn stat(place: Place<'_>) -> std::io::Result<Entry> {
    let stat: Stat = statat(place.directory, place.name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(Entry {
        kind: FileType::from_raw_mode(stat.st_mode),
        // The bit that Nix looks at (`S_IXUSR`, `archive.cc`).
        executable: Mode::from_raw_mode(stat.st_mode).contains(Mode::XUSR),
        size: u64::try_from(stat.st_size).unwrap_or(0),
    })
}

fn target(place: Place<'_>) -> std::io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(place.directory, place.name, Vec::new())?.into_bytes())
}

fn open_file(place: Place<'_>) -> std::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    Ok(File::from(openat(place.directory, place.name, flags, Mode::empty())?))
}

/// A symbolic link in place of the directory is not followed.
fn open_directory(place: Place<'_>) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::DIRECTORY;
    Ok(openat(place.directory, place.name, flags, Mode::empty())?)
}

/// The names in a directory, without `.` and `..`, as long as there is room and time for them.
fn list(directory: &OwnedFd, room: usize, deadline: Option<Instant>) -> std::io::Result<Listing> {
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
fn cost(name: &OsStr) -> usize {
    name.len() + NODE
}

/// Two descriptors for each level, and some to spare.
fn most_levels() -> usize {
    const SPARE: u64 = 64;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let levels = limit.unwrap_or(u64::MAX).saturating_sub(SPARE) / 2;
    usize::try_from(levels).unwrap_or(MOST_LEVELS).min(MOST_LEVELS)
}

const fn type_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "regular",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        _ => "other",
    }
}

/// What was seen on a closer look at a file.
struct Found {
    contents: Contents,
    /// The number of the line at which the look begins.
    first_line: Option<u64>,
}

/// Reads a bounded part of both files again, from a little before the byte `at`.
fn look(left: &File, right: &File, at: u64, places: usize) -> std::io::Result<Found> {
    let start = at.saturating_sub(excerpt::BEFORE as u64);
    let (a, b) = (read_at(left, start, excerpt::WINDOW)?, read_at(right, start, excerpt::WINDOW)?);
    let pieces = Pieces {
        previous: &a,
        current: &b,
        start,
        at: usize::try_from(at - start).unwrap_or(0),
        whole: a.len() < excerpt::WINDOW && b.len() < excerpt::WINDOW,
    };
    let contents = excerpt::look(pieces, places);
    let numbered = contents.lines.is_some() && start <= MAX_NUMBERED;
    let first_line = if numbered { Some(lines_before(left, start)? + 1) } else { None };
    Ok(Found { contents, first_line })
}

fn read_at(file: &File, start: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, start + filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// The number of lines that end before `end`.
fn lines_before(file: &File, end: u64) -> std::io::Result<u64> {
    let (mut lines, mut start) = (0, 0);
    while start < end {
        let length = usize::try_from(end - start).unwrap_or(CHUNK).min(CHUNK);
        let bytes = read_at(file, start, length)?;
        if bytes.is_empty() {
            break;
        }
        lines += excerpt::count_lines(&bytes);
        start += bytes.len() as u64;
    }
    Ok(lines)
}

/// How much of a file differs, by the names of `diff.wit`.
fn totals(contents: &Contents) -> Vec<(String, String)> {
    let Contents { excerpts: _, places, lines, bytes, at_least, reordered } = contents;
    let numbers = [
        ("differing-places", Some(*places)),
        ("differing-lines", *lines),
        ("differing-bytes", *bytes),
    ];
    let mut details: Vec<(String, String)> = numbers
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?.to_string())))
        .collect();
    if *at_least {
        details.push(("at-least".to_owned(), "true".to_owned()));
    }
    if *reordered {
        details.push(("order".to_owned(), "lines".to_owned()));
    }
    details
}

fn text(bytes: &[u8]) -> String {
    truncated(&String::from_utf8_lossy(bytes), MAX_VALUE)
}

fn truncated(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        text.to_owned()
    } else {
        format!("{}...", text.get(..text.floor_char_boundary(limit)).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
