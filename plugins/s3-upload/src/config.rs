//! The table `[plugins.NAME.config]`, which the schema beside this file describes.

use std::collections::BTreeMap;

use bytesize::ByteSize;
use hookrun_sdk::binary_cache::Settings;
use hookrun_sdk::nix_store::PathInfo;
use serde::{Deserialize, Deserializer};
use wildmatch::WildMatch;

/// The configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Config {
    /// The name of the object store.
    pub bucket: String,
    #[serde(default)]
    pub compression: Compression,
    #[serde(default)]
    pub level: Option<i32>,
    #[serde(default)]
    key: Option<OneOrMany>,
    /// Whether paths without a signature may be uploaded.
    #[serde(default)]
    pub allow_unsigned: bool,
    /// Names of keys; paths with a signature by one of them are not uploaded.
    #[serde(default)]
    pub skip_signed_by: Vec<String>,
    /// What is done with each path: the first rule that matches it decides.
    #[serde(default)]
    pub paths: Vec<Rule>,
    /// Whether to also upload the closure of the outputs.
    #[serde(default = "yes")]
    pub closure: bool,
    /// `Cache-Control` of the NARs.
    #[serde(default)]
    pub cache_control: Option<String>,
    /// Whether to write listings.
    #[serde(default)]
    pub listings: bool,
    /// Whether to write the index of debug information.
    #[serde(default)]
    pub debug_info: bool,
    /// The compression of listings.
    #[serde(default = "none")]
    pub listing_compression: Compression,
    /// `Priority` of a new cache.
    #[serde(default)]
    pub priority: Option<u32>,
    /// `WantMassQuery` of a new cache.
    #[serde(default = "yes")]
    pub want_mass_query: bool,
}

/// Conditions, and what is done with a path for which all of them hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Rule {
    /// A pattern for the name after the hash, with `*` and `?`; a leading `!` inverts it.
    name: Option<String>,
    /// The least size of the NAR.
    #[serde(deserialize_with = "size")]
    min_size: Option<u64>,
    /// The greatest size of the NAR.
    #[serde(deserialize_with = "size")]
    max_size: Option<u64>,
    origin: Option<Origin>,
    /// Names of keys, one of which has signed the path.
    signed_by: Option<OneOrMany>,
    /// Whether it is uploaded.
    pub upload: Option<bool>,
    pub compression: Option<Compression>,
    pub level: Option<i32>,
    pub storage_class: Option<String>,
    pub tags: BTreeMap<String, String>,
}

/// Where a path comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Origin {
    /// This machine has built it.
    Built,
    /// It came from another machine, or was added.
    Copied,
}

/// The compression formats, as named in a narinfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    None,
    /// Fast to write and to read; the default.
    #[default]
    Zstd,
    /// Smaller and slower; `nix copy` uses it by default.
    Xz,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// A number of bytes, or a text such as `10MiB`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Bytes(u64),
    Text(String),
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    match Size::deserialize(deserializer)? {
        Size::Bytes(bytes) => Ok(Some(bytes)),
        Size::Text(text) => {
            let parsed = text.parse::<ByteSize>();
            parsed.map(|size| Some(size.as_u64())).map_err(|_| {
                serde::de::Error::custom(format!(
                    "`{text}` is not a size; write for example `10MiB`"
                ))
            })
        }
    }
}

fn yes() -> bool {
    true
}

fn none() -> Compression {
    Compression::None
}

impl Config {
    /// Returns the keys that sign, if the configuration names them. Otherwise all granted keys
    /// sign.
    pub(crate) fn keys(&self) -> Option<Vec<String>> {
        self.key.as_ref().map(|keys| keys.as_slice().to_vec())
    }

    /// Returns what holds for all paths that these keys sign.
    pub(crate) fn settings(&self, keys: Vec<String>) -> Settings {
        Settings {
            keys,
            allow_unsigned: self.allow_unsigned,
            // The inputs of an output alone are in another cache, or nowhere.
            missing_references: !self.closure,
            cache_control: self.cache_control.clone(),
            listings: self.listings,
            debug_info: self.debug_info,
            listing_compression: self.listing_compression.into(),
            priority: self.priority,
            want_mass_query: self.want_mass_query,
        }
    }

    /// Returns whether a decision about a path needs information about it.
    pub(crate) fn needs_infos(&self) -> bool {
        !self.skip_signed_by.is_empty() || !self.paths.is_empty()
    }
}

