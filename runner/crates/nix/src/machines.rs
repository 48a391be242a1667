//! The machines of the `builders` setting and of machines files, all eight columns, read as the
//! calling Nix reads them (`libstore/machines.cc`, 2.3 to 2.35).
//!
//! What Nix accepts is read as Nix reads it. Where Nix would give up on the whole command, the
//! machine that cannot be read is left out with one warning that names file, line and column; it
//! must never cost the others, let alone the build.
//!
//! Versions differ in few places ([`Reading`]). The version is asked for only if the text has such
//! a place, because asking starts a program while Nix waits.

use std::fmt;
use std::path::{Path, PathBuf};

use super::installed::{Flavour, Version};
use crate::shared::{Text, Words};

/// How deep `@file` may lead to `@file`: Nix has no bound and overflows its stack on a cycle.
const MAX_DEPTH: usize = 64;
/// Most files that are read for one text, so that files that include each other under several names
/// end.
const MAX_FILES: usize = 1024;
/// The column of each field, from 1, as Nix's manual counts.
const COLUMNS: [&str; 8] = [
    "store URI",
    "systems",
    "ssh key file",
    "maximum number of jobs",
    "speed factor",
    "supported features",
    "mandatory features",
    "public host key",
];

/// How a Nix reads machines: the places where versions differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// True: a comment ends with its line, and blanks may precede `@`. False: a comment also ends
    /// at the next `;`, and an entry with blanks before `@` is a machine.
    whole_line_comments: bool,
    /// True: numbers and host keys are checked. False: a number ends at the first character that is
    /// not a digit, and any word is a host key.
    strict: bool,
    /// True: every word is a host name except `auto`, `daemon`, `local` and words with `/`. False:
    /// every word is one except those that contain `://` or begin with `auto`, `local`, `remote` or
    /// `/`.
    bare_hosts: bool,
}

impl Reading {
    /// The reading of the newest Nix.
    pub const NEWEST: Self = Self { whole_line_comments: true, strict: true, bare_hosts: true };

    /// The reading of this Nix.
    pub fn of((flavour, version): (Flavour, Version)) -> Self {
        Self {
            // Lix reads as Nix 2.18.
            whole_line_comments: flavour == Flavour::Nix && version >= Version(2, 29, 0),
            strict: version >= Version(2, 5, 0),
            bare_hosts: version >= Version(2, 4, 0),
        }
    }
}

/// One machine: a line with its defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineLine {
    /// Column 1, with `ssh://` in front of a bare name.
    pub uri: Text,
    /// Column 2.
    pub systems: Words,
    /// Column 3.
    pub ssh_key: Option<Text>,
    /// Column 4.
    pub max_jobs: u32,
    /// Column 5. Nix 2.19 and older know only whole numbers.
    pub speed_factor: f64,
    /// Column 6, sorted, each once.
    pub supported_features: Words,
    /// Column 7, sorted, each once: supported too, and the derivation must require all of them.
    pub mandatory_features: Words,
    /// Column 8, base64.
    pub host_key: Option<Text>,
}

impl MachineLine {
    /// Returns whether this machine can build a derivation of `system` that requires `features`.
    pub fn fits(&self, system: &str, features: &[String]) -> bool {
        (system == "builtin" || self.systems.iter().any(|known| known == system))
            && features.iter().all(|f| self.features().any(|known| known == f))
            && self.mandatory_features.iter().all(|mandatory| features.contains(mandatory))
    }

    /// All features it has, columns 6 and 7: the former first.
    pub fn features(&self) -> impl Iterator<Item = &String> {
        let more = self
            .mandatory_features
            .iter()
            .filter(|feature| !self.supported_features.contains(feature));
        self.supported_features.iter().chain(more)
    }

    /// The one line that offers just this machine to Nix's own hook. The speed factor is left out:
    /// with one machine it decides nothing, and a fraction is an error for Nix 2.19 and older.
    pub fn line_for_stock_hook(&self) -> String {
        self.render("-")
    }

