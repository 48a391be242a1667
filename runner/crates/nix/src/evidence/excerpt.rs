//! Selects what is shown of two pieces of a file that differ: whole lines of text or rows of bytes
//! at the first few places, and how much differs in total. Pure.

use std::fmt::Write as _;

/// The number of bytes of each side that are examined, from shortly before the first difference.
pub const WINDOW: usize = 512 << 10;
/// The maximum distance from the beginning of the line to the first difference.
pub const BEFORE: usize = 4096;

/// The number of lines of each side that are compared.
const MAX_LINES: usize = 20_000;
/// The number of lines that may have been inserted or removed in one place.
const LOOK_AHEAD: usize = 16;
/// The number of lines of one side that are shown for one place.
const SHOWN_LINES: usize = 3;
/// The number of bytes of a line that are shown before and after its first difference.
const LINE_BEFORE: usize = 100;
const LINE_AFTER: usize = 140;
/// The maximum distance by which a cut is moved to the end of a word.
const WORD: usize = 24;
/// The number of bytes in a row.
const ROW: usize = 8;
/// The number of equal bytes between two places that are still shown as one.
const GAP: usize = 16;

/// The contents of both sides of a file from `start` on. They are equal before `at`.
#[derive(Debug, Clone, Copy)]
pub struct Pieces<'a> {
    /// The bytes of the previous result.
    pub previous: &'a [u8],
    /// The bytes of the current result.
    pub current: &'a [u8],
    /// The offset in the file at which both pieces begin.
    pub start: u64,
    /// The position of the first difference in the pieces.
    pub at: usize,
    /// Whether both pieces reach the end of their files.
    pub whole: bool,
}

/// A place that differs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Excerpt {
    /// The offset of the first byte that differs, in the previous result.
    pub offset: u64,
    /// The offset of the first byte that is shown, for bytes.
    pub from: Option<u64>,
    /// The number of lines before the one that differs, from the beginning of the pieces, for text.
    pub lines_before: Option<u64>,
    /// The value in the previous result: text in quotation marks, or bytes in hexadecimal.
    pub previous: String,
    /// The value in the current result, in the same form.
    pub current: String,
}

/// The differences between two pieces of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// The first places.
    pub excerpts: Vec<Excerpt>,
    /// The number of places that differ.
    pub places: u64,
    /// The number of lines that differ, for text.
    pub lines: Option<u64>,
    /// The number of bytes that differ, for bytes of the same length.
    pub bytes: Option<u64>,
    /// Whether there may be more than was counted.
    pub at_least: bool,
    /// Whether both have the same lines in a different order.
    pub reordered: bool,
}

/// Compares `pieces`, and shows at most `most` places.
pub fn look(pieces: Pieces<'_>, most: usize) -> Contents {
    if is_text(pieces.previous) && is_text(pieces.current) {
        text(pieces, most)
    } else {
        bytes(pieces, most)
    }
}

/// Returns whether the bytes are UTF-8 text without control characters other than white space. The
/// ends may cut a character.
fn is_text(bytes: &[u8]) -> bool {
    let seen = bytes.get(..bytes.len().min(8 << 10)).unwrap_or_default();
    // A piece may begin in the middle of a character.
    let begin = seen.iter().take(3).take_while(|byte| (0x80..0xc0).contains(*byte)).count();
    let seen = seen.get(begin..).unwrap_or_default();
    let valid = match std::str::from_utf8(seen) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    let control = |byte: &u8| {
        (*byte < 0x20 && !matches!(byte, b'\n' | b'\t' | b'\r' | 0x0c | 0x1b)) || *byte == 0x7f
    };
    valid && !seen.iter().any(control)
}

/// A place that differs: lines of the previous and of the current side.
struct Hunk {
    previous: std::ops::Range<usize>,
    current: std::ops::Range<usize>,
}

