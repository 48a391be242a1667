//! The plain text part of a mail.

use std::fmt::Write as _;

use unicode_width::UnicodeWidthStr as _;

use crate::report::{Example, Report, Section};
use crate::value::{Row, Side};

/// The width of prose. Paths and commands are not broken, so that they can be copied.
const WIDTH: usize = 78;

/// Renders the report as plain text.
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = write(&mut text, report);
    text
}

fn write(text: &mut String, report: &Report) -> std::fmt::Result {
    let Report {
        subject: _,
        summary,
        note,
        facts,
        heading,
        compared,
        sections,
        steps,
        caveats,
        footer,
    } = report;
    writeln!(text, "{}", wrapped(summary, ""))?;
    if let Some(note) = note {
        writeln!(text, "{}", wrapped(note, ""))?;
    }
    writeln!(text)?;
    for (name, value) in facts {
        writeln!(text, "  {name:<11} {value}")?;
    }
    title(text, heading)?;
    for line in compared {
        writeln!(text, "{}", wrapped(line, ""))?;
    }
    for one in sections {
        write_section(text, one)?;
    }
    title(text, "What to do next")?;
    for (index, step) in steps.iter().enumerate() {
        let gap = if index > 0 { "\n" } else { "" };
        writeln!(text, "{gap}{}\n    {}", wrapped(&step.what, ""), step.command)?;
    }
    title(text, "Please note")?;
    for caveat in caveats {
        writeln!(text, "{}", wrapped(caveat, ""))?;
    }
    // The separator of the signature, which mail readers hide or fold.
    writeln!(text, "\n-- \n{}", wrapped(footer, ""))
}

fn title(text: &mut String, title: &str) -> std::fmt::Result {
    writeln!(text, "\n{title}\n{}", "-".repeat(title.width()))
}

fn write_section(text: &mut String, section: &Section) -> std::fmt::Result {
    let Section { title, advice, examples, names, more } = section;
    writeln!(text, "\n{}", wrapped(&format!("* {title}"), ""))?;
    if let Some(advice) = advice {
        writeln!(text, "{}", wrapped(advice, "  "))?;
    }
    for Example { path, extent, changes } in examples {
        let extent = extent.as_ref().map(|extent| format!(" ({extent})")).unwrap_or_default();
        writeln!(text, "\n    {path}{extent}")?;
        for change in changes {
            writeln!(text, "      {}", change.what)?;
            write_rows(text, &change.rows)?;
        }
    }
    if !names.is_empty() {
        writeln!(text, "{}", if examples.is_empty() { "" } else { "\n    All files:" })?;
    }
    for (directory, names) in names {
        let names = names.iter().map(String::as_str);
        if directory.is_empty() {
            writeln!(text, "{}", filled(names, "    "))?;
        } else {
            writeln!(text, "    {directory}\n{}", filled(names, "      "))?;
        }
    }
    if let Some(more) = more {
        writeln!(text, "    {more}")?;
    }
    Ok(())
}

/// Writes both sides below each other, each with a line that marks the differing characters.
fn write_rows(text: &mut String, rows: &[Row]) -> std::fmt::Result {
    for (index, row) in rows.iter().enumerate() {
        let line: String = row.pieces.iter().map(|piece| piece.text.as_str()).collect();
        let marks: String = row
            .pieces
            .iter()
            .map(|piece| {
                let mark = if piece.marked { "^" } else { " " };
                mark.repeat(piece.text.width())
            })
            .collect();
        let before = row.offset.map(|offset| format!("{offset:08x}  ")).unwrap_or_default();
        writeln!(text, "        {:<8}  {before}{line}", row.side.label())?;
        // If two rows differ in the same columns, only one line of marks is written.
        let next = rows.get(index + 1);
        let same = next.is_some_and(|next| row.side == Side::Previous && same_marks(row, next));
        if !same && marks.contains('^') {
            let gap = " ".repeat(before.len());
            writeln!(text, "                  {gap}{}", marks.trim_end())?;
        }
    }
    Ok(())
}

/// Returns whether the marks of both rows are in the same columns.
fn same_marks(row: &Row, next: &Row) -> bool {
    let columns = |row: &Row| -> Vec<(usize, bool)> {
        row.pieces.iter().map(|piece| (piece.text.width(), piece.marked)).collect()
    };
    let trimmed = |row: &Row| {
        let mut columns = columns(row);
        while columns.last().is_some_and(|(_, marked)| !marked) {
            columns.pop();
        }
        columns
    };
    next.side == Side::Current && trimmed(row) == trimmed(next)
}

/// Wraps `prose` into lines of [`WIDTH`] characters, each after `indent`.
fn wrapped(prose: &str, indent: &str) -> String {
    filled(prose.split(' '), indent)
}

/// Wraps words that must not be broken.
fn filled<'a>(words: impl Iterator<Item = &'a str>, indent: &str) -> String {
    let mut text = String::from(indent);
    let mut length = indent.width();
    for word in words {
        let wanted = word.width();
        let first = length == indent.width();
        if !first && length + 1 + wanted > WIDTH {
            text.push('\n');
            text.push_str(indent);
            length = indent.width();
        } else if !first {
            text.push(' ');
            length += 1;
        }
        text.push_str(word);
        length += wanted;
    }
    text
}