    fn render(&self, speed_factor: &str) -> String {
        // A lone dash is Nix's word for nothing; one that is an element gets a comma in front,
        // which adds no element.
        let column = |joined: String| if joined == "-" { format!(",{joined}") } else { joined };
        let list = |features: &Words| {
            if features.is_empty() { "-".to_owned() } else { column(features.join(",")) }
        };
        let or_dash = |value: &Option<Text>| value.as_deref().unwrap_or("-").to_owned();
        [
            self.uri.to_string(),
            // A lone comma is an empty list; an empty column would shift the others.
            if self.systems.is_empty() { ",".to_owned() } else { column(self.systems.join(",")) },
            or_dash(&self.ssh_key),
            self.max_jobs.to_string(),
            speed_factor.to_owned(),
            list(&self.supported_features),
            list(&self.mandatory_features),
            or_dash(&self.host_key),
        ]
        .join(" ")
    }
}

impl fmt::Display for MachineLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(&self.speed_factor.to_string()))
    }
}

/// The machines, and a warning for each that was left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Machines {
    /// In the order of the text.
    pub machines: Vec<MachineLine>,
    /// Lower-case fragments that end in the fix.
    pub warnings: Vec<String>,
}

/// Reads the `builders` setting as the newest Nix does; `this_system` is the default of column 2.
pub fn parse(builders: &str, this_system: &str) -> Machines {
    parse_as(builders.as_bytes(), this_system, || None)
}

/// Reads the `builders` setting as the Nix of `version` does, which is asked for only if it
/// matters; the newest if it is not known.
pub fn parse_as(
    builders: &[u8],
    this_system: &str,
    version: impl FnOnce() -> Option<(Flavour, Version)>,
) -> Machines {
    let mut read = |path: &Path| std::fs::read(path);
    let (found, differs) = parse_with(builders, this_system, Reading::NEWEST, &mut read);
    let other = differs.then(version).flatten().map(Reading::of);
    match other.filter(|reading| *reading != Reading::NEWEST) {
        Some(reading) => parse_with(builders, this_system, reading, &mut read).0,
        None => found,
    }
}

/// Reads the `builders` setting, with `@file` read by `read`. The second value says whether another
/// version may read it differently.
pub fn parse_with(
    builders: &[u8],
    this_system: &str,
    reading: Reading,
    read: &mut dyn FnMut(&Path) -> std::io::Result<Vec<u8>>,
) -> (Machines, bool) {
    let mut parser = Parser {
        read,
        reading,
        differs: false,
        lists: Lists::new(this_system),
        found: Machines::default(),
        open: Vec::new(),
        files: 0,
    };
    parser.text(builders);
    (parser.found, parser.differs)
}

struct Parser<'a> {
    read: &'a mut dyn FnMut(&Path) -> std::io::Result<Vec<u8>>,
    reading: Reading,
    differs: bool,
    lists: Lists,
    found: Machines,
    /// The files being read, outermost first.
    open: Vec<PathBuf>,
    /// How many were read.
    files: usize,
}

/// The characters that separate columns and surround entries (`tokenizeString` and `trim`).
const fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

fn trimmed(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|byte| !is_blank(*byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !is_blank(*byte)).map_or(start, |last| last + 1);
    text.get(start..end).unwrap_or_default()
}

/// `text` up to its comment.
fn uncommented(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == b'#').next().unwrap_or_default()
}

