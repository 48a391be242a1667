//! Guesses the cause of a difference from a few bytes. A guess can be wrong, so the texts are
//! careful, and contents that match no pattern have no cause.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex_lite::Regex;

use crate::finding::{Difference, Finding};
use crate::value::{Value, changed};

/// A possible cause of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A date or a time of day.
    Date,
    /// A time stamp in the header of a compressed file or an archive.
    ArchiveTime,
    /// The build directory's path.
    BuildPath,
    /// The machine's name.
    HostName,
    /// The same lines or words in a different order.
    Order,
    /// A random or counted identifier.
    RandomId,
    /// A number, and nothing else.
    Number,
    /// A file that only one of the builds made.
    Presence,
    /// The contents of a compressed file.
    Compressed,
    /// A build ID, which is computed from the rest of the file.
    BuildId,
}

impl Cause {
    /// Returns whether it follows from another difference of the same file.
    pub const fn follows(self) -> bool {
        matches!(self, Self::BuildId)
    }

    /// Returns the name of the cause as a noun phrase.
    pub const fn looks_like(self) -> &'static str {
        match self {
            Self::Date => "an embedded date or time",
            Self::ArchiveTime => "a time stamp in a file header",
            Self::BuildPath => "the path of the build directory",
            Self::HostName => "the machine's name",
            Self::Order => "the same contents in another order",
            Self::RandomId => "a random identifier",
            Self::Number => "a number that changes, such as a process ID, a counter or a size",
            Self::Presence => "files that only one of the builds made",
            Self::Compressed => "the contents of a compressed file",
            Self::BuildId => "a build ID, which follows from the rest of the file",
        }
    }

    /// Returns what usually helps.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Date => {
                "Many tools take the time from SOURCE_DATE_EPOCH; others have an option to leave the date out."
            }
            Self::ArchiveTime => {
                "Write the archive without times: `gzip -n`, `tar --sort=name --mtime=@$SOURCE_DATE_EPOCH`, `ar D`, and for zip and jar \
                 `touch -d @$SOURCE_DATE_EPOCH` on all files first."
            }
            Self::BuildPath => {
                "Remove the path with a compiler option (`-ffile-prefix-map=$NIX_BUILD_TOP=.`, `--remap-path-prefix`, `-trimpath`), or strip the files that contain it."
            }
            Self::HostName => {
                "Look for `hostname` or `uname -n` in the build, and use a fixed name instead."
            }
            Self::Order => {
                "Sort the entries of directories and hash tables (`LC_ALL=C sort`). If a parallel build writes in the order in which it finishes, try `enableParallelBuilding = false`."
            }
            Self::RandomId => "Use a fixed seed, or derive the identifier from the contents.",
            Self::Number => {
                "Find the source of the number (`$$` or `getpid()`, a counter that several jobs share, the size of another file that differs), and remove it or use a fixed value."
            }
            Self::Presence => {
                "Look for temporary names, for a race in a parallel build (try `enableParallelBuilding = false`), and for steps that depend on the time or the machine."
            }
            Self::Compressed => {
                "The difference is in the data that was compressed. Compare the unpacked contents (diffoscope unpacks them), and fix the files or their order in the archive."
            }
            Self::BuildId => {
                "There is nothing to fix here: it is the same if the rest of the file is the same."
            }
        }
    }
}

/// The minimum number of digits that count as a number: in text, and in bytes, where a few digits
/// may be there by chance.
const DIGITS_IN_TEXT: usize = 1;
const DIGITS_IN_BYTES: usize = 3;

