//! What a difference looks like. A hint from a few bytes, not a finding: the words stay careful,
//! and where nothing fits there is no hint.

use std::sync::LazyLock;

use regex_lite::Regex;

use crate::finding::{Difference, Finding};

/// What may be behind a difference.
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
    /// The same things in another order.
    Order,
    /// A random or counted identifier.
    RandomId,
}

impl Cause {
    /// Goes after "looks like".
    pub const fn looks_like(self) -> &'static str {
        match self {
            Self::Date => "an embedded date or time",
            Self::ArchiveTime => "a time stamp in a file header",
            Self::BuildPath => "the path of the build directory",
            Self::HostName => "the machine's name",
            Self::Order => "the same things in another order",
            Self::RandomId => "a random identifier",
        }
    }

    /// What usually helps.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Date => {
                "Many tools take the time from SOURCE_DATE_EPOCH; others have an option to leave the date out."
            }
            Self::ArchiveTime => {
                "Write the archive without times: `gzip -n`, `zip -X` after `touch -d @$SOURCE_DATE_EPOCH`, `ar D`, `tar --mtime`."
            }
            Self::BuildPath => {
                "Map the path away (`-ffile-prefix-map=$NIX_BUILD_TOP=.`, `--remap-path-prefix`, `-trimpath`), or strip what holds it."
            }
            Self::HostName => {
                "Look for `hostname` or `uname -n` in the build, and give it a fixed name."
            }
            Self::Order => {
                "Sort what is read from directories and hash tables (`LC_ALL=C sort`); or a parallel build writes as it finishes: try \
                 `enableParallelBuilding = false`."
            }
            Self::RandomId => "Seed what is random, or derive the identifier from the contents.",
        }
    }
}

/// What the differences of one file look like.
pub fn of_file(differences: &[&Difference], finding: &Finding) -> Option<Cause> {
    differences.iter().find_map(|difference| of_difference(difference, finding))
}

fn of_difference(difference: &Difference, finding: &Finding) -> Option<Cause> {
    match difference.kind.as_str() {
        "content" => {
            let (previous, current) =
                (bytes_as_text(&difference.previous), bytes_as_text(&difference.current));
            header_time(&difference.path, difference.offset)
                .or_else(|| of_texts(&previous, &current, finding))
        }
        "link-target" => of_texts(&difference.previous, &difference.current, finding),
        _ => None,
    }
}

/// The host shows bytes around a difference as quoted text, or in hexadecimal.
fn bytes_as_text(shown: &str) -> String {
    if let Some(quoted) = shown.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        return quoted
            .replace("\\n", "\n")
            .replace("\\t", "\t")
            .replace("\\\"", "\"")
            .replace("\\\\", "\\");
    }
    let bytes: Option<Vec<u8>> =
        shown.split(' ').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes.map_or_else(|| shown.to_owned(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Formats that carry a time at a known place.
fn header_time(path: &str, offset: Option<u64>) -> Option<Cause> {
    let offset = offset?;
    let extension = path.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase())?;
    let place = match extension.as_str() {
        // RFC 1952 section 2.3: MTIME.
        "gz" | "tgz" | "svgz" => 4..8,
        // PKWARE APPNOTE 4.3.7: last mod file time and date of the first entry.
        "zip" | "jar" | "whl" | "war" | "apk" | "egg" => 10..14,
        // ar(5): `ar_date` of the first member, after the magic and 16 bytes of name.
        "a" => 24..36,
        // PEP 552: the source's time, unless the file is of the hash-based kind.
        "pyc" => 8..12,
        _ => return None,
    };
    place.contains(&offset).then_some(Cause::ArchiveTime)
}

/// One pattern; a match counts if both sides have one and they are not the same.
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

/// A build directory, as Nix makes them: `/build` in the sandbox, `nix-build-NAME.drv-N` or
/// `nix-N-N` outside.
static BUILD_PATH: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"nix-build-|/builds/nix-\d|^/build/|[^\w.-]/build/").ok());

fn of_texts(previous: &str, current: &str, finding: &Finding) -> Option<Cause> {
    let differ = |pattern: &Regex| match (pattern.find(previous), pattern.find(current)) {
        (Some(a), Some(b)) => a.as_str() != b.as_str(),
        _ => false,
    };
    if BUILD_PATH
        .as_ref()
        .is_some_and(|pattern| pattern.is_match(previous) || pattern.is_match(current))
    {
        return Some(Cause::BuildPath);
    }
    if let Some((cause, _)) = CHANGING.iter().find(|(_, pattern)| differ(pattern)) {
        return Some(*cause);
    }
    let host = finding.host.split('.').next().unwrap_or_default();
    // Shorter names turn up in other words.
    if host.len() >= 4 && previous.contains(host) != current.contains(host) {
        return Some(Cause::HostName);
    }
    (previous != current && same_words(previous, current)).then_some(Cause::Order)
}

/// The same words in another order. What is cut off at either end does not count.
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
        of_file(
            &[&difference],
            &Finding { host: "build17.example.org".into(), ..Finding::default() },
        )
    }

    #[test]
    fn every_pattern_is_a_pattern() {
        assert_eq!(CHANGING.len(), 9);
        assert!(BUILD_PATH.is_some());
    }

    #[test]
    fn hints() {
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
    }
}
