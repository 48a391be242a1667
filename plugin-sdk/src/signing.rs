//! Signatures by keys of the configuration (`[signing-keys."NAME"]`). Wants `signing`, grant
//! `signing = ["NAME"]`. The key never enters the plugin.

use crate::Error;
use crate::bindings::imports::hookrun::host::signing;
use crate::error::host;

/// The names of the keys that this plugin is granted, in the order of the configuration.
///
/// # Errors
/// The plugin's metadata does not ask for `signing`.
pub fn keys() -> Result<Vec<String>, Error> {
    host!("signing.keys", signing::keys())
}

/// The signature of a valid path's fingerprint, `name:base64` as in a narinfo's `Sig` line.
///
/// # Errors
/// Not granted, the path is outside the `nix-store` grant, or the key cannot be used.
pub fn sign_path(key: &str, path: &str) -> Result<String, Error> {
    host!("signing.sign-path", signing::sign_path(key, path))
}

/// The same for several paths, in their order.
///
/// # Errors
/// As [`sign_path`], of any of them.
pub fn sign_paths(key: &str, paths: &[String]) -> Result<Vec<String>, Error> {
    host!("signing.sign-paths", signing::sign_paths(key, paths))
}

/// The public half, `name:base64`, as in `trusted-public-keys`.
///
/// # Errors
/// Not granted, or the key cannot be used.
pub fn public_key(key: &str) -> Result<String, Error> {
    host!("signing.public-key", signing::public_key(key))
}
