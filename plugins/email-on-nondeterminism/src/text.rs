//! The plain text part of a mail.

use std::fmt::Write as _;

use crate::report::{Change, Report};

/// Where prose is broken; paths and commands never are, so that they can be copied.
const WIDTH: usize = 78;

/// The report as plain text.
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
        files,
        more,
        causes,
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
    section(text, heading)?;
    writeln!(text, "{}", wrapped(compared, ""))?;
    for file in files {
        writeln!(text, "\n* {}", file.path)?;
        for change in &file.changes {
            write_change(text, change)?;
        }
        if let Some(hint) = &file.hint {
            writeln!(text, "    -> {hint}")?;
        }
    }
    if let Some(more) = more {
        writeln!(text, "\n{more}")?;
    }
    if !causes.is_empty() {
        section(text, "What it looks like")?;
        for (index, (cause, advice)) in causes.iter().enumerate() {
            let gap = if index > 0 { "\n" } else { "" };
            writeln!(
                text,
                "{gap}{}\n{}",
                wrapped(&format!("{cause}."), ""),
                wrapped(advice, "  ")
            )?;
        }
    }
    section(text, "What to do next")?;
    for (index, step) in steps.iter().enumerate() {
        let gap = if index > 0 { "\n" } else { "" };
        writeln!(text, "{gap}{}\n    {}", wrapped(&step.what, ""), step.command)?;
    }
    section(text, "Please note")?;
    for caveat in caveats {
        writeln!(text, "{}", wrapped(caveat, ""))?;
    }
    // The signature mark: readers fold what follows.
    writeln!(text, "\n-- \n{}", wrapped(footer, ""))
}

fn section(text: &mut String, title: &str) -> std::fmt::Result {
    writeln!(text, "\n{title}\n{}", "-".repeat(title.chars().count()))
}

fn write_change(text: &mut String, change: &Change) -> std::fmt::Result {
    match &change.values {
        None => writeln!(text, "    {}", change.what),
        Some((previous, current)) if change.stacked => {
            writeln!(
                text,
                "    {}\n      previous  {previous}\n      current   {current}",
                change.what
            )
        }
        Some((previous, current)) => writeln!(text, "    {}: {previous} -> {current}", change.what),
    }
}

/// `prose` in lines of [`WIDTH`] characters, each after `indent`.
fn wrapped(prose: &str, indent: &str) -> String {
    let mut text = String::from(indent);
    let mut length = indent.chars().count();
    for word in prose.split(' ') {
        let wanted = word.chars().count();
        let first = length == indent.chars().count();
        if !first && length + 1 + wanted > WIDTH {
            text.push('\n');
            text.push_str(indent);
            length = indent.chars().count();
        } else if !first {
            text.push(' ');
            length += 1;
        }
        text.push_str(word);
        length += wanted;
    }
    text
}