impl Parser<'_> {
    fn text(&mut self, text: &[u8]) {
        for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let code = uncommented(line);
            self.differs |= line.get(code.len()..).is_some_and(|comment| comment.contains(&b';'));
            let line = if self.reading.whole_line_comments { code } else { line };
            for entry in line.split(|byte| *byte == b';') {
                self.entry(uncommented(entry), index + 1);
            }
        }
    }

    fn entry(&mut self, untrimmed: &[u8], line: usize) {
        let entry = trimmed(untrimmed);
        if let Some(path) = entry.strip_prefix(b"@") {
            self.differs |= !untrimmed.starts_with(b"@");
            if self.reading.whole_line_comments || untrimmed.starts_with(b"@") {
                use std::os::unix::ffi::OsStrExt as _;
                let path = std::ffi::OsStr::from_bytes(trimmed(path));
                return self.include(Path::new(path), line);
            }
            let shown = String::from_utf8_lossy(entry);
            self.warn(
                line,
                &format!(
                    "`{shown}` is read as a machine, because this Nix includes a file only where \
                     `@` comes first; remove the blanks before it"
                ),
            );
        }
        if entry.is_empty() {
            return;
        }
        match machine(entry, self.reading, &mut self.lists, &mut self.differs) {
            Ok(machine) => self.found.machines.push(machine),
            Err((column, problem)) => {
                let name = COLUMNS.get(column).copied().unwrap_or_default();
                let problem =
                    format!("column {} ({name}): {problem}; the machine is left out", column + 1);
                self.warn(line, &problem);
            }
        }
    }

    fn include(&mut self, path: &Path, line: usize) {
        let shown = path.display();
        if self.open.len() >= MAX_DEPTH || self.open.iter().any(|open| open == path) {
            self.warn(
                line,
                &format!(
                    "`@{shown}` includes itself or is more than {MAX_DEPTH} files deep; remove it"
                ),
            );
            return;
        }
        if self.files >= MAX_FILES {
            self.warn(line, &format!("`@{shown}` is not read: it is file number {}, and at most {MAX_FILES} are read; merge some of them", self.files + 1));
            return;
        }
        self.files += 1;
        match (self.read)(path) {
            Ok(text) => {
                self.open.push(path.to_owned());
                self.text(&text);
                self.open.pop();
            }
            // The default value names a file that most installations do not have.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                self.warn(
                    line,
                    &format!("`@{shown}` cannot be read ({error}); make it readable or remove it"),
                );
            }
        }
    }

    fn warn(&mut self, line: usize, problem: &str) {
        let place = self
            .open
            .last()
            .map_or_else(|| "setting `builders`".to_owned(), |path| path.display().to_string());
        self.found.warnings.push(format!("{place}:{line}: {problem}"));
    }
}

/// The lists of the line before. Most lines of a long file say the same.
struct Lists {
    this_system: Words,
    systems: (String, Words),
    features: [(String, Words); 2],
}

impl Lists {
    fn new(this_system: &str) -> Self {
        let this_system = std::iter::once(this_system.to_owned()).collect();
        Self { this_system, systems: Default::default(), features: Default::default() }
    }
}

/// The words of `text`, which `last` has if it is the same as before.
fn words(last: &mut (String, Words), text: &str, is_set: bool) -> Words {
    if last.0 != text {
        let mut words: Vec<String> =
            text.split(',').filter(|word| !word.is_empty()).map(ToOwned::to_owned).collect();
        if is_set {
            words.sort_unstable();
            words.dedup();
        }
        *last = (text.to_owned(), words.into_iter().collect());
    }
    last.1.clone()
}