fn text(pieces: Pieces<'_>, most: usize) -> Contents {
    let Pieces { previous, current, start, at, whole } = pieces;
    let newline = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
    let begin = newline(previous.get(..at).unwrap_or_default()).unwrap_or(0);
    let lines_before = count_lines(previous.get(..begin).unwrap_or_default());
    let (left, right) = (lines(previous, begin), lines(current, begin));
    let complete = whole && left.len() < MAX_LINES && right.len() < MAX_LINES;
    let reordered = complete && left.len() == right.len() && {
        let (mut a, mut b) = (left.clone(), right.clone());
        a.sort_unstable();
        b.sort_unstable();
        a == b
    };
    let hunks = hunks(&left, &right);
    let differing =
        hunks.iter().map(|hunk| hunk.previous.len().max(hunk.current.len()) as u64).sum();
    let mut excerpts = Vec::new();
    let mut offset = begin;
    let mut seen = 0;
    // If the same lines are in a different order, one place says as much as several.
    let most = if reordered { most.min(1) } else { most };
    for hunk in hunks.iter().take(most) {
        offset +=
            left.iter().take(hunk.previous.start).skip(seen).map(|line| line.len()).sum::<usize>();
        seen = hunk.previous.start;
        let side = |lines: &[&[u8]], range: &std::ops::Range<usize>| -> Vec<u8> {
            let end = range.end.min(range.start + SHOWN_LINES);
            lines.get(range.start..end).unwrap_or_default().concat()
        };
        let (a, b) = (side(&left, &hunk.previous), side(&right, &hunk.current));
        let differs = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
        excerpts.push(Excerpt {
            offset: start + (offset + differs) as u64,
            from: None,
            lines_before: Some(lines_before + hunk.previous.start as u64),
            previous: quoted(&a, differs),
            current: quoted(&b, differs),
        });
    }
    Contents {
        excerpts,
        places: hunks.len() as u64,
        lines: Some(differing),
        bytes: None,
        at_least: !complete,
        reordered,
    }
}

/// Returns the lines from `begin` on, with their line ends.
fn lines(bytes: &[u8], begin: usize) -> Vec<&[u8]> {
    let rest = bytes.get(begin..).unwrap_or_default();
    rest.split_inclusive(|byte| *byte == b'\n').take(MAX_LINES).collect()
}

/// Returns the number of line ends.
pub fn count_lines(bytes: &[u8]) -> u64 {
    bytes.split(|byte| *byte == b'\n').skip(1).count() as u64
}

/// Returns the places where two lists of lines differ. After up to [`LOOK_AHEAD`] lines that only
/// one side has, it finds the common lines again; other lines count as changed.
fn hunks(left: &[&[u8]], right: &[&[u8]]) -> Vec<Hunk> {
    let mut hunks: Vec<Hunk> = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < left.len() || j < right.len() {
        if left.get(i) == right.get(j) {
            i += 1;
            j += 1;
            continue;
        }
        let (skip_left, skip_right) =
            resume(left.get(i..).unwrap_or_default(), right.get(j..).unwrap_or_default());
        match hunks.last_mut() {
            Some(last) if last.previous.end == i && last.current.end == j => {
                last.previous.end = i + skip_left;
                last.current.end = j + skip_right;
            }
            _ => hunks.push(Hunk { previous: i..i + skip_left, current: j..j + skip_right }),
        }
        i += skip_left;
        j += skip_right;
    }
    hunks
}

/// Returns how many lines to skip on each side until both are equal again.
fn resume(left: &[&[u8]], right: &[&[u8]]) -> (usize, usize) {
    for distance in 1..=LOOK_AHEAD {
        // A changed line is more probable than a moved one.
        if distance.is_multiple_of(2) {
            let half = distance / 2;
            let both = left.get(half).zip(right.get(half));
            let ends = left.len() == half && right.len() == half;
            if ends || both.is_some_and(|(a, b)| a == b) {
                return (half, half);
            }
        }
        for skip_left in 0..=distance {
            if same(left, skip_left, right, distance - skip_left) {
                return (skip_left, distance - skip_left);
            }
        }
    }
    (left.len().min(1), right.len().min(1))
}

