//! The table `[plugins.NAME.config]`, which the schema beside this file describes.

use serde::Deserialize;

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
    key: Option<Keys>,
    /// Names of keys; paths with a signature by one of them are not uploaded.
    #[serde(default)]
    pub skip_signed_by: Vec<String>,
    /// Whether to also upload the closure of the outputs.
    #[serde(default = "yes")]
    pub closure: bool,
    /// `Priority` of a new cache.
    #[serde(default)]
    pub priority: Option<u32>,
    /// `WantMassQuery` of a new cache.
    #[serde(default = "yes")]
    pub want_mass_query: bool,
}

/// The compression formats, as named in a narinfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
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
enum Keys {
    One(String),
    Many(Vec<String>),
}

fn yes() -> bool {
    true
}

impl Config {
    /// Returns the keys that sign, if the configuration names them. Otherwise all granted keys
    /// sign.
    pub(crate) fn keys(&self) -> Option<Vec<String>> {
        self.key.as_ref().map(|keys| match keys {
            Keys::One(key) => vec![key.clone()],
            Keys::Many(keys) => keys.clone(),
        })
    }
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

    fn parse(text: &str) -> Config {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn missing_keys_have_defaults() {
        let config = parse(r#"{"bucket": "cache"}"#);
        assert!(config.closure && config.want_mass_query);
        assert_eq!(
            (config.compression, config.level, config.keys()),
            (Compression::Zstd, None, None)
        );
        assert_eq!(parse(r#"{"bucket": "c", "key": "a"}"#).keys(), Some(vec!["a".to_owned()]));
        assert_eq!(parse(r#"{"bucket": "c", "key": []}"#).keys(), Some(vec![]));
    }

    #[test]
    fn the_schema_names_every_key() {
        let schema: serde_json::Value =
            serde_json::from_str(include_str!("config_schema.json")).unwrap();
        let all: serde_json::Map<String, serde_json::Value> = serde_json::from_str(
            r#"{"bucket": "c", "compression": "xz", "level": 6, "key": "a", "skip-signed-by": [], "closure": false,
                "priority": 30, "want-mass-query": false}"#,
        )
        .unwrap();
        let known = schema["properties"].as_object().unwrap();
        assert!(all.keys().eq(known.keys()), "{:?}", known.keys().collect::<Vec<_>>());
        assert!(serde_json::from_value::<Config>(all.into()).is_ok());
    }
}
