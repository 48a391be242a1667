//! `filter` of a plugin.

use wildmatch::WildMatch;

use super::quantity::optional_size;

/// Selects the events that a plugin gets.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Filter {
    /// A pattern with `*` and `?` for the derivation's name; a leading `!` inverts the pattern.
    pub name: Option<String>,
    /// Events whose outputs have larger NARs in total, in bytes, are not passed to the plugin.
    #[serde(deserialize_with = "optional_size")]
    pub max_nar_size: Option<u64>,
}

impl Filter {
    /// Returns whether events of a derivation with this name are passed to the plugin.
    pub fn admits_name(&self, name: &str) -> bool {
        match self.name.as_deref() {
            None => true,
            Some(pattern) => match pattern.strip_prefix('!') {
                Some(excluded) => !WildMatch::new(excluded).matches(name),
                None => WildMatch::new(pattern).matches(name),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_pattern_selects_derivations() {
        let filter = |pattern: &str| Filter { name: Some(pattern.into()), max_nar_size: None };
        assert!(filter("!*-iso").admits_name("hello-2.12"));
        assert!(!filter("!*-iso").admits_name("nixos-iso"));
        assert!(filter("linux-*.?").admits_name("linux-6.1.2"));
        assert!(!filter("linux-*.?").admits_name("linux-6."), "`?` is exactly one character");
        assert!(!filter("linux-*").admits_name("linu"));
        assert!(filter("*a*b*").admits_name("xxaxxbxx"));
        assert!(!filter("a[bc]").admits_name("ab"), "brackets have no special meaning");
        assert!(!filter("Linux*").admits_name("linux-6.1"), "case matters");
        assert!(!filter("").admits_name("anything") && filter("!").admits_name("anything"));
        assert!(Filter::default().admits_name("anything"));
    }
}
