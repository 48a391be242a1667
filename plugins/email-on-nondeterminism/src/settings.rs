//! The plugin's configuration, `[plugins.NAME.config]`. The host validates it with `schema.json`;
//! this file checks what a schema cannot express.

use std::time::Duration;

use serde::Deserialize;

/// The JSON schema of the configuration, which is part of the plugin's metadata.
pub const SCHEMA: &str = include_str!("schema.json");

/// One week. A daily mail would not help somebody who already works on the package.
const REPEAT_AFTER: &str = "7days";
/// Readers do not read more examples in one mail.
const MAX_DIFFERENCES: usize = 20;

/// The checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The recipients.
    pub to: Vec<String>,
    /// The beginning of the subject.
    pub subject_prefix: String,
    /// The time before the same finding is mailed again.
    pub repeat_after: Duration,
    /// The name of the mail transport.
    pub transport: String,
    /// The number of files whose contents are shown in one mail.
    pub max_differences: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    to: OneOrMany,
    subject_prefix: Option<String>,
    repeat_after: Option<String>,
    transport: Option<String>,
    max_differences: Option<usize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Default for OneOrMany {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Settings {
    /// Parses the `config` table.
    ///
    /// # Errors
    /// Returns a message that names the key and the line to write.
    pub fn parse(json: &str) -> Result<Self, String> {
        let raw: Raw = serde_json::from_str(json)
            .map_err(|error| format!("the configuration of this plugin is not valid: {error}"))?;
        let Raw { to, subject_prefix, repeat_after, transport, max_differences } = raw;
        let to = match to {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        };
        if to.is_empty() {
            return Err(
                "`to` is empty; write `to = [\"builds@example.org\"]` in this plugin's `config`"
                    .to_owned(),
            );
        }
        let repeat_after = repeat_after.unwrap_or_else(|| REPEAT_AFTER.to_owned());
        let repeat_after = humantime::parse_duration(&repeat_after).map_err(|error| {
            format!("`repeat-after` is `{repeat_after}` ({error}); write for example `repeat-after = \"7days\"`")
        })?;
        Ok(Self {
            to,
            subject_prefix: subject_prefix.unwrap_or_else(|| "[hookrun]".to_owned()),
            repeat_after,
            transport: transport.unwrap_or_else(|| "default".to_owned()),
            max_differences: max_differences.unwrap_or(MAX_DIFFERENCES).max(1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_keys_have_defaults_and_invalid_ones_are_errors() {
        let settings = Settings::parse(r#"{"to": "ann@example.org"}"#).unwrap();
        assert_eq!(settings.to, ["ann@example.org"]);
        assert_eq!(settings.repeat_after, Duration::from_hours(7 * 24));
        let errors = [
            r"{}",
            r#"{"to": ["a@b"], "repeat-after": "often"}"#,
            r#"{"to": ["a@b"], "digest": "15m"}"#,
        ]
        .map(|json| Settings::parse(json).unwrap_err());
        insta::assert_snapshot!(errors.join("\n"));
    }

    #[test]
    fn the_schema_knows_every_key() {
        let schema: serde_json::Value = serde_json::from_str(SCHEMA).unwrap();
        let keys: Vec<&str> =
            schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["max-differences", "repeat-after", "subject-prefix", "to", "transport"]);
    }
}
