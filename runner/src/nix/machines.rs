//! The machines of the `builders` setting and of machines files (`libstore/machines.cc`, 2.3 to
//! 2.35), all eight columns.
//!
//! A machine that cannot be read is left out with one warning that names file, line and column; it
//! must never cost the others, let alone the build. (Nix itself gives up on the whole command.)

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;

use crate::shared::{Text, Words};

/// How deep `@file` may lead to `@file`: Nix has no bound and overflows its stack on a cycle.
const MAX_INCLUDES: usize = 8;
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
    /// Can this machine build a derivation of `system` that requires `features`?
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

/// Reads the `builders` setting; `this_system` is the default of column 2.
pub fn parse(builders: &str, this_system: &str) -> Machines {
    parse_with(builders, this_system, &mut |path| std::fs::read_to_string(path))
}

/// As [`parse`], with `@file` read by `read`.
pub fn parse_with(
    builders: &str,
    this_system: &str,
    read: &mut dyn FnMut(&Path) -> std::io::Result<String>,
) -> Machines {
    let mut parser = Parser {
        read,
        lists: Lists::new(this_system),
        found: Machines::default(),
        open: Vec::new(),
    };
    parser.text(builders);
    parser.found
}

struct Parser<'a> {
    read: &'a mut dyn FnMut(&Path) -> std::io::Result<String>,
    lists: Lists,
    found: Machines,
    /// The files being read, outermost first.
    open: Vec<PathBuf>,
}

impl Parser<'_> {
    fn text(&mut self, text: &str) {
        for (index, line) in text.split('\n').enumerate() {
            for entry in line.split(';') {
                let entry = entry.split_once('#').map_or(entry, |(before, _)| before).trim();
                match entry.strip_prefix('@') {
                    _ if entry.is_empty() => {}
                    Some(path) => self.include(Path::new(path.trim()), index + 1),
                    None => match machine(entry, &mut self.lists) {
                        Ok(machine) => self.found.machines.push(machine),
                        Err((column, problem)) => {
                            let name = COLUMNS.get(column).copied().unwrap_or_default();
                            self.warn(
                                index + 1,
                                &format!(
                                    "column {} ({name}): {problem}; the machine is left out",
                                    column + 1
                                ),
                            );
                        }
                    },
                }
            }
        }
    }

    fn include(&mut self, path: &Path, line: usize) {
        if self.open.len() >= MAX_INCLUDES || self.open.iter().any(|open| open == path) {
            self.warn(
                line,
                &format!(
                    "`@{}` includes itself or is more than {MAX_INCLUDES} files deep; remove it",
                    path.display()
                ),
            );
            return;
        }
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
                    &format!(
                        "`@{}` cannot be read ({error}); make it readable or remove it",
                        path.display()
                    ),
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
fn machine(entry: &str, lists: &mut Lists) -> Result<MachineLine, (usize, String)> {
    // Nix's `tokenizeString` splits at these four. What is left of text when it is cut at ASCII is
    // text.
    let parts = entry.as_bytes().split(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
    let mut columns =
        parts.filter(|part| !part.is_empty()).filter_map(|part| std::str::from_utf8(part).ok());
    let mut next = || columns.next().filter(|text| *text != "-");
    let uri =
        next().ok_or_else(|| (0, "a store URI is needed, such as `ssh://builder`".to_owned()))?;
    let systems = next();
    let ssh_key = next();
    let max_jobs = next();
    let speed_factor = next();
    let [supported, mandatory] = [next(), next()];
    let host_key = next();
    let [supported_before, mandatory_before] = &mut lists.features;
    Ok(MachineLine {
        uri: full_uri(uri),
        systems: systems.map_or_else(|| lists.this_system.clone(), |text| words(&mut lists.systems, text, false)),
        ssh_key: ssh_key.map(Text::from),
        max_jobs: max_jobs.map_or(Ok(1), |text| {
            text.parse().map_err(|_| (3, format!("`{text}` is no number of jobs; write a whole number such as `4`")))
        })?,
        speed_factor: speed_factor.map_or(Ok(1.0), |text| {
            factor(text).ok_or_else(|| (4, format!("`{text}` is no speed factor; write a number over 0 such as `2`")))
        })?,
        supported_features: words(supported_before, supported.unwrap_or_default(), true),
        mandatory_features: words(mandatory_before, mandatory.unwrap_or_default(), true),
        host_key: host_key
            .map(|text| {
                base64_like(text).then(|| Text::from(text)).ok_or_else(|| {
                    (7, "it is not base64; write the output of `base64 -w0` on the machine's public host key".to_owned())
                })
            })
            .transpose()?,
    })
}

/// `speedFactor` as Nix reads it: never negative; 0 counts as 1 up to 2.19.
fn factor(text: &str) -> Option<f64> {
    let factor: f64 = text.parse().ok()?;
    match factor {
        0.0 => Some(1.0),
        factor if factor.is_finite() && factor > 0.0 => Some(factor),
        _ => None,
    }
}

/// Nix's own decoder takes both padded and unpadded text.
fn base64_like(text: &str) -> bool {
    base64::engine::general_purpose::STANDARD_NO_PAD.decode(text.trim_end_matches('=')).is_ok()
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

#[cfg(test)]
mod tests;
