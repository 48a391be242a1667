//! Prints the demo. The margin shows which program a line is from. Colours are used only on a
//! terminal.

use std::io::IsTerminal as _;

use super::StepResult;

/// Prints to standard output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Show {
    colours: bool,
}

/// Select Graphic Rendition codes, ECMA-48 section 8.3.117.
const STRONG: &str = "1";
const FAINT: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const CYAN: &str = "36";

impl Show {
    /// Returns a value that uses colours if standard output is a terminal and `NO_COLOR`
    /// (no-color.org) is not set.
    pub(super) fn for_stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colours: std::io::stdout().is_terminal() && !unwanted }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colours { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// Prints the title of the demo.
    pub(super) fn title(self, text: &str) {
        println!("{}", self.paint(STRONG, text));
    }

    /// Prints a sentence.
    #[expect(clippy::unused_self, reason = "all output of the demo is printed here")]
    pub(super) fn plain(self, text: &str) {
        println!("{text}");
    }

    /// Prints the heading of a step.
    pub(super) fn step(self, number: usize, title: &str) {
        println!("\n{}", self.paint(STRONG, &format!("{number}. {title}")));
    }

    /// Prints a command line before it is run.
    pub(super) fn command(self, line: &str) {
        println!("   {} {line}", self.paint(FAINT, "$"));
    }

    /// Prints output of Nix.
    pub(super) fn nix(self, text: &str) {
        self.margin("nix", CYAN, text);
    }

    /// Prints output of hookrun.
    pub(super) fn hookrun(self, text: &str) {
        self.margin("hookrun", YELLOW, text);
    }

    /// Prints the contents of a file.
    pub(super) fn file(self, text: &str) {
        self.margin("file", FAINT, text);
    }

    /// Prints lines of one program, without empty ones.
    fn margin(self, who: &str, code: &str, text: &str) {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            println!("   {} {line}", self.paint(code, &format!("{who:>7} |")));
        }
    }

    /// Prints the result of a step.
    pub(super) fn verdict(self, verdict: &StepResult) {
        let (word, code, text) = parts(verdict);
        println!("   {} {text}", self.paint(code, &format!("=> {word}:")));
    }

    /// Prints one line of the summary.
    pub(super) fn summary(self, number: usize, title: &str, verdict: &StepResult) {
        let (word, code, _) = parts(verdict);
        println!("   {number}. {title}: {}", self.paint(code, word));
    }
}

fn parts(verdict: &StepResult) -> (&'static str, &'static str, &str) {
    match verdict {
        StepResult::Works(text) => ("works", GREEN, text),
        StepResult::Broken(text) => ("failed", RED, text),
        StepResult::Impossible(text) => ("not possible here", YELLOW, text),
    }
}