/// Returns the probable causes of one difference; several if lines differ for different reasons.
pub fn of_difference(difference: &Difference, finding: &Finding) -> BTreeSet<Cause> {
    let one = |cause: Option<Cause>| cause.into_iter().collect();
    match difference.kind.as_str() {
        "content" => {
            if difference.details.get("order").is_some_and(|order| order == "lines") {
                return one(Some(Cause::Order));
            }
            let values = (Value::parse(&difference.previous), Value::parse(&difference.current));
            match &values {
                (Value::Text { text: a, .. }, Value::Text { text: b, .. }) => {
                    let (a, b): (Vec<&str>, Vec<&str>) = (a.lines().collect(), b.lines().collect());
                    if a.len() != b.len() {
                        return one(of_texts(
                            &a.join("\n"),
                            &b.join("\n"),
                            finding,
                            DIGITS_IN_TEXT,
                        ));
                    }
                    a.iter()
                        .zip(&b)
                        .filter_map(|(a, b)| of_texts(a, b, finding, DIGITS_IN_TEXT))
                        .collect()
                }
                (previous, current) => one(in_format(difference, previous).or_else(|| {
                    // Compressed bytes match patterns by chance.
                    if compressed(&difference.path) {
                        return Some(Cause::Compressed);
                    }
                    of_texts(&previous.text(), &current.text(), finding, DIGITS_IN_BYTES)
                })),
            }
        }
        "link-target" => {
            one(of_texts(&difference.previous, &difference.current, finding, DIGITS_IN_TEXT))
        }
        "only-in-previous" | "only-in-current" => one(Some(Cause::Presence)),
        _ => BTreeSet::new(),
    }
}

/// Returns the extension of a file name in lower case.
fn extension(path: &str) -> Option<String> {
    let name = path.rsplit('/').next()?;
    name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase())
}

const ZIP: [&str; 7] = ["zip", "jar", "whl", "war", "apk", "egg", "xpi"];

fn compressed(path: &str) -> bool {
    extension(path).is_some_and(|extension| {
        ZIP.contains(&extension.as_str())
            || matches!(
                extension.as_str(),
                "gz" | "tgz" | "svgz" | "bz2" | "xz" | "zst" | "lz4" | "br" | "7z"
            )
    })
}

/// Returns the cause if the format of the file has a time, or a hash of the rest, at a known
/// offset.
fn in_format(difference: &Difference, value: &Value) -> Option<Cause> {
    let offset = difference.offset?;
    let extension = extension(&difference.path).unwrap_or_default();
    let bytes: &[u8] = match value {
        Value::Bytes(bytes) => bytes,
        _ => &[],
    };
    let from: u64 = difference.details.get("from").and_then(|from| from.parse().ok()).unwrap_or(0);
    // The bytes that are shown before the first one that differs.
    let at = usize::try_from(offset.saturating_sub(from)).unwrap_or(usize::MAX);
    let before = bytes.get(..at).unwrap_or_default();
    // `mark` begins a header that has a time in the range `place`.
    let in_header = |mark: &[u8], place: std::ops::Range<usize>| {
        place.into_iter().any(|distance| {
            before
                .len()
                .checked_sub(distance)
                .and_then(|start| before.get(start..start + mark.len()))
                .is_some_and(|found| found == mark)
        })
    };
    let is_time = match extension.as_str() {
        // RFC 1952 section 2.3: MTIME.
        "gz" | "tgz" | "svgz" => (4..8).contains(&offset),
        // PKWARE APPNOTE 4.3.7 and 4.3.12: last mod file time and date of an entry.
        extension if ZIP.contains(&extension) => {
            (10..14).contains(&offset)
                || in_header(b"PK\x03\x04", 10..14)
                || in_header(b"PK\x01\x02", 12..16)
        }
        // ar(5): `ar_date` of the first member, after the magic and 16 bytes of name.
        "a" => (24..36).contains(&offset),
        // POSIX ustar: `mtime` of a header, and the checksum after it.
        "tar" => (136..156).contains(&(offset % 512)),
        // PEP 552: the time of the source, unless the file is hash-based.
        "pyc" => (8..12).contains(&offset),
        _ => false,
    };
    if is_time {
        return Some(Cause::ArchiveTime);
    }
    // An ELF note of the type NT_GNU_BUILD_ID: its name, then the hash.
    let note = before.len().saturating_sub(20);
    let named = before.get(note..).unwrap_or_default().windows(8);
    named.into_iter().any(|window| window == b"\x03\0\0\0GNU\0").then_some(Cause::BuildId)
}

