//! The machines of the `builders` setting and of machines files, all eight columns, read as the
//! calling Nix reads them (`libstore/machines.cc`, 2.3 to 2.35).
//!
//! What Nix accepts is read as Nix reads it. If Nix would fail the whole command, only the machine
//! that cannot be read is left out, with one warning that names file, line and column. Other
//! machines and the build are not affected.
//!
//! Versions differ in few places ([`Reading`]). The version is requested only if the text has such
//! a place, because that starts a program while Nix is blocked.

mod entry;

use std::fmt;
use std::path::{Path, PathBuf};

pub use entry::full_uri;
use entry::machine;

use super::installed::{Flavour, Version};

/// The maximum depth of `@file` in `@file`. Nix has no limit, and overflows its stack on a cycle.
const MAX_DEPTH: usize = 64;
/// The maximum number of files for one text, so that files that include each other under several
/// names end.
const MAX_FILES: usize = 1024;
/// The name of each column, as in Nix's manual, which counts from 1.
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

/// How a version of Nix reads machines, in the places where versions differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// If true, a comment ends with its line, and blanks may precede `@`. If false, a comment also
    /// ends at the next `;`, and an entry with blanks before `@` is a machine.
    whole_line_comments: bool,
    /// If true, numbers and host keys are checked. If false, a number ends at the first character
    /// that is not a digit, and any word is a host key.
    strict: bool,
    /// If true, every word is a host name except `auto`, `daemon`, `local` and words with `/`. If
    /// false, every word is one except those that contain `://` or begin with `auto`, `local`,
    /// `remote` or `/`.
    bare_hosts: bool,
}

impl Reading {
    /// The rules of the newest Nix.
    pub const NEWEST: Self = Self { whole_line_comments: true, strict: true, bare_hosts: true };

    /// Returns the rules of this Nix.
    pub fn of((flavour, version): (Flavour, Version)) -> Self {
        Self {
            // Lix reads as Nix 2.18.
            whole_line_comments: flavour == Flavour::Nix && version >= Version(2, 29, 0),
            strict: version >= Version(2, 5, 0),
            bare_hosts: version >= Version(2, 4, 0),
        }
    }
}

/// A machine: one line with defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineLine {
    /// Column 1, with `ssh://` in front of a bare name.
    pub uri: String,
    /// Column 2.
    pub systems: Vec<String>,
    /// Column 3.
    pub ssh_key: Option<String>,
    /// Column 4.
    pub max_jobs: u32,
    /// Column 5, the speed factor. Nix 2.19 and older know only whole numbers.
    pub speed_factor: f64,
    /// Column 6, sorted, each once.
    pub supported_features: Vec<String>,
    /// Column 7, sorted, each once: supported too, and the derivation must require all of them.
    pub mandatory_features: Vec<String>,
    /// Column 8, base64.
    pub host_key: Option<String>,
}

impl MachineLine {
    /// Returns whether this machine can build a derivation of `system` that requires `features`.
    pub fn fits(&self, system: &str, features: &[String]) -> bool {
        (system == "builtin" || self.systems.iter().any(|known| known == system))
            && features.iter().all(|f| self.features().any(|known| known == f))
            && self.mandatory_features.iter().all(|mandatory| features.contains(mandatory))
    }

    /// Returns all features, those of column 6 before those of column 7.
    pub fn features(&self) -> impl Iterator<Item = &String> {
        let more = self
            .mandatory_features
            .iter()
            .filter(|feature| !self.supported_features.contains(feature));
        self.supported_features.iter().chain(more)
    }

    /// Returns a line that offers only this machine to Nix's own hook. The speed factor is left
    /// out, because it has no effect with one machine, and a fraction is an error for Nix 2.19 and
    /// older.
    pub fn line_for_stock_hook(&self) -> String {
        self.render("-")
    }

    fn render(&self, speed_factor: &str) -> String {
        // A single dash means an empty column. An element that is a dash gets a comma before it,
        // which adds no element.
        let column = |joined: String| if joined == "-" { format!(",{joined}") } else { joined };
        let list = |features: &[String]| {
            if features.is_empty() { "-".to_owned() } else { column(features.join(",")) }
        };
        let or_dash = |value: &Option<String>| value.as_deref().unwrap_or("-").to_owned();
        [
            self.uri.clone(),
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

/// The machines, and a warning for each one that was left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Machines {
    /// The machines in the order of the text.
    pub machines: Vec<MachineLine>,
    /// Warnings in lower case, which end with the fix.
    pub warnings: Vec<String>,
}

/// Reads the `builders` setting as the newest Nix does. `this_system` is the default of column 2.
pub fn parse(builders: &str, this_system: &str) -> Machines {
    parse_as(builders.as_bytes(), this_system, || None)
}

/// Reads the `builders` setting as the Nix of `version` does. The version is requested only if it
/// matters; if it is not known, it is the newest.
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

/// Reads the `builders` setting, with files in `@file` read by `read`. The second value is whether
/// another version may read it differently.
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
        this_system,
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
    this_system: &'a str,
    found: Machines,
    /// The files that are being read, outermost first.
    open: Vec<PathBuf>,
    /// The number of files that were read.
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

/// Returns `text` up to its comment.
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
                    "`{shown}` is read as a machine, because this Nix includes a file only if `@` is the first character; remove the blanks before it"
                ),
            );
        }
        if entry.is_empty() {
            return;
        }
        match machine(entry, self.reading, self.this_system, &mut self.differs) {
            Ok(machine) => self.found.machines.push(machine),
            Err((column, problem)) => {
                let name = COLUMNS.get(column).copied().unwrap_or_default();
                let problem =
                    format!("column {} ({name}): {problem}; the machine is ignored", column + 1);
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
                    "`@{shown}` includes itself or is nested more than {MAX_DEPTH} files deep; remove it"
                ),
            );
            return;
        }
        if self.files >= MAX_FILES {
            self.warn(line, &format!("`@{shown}` is ignored: it is file number {}, and the limit is {MAX_FILES} files; merge some of them", self.files + 1));
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

#[cfg(test)]
mod tests;
