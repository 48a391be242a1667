//! Compares two trees in the store: what differs, bounded in time, bytes, files and number of
//! differences.
//!
//! Called by the diff hook as the build user, in the build's critical path: Nix waits, and kills
//! with SIGKILL. So the comparison ends at its deadline and says what it did not see. Symbolic
//! links are compared, never followed, and nothing but regular files is opened. What counts is what
//! a NAR holds: type, executable bit, contents, link target.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};

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
            time: Duration::from_millis(1500),
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

/// What differs between the trees `previous` and `current`, sorted by path. Never fails: what
/// cannot be read makes the evidence incomplete.
pub fn compare(previous: &Path, current: &Path, bounds: Bounds) -> Evidence {
    let deadline = Instant::now().checked_add(bounds.time);
    let mut comparison =
        Comparison { bounds, deadline, found: Evidence::default(), values: 0, paths: 0 };
    // The end of the walk is in `incomplete`.
    let _ended = comparison.walk(previous, current);
    let mut evidence = comparison.found;
    evidence
        .differences
        .sort_by(|a, b| (&a.path, &a.kind, a.offset).cmp(&(&b.path, &b.kind, b.offset)));
    evidence
}

/// A bound was reached; which one is in the evidence.
struct Ended;

struct Comparison {
    bounds: Bounds,
    deadline: Option<Instant>,
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

impl Comparison {
    fn walk(&mut self, previous: &Path, current: &Path) -> Result<(), Ended> {
        // Relative paths still to compare, last first; sorted so that the order is the same each
        // time.
        let mut pending = vec![PathBuf::new()];
        while let Some(relative) = pending.pop() {
            self.check_bounds()?;
            self.found.compared_files += 1;
            let (left_path, right_path) = (below(previous, &relative), below(current, &relative));
            let (left, right) = match (stat(&left_path), stat(&right_path)) {
                (Ok(left), Ok(right)) => (left, right),
                (Err(error), _) => {
                    self.unreadable(&left_path, &error);
                    continue;
                }
                (_, Err(error)) => {
                    self.unreadable(&right_path, &error);
                    continue;
                }
            };
            if left.kind != right.kind {
                self.differ(
                    &relative,
                    "type",
                    type_name(left.kind).into(),
                    type_name(right.kind).into(),
                    None,
                )?;
                continue;
            }
            match left.kind {
                FileType::Directory => {
                    let lists =
                        list(&left_path).map_err(|error| (left_path, error)).and_then(|left| {
                            let right = list(&right_path).map_err(|error| (right_path, error))?;
                            Ok((left, right))
                        });
                    match lists {
                        Ok((left, right)) => {
                            pending.extend(self.merge(&relative, left, right)?.into_iter().rev());
                        }
                        Err((path, error)) => self.unreadable(&path, &error),
                    }
                }
                FileType::Symlink => {
                    match (std::fs::read_link(&left_path), std::fs::read_link(&right_path)) {
                        // As bytes: paths that differ in slashes only are equal as `Path`, and not
                        // to a NAR.
                        (Ok(left), Ok(right)) if left.as_os_str() != right.as_os_str() => {
                            self.differ(
                                &relative,
                                "link-target",
                                text(left.as_os_str().as_bytes()),
                                text(right.as_os_str().as_bytes()),
                                None,
                            )?;
                        }
                        (Ok(_), Ok(_)) => {}
                        (Err(error), _) => self.unreadable(&left_path, &error),
                        (_, Err(error)) => self.unreadable(&right_path, &error),
                    }
                }
                FileType::RegularFile => {
                    self.files(&relative, (&left_path, &left), (&right_path, &right))?;
                }
                // Nix's store holds nothing else.
                _ => {}
            }
        }
        Ok(())
    }

    /// Reports what only one side has; gives what both have.
    fn merge(
        &mut self,
        relative: &Path,
        left: BTreeMap<OsString, FileType>,
        mut right: BTreeMap<OsString, FileType>,
    ) -> Result<Vec<PathBuf>, Ended> {
        let mut both = Vec::new();
        for (name, kind) in left {
            let path = relative.join(&name);
            if right.remove(&name).is_some() {
                both.push(path);
            } else {
                self.differ(
                    &path,
                    "only-in-previous",
                    type_name(kind).into(),
                    String::new(),
                    None,
                )?;
            }
        }
        for (name, kind) in right {
            self.differ(
                &relative.join(&name),
                "only-in-current",
                String::new(),
                type_name(kind).into(),
                None,
            )?;
        }
        Ok(both)
    }

