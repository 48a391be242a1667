//! What the diff hook reports, as this plugin works with it. File names, link targets and bytes
//! come from a build: they are to be shown, never to be trusted.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// Two builds of one output that differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finding {
    /// The event's id: the same on every attempt.
    pub id: String,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// The machine.
    pub host: String,
    /// Full store path of the `.drv`.
    pub drv_path: String,
    /// The derivation's name.
    pub name: String,
    /// The output's name; empty where it could not be told.
    pub output: String,
    /// The result Nix had first.
    pub previous_path: String,
    /// The other result.
    pub current_path: String,
    /// What was found.
    pub differences: Vec<Difference>,
    /// Why the comparison did not see everything, if so.
    pub incomplete: Option<String>,
    /// Files compared.
    pub compared_files: u64,
    /// Bytes read of each side.
    pub compared_bytes: u64,
    /// Who had Nix build, where that is known.
    pub user: Option<String>,
    /// By which command.
    pub command: Option<String>,
    /// The version of the Nix that built.
    pub nix: Option<String>,
}

/// How one file differs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// Relative to the output; empty for the output itself.
    pub path: String,
    /// `type`, `size`, `mode`, `link-target`, `content`, `only-in-previous`, `only-in-current`, or
    /// a word of a later host.
    pub kind: String,
    /// The value in the previous result.
    pub previous: String,
    /// The value in the current result.
    pub current: String,
    /// The first byte that differs.
    pub offset: Option<u64>,
    /// More, by the names of the interface: `line`, `from`, `differing-lines` and so on.
    pub details: BTreeMap<String, String>,
}

impl Finding {
    /// `hello-2.12 (out)`, or without the brackets where the output is not known.
    pub fn title(&self) -> String {
        if self.output.is_empty() {
            self.name.clone()
        } else {
            format!("{} ({})", self.name, self.output)
        }
    }

    /// The differences of each file, sorted by path.
    pub fn files(&self) -> BTreeMap<&str, Vec<&Difference>> {
        let mut files: BTreeMap<&str, Vec<&Difference>> = BTreeMap::new();
        for difference in &self.differences {
            files.entry(&difference.path).or_default().push(difference);
        }
        files
    }

    /// The side that alone has this file: `previous` or `current`.
    pub fn only_in(&self, path: &str) -> Option<&'static str> {
        self.differences.iter().filter(|one| one.path == path).find_map(|one| {
            match one.kind.as_str() {
                "only-in-previous" => Some("previous"),
                "only-in-current" => Some("current"),
                _ => None,
            }
        })
    }

    /// What makes two findings the same: which files differ, and how. Not the values: a date
    /// differs each time in the same place.
    pub fn fingerprint(&self) -> String {
        let mut pairs: Vec<(&str, &str)> =
            self.differences.iter().map(|one| (one.path.as_str(), one.kind.as_str())).collect();
        pairs.sort_unstable();
        // Places of one file.
        pairs.dedup();
        let mut hash = Sha256::new();
        for (path, kind) in pairs {
            hash.update(path);
            hash.update([0]);
            hash.update(kind);
            hash.update([0]);
        }
        format!("{:.32x}", hash.finalize())
    }
}

/// The package: the derivation's name without its version, which begins at the first dash that no
/// letter follows (Nix, `parseDrvName` in `names.cc`).
pub fn package_name(name: &str) -> &str {
    let version = name.match_indices('-').find(|(at, _)| {
        name.get(at + 1..)
            .and_then(|rest| rest.chars().next())
            .is_some_and(|c| !c.is_ascii_alphabetic())
    });
    version.and_then(|(at, _)| name.get(..at)).unwrap_or(name)
}
