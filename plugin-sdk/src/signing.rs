//! Signatures with the keys of the configuration (`[signing-keys."NAME"]`). Wants `signing`, grant
//! `signing = ["NAME"]`. The plugin never gets the private key.

use crate::Error;
use crate::bindings::imports::hookrun::host::signing;
use crate::error::host;

/// Returns the names of the granted keys, in the order of the configuration.
///
/// # Errors
/// The plugin's metadata does not ask for `signing`.
pub fn keys() -> Result<Vec<String>, Error> {
    host!("signing.keys", signing::keys(), |host| Ok(host.signing_keys()))
}

/// Signs the fingerprint of a valid path. Returns `name:base64`, as in the `Sig` line of a narinfo.
///
/// # Errors
/// The call is not granted, the path is outside the `nix-store` grant, or the key cannot be used.
pub fn sign_path(key: &str, path: &str) -> Result<String, Error> {
    host!("signing.sign-path", signing::sign_path(key, path), |host| host.sign(key, path))
}

/// Signs several paths. Returns the signatures in the same order.
///
/// # Errors
/// As for [`sign_path`], for any of the paths.
pub fn sign_paths(key: &str, paths: &[String]) -> Result<Vec<String>, Error> {
    host!("signing.sign-paths", signing::sign_paths(key, paths), |host| {
        paths.iter().map(|path| host.sign(key, path)).collect()
    })
}

/// Returns the public key as `name:base64`, as in `trusted-public-keys`.
///
/// # Errors
/// The call is not granted, or the key cannot be used.
pub fn public_key(key: &str) -> Result<String, Error> {
    host!("signing.public-key", signing::public_key(key), |host| host.sign(key, "public-key"))
}
