//! The line of each key of a configuration, for error messages.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

/// The lines of all keys, by dotted path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Lines(BTreeMap<Vec<String>, usize>);

impl Lines {
    /// Returns the line of a key, or of its nearest parent in the file.
    pub(super) fn of(&self, keys: &[&str]) -> Option<usize> {
        (1..=keys.len()).rev().find_map(|length| self.at(keys.get(..length)?))
    }

    /// Returns the lines of a text whose tables `inner` stand for those below `outer`.
    pub(super) fn moved(text: &str, inner: &[&str], outer: &[&str]) -> Self {
        let Self(lines) = Self::read(text);
        let moved = lines.into_iter().map(|(mut keys, line)| {
            if keys.first().is_some_and(|first| inner.contains(&first.as_str())) {
                keys.splice(0..0, outer.iter().map(|key| (*key).to_owned()));
            }
            (keys, line)
        });
        Self(moved.collect())
    }

    /// Returns the line of a key that is in the file.
    pub(super) fn at(&self, keys: &[&str]) -> Option<usize> {
        let path: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        self.0.get(&path).copied()
    }

    pub(super) fn read(text: &str) -> Self {
        let mut lines = Self::default();
        if let Ok(table) = DeTable::parse(text) {
            lines.walk(text, table.get_ref(), &mut Vec::new());
        }
        lines
    }

    fn walk(&mut self, text: &str, table: &DeTable<'_>, path: &mut Vec<String>) {
        for (key, value) in table {
            path.push(key.get_ref().to_string());
            self.0.insert(path.clone(), line_at(text, key.span().start));
            if let DeValue::Table(inner) = value.get_ref() {
                self.walk(text, inner, path);
            }
            path.pop();
        }
    }
}

/// Returns the line of a byte offset, from 1.
pub(super) fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}
