//! What differs between two builds of one output: two trees compared, bounded in time and bytes.

pub mod compare;
pub mod excerpt;

use serde::{Deserialize, Serialize};

/// What a comparison found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Evidence {
    /// The differences, sorted by path.
    pub differences: Vec<Difference>,
    /// Why the comparison did not see everything, if it did not: which bound ended it.
    pub incomplete: Option<String>,
    /// Files compared.
    pub compared_files: u64,
    /// Bytes read of each side.
    pub compared_bytes: u64,
}

/// How one file differs. A file whose contents differ in several places has several of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Difference {
    /// Relative to the output; empty for the output itself. Bytes that are not UTF-8 are shown as
    /// U+FFFD.
    pub path: String,
    /// `type`, `size`, `mode`, `link-target`, `content`, `only-in-previous` or `only-in-current`.
    pub kind: String,
    /// The value in the previous result, as text.
    pub previous: String,
    /// The value in the current result, as text.
    pub current: String,
    /// The first byte that differs, for regular files.
    pub offset: Option<u64>,
    /// More, by name: see `difference.details` in `diff.wit`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<(String, String)>,
}
