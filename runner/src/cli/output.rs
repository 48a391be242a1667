//! Prints what commands return: text for users, JSON for programs. Colours are used only on a
//! terminal and without `NO_COLOR`.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};

use serde::Serialize;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr};

use super::CliError;
pub(super) use hookrun_nix::terminal::printable;
use hookrun_nix::terminal::printable_json;

/// The value of `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Format {
    /// For users.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Prints `value` as one JSON document.
pub(super) fn json(value: &impl Serialize) -> Result<(), CliError> {
    print(&json_text(value)?)
}

/// Prints `value` as JSON on one line.
pub(super) fn json_line(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string(value).map_err(CliError::internal)?;
    print(&format!("{}\n", printable_json(&text)))
}

/// Returns `value` as one JSON document that ends with a line feed and is safe to show on a
/// terminal.
pub(super) fn json_text(value: &impl Serialize) -> Result<String, CliError> {
    let text = serde_json::to_string_pretty(value).map_err(CliError::internal)?;
    Ok(format!("{}\n", printable_json(&text)))
}

/// Prints `text` unchanged.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Returns whether standard output may have colours.
pub(super) fn colours() -> bool {
    std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The style of a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Good,
    Warning,
    Bad,
    Faint,
    Strong,
}

/// Returns `text` in `style`, if colours are used.
pub(super) fn styled(text: &str, style: Style, colours: bool) -> String {
    // Select Graphic Rendition, ECMA-48 section 8.3.117.
    let code = match style {
        Style::Good => "32",
        Style::Warning => "33",
        Style::Bad => "31",
        Style::Faint => "2",
        Style::Strong => "1",
        Style::Plain => return text.to_owned(),
    };
    if colours { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// Returns the style for an outcome or a task state.
pub(super) fn style_of(word: &str) -> Style {
    match word {
        "done" | "ok" => Style::Good,
        "transient" | "due" | "waiting" | "running" | "merged" => Style::Warning,
        "permanent" | "trapped" | "limit" | "refused" | "dead" | "lost" | "interrupted" => {
            Style::Bad
        }
        _ => Style::Plain,
    }
}

/// The number of blanks between two columns.
const GAP: usize = 2;
/// The minimum width of a column that is narrowed to fit a terminal.
const NARROWEST: usize = 6;

/// Formats rows in columns. The last column is not padded. On a terminal a row takes one line, and
/// the rest is cut off.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    table_within(rows, terminal_width())
}

/// Returns the width of the terminal, if standard output is one.
fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

fn table_within(rows: &[Vec<String>], limit: Option<usize>) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| width(cell)).max().unwrap_or(0)
        })
        .collect();
    let limit = limit.unwrap_or(usize::MAX);
    narrow(&mut widths, limit);
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, column_width) in row.iter().zip(&widths) {
            let cell = cut(cell, *column_width);
            let padding = column_width.saturating_sub(width(&cell));
            let _ = write!(line, "{cell}{:padding$}{:GAP$}", "", "");
        }
        text.push_str(&cut(line.trim_end(), limit));
        text.push('\n');
    }
    text
}

/// Narrows the widest columns until a row fits into `limit`. The first column keeps its width,
/// because users type its names and ids.
fn narrow(widths: &mut [usize], limit: usize) {
    let gaps = GAP.saturating_mul(widths.len().saturating_sub(1));
    loop {
        let total = widths.iter().sum::<usize>().saturating_add(gaps);
        let widest = widths.iter_mut().skip(1).max_by_key(|width| **width);
        match widest {
            Some(widest) if total > limit && *widest > NARROWEST => *widest -= 1,
            _ => return,
        }
    }
}

/// Returns the first `limit` columns of a text; the last of them is `…` if there is more. Escape
/// sequences of [`styled`] are kept, so that colours end.
fn cut(text: &str, limit: usize) -> String {
    if width(text) <= limit {
        return text.to_owned();
    }
    let room = limit.saturating_sub(1);
    let (mut short, mut taken, mut escape, mut full) = (String::new(), 0, false, false);
    for c in text.chars() {
        let is_shown = !escape && c != '\u{1b}';
        escape = if escape { c != 'm' } else { c == '\u{1b}' };
        if !is_shown {
            short.push(c);
        } else if !full {
            let columns = c.width().unwrap_or(0);
            full = taken + columns > room;
            taken += columns;
            short.push(if full { '…' } else { c });
        }
    }
    short
}

/// Returns the columns of a terminal that the text takes. Escape sequences take none, wide
/// characters two.
fn width(text: &str) -> usize {
    anstream::adapter::strip_str(text).map(UnicodeWidthStr::width).sum()
}

/// Formats the fields of a log line, each as ` key=value`.
pub(super) fn fields(fields: &[(String, String)]) -> String {
    fields.iter().fold(String::new(), |mut text, (key, value)| {
        let _ = write!(text, " {}={}", printable(key), printable(value));
        text
    })
}

/// Formats a time in milliseconds since 1970 as local time.
pub(super) fn time(ms: u64) -> String {
    i64::try_from(ms).ok().and_then(chrono::DateTime::from_timestamp_millis).map_or_else(
        || ms.to_string(),
        |time| time.with_timezone(&chrono::Local).format("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

/// Formats a duration in milliseconds in its two largest units, such as `2h 5m` and `310ms`.
pub(super) fn duration(ms: u64) -> String {
    let text = humantime::format_duration(std::time::Duration::from_millis(ms)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// Formats a number of bytes with a unit.
pub(super) fn bytes(count: u64) -> String {
    bytesize::ByteSize(count).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_the_colours() {
        let rows = vec![
            vec!["a".into(), styled("done", Style::Good, true), "x".into()],
            vec!["bbb".into(), "failed".into(), "y".into()],
        ];
        assert_eq!(
            table_within(&rows, None),
            "a    \u{1b}[32mdone\u{1b}[0m    x\nbbb  failed  y\n"
        );
    }

    #[test]
    fn rows_are_cut_to_the_width_of_the_terminal_but_not_their_first_column() {
        let message = "a long message that names the value and ends with the fix";
        let rows = vec![
            vec!["event".into(), "state".into(), "last".into()],
            vec![
                "0192f3a1-7c7e-7000".into(),
                styled("waits for its turn", Style::Warning, true),
                message.into(),
            ],
            vec!["1".into(), "done".into(), "世界世界世界世界世界世界".into()],
        ];
        for limit in [40, 50, 60, 80, 200] {
            let text = table_within(&rows, Some(limit));
            assert!(text.lines().all(|line| width(line) <= limit), "{limit}:\n{text}");
            assert!(text.contains("0192f3a1-7c7e-7000"), "{limit}:\n{text}");
            assert_eq!(text.contains(message), limit > 80, "{limit}:\n{text}");
            assert_eq!(text.matches("\u{1b}[33m").count(), text.matches("\u{1b}[0m").count());
        }
        assert_eq!(cut("世界世界", 4), "世…");
        let tiny = table_within(&rows, Some(3));
        assert!(tiny.lines().all(|line| width(line) <= 3), "{tiny}");
    }
}
