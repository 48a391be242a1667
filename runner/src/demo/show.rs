//! How the demo prints: who said a line is in a margin, colours on a terminal only.

use std::io::IsTerminal as _;

use super::Verdict;

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
    /// Colours if standard output is a terminal and `NO_COLOR` (no-color.org) is not set.
    pub(super) fn for_stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colours: std::io::stdout().is_terminal() && !unwanted }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colours { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// A heading of the whole.
    pub(super) fn title(self, text: &str) {
        println!("{}", self.paint(STRONG, text));
    }

    /// A plain sentence.
    #[expect(clippy::unused_self, reason = "all that the demo prints goes one way")]
    pub(super) fn plain(self, text: &str) {
        println!("{text}");
    }

    /// The heading of a step.
    pub(super) fn step(self, number: usize, title: &str) {
        println!("\n{}", self.paint(STRONG, &format!("{number}. {title}")));
    }

    /// A command line that is run now.
    pub(super) fn command(self, line: &str) {
        println!("   {} {line}", self.paint(FAINT, "$"));
    }

    /// What Nix said.
    pub(super) fn nix(self, text: &str) {
        self.margin("nix", CYAN, text);
    }

    /// What hookrun said or did.
    pub(super) fn hookrun(self, text: &str) {
        self.margin("hookrun", YELLOW, text);
    }

    /// What a file holds.
    pub(super) fn file(self, text: &str) {
        self.margin("file", FAINT, text);
    }

    /// Lines of one voice, empty ones left out.
    fn margin(self, who: &str, code: &str, text: &str) {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            println!("   {} {line}", self.paint(code, &format!("{who:>7} |")));
        }
    }

    /// How a step ended.
    pub(super) fn verdict(self, verdict: &Verdict) {
        let (word, code, text) = parts(verdict);
        println!("   {} {text}", self.paint(code, &format!("=> {word}:")));
    }

    /// One line of the summary.
    pub(super) fn summary(self, number: usize, title: &str, verdict: &Verdict) {
        let (word, code, _) = parts(verdict);
        println!("   {number}. {title}: {}", self.paint(code, word));
    }
}

fn parts(verdict: &Verdict) -> (&'static str, &'static str, &str) {
    match verdict {
        Verdict::Works(text) => ("works", GREEN, text),
        Verdict::Broken(text) => ("does not work", RED, text),
        Verdict::Impossible(text) => ("not possible here", YELLOW, text),
    }
}
