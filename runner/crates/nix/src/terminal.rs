//! Makes text from outside safe for a terminal: derivation names, plugins' messages and metadata.
//! Used wherever hookrun prints text that it did not write: in commands, in the gate, and in what
//! Nix shows for the build hook.

use std::fmt::Write as _;

/// Writes `message` as one line to standard error, in one write, so that lines of processes that
/// share it do not mix.
pub fn say(message: &str) {
    use std::io::Write as _;
    // Standard error may be closed.
    let _said = std::io::stderr().write_all(format!("{}hookrun: {message}\n", stamp()).as_bytes());
}

/// Set in the environment of processes whose standard error is a log file: their lines begin with
/// the time. A terminal, Nix and the journal of systemd need no times from us.
pub const STAMPED: &str = "HOOKRUN_STAMP_LINES";

/// What a line on standard error begins with: the local time where it goes to a log file.
pub fn stamp() -> String {
    if std::env::var_os(STAMPED).is_none() {
        return String::new();
    }
    chrono::Local::now().format("%Y-%m-%d %H:%M:%S%:z ").to_string()
}

/// `text` with what a terminal would obey shown instead: control characters, and those that turn
/// the direction of what follows or break a line (Unicode Technical Report 36, "Bidirectional Text
/// Spoofing").
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| if obeyed(c) { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

/// JSON text in which no character is left that a terminal would obey instead of showing it. In
/// JSON such characters only occur inside strings, where an escape means the same (RFC 8259,
/// section 7); those below U+0020 are escaped by every JSON writer.
pub fn printable_json(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c >= ' ' && obeyed(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// Returns whether a terminal interprets this character instead of showing it.
pub fn obeyed(c: char) -> bool {
    (c.is_control() && c != '\t')
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_a_terminal_obeys_are_escaped() {
        assert_eq!(printable("a\u{1b}[31mb\nc\td"), "a\\u{1b}[31mb\\nc\td");
        assert_eq!(printable("a\u{9b}31mb"), "a\\u{9b}31mb", "a control sequence in one character");
        assert_eq!(
            printable("a\u{202e}b\u{2066}c"),
            "a\\u{202e}b\\u{2066}c",
            "overrides of the text direction"
        );
        assert_eq!(printable("grüße, 世界 👍"), "grüße, 世界 👍");
    }

    #[test]
    fn json_keeps_its_meaning_and_loses_what_a_terminal_obeys() {
        let obeyed = ('\u{0}'..='\u{ffff}').filter(|c| obeyed(*c)).collect::<String>();
        for needed in
            "\u{7f}\u{80}\u{9b}\u{9f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2066}\u{2069}".chars()
        {
            assert!(obeyed.contains(needed), "{needed:?}");
        }
        let value = serde_json::json!({ obeyed.clone(): [obeyed, "grüße, 世界 👍"] });
        for text in [value.to_string(), format!("{value:#}")] {
            let escaped = printable_json(&text);
            assert!(escaped.chars().all(|c| c == '\n' || !super::obeyed(c)), "{escaped}");
            assert!(escaped.contains("世界 👍"), "what a terminal shows stays readable");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
        }
    }
}
