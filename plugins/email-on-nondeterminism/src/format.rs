//! Formats text from a build for readers: on one line, of limited length, and without characters
//! that a terminal or a mail reader would interpret.

/// Returns `text` on one line of at most `limit` characters. Control characters, and characters
/// that reorder or hide text ("Trojan Source", CVE-2021-42574), are written as escapes.
pub fn visible(text: &str, limit: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(limit.saturating_mul(4)));
    let mut length = 0;
    for c in text.chars() {
        if length >= limit {
            shown.push('\u{2026}');
            break;
        }
        if is_hidden(c) {
            let escaped = c.escape_default().to_string();
            length += escaped.len();
            shown.push_str(&escaped);
        } else {
            length += 1;
            shown.push(c);
        }
    }
    shown
}

fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Formats a number, such as `12,345`.
pub fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Formats a number with its noun, such as `1 file` and `2,000 files`.
pub fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{} {}", number(count), if count == 1 { one } else { many })
}

/// Formats a number of bytes, such as `17 bytes` and `1.2 MiB`.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => counted(bytes, "byte", "bytes"),
        _ => bytesize::ByteSize(bytes).display().iec().to_string(),
    }
}

/// Formats a time, such as `2026-11-22 19:47:12 UTC`.
pub fn time(milliseconds: u64) -> String {
    // The last second of the year 9999.
    const LAST: u64 = 253_402_300_799;
    let seconds = (milliseconds / 1000).min(LAST);
    let text = humantime::format_rfc3339_seconds(
        std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds),
    )
    .to_string();
    text.replace('T', " ").replace('Z', " UTC")
}

/// Formats a duration in its two largest units, such as `7 days` and `1 day 2 h`.
pub fn duration(duration: std::time::Duration) -> String {
    let text = humantime::format_duration(duration).to_string();
    let mut spaced = String::new();
    for part in text.split(' ').take(2) {
        let unit = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        let (number, unit) = part.split_at(unit);
        let gap = if spaced.is_empty() { "" } else { " " };
        spaced = format!("{spaced}{gap}{number} {unit}");
    }
    spaced
}

/// Returns `word` as an argument of a shell command, quoted if necessary.
pub fn shell_word(word: &str) -> String {
    // Only a null character cannot be quoted, and `visible` has made that readable.
    shlex::try_quote(word).unwrap_or(word.into()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_build_is_escaped_and_cut() {
        assert_eq!(visible("a\r\nb\u{202e}c\u{1b}[2J", 80), r"a\r\nb\u{202e}c\u{1b}[2J");
        assert_eq!(visible(&"x".repeat(20), 5), "xxxxx\u{2026}");
        assert_eq!(visible("gr\u{fc}n", 80), "gr\u{fc}n");
    }

    #[test]
    fn numbers_sizes_and_times_are_formatted() {
        assert_eq!([0, 999, 1000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [1, 1023, 1536, 5 << 30].map(size),
            ["1 byte", "1,023 bytes", "1.5 KiB", "5.0 GiB"]
        );
        assert_eq!(time(1_700_000_000_123), "2023-11-14 22:13:20 UTC");
        assert_eq!(time(u64::MAX), "9999-12-31 23:59:59 UTC");
        assert_eq!(shell_word("/nix/store/a-b"), "/nix/store/a-b");
        assert_eq!(shell_word("a;'b"), "\"a;'b\"");
    }
}