/// One entry, or the index of the column that is wrong and how.
fn machine(
    entry: &[u8],
    reading: Reading,
    lists: &mut Lists,
    differs: &mut bool,
) -> Result<MachineLine, (usize, String)> {
    let mut columns = [None; COLUMNS.len()];
    let words = entry.split(|byte| is_blank(*byte)).filter(|word| !word.is_empty());
    for (index, (column, word)) in columns.iter_mut().zip(words).enumerate() {
        let word = std::str::from_utf8(word)
            .map_err(|_| (index, "it is not UTF-8; write it in UTF-8".to_owned()))?;
        *column = Some(word).filter(|word| *word != "-");
    }
    let [uri, systems, ssh_key, max_jobs, speed_factor, supported, mandatory, host_key] = columns;
    let uri =
        uri.ok_or_else(|| (0, "a store URI is needed, such as `ssh://builder`".to_owned()))?;
    let [supported_before, mandatory_before] = &mut lists.features;
    let as_before_2_4 = uri_before_2_4(uri);
    let uri = full_uri(uri);
    *differs |= uri != as_before_2_4;
    let max_jobs = match max_jobs {
        None => 1,
        Some(text) => text.parse().or_else(|_| {
            *differs = true;
            leading_number(text).filter(|_| !reading.strict).ok_or_else(|| {
                (3, format!("`{text}` is not a number of jobs; write a whole number such as `4`"))
            })
        })?,
    };
    let speed_factor = match speed_factor {
        None => 1.0,
        Some(text) => factor(text).map_or_else(
            || {
                *differs = true;
                let number = leading_number(text).filter(|_| !reading.strict);
                number.map(|number| f64::from(number.max(1))).ok_or_else(|| {
                    let what = "is not a speed factor; write a number over 0 such as `2`";
                    (4, format!("`{text}` {what}"))
                })
            },
            Ok,
        )?,
    };
    if host_key.is_some_and(|text| !is_base64(text)) {
        *differs = true;
        if reading.strict {
            let what = "it is not base64; write the output of `base64 -w0` on the machine's public host key";
            return Err((7, what.to_owned()));
        }
    }
    Ok(MachineLine {
        uri: if reading.bare_hosts { uri } else { as_before_2_4 },
        systems: systems.map_or_else(
            || lists.this_system.clone(),
            |text| self::words(&mut lists.systems, text, false),
        ),
        ssh_key: ssh_key.map(Text::from),
        max_jobs,
        speed_factor,
        supported_features: self::words(supported_before, supported.unwrap_or_default(), true),
        mandatory_features: self::words(mandatory_before, mandatory.unwrap_or_default(), true),
        host_key: host_key.map(Text::from),
    })
}

/// `speedFactor` as Nix reads it, in single precision: never negative; 0 counts as 1. What is not a
/// finite number stays comparable.
fn factor(text: &str) -> Option<f64> {
    let factor: f64 = text.parse().ok()?;
    #[expect(clippy::cast_possible_truncation, reason = "the precision of Nix")]
    let as_nix = factor as f32;
    match as_nix {
        0.0 => Some(1.0),
        nan if nan.is_nan() => Some(1.0),
        infinite if infinite == f32::INFINITY => Some(f64::from(f32::MAX)),
        positive if positive > 0.0 => Some(factor),
        _ => None,
    }
}

/// `std::stoull`, cut to an `unsigned int`: what is behind the digits is not looked at.
fn leading_number(text: &str) -> Option<u32> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = digits.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
    let number: u64 = digits.get(..end)?.parse().ok()?;
    let number = if negative { number.wrapping_neg() } else { number };
    #[expect(clippy::cast_possible_truncation, reason = "what the C++ does")]
    let number = number as u32;
    Some(number)
}

/// Nix's own decoder: what follows the first `=` is not looked at, and neither is the length.
fn is_base64(text: &str) -> bool {
    let mut code = text.bytes().take_while(|byte| *byte != b'=');
    code.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
}

/// A URI without a scheme that is neither a path nor one of Nix's words is a host name.
pub fn full_uri(uri: &str) -> Text {
    let word = uri.split_once('?').map_or(uri, |(word, _)| word);
    if uri.contains('/') || matches!(word, "auto" | "daemon" | "local" | "") {
        uri.into()
    } else {
        format!("ssh://{uri}").into()
    }
}

/// The same in Nix 2.3.
fn uri_before_2_4(uri: &str) -> Text {
    let as_it_is = ["local", "remote", "auto", "/"].iter().any(|start| uri.starts_with(start));
    if as_it_is || uri.contains("://") { uri.into() } else { format!("ssh://{uri}").into() }
}

#[cfg(test)]
mod tests;
