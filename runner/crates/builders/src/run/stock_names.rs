//! Replaces the other name that Nix's own hook has for a machine
//! ([`Slot::line`](crate::slots::slot_files::Slot::line)) in its output by the machine's own name.
//! Pure.

use std::borrow::Cow;

use crate::slots::slot_files::forms;

/// The names that the hook may use for the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names {
    hook_name: Vec<Vec<u8>>,
    own_name: Vec<u8>,
}

impl Names {
    /// Returns the names of a machine that the hook knows as `hook_name`, and whose own name is
    /// `own_name`.
    pub(crate) fn of(hook_name: &str, own_name: &str) -> Self {
        if hook_name == own_name {
            return Self::default();
        }
        // Since Nix 2.23 the parameters are sorted in messages.
        let hook_name = forms(hook_name).into_iter().map(String::into_bytes).collect();
        Self { hook_name, own_name: own_name.as_bytes().to_vec() }
    }

    /// Returns the line with the machine's own name.
    pub(crate) fn with_own_name<'l>(&self, line: &'l [u8]) -> Cow<'l, [u8]> {
        self.hook_name.iter().fold(Cow::Borrowed(line), |line, name| {
            match replaced(&line, name, &self.own_name) {
                Some(renamed) => Cow::Owned(renamed),
                None => line,
            }
        })
    }
}

/// Returns `line` with each `from` replaced by `to`, or `None` if there is none.
fn replaced(line: &[u8], from: &[u8], to: &[u8]) -> Option<Vec<u8>> {
    let mut rest = line;
    let mut renamed = Vec::new();
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        let (before, after) = rest.split_at(at);
        renamed.extend_from_slice(before);
        renamed.extend_from_slice(to);
        rest = after.get(from.len()..).unwrap_or_default();
    }
    if rest.len() == line.len() {
        return None;
    }
    renamed.extend_from_slice(rest);
    Some(renamed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_other_name_are_replaced() {
        let own = "ssh://m?remote-store=/b";
        let names = Names::of("ssh://m?remote-store=/b&path-info-cache-size=65536", own);
        let said = |line: &str| {
            String::from_utf8(names.with_own_name(line.as_bytes()).into_owned()).unwrap()
        };
        for line in [
            "build on 'ssh://m?remote-store=/b&path-info-cache-size=65536' failed",
            "build on 'ssh://m?path-info-cache-size=65536&remote-store=/b' failed",
        ] {
            assert_eq!(said(line), format!("build on '{own}' failed"));
        }
        assert_eq!(said("nothing"), "nothing");
        assert_eq!(said(""), "");
        assert!(matches!(Names::of(own, own).with_own_name(b"x"), Cow::Borrowed(b"x")));
    }
}
