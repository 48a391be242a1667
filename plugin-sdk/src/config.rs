//! The plugin's `config` table.

use serde::de::DeserializeOwned;

use crate::Error;
use crate::bindings::imports::hookrun::host::config;

/// Returns the `config` table of this plugin, validated with the schema given to
/// [`plugin!`](crate::plugin!).
///
/// ```no_run
/// #[derive(serde::Deserialize)]
/// #[serde(rename_all = "kebab-case")]
/// struct Config {
///     bucket: String,
/// }
///
/// let config: Config = hookrun_sdk::config()?;
/// # Ok::<(), hookrun_sdk::Error>(())
/// ```
///
/// # Errors
/// Returns a permanent error if the table does not fit `T`, because the schema and the type
/// disagree.
pub fn config<T: DeserializeOwned>() -> Result<T, Error> {
    serde_json::from_str(&config_json()).map_err(|error| Error::permanent(wrong(&error)))
}

/// Formats the error without line and column, which refer to JSON that the user does not see.
fn wrong(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    format!(
        "config: {what}; correct the plugin's `config` table in hookrun.toml, or give `plugin!` a `config_schema` that names the \
         required keys"
    )
}

/// Returns the table as a JSON object; in a native build that of [`crate::testing`], or `{}`.
pub fn config_json() -> String {
    if cfg!(target_arch = "wasm32") { config::get() } else { crate::testing::config_json() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_key_is_named_without_a_place_in_invisible_json() {
        #[derive(Debug, serde::Deserialize)]
        struct Config {
            #[expect(dead_code, reason = "only deserialised")]
            url: String,
        }
        let error = config::<Config>().unwrap_err();
        assert!(error.message.starts_with("config: missing field `url`; correct"), "{error}");
    }
}
