//! Lines of at most 100 columns in code, comments and documents. rustfmt leaves comments, macros and
//! long strings as they are.
//!
//! A line may be longer where a break would change what it means: in a string, a table, a link, a
//! listing, or where there is no blank to break at.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process::{CommandExt as _, repository};

/// The width of `rustfmt.toml`, for everything.
const COLUMNS: usize = 100;

/// Names every line that is too long.
pub fn check() -> Result<()> {
    eprintln!("$ lines of at most {COLUMNS} columns");
    let files = Command::new("git").arg("ls-files").current_dir(repository()).read()?;
    let mut long = Vec::new();
    for file in files.lines() {
        let kind = match Path::new(file).extension().and_then(|extension| extension.to_str()) {
            Some("rs" | "wit") => long_in_rust,
            Some("md") => long_in_markdown,
            Some("sh" | "toml" | "nix" | "service" | "path" | "conf") => long_in_hash_comments,
            _ => continue,
        };
        let path = repository().join(file);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        long.extend(kind(&text).into_iter().map(|line| format!("{file}:{line}")));
    }
    if long.is_empty() {
        return Ok(());
    }
    bail!("{} lines have more than {COLUMNS} columns; break them:\n{}", long.len(), long.join("\n"))
}

fn is_long(line: &str) -> bool {
    line.chars().count() > COLUMNS
}

/// Has it a blank to break at, behind its indentation and before the end of the last column?
fn can_break(line: &str) -> bool {
    let text = line.trim_start_matches([' ', '/', '!', '#', '*', '-', '>']);
    let indentation = line.chars().count() - text.chars().count();
    text.chars().take(COLUMNS.saturating_sub(indentation)).any(|c| c == ' ')
}

/// Numbers of long lines of Rust (or WIT) that are not long because of a string.
fn long_in_rust(text: &str) -> Vec<usize> {
    let mut long = Vec::new();
    let mut state = Rust::Code;
    for (number, line) in (1..).zip(text.lines()) {
        let (in_string, after) = state.read(line);
        state = after;
        if is_long(line) && !in_string && can_break(line) {
            long.push(number);
        }
    }
    long
}

/// Where a line of Rust begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rust {
    Code,
    /// In a string.
    Text,
    /// In a raw string with so many `#`.
    Raw(usize),
}

impl Rust {
    /// Reads a line: has it a part of a string at or before the last column that goes on behind it,
    /// and where does the next line begin?
    fn read(self, line: &str) -> (bool, Self) {
        let mut state = self;
        let mut in_string = false;
        let mut rest = line.chars().enumerate().peekable();
        let hashes = |from: usize| line.chars().skip(from).take_while(|c| *c == '#').count();
        while let Some((column, c)) = rest.next() {
            match state {
                Self::Code => match c {
                    '/' if rest.peek().is_some_and(|(_, next)| *next == '/') => {
                        return (in_string, Self::Code);
                    }
                    '"' => state = Self::Text,
                    // A string that is a character, or a lifetime.
                    '\'' => {
                        let ahead: String = line.chars().skip(column + 1).take(3).collect();
                        let skipped = match ahead.as_bytes() {
                            [b'\\', _, b'\'', ..] => 3,
                            [_, b'\'', ..] => 2,
                            _ => 0,
                        };
                        for _ in 0..skipped {
                            rest.next();
                        }
                    }
                    'r' if line.chars().nth(column + 1 + hashes(column + 1)) == Some('"') => {
                        let count = hashes(column + 1);
                        for _ in 0..=count {
                            rest.next();
                        }
                        state = Self::Raw(count);
                    }
                    _ => {}
                },
                Self::Text => match c {
                    '\\' => {
                        rest.next();
                    }
                    '"' => state = Self::Code,
                    _ => {}
                },
                Self::Raw(count) => {
                    if c == '"' && hashes(column + 1) >= count {
                        for _ in 0..count {
                            rest.next();
                        }
                        state = Self::Code;
                    }
                }
            }
            // A string in the last columns is what makes the line long.
            if column + 1 >= COLUMNS && state != Self::Code {
                in_string = true;
            }
        }
        (in_string || (self != Self::Code && is_long(line)), state)
    }
}

/// Numbers of long lines of prose.
fn long_in_markdown(text: &str) -> Vec<usize> {
    let mut long = Vec::new();
    let mut listing = false;
    for (number, line) in (1..).zip(text.lines()) {
        let text = line.trim_start();
        if text.starts_with("```") {
            listing = !listing;
        }
        let kept =
            listing || text.starts_with('|') || text.contains("](") || text.starts_with("<!--");
        if is_long(line) && !kept && can_break(line) {
            long.push(number);
        }
    }
    long
}

/// Numbers of long lines that are comments from `#` on.
fn long_in_hash_comments(text: &str) -> Vec<usize> {
    let lines = (1..).zip(text.lines());
    let comments = lines.filter(|(_, line)| line.trim_start().starts_with('#'));
    comments
        .filter(|(_, line)| is_long(line) && can_break(line))
        .map(|(number, _)| number)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: &str = "some words ";

    fn words(count: usize) -> String {
        WORDS.repeat(count)
    }

    #[test]
    fn comments_and_code_are_broken_and_strings_are_not() {
        let long = words(10);
        assert_eq!(long_in_rust(&format!("// {long}\n")), [1]);
        assert_eq!(long_in_rust(&format!("let a = 1;\nlet x = a + {long};\n")), [2]);
        assert!(long_in_rust(&format!("let x = \"{long}\";\n")).is_empty());
        assert!(
            long_in_rust(&format!("let x = \"\n{long}\n{long}\";\nlet y = '\"';\n")).is_empty()
        );
        assert_eq!(long_in_rust(&format!("let y = '\"';\nlet x = {long};\n")), [2]);
        assert_eq!(long_in_rust(&format!("let y = r#\"\"\"#;\nlet x = {long};\n")), [2]);
        assert!(long_in_rust(&format!("let y = r#\"\n\" {long}\"#;\n")).is_empty());
        assert_eq!(long_in_rust(&format!("let y = \"a\";  {long}\n")), [1]);
        assert!(long_in_rust(&format!("// https://{}\n", "x".repeat(120))).is_empty());
    }

    #[test]
    fn prose_is_broken_and_tables_links_and_listings_are_not() {
        let long = words(10);
        assert_eq!(long_in_markdown(&format!("* {long}\n")), [1]);
        assert!(
            long_in_markdown(&format!("| {long} |\n[x]({long})\n```\n{long}\n```\n")).is_empty()
        );
        assert_eq!(long_in_markdown(&format!("```\n```\n{long}\n")), [3]);
    }

    #[test]
    fn of_other_files_comments_are_broken() {
        let long = words(10);
        assert_eq!(long_in_hash_comments(&format!("# {long}\nx = \"{long}\"\n")), [1]);
    }
}
