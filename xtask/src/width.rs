//! Checks that comments and documents have at most 100 columns. rustfmt checks code, but not
//! comments.
//!
//! A line may be longer if a break would change its meaning (in a table, a link or a listing), or
//! if it has no blank to break at.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process::{CommandExt as _, repository};

/// The same width as in `rustfmt.toml`.
const COLUMNS: usize = 100;

/// Files of other projects, and data.
const FOREIGN: [&str; 2] = ["fuzz/corpus/", "plugin-sdk/wit/wasi-"];

/// Fails with the names of all lines that are too long.
pub(crate) fn check() -> Result<()> {
    eprintln!("$ comments and documents of at most {COLUMNS} columns");
    let files = Command::new("git").arg("ls-files").current_dir(repository()).read()?;
    let mut long = Vec::new();
    for file in files.lines() {
        let kind = match Path::new(file).extension().and_then(|extension| extension.to_str()) {
            Some("rs" | "wit") => long_in_rust,
            Some("md") => long_in_markdown,
            Some("sh" | "toml" | "nix" | "service" | "path" | "conf") => long_in_hash_comments,
            _ => continue,
        };
        if FOREIGN.iter().any(|directory| file.starts_with(directory)) {
            continue;
        }
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

/// Returns whether a line has a blank to break at, between its indentation and the last column.
fn can_break(line: &str) -> bool {
    let text = line.trim_start_matches([' ', '/', '!', '#', '*', '-', '>']);
    let indentation = line.chars().count() - text.chars().count();
    text.chars().take(COLUMNS.saturating_sub(indentation)).any(|c| c == ' ')
}

/// Returns the numbers of long comment lines in Rust or WIT, outside of listings.
fn long_in_rust(text: &str) -> Vec<usize> {
    let mut long = Vec::new();
    let mut listing = false;
    for (number, line) in (1..).zip(text.lines()) {
        let comment = line.trim_start();
        let is_comment = comment.starts_with("//");
        if is_comment && comment.trim_start_matches(['/', '!', ' ']).starts_with("```") {
            listing = !listing;
        }
        if is_comment && !listing && is_long(line) && can_break(line) {
            long.push(number);
        }
        listing &= is_comment;
    }
    long
}

/// Returns the numbers of long lines of prose.
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

/// Returns the numbers of long lines that are comments with `#`.
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
    fn long_comments_are_found_and_long_code_is_not() {
        let long = words(10);
        assert_eq!(long_in_rust(&format!("// {long}\n/// {long}\n")), [1, 2]);
        assert!(
            long_in_rust(&format!("/// ```\n/// {long}\n/// ```\nlet x = {long};\n")).is_empty()
        );
        assert_eq!(long_in_rust(&format!("/// ```\n/// ```\n/// {long}\n")), [3]);
        assert!(long_in_rust(&format!("// https://{}\n", "x".repeat(120))).is_empty());
    }

    #[test]
    fn long_prose_is_found_and_long_tables_links_and_listings_are_not() {
        let long = words(10);
        assert_eq!(long_in_markdown(&format!("* {long}\n")), [1]);
        assert!(
            long_in_markdown(&format!("| {long} |\n[x]({long})\n```\n{long}\n```\n")).is_empty()
        );
        assert_eq!(long_in_markdown(&format!("```\n```\n{long}\n")), [3]);
    }

    #[test]
    fn only_comments_of_other_files_are_checked() {
        let long = words(10);
        assert_eq!(long_in_hash_comments(&format!("# {long}\nx = \"{long}\"\n")), [1]);
    }
}
