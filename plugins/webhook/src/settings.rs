//! The plugin's configuration, `[plugins.NAME.config]`. The host validates it with `schema.json`,
//! also the placeholders, so that `hookrun check` reports a wrong one.

use serde::Deserialize;
use serde_json::{Map, Value};

/// The JSON schema of the configuration, which is part of the plugin's metadata.
pub const SCHEMA: &str = include_str!("schema.json");

/// The configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// The endpoint, or for Matrix and ntfy the server.
    pub url: String,
    /// The service.
    #[serde(default)]
    pub format: Format,
    /// The method, for the formats `json` and `slack`.
    pub method: Option<String>,
    /// The Slack channel, the Matrix room or the ntfy topic.
    pub channel: Option<String>,
    /// The text of the message.
    pub template: Option<String>,
    /// The body of the request in the format `json`. Its texts are templates.
    pub body: Option<Map<String, Value>>,
}

/// The format of requests and answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// An object of JSON.
    #[default]
    Json,
    /// Slack's `chat.postMessage`, and webhooks of Slack, Mattermost and Rocket.Chat.
    Slack,
    /// The client-server API of Matrix.
    Matrix,
    /// ntfy's publishing as JSON.
    Ntfy,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notice::PLACEHOLDERS;

    #[test]
    fn the_schema_knows_every_key_and_placeholder() {
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        let keys: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["body", "channel", "format", "method", "template", "url"]);
        let pattern = |names: &str| format!("^([^{{}}]|\\{{\\{{|\\}}\\}}|\\{{({names})\\}})*$");
        let names = PLACEHOLDERS.join("|");
        assert_eq!(schema["properties"]["template"]["pattern"], pattern(&names));
        assert_eq!(schema["$defs"]["value0"]["pattern"], pattern(&format!("text|{names}")));
    }
}
