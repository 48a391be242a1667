//! The event of the diff hook, as this plugin uses it. File names, link targets and bytes come from
//! a build and are not trusted.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// Two builds of the same output with different results.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finding {
    /// The event's id, which is the same for every attempt.
    pub id: String,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// The host name of the machine.
    pub host: String,
    /// The full store path of the `.drv` file.
    pub drv_path: String,
    /// The derivation's name.
    pub name: String,
    /// The output's name; empty if it is not known.
    pub output: String,
    /// The path of the result that Nix had first.
    pub previous_path: String,
    /// The path of the other result.
    pub current_path: String,
    /// The differences that were found.
    pub differences: Vec<Difference>,
    /// The limit that ended the comparison before everything was compared.
    pub incomplete: Option<String>,
    /// The number of files compared.
    pub compared_files: u64,
    /// The number of bytes read of each result.
    pub compared_bytes: u64,
    /// The user who called Nix, if known.
    pub user: Option<String>,
    /// The command that called Nix, if known.
    pub command: Option<String>,
    /// The version of the Nix that built.
    pub nix: Option<String>,
}

/// How one file differs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// The path relative to the output; empty for the output itself.
    pub path: String,
    /// `type`, `size`, `mode`, `link-target`, `content`, `only-in-previous`, `only-in-current`, or
    /// a kind that a later host added.
    pub kind: String,
    /// The value in the previous result.
    pub previous: String,
    /// The value in the current result.
    pub current: String,
    /// The offset of the first byte that differs.
    pub offset: Option<u64>,
    /// Additional values by their names in the interface: `line`, `from`, `differing-lines` and so
    /// on.
    pub details: BTreeMap<String, String>,
}

impl Finding {
    /// Returns the name and the output, such as `hello-2.12 (out)`, or only the name if the output
    /// is not known.
    pub fn title(&self) -> String {
        if self.output.is_empty() {
            self.name.clone()
        } else {
            format!("{} ({})", self.name, self.output)
        }
    }

    /// Returns the differences of each file, sorted by path.
    pub fn files(&self) -> BTreeMap<&str, Vec<&Difference>> {
        let mut files: BTreeMap<&str, Vec<&Difference>> = BTreeMap::new();
        for difference in &self.differences {
            files.entry(&difference.path).or_default().push(difference);
        }
        files
    }

    /// Returns the only side that has this file: `previous` or `current`.
    pub fn only_in(&self, path: &str) -> Option<&'static str> {
        self.differences.iter().filter(|one| one.path == path).find_map(|one| {
            match one.kind.as_str() {
                "only-in-previous" => Some("previous"),
                "only-in-current" => Some("current"),
                _ => None,
            }
        })
    }

    /// Returns a string that is equal for equal findings. It contains which files differ and how,
    /// but no values, because a date differs each time in the same place.
    pub fn fingerprint(&self) -> String {
        let mut pairs: Vec<(&str, &str)> =
            self.differences.iter().map(|one| (one.path.as_str(), one.kind.as_str())).collect();
        pairs.sort_unstable();
        // Several places of one file count once.
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

/// Returns the package name: the derivation's name without its version, which begins at the first
/// dash that is not followed by a letter (Nix, `parseDrvName` in `names.cc`).
pub fn package_name(name: &str) -> &str {
    let version = name.match_indices('-').find(|(at, _)| {
        name.get(at + 1..)
            .and_then(|rest| rest.chars().next())
            .is_some_and(|c| !c.is_ascii_alphabetic())
    });
    version.and_then(|(at, _)| name.get(..at)).unwrap_or(name)
}