/// Patterns of values that change. A pattern applies if both sides have a match that contains the
/// difference, and the matches differ.
static CHANGING: LazyLock<Vec<(Cause, Regex)>> = LazyLock::new(|| {
    [
        (Cause::Date, r"\b(?:19|20)\d\d[-/.]?[01]\d[-/.]?[0-3]\d(?:[T _-]?[0-2]\d[:h]?[0-5]\d(?:[:m]?[0-5]\d)?)?"),
        (Cause::Date, r"\b[0-2]?\d:[0-5]\d(?::[0-5]\d)?\b"),
        (Cause::Date, r"\b(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*[ _-]+[0-3]?\d"),
        (Cause::Date, r"\b[0-3]?\d[ _-](?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"),
        (Cause::Date, r"\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*,? "),
        // Seconds since 1970, from 2001 to 2033, and the same in milli-, micro- and nanoseconds.
        (Cause::Date, r"\b1\d{9}(?:\d{3}|\d{6}|\d{9})?\b"),
        (Cause::RandomId, r"\b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{1,4}"),
        (Cause::RandomId, r"\btmp[.\-_]?[A-Za-z0-9_]{6,}"),
        (Cause::RandomId, r"\b(?:[0-9]+[a-f]|[a-f]+[0-9])[0-9a-f]{6,}"),
    ]
    .into_iter()
    .filter_map(|(cause, pattern)| Regex::new(pattern).ok().map(|pattern| (cause, pattern)))
    .collect()
});

/// A build directory as Nix names it: `/build` in the sandbox, otherwise `nix-build-NAME.drv-N` or
/// `nix-N-N`.
static BUILD_PATH: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"nix-build-|/builds/nix-\d|^/build/|[^\w.-]/build/").ok());

fn of_texts(previous: &str, current: &str, finding: &Finding, min_digits: usize) -> Option<Cause> {
    let (a, b) = changed(previous, current);
    let overlaps = |found: &regex_lite::Match<'_>, range: &std::ops::Range<usize>| {
        found.start() < range.end.max(range.start + 1) && found.end() > range.start
    };
    let differ = |pattern: &Regex| {
        let one = pattern.find_iter(previous).find(|found| overlaps(found, &a));
        let other = pattern.find_iter(current).find(|found| overlaps(found, &b));
        matches!((one, other), (Some(one), Some(other)) if one.as_str() != other.as_str())
    };
    let (word, other) = (word_around(previous, &a), word_around(current, &b));
    if BUILD_PATH.as_ref().is_some_and(|pattern| pattern.is_match(word) || pattern.is_match(other))
    {
        return Some(Cause::BuildPath);
    }
    if let Some((cause, _)) = CHANGING.iter().find(|(_, pattern)| differ(pattern)) {
        return Some(*cause);
    }
    let host = finding.host.split('.').next().unwrap_or_default();
    // Shorter names occur in other words.
    if host.len() >= 4 && word.contains(host) != other.contains(host) {
        return Some(Cause::HostName);
    }
    if previous != current && same_words(previous, current) {
        return Some(Cause::Order);
    }
    let digits = |text: &str, range: &std::ops::Range<usize>| {
        let part = text.get(range.clone()).unwrap_or_default();
        part.chars().all(|c| c.is_ascii_digit())
    };
    let number = |word: &str| {
        word.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() >= min_digits)
    };
    (previous != current
        && digits(previous, &a)
        && digits(current, &b)
        && number(word)
        && number(other))
    .then_some(Cause::Number)
}

/// Returns the part of `text` around `range` that has no blanks or quotation marks.
fn word_around<'a>(text: &'a str, range: &std::ops::Range<usize>) -> &'a str {
    let ends = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '\'' | '\0');
    let start = text.get(..range.start).and_then(|before| {
        before.char_indices().rev().find(|(_, c)| ends(*c)).map(|(at, c)| at + c.len_utf8())
    });
    let end = text.get(range.end..).and_then(|after| after.find(ends)).map(|at| range.end + at);
    text.get(start.unwrap_or(0)..end.unwrap_or(text.len())).unwrap_or_default()
}

