//! Two pieces of a file that differ -> what is shown of them: whole lines of text, or rows of
//! bytes, at the first few places, and how much differs in all. Pure.

use std::fmt::Write as _;

/// Bytes of each side that are looked at, from a little before the first difference.
pub const WINDOW: usize = 512 << 10;
/// How far before the first difference its line may begin.
pub const BEFORE: usize = 4096;

/// Lines of each side that are compared.
const MAX_LINES: usize = 20_000;
/// Lines that may have been inserted or removed in one place.
const LOOK_AHEAD: usize = 16;
/// Lines of one side shown of one place.
const SHOWN_LINES: usize = 3;
/// Bytes of a line shown before and after its first difference.
const LINE_BEFORE: usize = 100;
const LINE_AFTER: usize = 140;
/// A cut is moved by so many bytes at most, to the end of a word.
const WORD: usize = 24;
/// Bytes are shown in rows.
const ROW: usize = 8;
/// Equal bytes between two places that are shown as one.
const GAP: usize = 16;

/// What both sides of a file hold from `start` on. They are equal before `at`.
#[derive(Debug, Clone, Copy)]
pub struct Pieces<'a> {
    /// The previous result's bytes.
    pub previous: &'a [u8],
    /// The current result's bytes.
    pub current: &'a [u8],
    /// Where both pieces begin in the file.
    pub start: u64,
    /// The first difference, within the pieces.
    pub at: usize,
    /// Whether both reach the end of their file.
    pub whole: bool,
}

/// One place that differs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Excerpt {
    /// The first byte that differs there, in the previous result.
    pub offset: u64,
    /// Where the bytes that are shown begin, if it is bytes.
    pub from: Option<u64>,
    /// Lines before the one that differs, counted from the beginning of the pieces, if it is text.
    pub lines_before: Option<u64>,
    /// What the previous result has: text in quotation marks, or bytes in hexadecimal.
    pub previous: String,
    /// The same of the current result.
    pub current: String,
}

/// What differs in two pieces of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// The first places.
    pub excerpts: Vec<Excerpt>,
    /// Places that differ.
    pub places: u64,
    /// Lines that differ, in text.
    pub lines: Option<u64>,
    /// Bytes that differ, in bytes of the same length.
    pub bytes: Option<u64>,
    /// There may be more than was counted.
    pub at_least: bool,
    /// The same lines in another order.
    pub reordered: bool,
}

/// Looks at `pieces`; shows at most `most` places.
pub fn look(pieces: Pieces<'_>, most: usize) -> Contents {
    if is_text(pieces.previous) && is_text(pieces.current) {
        text(pieces, most)
    } else {
        bytes(pieces, most)
    }
}

/// UTF-8 without control characters but those of text. The ends may cut a character.
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

/// One place: lines of the previous and of the current side.
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
    // Of the same lines in another order one place says as much as several.
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

/// The lines from `begin` on, with their ends.
fn lines(bytes: &[u8], begin: usize) -> Vec<&[u8]> {
    let rest = bytes.get(begin..).unwrap_or_default();
    rest.split_inclusive(|byte| *byte == b'\n').take(MAX_LINES).collect()
}

/// The number of line ends.
pub fn count_lines(bytes: &[u8]) -> u64 {
    bytes.split(|byte| *byte == b'\n').skip(1).count() as u64
}

/// Where two lists of lines differ. Finds the way back after up to [`LOOK_AHEAD`] lines that only
/// one side has; what is further apart is taken for lines that changed.
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

/// How many lines to skip on each side until both are the same again.
fn resume(left: &[&[u8]], right: &[&[u8]]) -> (usize, usize) {
    for distance in 1..=LOOK_AHEAD {
        // A line that changed is likelier than one that was moved.
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

/// Do both sides go on with the same two lines? One alone may be blank, or a bracket.
fn same(left: &[&[u8]], i: usize, right: &[&[u8]], j: usize) -> bool {
    match (left.get(i), right.get(j)) {
        (Some(a), Some(b)) => a == b && left.get(i + 1) == right.get(j + 1),
        (None, None) => i <= left.len() && j <= right.len(),
        _ => false,
    }
}

/// Text in quotation marks, with what is before and after the byte `at`; three dots outside of them
/// where a line is cut.
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
    // Not in the middle of a word.
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
    // After an insertion every byte is at another place.
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
        // A row before, so that what the bytes belong to can be seen; rows begin at multiples.
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
        // Writing into a String cannot fail.
        let _ = write!(shown, "{gap}{byte:02x}");
    }
    shown
}

#[cfg(test)]
mod tests;
