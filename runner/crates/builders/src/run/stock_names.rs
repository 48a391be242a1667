//! Replaces the other name that Nix's own hook has for a machine
//! ([`Slot::line`](crate::slots::slot_files::Slot::line)) in its output by the machine's own name.
//! Pure.

use std::borrow::Cow;

use crate::slots::slot_files::forms;

/// The names that the hook may use for the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names {
    of_hook: Vec<Vec<u8>>,
    of_people: Vec<u8>,
}

impl Names {
    /// The hook knows the machine as `of_hook`; its own name is `of_people`.
    pub(crate) fn of(of_hook: &str, of_people: &str) -> Self {
        if of_hook == of_people {
            return Self::default();
        }
        // From Nix 2.23 on the parameters are sorted in messages.
        let of_hook = forms(of_hook).into_iter().map(String::into_bytes).collect();
        Self { of_hook, of_people: of_people.as_bytes().to_vec() }
    }

    /// Returns the line with the machine's own name.
    pub(crate) fn as_people_say<'l>(&self, line: &'l [u8]) -> Cow<'l, [u8]> {
        self.of_hook.iter().fold(Cow::Borrowed(line), |line, name| {
            match replaced(&line, name, &self.of_people) {
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
            String::from_utf8(names.as_people_say(line.as_bytes()).into_owned()).unwrap()
        };
        for line in [
            "build on 'ssh://m?remote-store=/b&path-info-cache-size=65536' failed",
            "build on 'ssh://m?path-info-cache-size=65536&remote-store=/b' failed",
        ] {
            assert_eq!(said(line), format!("build on '{own}' failed"));
        }
        assert_eq!(said("nothing"), "nothing");
        assert_eq!(said(""), "");
        assert!(matches!(Names::of(own, own).as_people_say(b"x"), Cow::Borrowed(b"x")));
    }
}
