//! Parses the two values of a difference into lines of text or rows of bytes, and marks the parts
//! that differ. Pure.

use crate::format::visible;

/// The longest line that is shown, in characters.
const MAX_LINE: usize = 260;

/// The value of one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Lines of text, with their line ends.
    Text {
        /// Whether text before it was left out.
        cut_before: bool,
        /// The text.
        text: String,
        /// Whether text after it was left out.
        cut_after: bool,
    },
    /// Bytes.
    Bytes(Vec<u8>),
    /// A value of another kind.
    Other(String),
}

impl Value {
    /// Parses a value of contents by the rules of the interface.
    pub fn parse(shown: &str) -> Self {
        let (cut_before, rest) =
            shown.strip_prefix("...").map_or((false, shown), |rest| (true, rest));
        let (cut_after, rest) = rest.strip_suffix("...").map_or((false, rest), |rest| (true, rest));
        if let Some(quoted) = rest
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'))
            .filter(|_| rest.len() > 1)
        {
            return Self::Text { cut_before, text: unescaped(quoted), cut_after };
        }
        if shown.is_empty() {
            return Self::Text { cut_before: false, text: String::new(), cut_after: false };
        }
        let bytes: Option<Vec<u8>> = shown
            .split(' ')
            .map(|byte| u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() == 2))
            .collect();
        bytes.map_or_else(|| Self::Other(shown.to_owned()), Self::Bytes)
    }

    /// Returns the value as text, for pattern matching.
    pub fn text(&self) -> String {
        match self {
            Self::Text { text, .. } | Self::Other(text) => text.clone(),
            Self::Bytes(bytes) => printable(bytes),
        }
    }
}

/// Returns bytes as in the text column of a hexadecimal listing.
pub fn printable(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| if (0x20..0x7f).contains(byte) { char::from(*byte) } else { '.' })
        .collect()
}

fn unescaped(quoted: &str) -> String {
    let mut text = String::with_capacity(quoted.len());
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => text.push('\n'),
            Some('t') => text.push('\t'),
            Some('r') => text.push('\r'),
            Some(other) => text.push(other),
            None => {}
        }
    }
    text
}

/// Returns the ranges of two texts that differ: everything between the common beginning and the
/// common end.
pub fn changed(previous: &str, current: &str) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
    let start: usize = previous
        .chars()
        .zip(current.chars())
        .take_while(|(a, b)| a == b)
        .map(|(c, _)| c.len_utf8())
        .sum();
    let (rest_a, rest_b) =
        (previous.get(start..).unwrap_or_default(), current.get(start..).unwrap_or_default());
    let end: usize = rest_a
        .chars()
        .rev()
        .zip(rest_b.chars().rev())
        .take_while(|(a, b)| a == b)
        .map(|(c, _)| c.len_utf8())
        .sum();
    (start..previous.len() - end, start..current.len() - end)
}

/// A piece of a line, and whether it differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The text, safe to be shown.
    pub text: String,
    /// Whether it differs from the other side.
    pub marked: bool,
}

/// The side of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The previous result.
    Previous,
    /// The current result.
    Current,
    /// Both, because they are the same.
    Both,
}

impl Side {
    /// Returns the label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Previous => "previous",
            Self::Current => "current",
            Self::Both => "both",
        }
    }
}

/// One row of an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The side.
    pub side: Side,
    /// The offset of the row's first byte, for bytes.
    pub offset: Option<u64>,
    /// The contents.
    pub pieces: Vec<Piece>,
}

/// Returns the rows that show two values. `from` is the offset of the first byte that is shown.
pub fn rows(previous: &Value, current: &Value, from: u64) -> Vec<Row> {
    match (previous, current) {
        (Value::Bytes(a), Value::Bytes(b)) => byte_rows(a, b, from),
        _ => text_rows(previous, current),
    }
}

fn text_rows(previous: &Value, current: &Value) -> Vec<Row> {
    let (a, b) = (lines(previous), lines(current));
    let mut rows = Vec::new();
    // A difference only in line ends would not be visible.
    let ends = a.iter().zip(&b).any(|(a, b)| a != b && a.trim_end() == b.trim_end());
    let line = |side: Side, line: &str, other: Option<&String>| {
        let shown = if ends { line } else { line.trim_end_matches('\n') };
        let other =
            other.map_or("", |other| if ends { other } else { other.trim_end_matches('\n') });
        let (range, _) = changed(shown, other);
        Row { side, offset: None, pieces: pieces(shown, range) }
    };
    if a.len() == b.len() {
        for (a, b) in a.iter().zip(&b) {
            rows.push(line(Side::Previous, a, Some(b)));
            rows.push(line(Side::Current, b, Some(a)));
        }
    } else {
        rows.extend(a.iter().enumerate().map(|(at, text)| line(Side::Previous, text, b.get(at))));
        rows.extend(b.iter().enumerate().map(|(at, text)| line(Side::Current, text, a.get(at))));
    }
    if a.is_empty() {
        rows.insert(0, nothing(Side::Previous));
    }
    if b.is_empty() {
        rows.push(nothing(Side::Current));
    }
    rows
}

fn nothing(side: Side) -> Row {
    let text = "(no such line)".to_owned();
    Row { side, offset: None, pieces: vec![Piece { text, marked: false }] }
}

