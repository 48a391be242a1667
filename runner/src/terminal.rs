//! What comes from outside and goes to a terminal: derivation names, plugins' messages, words of
//! their metadata. Used wherever hookrun prints text that it did not write: commands, the gate, and
//! what Nix shows for the build hook.

/// `message` as one line of hookrun's on standard error, in one write: lines of processes that
/// share it do not mix.
pub fn say(message: &str) {
    use std::io::Write as _;
    // Nobody may be listening.
    let _said = std::io::stderr().write_all(format!("hookrun: {message}\n").as_bytes());
}

/// `text` with what a terminal would obey shown instead: control characters, and those that turn
/// the direction of what follows or break a line (Unicode Technical Report 36, "Bidirectional Text
/// Spoofing").
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| if obeyed(c) { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

/// Does a terminal do something else with this character than show it?
pub fn obeyed(c: char) -> bool {
    (c.is_control() && c != '\t')
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        assert_eq!(printable("a\u{1b}[31mb\nc\td"), "a\\u{1b}[31mb\\nc\td");
        assert_eq!(printable("a\u{9b}31mb"), "a\\u{9b}31mb", "a control sequence in one character");
        assert_eq!(
            printable("a\u{202e}b\u{2066}c"),
            "a\\u{202e}b\\u{2066}c",
            "nor text that turns round"
        );
        assert_eq!(printable("grüße, 世界 👍"), "grüße, 世界 👍");
    }
}