/// Returns whether both sides continue with the same two lines. A single equal line may be blank or
/// a bracket.
fn same(left: &[&[u8]], i: usize, right: &[&[u8]], j: usize) -> bool {
    match (left.get(i), right.get(j)) {
        (Some(a), Some(b)) => a == b && left.get(i + 1) == right.get(j + 1),
        (None, None) => i <= left.len() && j <= right.len(),
        _ => false,
    }
}

/// Returns text in quotation marks around the byte `at`, with three dots outside of them where a
/// line is cut.
fn quoted(bytes: &[u8], at: usize) -> String {
    if bytes.is_empty() {
        return String::new();
    }
    let text = String::from_utf8_lossy(bytes);
    let at = text.floor_char_boundary(at.min(text.len()));
    let mut from = text.ceil_char_boundary(at.saturating_sub(LINE_BEFORE));
    if from <= WORD {
        from = 0;
    }
    let mut to = text.floor_char_boundary(at.saturating_add(LINE_AFTER).min(text.len()));
    if text.len() - to <= WORD {
        to = text.len();
    }
    // The cut is not in the middle of a word.
    if from > 0 {
        let near = text.get(from..).and_then(|rest| rest.find(char::is_whitespace));
        from = near
            .filter(|near| *near <= WORD && from + near < at)
            .map_or(from, |near| from + near + 1);
        from = text.ceil_char_boundary(from);
    }
    if to < text.len() {
        let near = text.get(at..to).and_then(|shown| shown.rfind(char::is_whitespace));
        to = near.map(|near| at + near).filter(|near| to - near <= WORD).unwrap_or(to);
    }
    let shown = text
        .get(from..to)
        .unwrap_or_default()
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
        .replace('\t', "\\t")
        .replace('\r', "\\r");
    let (before, after) =
        (if from > 0 { "..." } else { "" }, if to < text.len() { "..." } else { "" });
    format!("{before}\"{shown}\"{after}")
}

fn bytes(pieces: Pieces<'_>, most: usize) -> Contents {
    let Pieces { previous, current, start, at, whole } = pieces;
    // After an insertion, every byte has another position.
    let aligned = previous.len() == current.len();
    let mut places: Vec<std::ops::Range<usize>> = Vec::new();
    let mut differing = 0_u64;
    if aligned {
        for (index, (a, b)) in previous.iter().zip(current).enumerate() {
            if a != b {
                differing += 1;
                match places.last_mut() {
                    Some(last) if index - last.end < GAP => last.end = index + 1,
                    _ => places.push(index..index + 1),
                }
            }
        }
    } else {
        places.push(at..at + 1);
    }
    let rows = if most > 1 { 6 } else { 3 };
    let excerpts = places.iter().take(most).map(|place| {
        // One row before the difference shows the context. Rows begin at multiples of their size.
        let misaligned = usize::try_from(start % ROW as u64).unwrap_or(0);
        let row = (place.start + misaligned) / ROW * ROW;
        let from = (row.saturating_sub(2 * ROW)).saturating_sub(misaligned);
        let wanted = (place.end + ROW).saturating_sub(from).div_ceil(ROW).clamp(4, rows.max(4));
        let shown = |bytes: &[u8]| hex(bytes.iter().skip(from).take(wanted * ROW));
        Excerpt {
            offset: start + place.start as u64,
            from: Some(start + from as u64),
            lines_before: None,
            previous: shown(previous),
            current: shown(current),
        }
    });
    Contents {
        excerpts: excerpts.collect(),
        places: places.len() as u64,
        lines: None,
        bytes: aligned.then_some(differing),
        at_least: !(whole && aligned),
        reordered: false,
    }
}

fn hex<'a>(bytes: impl Iterator<Item = &'a u8>) -> String {
    let mut shown = String::new();
    for byte in bytes {
        let gap = if shown.is_empty() { "" } else { " " };
        // Writing to a string cannot fail.
        let _ = write!(shown, "{gap}{byte:02x}");
    }
    shown
}

#[cfg(test)]
mod tests;