    fn files(
        &mut self,
        relative: &Path,
        left: (&Path, &Entry),
        right: (&Path, &Entry),
    ) -> Result<(), Ended> {
        if left.1.executable != right.1.executable {
            // As Nix's store has them: 0444, or 0555 with the executable bit.
            let mode = |entry: &Entry| {
                if entry.executable { "0555".to_owned() } else { "0444".to_owned() }
            };
            self.differ(relative, "mode", mode(left.1), mode(right.1), None)?;
        }
        if left.1.size != right.1.size {
            self.differ(relative, "size", left.1.size.to_string(), right.1.size.to_string(), None)?;
        }
        let open = |path: &Path| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
            rustix::fs::open(path, flags, Mode::empty())
                .map(File::from)
                .map_err(std::io::Error::from)
        };
        let (left_file, right_file) = match (open(left.0), open(right.0)) {
            (Ok(left), Ok(right)) => (left, right),
            (Err(error), _) => {
                self.unreadable(left.0, &error);
                return Ok(());
            }
            (_, Err(error)) => {
                self.unreadable(right.0, &error);
                return Ok(());
            }
        };
        match self.first_difference(&left_file, &right_file)? {
            Ok(Some(at)) => self.contents(relative, &left_file, &right_file, at),
            Ok(None) => Ok(()),
            Err(error) => {
                self.unreadable(left.0, &error);
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
    fn contents(
        &mut self,
        relative: &Path,
        left: &File,
        right: &File,
        at: u64,
    ) -> Result<(), Ended> {
        let places = match self.values {
            values if values < MANY_VALUES => PLACES,
            values if values < MAX_VALUES => 1,
            _ => 0,
        };
        let found = if places == 0 { None } else { look(left, right, at, places).ok() };
        let Some(found) = found.filter(|found| !found.contents.excerpts.is_empty()) else {
            return self.differ(relative, "content", String::new(), String::new(), Some(at));
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
            self.differ(relative, "content", excerpt.previous, excerpt.current, offset)?;
            if let Some(last) = self.found.differences.last_mut() {
                last.details = details;
            }
        }
        Ok(())
    }

    fn differ(
        &mut self,
        path: &Path,
        kind: &str,
        previous: String,
        current: String,
        offset: Option<u64>,
    ) -> Result<(), Ended> {
        if self.found.differences.len() >= self.bounds.differences {
            return Err(self.end(&format!("more than {} differences", self.bounds.differences)));
        }
        let path = truncated(&path.to_string_lossy(), MAX_PATH);
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

    fn unreadable(&mut self, path: &Path, error: &std::io::Error) {
        // Goes on: other files may tell more. The first such file is named.
        if self.found.incomplete.is_none() {
            self.found.incomplete = Some(format!("{} cannot be read ({error})", path.display()));
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

/// `root`, or what is below it. Joining nothing would add a slash, which follows a symbolic link.
fn below(root: &Path, relative: &Path) -> PathBuf {
    if relative.as_os_str().is_empty() { root.to_owned() } else { root.join(relative) }
}

fn stat(path: &Path) -> std::io::Result<Entry> {
    let stat: Stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(Entry {
        kind: FileType::from_raw_mode(stat.st_mode),
        // The bit that Nix looks at (`S_IXUSR`, `archive.cc`).
        executable: Mode::from_raw_mode(stat.st_mode).contains(Mode::XUSR),
        size: u64::try_from(stat.st_size).unwrap_or(0),
    })
}

/// The names in a directory, without `.` and `..`. A symbolic link in place of the directory is not
/// followed.
fn list(path: &Path) -> std::io::Result<BTreeMap<OsString, FileType>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::DIRECTORY;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    let mut names = BTreeMap::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.insert(OsString::from_vec(name.to_vec()), entry.file_type());
        }
    }
    Ok(names)
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