/// Returns whether both texts have the same words in a different order. Words that are cut off at
/// either end do not count.
fn same_words(previous: &str, current: &str) -> bool {
    let words = |text: &str| {
        let mut words: Vec<String> = text
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect();
        words.sort_unstable();
        words
    };
    let (a, b) = (words(previous), words(current));
    a.len() >= 2 && a == b
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(path: &str, offset: u64, previous: &str, current: &str) -> Option<Cause> {
        let difference = Difference {
            path: path.into(),
            kind: "content".into(),
            previous: previous.into(),
            current: current.into(),
            offset: Some(offset),
            ..Difference::default()
        };
        let found = of_difference(
            &difference,
            &Finding { host: "build17.example.org".into(), ..Finding::default() },
        );
        assert!(found.len() <= 1, "{found:?}");
        found.first().copied()
    }

    #[test]
    fn lines_that_differ_for_different_reasons_have_a_cause_each() {
        let difference = Difference {
            kind: "content".into(),
            previous: r#""at 19:47:12\npid 1\n""#.into(),
            current: r#""at 19:47:13\npid 2\n""#.into(),
            ..Difference::default()
        };
        let found = of_difference(&difference, &Finding::default());
        assert_eq!(found, [Cause::Date, Cause::Number].into());
    }

    #[test]
    fn every_pattern_compiles() {
        assert_eq!(CHANGING.len(), 9);
        assert!(BUILD_PATH.is_some());
    }

    #[test]
    fn values_are_matched_to_causes() {
        let text = |previous: &str, current: &str| content("bin/x", 100, previous, current);
        let table = [
            (r#""built 2026-11-22""#, r#""built 2026-11-23""#, Some(Cause::Date)),
            (r#""on Nov 22 2026 19""#, r#""on Nov 23 2026 19""#, Some(Cause::Date)),
            (r#""at 19:47:12\n""#, r#""at 19:47:13\n""#, Some(Cause::Date)),
            (r#""t=1790000000;""#, r#""t=1790000123;""#, Some(Cause::Date)),
            (r#""1790000000123456789\n""#, r#""1790000001123456789\n""#, Some(Cause::Date)),
            (
                r#""/tmp/nix-build-a.drv-0/x""#,
                r#""/tmp/nix-build-a.drv-1/x""#,
                Some(Cause::BuildPath),
            ),
            (r#""id 3f2504e0-4f89-11d3""#, r#""id 9a0c1ee2-4f89-11d3""#, Some(Cause::RandomId)),
            (r#""/tmp/tmp.Ab12Cd34Ef""#, r#""/tmp/tmp.Zz98Yy76Xx""#, Some(Cause::RandomId)),
            (r#""by root@build17""#, r#""by root@localhost""#, Some(Cause::HostName)),
            (r#""alpha beta gamma""#, r#""alpha gamma beta""#, Some(Cause::Order)),
            // The bytes of " 19:47:12" and " 19:47:13" after a zero.
            ("00 20 31 39 3a 34 37 3a 31 32", "00 20 31 39 3a 34 37 3a 31 33", Some(Cause::Date)),
            (r#""pid 55794\n""#, r#""pid 55801\n""#, Some(Cause::Number)),
            (r#""x86_64 a1\n""#, r#""x86_64 a2\n""#, Some(Cause::Number)),
            // The date is the same; what differs is something else.
            (r#""2026-11-22 one\n""#, r#""2026-11-22 two\n""#, None),
            (r#""/build/x same, one""#, r#""/build/x same, two""#, None),
            (r#""hello""#, r#""world""#, None),
            ("7f 45 4c 46", "7f 45 4c 47", None),
            ("", "", None),
            (r#""\""#, "\"", None),
        ];
        for (previous, current, cause) in table {
            assert_eq!(text(previous, current), cause, "{previous} / {current}");
        }
        assert_eq!(content("share/man/a.1.gz", 5, "1f 8b", "1f 8b"), Some(Cause::ArchiveTime));
        assert_eq!(content("lib/a.pyc", 8, "00", "01"), Some(Cause::ArchiveTime));
        assert_eq!(content("lib/a.so", 8, "00", "01"), None);
        assert_eq!(content("src.tar", 512 + 140, "31", "32"), Some(Cause::ArchiveTime));
        assert_eq!(content("src.tar", 512 + 100, "31", "33"), None);
        assert_eq!(content("src.tar.xz", 900, "31", "33"), Some(Cause::Compressed));
        let entry = |time: &str| format!("50 4b 03 04 14 00 00 08 08 00 {time} 7b 5b");
        assert_eq!(content("a.jar", 10, &entry("11"), &entry("12")), Some(Cause::ArchiveTime));
        let note = |id: &str| format!("04 00 00 00 14 00 00 00 03 00 00 00 47 4e 55 00 {id} 11");
        assert_eq!(content("bin/x", 16, &note("aa"), &note("ab")), Some(Cause::BuildId));
    }
}
