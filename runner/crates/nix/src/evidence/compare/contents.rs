//! Compares the contents of two files: finds the first difference and what to show of it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt as _;

use super::super::excerpt::{self, Contents, Pieces};
use super::entry::{Location, Side, Sides, TreeEntry, open_file};
use super::{BoundReached, Comparison};

/// Maximum number of places that are shown of a file whose contents differ, while all values take
/// less than [`MANY_VALUES`]. After that it is one.
const PLACES: usize = 3;
/// The size of all values in bytes from which on less is shown of each file.
const MANY_VALUES: usize = 96 << 10;
/// The size of all values in bytes from which on files are only named.
const MAX_VALUES: usize = 256 << 10;
/// Maximum offset of a first difference in bytes whose line is still numbered.
const MAX_NUMBERED: u64 = 4 << 20;
/// Number of bytes per read: large enough for sequential disks, and small enough to check the time
/// often.
const CHUNK: usize = 128 << 10;

impl Comparison<'_> {
    pub(super) fn files(
        &mut self,
        name: &OsStr,
        places: Sides<Location<'_>>,
        entries: &Sides<TreeEntry>,
    ) -> Result<(), BoundReached> {
        let Sides { previous, current } = entries;
        if previous.executable != current.executable {
            // The modes in Nix's store: 0444, or 0555 with the executable bit.
            let mode = |entry: &TreeEntry| {
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

    /// Returns the offset of the first byte that differs.
    fn first_difference(
        &mut self,
        mut left: impl Read,
        mut right: impl Read,
    ) -> Result<std::io::Result<Option<u64>>, BoundReached> {
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

    /// Reports contents that differ first at the byte `at`. If they cannot be read again, the file
    /// is named without its contents.
    fn contents(
        &mut self,
        name: &OsStr,
        left: &File,
        right: &File,
        at: u64,
    ) -> Result<(), BoundReached> {
        let places = match self.values {
            values if values < MANY_VALUES => PLACES,
            values if values < MAX_VALUES => 1,
            _ => 0,
        };
        let found = if places == 0 { None } else { look(left, right, at, places).ok() };
        let Some(found) = found.filter(|found| !found.contents.excerpts.is_empty()) else {
            return self.differ(name, "content", String::new(), String::new(), Some(at));
        };
        let FileDifference { contents, first_line } = found;
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
}

/// The result of examining the contents of a file.
struct FileDifference {
    contents: Contents,
    /// The number of the first examined line.
    first_line: Option<u64>,
}

/// Reads a bounded part of both files again, from shortly before the byte `at`.
fn look(left: &File, right: &File, at: u64, places: usize) -> std::io::Result<FileDifference> {
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
    Ok(FileDifference { contents, first_line })
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

/// Returns the number of lines that end before `end`.
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

/// Returns how much of a file differs, under the names that `diff.wit` defines.
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
