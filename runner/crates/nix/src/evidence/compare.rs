//! Compares two trees in the store, with limits on time, memory, bytes, files and the number of
//! differences.
//!
//! Called by the diff hook as the build user while Nix is blocked, so the comparison ends at its
//! deadline and names the limit that was reached. Symbolic links are compared, never followed, and
//! only regular files are opened. It compares what a NAR contains: type, executable bit, contents,
//! link target.

mod contents;
mod entry;

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType};

use self::entry::{
    Listing, Location, Side, Sides, cost, list, open_directory, stat, target, type_name,
};
use super::{Difference, Evidence};

/// The limits of a comparison.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Wall time.
    pub time: Duration,
    /// The number of bytes read of each side.
    pub bytes: u64,
    /// The number of files, directories and links.
    pub files: u64,
    /// The number of differences that are kept.
    pub differences: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            // A part of the hook's limit of two seconds; the rest is for handing over the event.
            time: Duration::from_millis(1250),
            // More than a disk can read in that time.
            bytes: 16 << 30,
            files: 1_000_000,
            // With [`MAX_VALUES`] and [`MAX_PATHS`] the event stays under 1 MiB.
            differences: 2000,
        }
    }
}

/// Bytes of the paths of all differences.
const MAX_PATHS: usize = 256 << 10;
/// Longest value of a difference in bytes. Link targets may have 4096.
const MAX_VALUE: usize = 512;
/// The longest path of a difference in bytes (`PATH_MAX`).
const MAX_PATH: usize = 4096;

/// The maximum size of the names in the directories that are being compared, in bytes: 300,000
/// names of usual length. More cannot be compared in the time of a hook.
const HELD: usize = 24 << 20;
/// The maximum depth of directories, whatever the limit of open files is.
const MOST_LEVELS: usize = 2000;

/// Compares the trees `previous` and `current`, and returns the differences sorted by path. Never
/// fails: a file that cannot be read makes the evidence incomplete.
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
    // `incomplete` contains the reason if the walk ended early.
    let _ended = comparison.walk();
    let mut evidence = comparison.found;
    evidence
        .differences
        .sort_by(|a, b| (&a.path, &a.kind, a.offset).cmp(&(&b.path, &b.kind, b.offset)));
    evidence
}

/// A limit was reached. The evidence names it.
struct BoundReached;

struct Comparison<'a> {
    bounds: Bounds,
    deadline: Option<Instant>,
    /// The directories that are being compared, each one below the previous one.
    levels: Vec<Level>,
    most_levels: usize,
    roots: Sides<&'a Path>,
    /// The size of the names in `levels`; see [`HELD`].
    held: usize,
    found: Evidence,
    /// The size of the values so far, in bytes.
    values: usize,
    /// The size of the paths so far, in bytes.
    paths: usize,
}

/// A directory that both trees have. It contains an open descriptor and names without paths, so
/// that the memory needed does not grow with the length of the paths.
struct Level {
    directories: Rc<Sides<OwnedFd>>,
    /// The directory's name; empty for the trees themselves.
    name: Box<OsStr>,
    /// The common names that are still to be compared, in reverse order.
    names: Vec<Box<OsStr>>,
}

impl Comparison<'_> {
    /// Compares the names of each directory in order, so that the result is always the same.
    fn walk(&mut self) -> Result<(), BoundReached> {
        let roots = Sides {
            previous: Location { directory: CWD, name: self.roots.previous },
            current: Location { directory: CWD, name: self.roots.current },
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
                previous: Location {
                    directory: directories.previous.as_fd(),
                    name: Path::new(&name),
                },
                current: Location {
                    directory: directories.current.as_fd(),
                    name: Path::new(&name),
                },
            };
            self.look(&name, places)?;
        }
        Ok(())
    }

    /// Compares one entry. A directory becomes the next level.
    fn look(&mut self, name: &OsStr, places: Sides<Location<'_>>) -> Result<(), BoundReached> {
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
                // Compared as bytes: paths that differ only in slashes are equal as `Path`, but
                // differ in a NAR.
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
            // Nix's store contains no other types.
            _ => Ok(()),
        }
    }

    fn enter(&mut self, name: &OsStr, places: Sides<Location<'_>>) -> Result<(), BoundReached> {
        if self.levels.len() >= self.most_levels {
            let most = self.most_levels;
            self.incomplete(|| {
                format!("the comparison reached its limit of {most} nested directories")
            });
            return Ok(());
        }
        let directories = match places.map(open_directory) {
            Ok(directories) => directories,
            Err(error) => {
                self.unreadable(name, &error);
                return Ok(());
            }
        };
        // One half for each side.
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
            self.incomplete(|| format!("the comparison reached its limit of {size} MiB of names"));
        }
        let names = self.merge(listings)?;
        self.held += names.iter().map(|name| cost(name)).sum::<usize>();
        if let Some(level) = self.levels.last_mut() {
            level.names = names;
        }
        Ok(())
    }

    /// Reports entries that only one side has. Returns the common names in reverse order.
    fn merge(&mut self, listings: Sides<Listing>) -> Result<Vec<Box<OsStr>>, BoundReached> {
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
                Location { directory: side(&level.directories).as_fd(), name: Path::new(name) };
            stat(place).is_ok()
        })
    }

    fn differ(
        &mut self,
        name: &OsStr,
        kind: &str,
        previous: String,
        current: String,
        offset: Option<u64>,
    ) -> Result<(), BoundReached> {
        if self.found.differences.len() >= self.bounds.differences {
            return Err(self.end(&format!("limit of {} differences", self.bounds.differences)));
        }
        let path = self.relative(name);
        self.values += previous.len() + current.len();
        self.paths += path.len();
        if self.paths > MAX_PATHS {
            return Err(self.end(&format!("limit of {} KiB of file names", MAX_PATHS >> 10)));
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

    /// Returns the path of an entry in the compared directory, relative to the trees.
    fn relative(&self, name: &OsStr) -> String {
        let mut path = Vec::new();
        for part in self.levels.iter().map(|level| &*level.name).chain([name]) {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(part.as_bytes());
            // Only the beginning is shown.
            if path.len() > MAX_PATH {
                break;
            }
        }
        truncated(&String::from_utf8_lossy(&path), MAX_PATH)
    }

    /// Notes that a file cannot be read, and continues with other files.
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

    /// Notes the first reason why the comparison is incomplete.
    fn incomplete(&mut self, why: impl FnOnce() -> String) {
        if self.found.incomplete.is_none() {
            self.found.incomplete = Some(why());
        }
    }

    fn check_bounds(&mut self) -> Result<(), BoundReached> {
        if self.deadline.is_none_or(|deadline| Instant::now() >= deadline) {
            return Err(self
                .end(&format!("time limit of {}", humantime::format_duration(self.bounds.time))));
        }
        if self.found.compared_files >= self.bounds.files {
            return Err(self.end(&format!("limit of {} files", self.bounds.files)));
        }
        if self.found.compared_bytes >= self.bounds.bytes && self.found.compared_bytes > 0 {
            return Err(self.end(&format!("limit of {} bytes", self.bounds.bytes)));
        }
        Ok(())
    }

    fn end(&mut self, bound: &str) -> BoundReached {
        self.found.incomplete = Some(format!("the comparison reached its {bound}"));
        BoundReached
    }
}

/// Returns the maximum depth: two descriptors for each level, with some left over.
fn most_levels() -> usize {
    const SPARE: u64 = 64;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let levels = limit.unwrap_or(u64::MAX).saturating_sub(SPARE) / 2;
    usize::try_from(levels).unwrap_or(MOST_LEVELS).min(MOST_LEVELS)
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
