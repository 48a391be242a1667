//! The argument CACHE: the name of a store of the configuration, or a URL. The trusted keys.

use super::super::{CliError, Context};
use hookrun_cache::Cache;
use hookrun_capability::object_store::{Bucket, ObjectStores};
use hookrun_capability::signing::SigningKeys;
use hookrun_config::{Config, suggestion};
use hookrun_nix::installed::Installed;
use hookrun_nix::narinfo::PublicKeys;
use hookrun_nix::terminal::say;

/// The number of requests at the same time, unless an option says otherwise.
pub(super) const PARALLEL: usize = 32;

#[derive(Debug, clap::Args)]
pub(super) struct CacheArg {
    /// The name of a table [object-stores.NAME], or a URL: s3://, gs://, az://, file:// or
    /// https://
    #[arg(value_name = "CACHE")]
    pub(super) cache: String,
}

/// Returns the store that an argument names.
pub(super) fn bucket(context: &Context, text: &str) -> Result<Bucket, CliError> {
    let config = context.config()?;
    if config.object_stores.contains_key(text) {
        let stores = ObjectStores::new(&config, &context.dirs);
        return stores.bucket(text).map_err(CliError::environment);
    }
    if text.contains("://") {
        return Bucket::at(text).map_err(|error| CliError::usage(error.message));
    }
    let hint = suggestion(text, config.object_stores.keys().map(String::as_str));
    Err(CliError::usage(format!(
        "`{text}` is neither a table of [object-stores] in {} nor a URL such as s3://bucket or \
         file:///directory; {hint}",
        config.path.display()
    )))
}

/// Opens the cache that an argument names.
pub(super) async fn open(context: &Context, text: &str) -> Result<Cache, CliError> {
    Ok(Cache::open(bucket(context, text)?).await?)
}

#[derive(Debug, clap::Args)]
pub(super) struct KeyArgs {
    /// Trust this public key as well, NAME:BASE64; repeatable. Trusted are also the keys of
    /// [signing-keys] and `trusted-public-keys` of nix.conf
    #[arg(long, value_name = "KEY")]
    trusted_public_key: Vec<String>,
    /// Trust only the keys of --trusted-public-key
    #[arg(long, requires = "trusted_public_key")]
    only_these_keys: bool,
}

impl KeyArgs {
    /// Returns the trusted keys.
    pub(super) fn trusted(&self, config: &Config) -> Result<PublicKeys, CliError> {
        let mut keys = PublicKeys::default();
        for key in &self.trusted_public_key {
            keys.add(key).map_err(|error| {
                CliError::usage(format!("{error}; see `nix key convert-secret-to-public`"))
            })?;
        }
        if self.only_these_keys {
            return Ok(keys);
        }
        let signing = SigningKeys::new(config);
        for name in config.signing_keys.keys() {
            match signing.public_key(name) {
                Ok(key) => drop(keys.add(&key)),
                Err(error) => say(&format!("warning: {error}; its signatures are not trusted")),
            }
        }
        // Without Nix, or if it does not answer, there are no keys of nix.conf.
        if let Ok(nix) = Installed::find() {
            for key in nix.setting("trusted-public-keys").split_whitespace() {
                drop(keys.add(key));
            }
        }
        Ok(keys)
    }
}

/// Parses a duration such as `24h`.
pub(super) fn duration(text: &str) -> Result<std::time::Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "not a duration; write for example `30m`, `24h` or `7d`".to_owned())
}