/// Returns the lines of a value, with three dots where it was cut.
fn lines(value: &Value) -> Vec<String> {
    match value {
        Value::Text { cut_before, text, cut_after } => {
            let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
            if let Some(first) = lines.first_mut().filter(|_| *cut_before) {
                first.insert(0, '\u{2026}');
            }
            if let Some(last) = lines.last_mut().filter(|_| *cut_after) {
                last.push('\u{2026}');
            }
            lines
        }
        other => vec![other.text()],
    }
}

/// Returns the line with the range marked. A long line begins shortly before the range.
fn pieces(line: &str, marked: std::ops::Range<usize>) -> Vec<Piece> {
    let part = |range: std::ops::Range<usize>, marked: bool, limit: usize| Piece {
        text: visible(line.get(range).unwrap_or_default(), limit),
        marked,
    };
    [
        part(0..marked.start, false, MAX_LINE),
        part(marked.clone(), true, MAX_LINE),
        part(marked.end..line.len(), false, MAX_LINE),
    ]
    .into_iter()
    .filter(|piece| !piece.text.is_empty())
    .collect()
}

/// The number of bytes in one row.
pub const ROW: usize = 8;
/// The number of equal rows that are shown before the first and after the last one that differs.
const BEFORE: usize = 2;
const AFTER: usize = 1;

fn byte_rows(previous: &[u8], current: &[u8], from: u64) -> Vec<Row> {
    let count = previous.len().max(current.len()).div_ceil(ROW);
    let row = |bytes: &[u8], index: usize| -> Vec<u8> {
        bytes.iter().skip(index * ROW).take(ROW).copied().collect()
    };
    let first = (0..count).find(|index| row(previous, *index) != row(current, *index));
    let last = (0..count).rfind(|index| row(previous, *index) != row(current, *index));
    let (Some(first), Some(last)) = (first, last) else { return Vec::new() };
    let mut rows = Vec::new();
    for index in first.saturating_sub(BEFORE)..=(last + AFTER).min(count - 1) {
        let offset = from.saturating_add((index * ROW) as u64);
        let (a, b) = (row(previous, index), row(current, index));
        if a == b {
            rows.push(Row { side: Side::Both, offset: Some(offset), pieces: listing(&a, &b) });
        } else {
            for (side, own, other) in [(Side::Previous, &a, &b), (Side::Current, &b, &a)] {
                rows.push(Row { side, offset: Some(offset), pieces: listing(own, other) });
            }
        }
    }
    rows
}

/// Returns a row of a hexadecimal listing, such as `62 75 69 6c 64 2d 69 64 build-id`.
fn listing(own: &[u8], other: &[u8]) -> Vec<Piece> {
    let differs = |index: usize| own.get(index) != other.get(index);
    let mut pieces: Vec<Piece> = Vec::new();
    let mut push = |text: String, marked: bool| match pieces.last_mut() {
        Some(last) if last.marked == marked => last.text.push_str(&text),
        _ => pieces.push(Piece { text, marked }),
    };
    for index in 0..ROW {
        let gap = if index == 0 { "" } else { " " };
        push(gap.to_owned(), index > 0 && differs(index) && differs(index - 1));
        match own.get(index) {
            Some(byte) => push(format!("{byte:02x}"), differs(index)),
            None => push("  ".to_owned(), false),
        }
    }
    push("  ".to_owned(), false);
    for (index, byte) in own.iter().enumerate() {
        push(printable(&[*byte]), differs(index));
    }
    pieces.retain(|piece| !piece.text.is_empty());
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(previous: &str, current: &str, from: u64) -> String {
        let rows = rows(&Value::parse(previous), &Value::parse(current), from);
        let line = |row: &Row| {
            let text: String =
                row.pieces
                    .iter()
                    .map(|piece| {
                        if piece.marked { format!("[{}]", piece.text) } else { piece.text.clone() }
                    })
                    .collect();
            format!("{} {text}", row.side.label())
        };
        rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_part_of_a_line_that_differs_is_marked() {
        insta::assert_snapshot!(shown(r#""pid 55794\n""#, r#""pid 55801\n""#, 0), @r"
        previous pid 55[794]
        current pid 55[801]
        ");
        insta::assert_snapshot!(shown("", r#""added\n""#, 0), @r"
        previous (no such line)
        current [added]
        ");
        insta::assert_snapshot!(shown(r#""end""#, r#""end\n""#, 0), @r"
        previous end
        current end[\n]
        ");
        insta::assert_snapshot!(shown(r#"..."say \"a\\b\" 1"..."#, r#"..."say \"a\\b\" 2"..."#, 0), @r#"
        previous …say "a\b" [1]…
        current …say "a\b" [2]…
        "#);
    }

    #[test]
    fn bytes_are_shown_beside_their_text() {
        let (a, b) = ("62 75 69 6c 74 20 31 39 3a 34 37 00", "62 75 69 6c 74 20 31 39 3a 34 38 00");
        insta::assert_snapshot!(shown(a, b, 8), @r"
        both 62 75 69 6c 74 20 31 39  built 19
        previous 3a 34 [37] 00              :4[7].
        current 3a 34 [38] 00              :4[8].
        ");
    }

    #[test]
    fn values_of_another_form_are_shown_as_they_are() {
        assert_eq!(Value::parse("libx.so.1"), Value::Other("libx.so.1".into()));
        assert_eq!(Value::parse("\""), Value::Other("\"".into()));
        assert_eq!(Value::parse("7f 45"), Value::Bytes(vec![0x7f, 0x45]));
    }
}
