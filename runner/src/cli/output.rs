//! What commands print: text for people, JSON for programs. Colours only on a terminal and without
//! `NO_COLOR`.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};

use serde::Serialize;

use super::CliError;
pub(super) use crate::terminal::printable;

/// `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Prints `value` as one JSON document.
pub(super) fn json(value: &impl Serialize) -> Result<(), CliError> {
    let mut text = serde_json::to_string_pretty(value).map_err(CliError::internal)?;
    text.push('\n');
    print(&text)
}

/// Prints `value` as JSON on one line.
pub(super) fn json_line(value: &impl Serialize) -> Result<(), CliError> {
    let mut text = serde_json::to_string(value).map_err(CliError::internal)?;
    text.push('\n');
    print(&text)
}

/// Prints `text` as it is.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// May standard output have colours?
pub(super) fn colours() -> bool {
    std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// How a word is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Good,
    Warning,
    Bad,
    Faint,
    Strong,
}

/// `text` in `style`, if there are colours.
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

/// The style of an outcome's or a task state's word.
pub(super) fn style_of(word: &str) -> Style {
    match word {
        "done" | "ok" => Style::Good,
        "transient" | "waiting" | "running" | "merged" => Style::Warning,
        "permanent" | "trapped" | "limit" | "refused" | "dead" | "interrupted" => Style::Bad,
        _ => Style::Plain,
    }
}

/// Rows in columns, two blanks between them; the last column is not padded.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| width(cell)).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, column_width) in row.iter().zip(&widths) {
            let padding = column_width.saturating_sub(width(cell));
            let _ = write!(line, "{cell}{:padding$}  ", "");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Characters shown: escape sequences of [`styled`] do not count.
fn width(cell: &str) -> usize {
    let mut count = 0;
    let mut escape = false;
    for c in cell.chars() {
        match (escape, c) {
            (false, '\u{1b}') => escape = true,
            (false, _) => count += 1,
            (true, 'm') => escape = false,
            (true, _) => {}
        }
    }
    count
}

/// The fields of a log line: ` key=value` each.
pub(super) fn fields(fields: &[(String, String)]) -> String {
    fields.iter().fold(String::new(), |mut text, (key, value)| {
        let _ = write!(text, " {}={}", printable(key), printable(value));
        text
    })
}

/// A time in milliseconds since 1970, as local time.
pub(super) fn time(ms: u64) -> String {
    i64::try_from(ms).ok().and_then(chrono::DateTime::from_timestamp_millis).map_or_else(
        || ms.to_string(),
        |time| time.with_timezone(&chrono::Local).format("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

/// A duration in milliseconds with the two coarsest units that say something: `2h 5m`, `310ms`.
pub(super) fn duration(ms: u64) -> String {
    let text = humantime::format_duration(std::time::Duration::from_millis(ms)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// Bytes as people read them.
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
        assert_eq!(table(&rows), "a    \u{1b}[32mdone\u{1b}[0m    x\nbbb  failed  y\n");
    }
}
