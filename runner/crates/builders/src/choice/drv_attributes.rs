//! Attributes of a derivation that help a policy: package name and version, whether its output hash
//! is fixed, and hints of its author. They are read from the `.drv` file between Nix's question and
//! the answer.
//!
//! A `.drv` that cannot be read (because it is in a store with another root, or damaged) is not an
//! error: the policy gets fewer attributes.

use hookrun_nix::derivation::{Derivation, MAX_SIZE_IN_HOOK};
use hookrun_nix::event::NixDirs;
use hookrun_nix::selection::{BUILTIN, Candidate};

/// The attribute of a derivation whose words are hints for the policy. Nix writes a list of strings
/// as words separated by blanks (`primops.cc`, `coerceToString` with `coerceMore`), so
/// `hookrunHints = [ "long" "seconds=600" ];` and one string are the same.
pub(crate) const HINTS: &str = "hookrunHints";
/// The number of hints that are read from one derivation.
const MAX_HINTS: usize = 32;
/// The length of the longest hint, in characters.
const MAX_HINT: usize = 256;

/// Returns `candidate` with the attributes of its `.drv` file in the store of `nix_dirs`, and the
/// derivation.
pub(crate) fn described(
    candidate: Candidate,
    nix_dirs: &NixDirs,
) -> (Candidate, Option<Derivation>) {
    let derivation = Derivation::read_in(nix_dirs, &candidate.drv_path, MAX_SIZE_IN_HOOK).ok();
    (with(candidate, derivation.as_ref()), derivation)
}

/// Returns `candidate` with the attributes of `derivation`, or with those that its name contains.
pub(crate) fn with(mut candidate: Candidate, derivation: Option<&Derivation>) -> Candidate {
    candidate.builtin = candidate.system == BUILTIN;
    let (pname, version) = package_name(&candidate.name);
    (candidate.pname, candidate.version) = (pname.to_owned(), version.to_owned());
    let Some(derivation) = derivation else { return candidate };
    let attributes = Attributes::of(derivation);
    if let Some(pname) = attributes.text("pname").filter(|text| !text.is_empty()) {
        candidate.pname = pname;
        candidate.version = attributes.text("version").unwrap_or_default();
    }
    // `derivationStrict` (`primops.cc`) recognises a fixed output by this attribute.
    candidate.fixed_output = attributes.text("outputHash").is_some_and(|hash| !hash.is_empty());
    candidate.prefer_local = attributes.text("preferLocalBuild").is_some_and(|value| value == "1");
    candidate.hints = hints(&attributes.text(HINTS).unwrap_or_default());
    candidate
}

/// Splits a name into name and version as `DrvName` (`libstore/names.cc`) does: the version begins
/// after the first dash that is not followed by a letter.
pub(crate) fn package_name(name: &str) -> (&str, &str) {
    let begins = |(index, _): &(usize, &str)| {
        let after = name.as_bytes().get(index + 1);
        after.is_some_and(|byte| !byte.is_ascii_alphabetic())
    };
    match name.match_indices('-').find(begins) {
        Some((index, _)) => {
            (name.get(..index).unwrap_or(name), name.get(index + 1..).unwrap_or_default())
        }
        None => (name, ""),
    }
}

/// Parses hints, which have the form `long` or `seconds=600`.
fn hints(text: &str) -> Vec<(String, String)> {
    let hint = |word: &str| match word.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (word.to_owned(), String::new()),
    };
    text.split_ascii_whitespace()
        .filter(|word| word.chars().count() <= MAX_HINT)
        .take(MAX_HINTS)
        .map(hint)
        .collect()
}

/// The environment, or the structured attributes if there are any.
struct Attributes<'a> {
    derivation: &'a Derivation,
    structured: Option<serde_json::Value>,
}

impl<'a> Attributes<'a> {
    fn of(derivation: &'a Derivation) -> Self {
        let json =
            derivation.env.iter().find(|(name, _)| name == "__json").map(|(_, json)| json.as_str());
        Self { derivation, structured: json.and_then(|json| serde_json::from_str(json).ok()) }
    }

    /// Returns an attribute as Nix would write it into an environment.
    fn text(&self, name: &str) -> Option<String> {
        match &self.structured {
            Some(attributes) => attributes.get(name).map(words),
            None => self
                .derivation
                .env
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.clone()),
        }
    }
}

fn words(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Bool(true) => "1".to_owned(),
        serde_json::Value::Number(number) => number.to_string(),
        serde_json::Value::Array(items) => items.iter().map(words).collect::<Vec<_>>().join(" "),
        serde_json::Value::Null | serde_json::Value::Bool(false) | serde_json::Value::Object(_) => {
            String::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_divided_as_nix_does() {
        let divided = [
            "hello-2.12",
            "gcc-wrapper-13.2.0",
            "linux",
            "perl5.38-URI-5.21",
            "a--1",
            "source",
            "x-",
            "-1",
            "",
        ]
        .map(package_name);
        let expected = [
            ("hello", "2.12"),
            ("gcc-wrapper", "13.2.0"),
            ("linux", ""),
            ("perl5.38-URI", "5.21"),
            ("a", "-1"),
            ("source", ""),
            ("x-", ""),
            ("", "1"),
            ("", ""),
        ];
        assert_eq!(divided, expected);
    }

    fn candidate(name: &str, env: &[(&str, &str)]) -> Candidate {
        let derivation = Derivation {
            path: String::new(),
            name: name.to_owned(),
            system: "x86_64-linux".to_owned(),
            builder: "/bin/sh".to_owned(),
            outputs: Vec::new(),
            env: env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        };
        let bare = Candidate {
            name: name.to_owned(),
            system: "x86_64-linux".to_owned(),
            ..Candidate::default()
        };
        with(bare, Some(&derivation))
    }

    #[test]
    fn attributes_and_structured_attributes_are_equivalent() {
        let env = [
            ("pname", "hello"),
            ("version", "2.12"),
            ("preferLocalBuild", "1"),
            ("hookrunHints", "long seconds=600"),
        ];
        let json = r#"{"pname":"hello","version":"2.12","preferLocalBuild":true,"hookrunHints":["long","seconds=600"]}"#;
        let plain = candidate("hello-static-2.12", &env);
        assert_eq!(plain, candidate("hello-static-2.12", &[("__json", json)]));
        assert_eq!(
            (plain.pname.as_str(), plain.version.as_str(), plain.prefer_local),
            ("hello", "2.12", true)
        );
        let hints = [("long".to_owned(), String::new()), ("seconds".to_owned(), "600".to_owned())];
        assert_eq!(plain.hints, hints);
        assert!(
            !plain.fixed_output && candidate("source", &[("outputHash", "sha256-x")]).fixed_output
        );
    }

    #[test]
    fn without_a_file_the_attributes_come_from_the_name() {
        let there_is_none = Candidate {
            name: "a-1".to_owned(),
            drv_path: "/nowhere/a-1.drv".to_owned(),
            ..Candidate::default()
        };
        let (told, _) =
            described(there_is_none, &NixDirs::new("/nix/store", "/nix/var/nix", "/etc/nix"));
        assert_eq!((told.pname.as_str(), told.version.as_str()), ("a", "1"));
    }

    proptest! {
        #[test]
        fn any_hints_and_names_are_accepted(text: String, name: String) {
            prop_assert!(hints(&text).len() <= MAX_HINTS);
            let (pname, version) = package_name(&name);
            prop_assert!(pname.len() + version.len() <= name.len());
        }
    }
}