impl Rule {
    /// Returns whether all conditions hold for a path.
    pub(crate) fn matches(&self, info: &PathInfo) -> bool {
        let base = info.path.rsplit('/').next().unwrap_or_default();
        let name = base.split_once('-').map_or(base, |(_, name)| name);
        self.name.as_deref().is_none_or(|pattern| match pattern.strip_prefix('!') {
            Some(excluded) => !WildMatch::new(excluded).matches(name),
            None => WildMatch::new(pattern).matches(name),
        }) && self.min_size.is_none_or(|least| info.nar_size >= least)
            && self.max_size.is_none_or(|most| info.nar_size <= most)
            && self.origin.is_none_or(|origin| (origin == Origin::Built) == info.ultimate)
            && self
                .signed_by
                .as_ref()
                .is_none_or(|keys| keys.as_slice().iter().any(|key| is_signed_by(info, key)))
    }
}

/// Returns whether the path has a signature with the name of `key`. Nix has verified the signatures
/// of paths that it substituted.
pub(crate) fn is_signed_by(info: &PathInfo, key: &str) -> bool {
    let name = |signature: &str| signature.split_once(':').map(|(name, _)| name.to_owned());
    info.signatures.iter().any(|signature| name(signature).as_deref() == Some(key))
}

impl From<Compression> for hookrun_sdk::object_store::Compression {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::None => Self::None,
            Compression::Zstd => Self::Zstd,
            Compression::Xz => Self::Xz,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::info;

    fn parse(text: &str) -> Config {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn missing_keys_have_defaults() {
        let config = parse(r#"{"bucket": "cache"}"#);
        assert!(config.closure && config.want_mass_query && !config.allow_unsigned);
        assert_eq!(
            (config.compression, config.level, config.keys()),
            (Compression::Zstd, None, None)
        );
        assert_eq!(parse(r#"{"bucket": "c", "key": "a"}"#).keys(), Some(vec!["a".to_owned()]));
        assert_eq!(parse(r#"{"bucket": "c", "key": []}"#).keys(), Some(vec![]));
    }

    #[test]
    fn a_rule_matches_if_all_of_its_conditions_hold() {
        let mut path = info("/s/hash-linux-6.1-debug", &[]);
        path.nar_size = 2 << 20;
        path.signatures = vec!["other-1:x".to_owned(), "cache-1:y".to_owned()];
        let matches = |rule: &str| serde_json::from_str::<Rule>(rule).unwrap().matches(&path);
        for rule in [
            "{}",
            r#"{"name": "*-debug"}"#,
            r#"{"name": "!*-doc"}"#,
            r#"{"min-size": "2MiB", "max-size": 2097152}"#,
            r#"{"origin": "built"}"#,
            r#"{"signed-by": "cache-1"}"#,
            r#"{"signed-by": ["none-1", "other-1"], "name": "linux-6.?-*"}"#,
        ] {
            assert!(matches(rule), "{rule}");
        }
        for rule in [
            r#"{"name": "debug"}"#,
            r#"{"name": "!linux*"}"#,
            r#"{"min-size": "3MiB"}"#,
            r#"{"max-size": "2MB"}"#,
            r#"{"origin": "copied"}"#,
            r#"{"signed-by": "cache"}"#,
            r#"{"name": "*-debug", "signed-by": []}"#,
        ] {
            assert!(!matches(rule), "{rule}");
        }
        let error = serde_json::from_str::<Rule>(r#"{"min-size": "big"}"#).unwrap_err();
        assert!(error.to_string().contains("`big` is not a size"), "{error}");
    }

    #[test]
    fn the_schema_names_every_key() {
        let schema: serde_json::Value =
            serde_json::from_str(include_str!("config_schema.json")).unwrap();
        let all: serde_json::Map<String, serde_json::Value> = serde_json::from_str(
            r#"{"bucket": "c", "compression": "xz", "level": 6, "key": "a", "allow-unsigned": true,
                "skip-signed-by": [], "closure": false, "cache-control": "no-cache", "listings": true,
                "debug-info": true, "listing-compression": "zstd", "priority": 30,
                "want-mass-query": false, "paths": [{"name": "*", "min-size": 1, "max-size": "1KB",
                "origin": "copied", "signed-by": ["a"], "upload": true, "compression": "none", "level": 1,
                "storage-class": "STANDARD_IA", "tags": {"a": "b"}}]}"#,
        )
        .unwrap();
        let names = |value: &serde_json::Value| {
            let mut names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
            names.sort();
            names
        };
        assert_eq!(names(&all.clone().into()), names(&schema["properties"]));
        let rule = &schema["properties"]["paths"]["items"]["properties"];
        assert_eq!(names(&all["paths"][0]), names(rule));
        assert!(serde_json::from_value::<Config>(all.into()).is_ok());
    }
}
