//! `[signing-keys.NAME]`.

use std::path::PathBuf;

use serde::Deserialize;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SigningKey {
    /// A file as `nix-store --generate-binary-cache-key` creates it. The name in it must be the
    /// NAME of the table.
    pub file: PathBuf,
}
