//! Errors of the configuration: each names file, line, key and the fix, in one line.

use std::path::{Path, PathBuf};

use super::lines::line_at;

/// The reason why a configuration was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {message}", path.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
pub struct ConfigError {
    pub path: PathBuf,
    /// The line of the key, counted from 1, if the key is in the file.
    pub line: Option<usize>,
    /// A lower-case fragment that ends with the fix.
    pub message: String,
}

/// An error about a key, before the file and the line are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyError {
    /// The key, such as `["signing-keys", "cache-1", "file"]`, from the top of the configuration
    /// or from the table that is checked.
    pub keys: Vec<String>,
    /// A lower-case fragment that ends with the fix.
    pub message: String,
}

impl KeyError {
    /// Returns an error about `keys`.
    pub fn new(keys: &[&str], message: impl Into<String>) -> Self {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        Self { keys, message: message.into() }
    }

    /// Returns the same error for keys below `table`.
    #[must_use]
    pub fn below(self, table: &[&str]) -> Self {
        let table = table.iter().map(|key| (*key).to_owned());
        Self { keys: table.chain(self.keys).collect(), message: self.message }
    }
}

impl ConfigError {
    /// Converts an error of `toml` to one line, with a suggestion for unknown keys.
    pub(super) fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let message = error.message().replace('\n', " ");
        let words: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        let message = match (message.starts_with("unknown field"), words.split_first()) {
            (true, Some((unknown, known))) => {
                format!("unknown key `{unknown}`; {}", suggestion(unknown, known.iter().copied()))
            }
            _ if message.starts_with("unknown variant") => match words.split_first() {
                Some((unknown, known)) => {
                    format!(
                        "unknown value `{unknown}`; {}",
                        suggestion(unknown, known.iter().copied())
                    )
                }
                None => message,
            },
            _ if message.starts_with("missing field") => {
                format!("{}; add it to this table", message.replace("missing field", "missing key"))
            }
            _ => message,
        };
        Self {
            path: path.to_owned(),
            line: error.span().map(|span| line_at(text, span.start)),
            message,
        }
    }
}

/// Returns the word of `known` that is most similar to `word`, if one is similar enough.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// Returns `` did you mean `x`? `` or a list of the known words.
pub fn suggestion<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(word, known.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            let all: Vec<String> = known.into_iter().map(|word| format!("`{word}`")).collect();
            if all.is_empty() {
                "none is defined".to_owned()
            } else {
                format!("known: {}", all.join(", "))
            }
        }
    }
}
