//! Documents as tests: writes the listings and runs the commands of a Markdown file.
//!
//! A fenced block after a line that ends in a path and a colon (`` `src/lib.rs`: ``) is that file.
//! A block `console` is a session: lines that begin with `$ ` or `# ` are commands, and the lines
//! below a command are its output. In the output, `...` matches any text within a line, and a line
//! `...` matches any number of lines. All commands of a document run in one shell.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A part of a document that can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A file to write.
    File {
        /// The path, relative to the shell's working directory or absolute.
        path: String,
        /// Its text.
        text: String,
    },
    /// A command to run.
    Command {
        /// The line without the prompt.
        line: String,
        /// The expected output.
        output: Vec<String>,
    },
}

/// A fenced block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The word after the fence, such as `toml`.
    pub language: String,
    /// The path in the line above, if that names a file.
    pub file: Option<String>,
    /// The text between the fences, without the indentation of the fence.
    pub text: String,
}

/// Returns the fenced blocks of a document.
pub fn blocks(document: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = document.lines();
    let mut above = "";
    while let Some(line) = lines.next() {
        let Some(language) = line.trim_start().strip_prefix("```") else {
            if !line.trim().is_empty() {
                above = line;
            }
            continue;
        };
        let indentation = line.len() - line.trim_start().len();
        let mut text = String::new();
        for line in lines.by_ref() {
            if line.trim_start().starts_with("```") {
                break;
            }
            let _ = writeln!(text, "{}", line.get(indentation..).unwrap_or_default());
        }
        blocks.push(Block { language: language.to_owned(), file: named(above), text });
        above = "";
    }
    blocks
}

/// Returns the path of `` `PATH`: `` at the end of a line.
fn named(line: &str) -> Option<String> {
    let line = line.strip_suffix("`:")?;
    let (_, path) = line.rsplit_once('`')?;
    (path.contains('.') && !path.contains(' ')).then(|| path.to_owned())
}

/// Returns the files and commands of a document, in order.
///
/// # Panics
/// If a session does not begin with a command.
pub fn steps(document: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    for block in blocks(document) {
        if let Some(path) = block.file {
            steps.push(Step::File { path, text: block.text });
        } else if block.language == "console" {
            for line in block.text.lines() {
                let command = line.strip_prefix("$ ").or_else(|| line.strip_prefix("# "));
                if let Some(command) = command {
                    steps.push(Step::Command { line: command.to_owned(), output: Vec::new() });
                } else if let Some(Step::Command { output, .. }) = steps.last_mut() {
                    output.push(line.to_owned());
                } else {
                    panic!("`{line}` is the output of no command");
                }
            }
        }
    }
    steps
}

/// Runs the steps with `shell` (a shell that reads a script from its last argument, perhaps in its
/// own namespaces) after `prelude`, and compares the output.
///
/// # Panics
/// Panics if a command fails, or if its output differs from the document.
#[track_caller]
pub fn run(steps: &[Step], shell: &mut Command, prelude: &str) {
    let directory = tempfile::tempdir().unwrap();
    let at = |number: usize, what: &str| directory.path().join(format!("{number}.{what}"));
    let mut script = format!("{prelude}\n");
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::File { path, text } => {
                std::fs::write(at(number, "file"), text).unwrap();
                let file = at(number, "file");
                let _ = writeln!(script, "cp {} {path} || exit", file.display());
            }
            Step::Command { line, .. } => {
                let (out, err) = (at(number, "out"), at(number, "err"));
                // The status is written last: if it is missing, the command has failed.
                let _ = writeln!(
                    script,
                    "{{ {line}\n}} > {} 2> {} < /dev/null || exit\n: > {}",
                    out.display(),
                    err.display(),
                    at(number, "done").display()
                );
            }
        }
    }
    let path = directory.path().join("script");
    std::fs::write(&path, script).unwrap();
    let ran = super::lab::Ran::of(shell.arg(&path));
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    for (number, step) in steps.iter().enumerate() {
        let Step::Command { line, output } = step else { continue };
        let (out, err) = (read(at(number, "out")), read(at(number, "err")));
        let account =
            || format!("`{line}`\n--- stdout\n{out}\n--- stderr\n{err}\n{}", ran.account());
        assert!(at(number, "done").exists(), "failed: {}", account());
        assert!(
            output.is_empty() || matches(output, &out.lines().collect::<Vec<_>>()),
            "the document says that this prints\n{}\n{}",
            output.join("\n"),
            account()
        );
    }
    ran.expect_success();
}

/// Returns whether `lines` match the output in the document.
fn matches(shown: &[String], lines: &[&str]) -> bool {
    match shown.split_first() {
        None => lines.is_empty(),
        Some((first, rest)) if first == "..." => {
            (0..=lines.len()).any(|skipped| matches(rest, lines.get(skipped..).unwrap_or_default()))
        }
        Some((first, rest)) => match lines.split_first() {
            Some((line, lines)) => line_matches(first, line) && matches(rest, lines),
            None => false,
        },
    }
}

/// Returns whether a line matches a line of the document.
fn line_matches(shown: &str, line: &str) -> bool {
    let parts: Vec<&str> = shown.split("...").collect();
    let [first, middle @ .., last] = parts.as_slice() else { return shown == line };
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    for part in middle {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

/// Returns the text of a file of the repository.
///
/// # Panics
/// Panics if it cannot be read.
pub fn read(name: &str) -> String {
    std::fs::read_to_string(repository().join(name)).unwrap()
}

/// Returns the root directory of the repository.
///
/// # Panics
/// Never panics, because the package is in a workspace.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_files_and_sessions() {
        let document = "Write `a/b.toml`:\n\n```toml\nx = 1\n```\n```console\n$ zero\n```\n1. Then\n\n   ```console\n   $ one\n   two ...\n   # three\n   ```\n";
        assert_eq!(
            steps(document),
            [
                Step::File { path: "a/b.toml".to_owned(), text: "x = 1\n".to_owned() },
                Step::Command { line: "zero".to_owned(), output: Vec::new() },
                Step::Command { line: "one".to_owned(), output: vec!["two ...".to_owned()] },
                Step::Command { line: "three".to_owned(), output: Vec::new() },
            ]
        );
    }

    #[test]
    fn dots_stand_for_anything() {
        let shown = |text: &str| text.lines().map(ToOwned::to_owned).collect::<Vec<_>>();
        assert!(matches(&shown("a ... c\n...\nend"), &["a b b c", "x", "y", "end"]));
        assert!(matches(&shown("a\n...\nend"), &["a", "end"]));
        assert!(!matches(&shown("a\nend"), &["a", "x", "end"]));
        assert!(!matches(&shown("a ... c"), &["a b"]));
    }

    #[test]
    fn what_is_printed_is_compared() {
        let steps = steps("```console\n$ cd /\n$ pwd\n/\n$ echo one; echo two\none\n...\n```\n");
        run(&steps, &mut Command::new("sh"), "");
    }

    #[test]
    #[should_panic(expected = "the document says that this prints")]
    fn another_output_fails() {
        run(&steps("```console\n$ echo one\ntwo\n```\n"), &mut Command::new("sh"), "");
    }

    #[test]
    #[should_panic(expected = "failed: `false`")]
    fn a_failing_command_fails() {
        run(&steps("```console\n$ false\n$ echo one\n```\n"), &mut Command::new("sh"), "");
    }
}
