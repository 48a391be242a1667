//! A plugin's own `config` table.

use serde::de::DeserializeOwned;

use crate::Error;
use crate::bindings::imports::hookrun::host::config;

/// The `config` table of this plugin, already checked against the schema given to
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
/// Permanent: the table does not fit `T`, so schema and type disagree.
pub fn config<T: DeserializeOwned>() -> Result<T, Error> {
    serde_json::from_str(&config_json())
        .map_err(|error| Error::permanent(format!("config: {error}")))
}

/// The table as a JSON object; `{}` in a native build.
pub fn config_json() -> String {
    if cfg!(target_arch = "wasm32") { config::get() } else { "{}".to_owned() }
}
