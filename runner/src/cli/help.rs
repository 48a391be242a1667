//! The command line for clap, with help texts that are wrapped once. In the source, paragraphs are
//! wrapped at the width of the source; here they are joined, and clap wraps them at the width of
//! the terminal.

use clap::{Command, CommandFactory as _};

use super::Cli;

/// Returns the command line with all its subcommands.
pub(super) fn command() -> Command {
    reflow_all(Cli::command())
}

fn reflow_all(command: Command) -> Command {
    let after = command.get_after_help().map(|text| reflow(&text.to_string()));
    let command = match after {
        Some(text) => command.after_help(text),
        None => command,
    };
    command.mut_subcommands(reflow_all)
}

/// A part of a help text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Block {
    /// A paragraph or a heading, on one line.
    Paragraph(String),
    /// Indented lines, which are not changed.
    Verbatim(Vec<String>),
}

/// Splits a help text into its parts.
pub(super) fn blocks(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut continues = false;
    for line in text.lines() {
        let is_verbatim = line.starts_with(' ');
        match blocks.last_mut() {
            Some(Block::Verbatim(lines)) if is_verbatim && continues => lines.push(line.to_owned()),
            Some(Block::Paragraph(text)) if continues && !is_verbatim && !line.is_empty() => {
                text.push(' ');
                text.push_str(line);
            }
            _ if line.is_empty() => {}
            _ if is_verbatim => blocks.push(Block::Verbatim(vec![line.to_owned()])),
            _ => blocks.push(Block::Paragraph(line.to_owned())),
        }
        continues = !line.is_empty();
    }
    blocks
}

fn reflow(text: &str) -> String {
    let mut reflowed = String::new();
    for block in blocks(text) {
        match block {
            Block::Paragraph(text) => {
                if !reflowed.is_empty() {
                    reflowed.push('\n');
                }
                reflowed.push_str(&text);
                reflowed.push('\n');
            }
            Block::Verbatim(lines) => {
                for line in lines {
                    reflowed.push_str(&line);
                    reflowed.push('\n');
                }
            }
        }
    }
    reflowed.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_are_joined_and_examples_stay() {
        let text = "A paragraph that\nwas wrapped.\n\nAnother.\n\nExamples:\n  one\n  two";
        assert_eq!(
            reflow(text),
            "A paragraph that was wrapped.\n\nAnother.\n\nExamples:\n  one\n  two"
        );
    }

    /// Returns the help of every command, as a terminal with this number of columns shows it.
    fn all_helps(command: &Command, columns: usize) -> Vec<String> {
        let own = command.clone().term_width(columns).render_long_help().to_string();
        let below = command.get_subcommands().flat_map(|below| all_helps(below, columns));
        std::iter::once(own).chain(below).collect()
    }

    #[test]
    fn help_fits_a_terminal_and_is_wrapped_once() {
        for help in all_helps(&command(), 100) {
            for line in help.lines() {
                assert!(line.chars().count() <= 100, "{line}\n{help}");
            }
            // A line that ends early is the end of a paragraph.
            for pair in help.lines().collect::<Vec<_>>().windows(2) {
                let [line, next] = pair else { continue };
                let is_text = |line: &str| line.starts_with(|c: char| !c.is_whitespace());
                let word = next.split(' ').next().unwrap_or_default().chars().count();
                let had_room = line.chars().count() + 1 + word <= 100;
                assert!(
                    !(is_text(line) && is_text(next) && had_room),
                    "wrapped twice:\n{line}\n{next}\n{help}"
                );
            }
        }
    }
}
