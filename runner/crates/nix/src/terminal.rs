//! Makes text from outside safe for a terminal: derivation names, messages and metadata of plugins.
//! Used wherever hookrun prints text that it did not write: in commands, in the gate, and in the
//! messages that Nix shows for the build hook.

use std::fmt::Write as _;

/// Writes `message` as one line to standard error, in one write, so that lines of different
/// processes do not mix.
pub fn say(message: &str) {
    use std::io::Write as _;
    // Standard error may be closed.
    let _said = std::io::stderr().write_all(format!("{}hookrun: {message}\n", stamp()).as_bytes());
}

/// The variable that is set for processes whose standard error is a log file; their lines begin
/// with the time. A terminal, Nix and systemd's journal need no times from hookrun.
pub const STAMPED: &str = "HOOKRUN_STAMP_LINES";

/// Returns the prefix of a line on standard error: the local time if it goes to a log file.
pub fn stamp() -> String {
    if std::env::var_os(STAMPED).is_none() {
        return String::new();
    }
    chrono::Local::now().format("%Y-%m-%d %H:%M:%S%:z ").to_string()
}

/// Returns `text` with escapes for characters that a terminal would interpret: control characters,
/// and those that change the direction of text or break a line (Unicode Technical Report 36,
/// "Bidirectional Text Spoofing").
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| if obeyed(c) { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

/// Escapes the characters in JSON text that a terminal would interpret. In JSON these characters
/// only occur inside strings, where an escape has the same meaning (RFC 8259, section 7). Every
/// JSON writer already escapes those below U+0020.
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
    fn characters_that_a_terminal_interprets_are_escaped() {
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
    fn escaped_json_has_the_same_meaning() {
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
            assert!(escaped.contains("世界 👍"), "printable characters are not escaped");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
        }
    }
}
