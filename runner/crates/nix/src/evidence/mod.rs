//! The differences between two builds of one output: compares two trees, with limits on time and
//! bytes.

pub mod compare;
pub mod excerpt;

use serde::{Deserialize, Serialize};

/// The result of a comparison.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Evidence {
    /// The differences, sorted by path.
    pub differences: Vec<Difference>,
    /// The limit that ended the comparison before everything was compared, if there was one.
    pub incomplete: Option<String>,
    /// The number of files compared.
    pub compared_files: u64,
    /// The number of bytes read of each side.
    pub compared_bytes: u64,
}

/// How one file differs. A file whose contents differ in several places has several values of this
/// type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Difference {
    /// The path relative to the output; empty for the output itself. Bytes that are not UTF-8 are
    /// replaced by U+FFFD.
    pub path: String,
    /// The kind: `type`, `size`, `mode`, `link-target`, `content`, `only-in-previous` or
    /// `only-in-current`.
    pub kind: String,
    /// The value in the previous result, as text.
    pub previous: String,
    /// The value in the current result, as text.
    pub current: String,
    /// The offset of the first byte that differs, for regular files.
    pub offset: Option<u64>,
    /// Additional values by name: see `difference.details` in `diff.wit`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<(String, String)>,
}
