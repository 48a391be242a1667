//! A small durable key-value store, private to this plugin. Wants `state`, grant `state = true`.
//!
//! A run sees its own writes at once. They are committed together when the run returns, with a
//! result or with a failure; a trap or a limit that ends the run discards them.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::bindings::imports::hookrun::host::state;
use crate::error::host;

/// The value under `key`.
///
/// # Errors
/// Not granted, or the store cannot be read.
pub fn get(key: &str) -> Result<Option<Vec<u8>>, Error> {
    host!("state.get", state::get(key))
}

/// Puts `value` under `key` (at most `limits.state-key-bytes`, 512 unless the configuration says
/// otherwise).
///
/// # Errors
/// Not granted, or the store would be larger than its limit.
pub fn set(key: &str, value: &[u8]) -> Result<(), Error> {
    host!("state.set", state::set(key, value))
}

/// Removes `key`; removing a missing key is not an error.
///
/// # Errors
/// Not granted.
pub fn delete(key: &str) -> Result<(), Error> {
    host!("state.delete", state::delete(key))
}

/// The keys that start with `prefix`, in byte order.
///
/// # Errors
/// Not granted, or the store cannot be read.
pub fn keys(prefix: &str) -> Result<Vec<String>, Error> {
    host!("state.keys", state::keys(prefix))
}

/// The value under `key`, from JSON.
///
/// # Errors
/// As [`get`], and if the value is not what is expected.
pub fn get_json<T: DeserializeOwned>(key: &str) -> Result<Option<T>, Error> {
    get(key)?
        .map(|value| {
            serde_json::from_slice(&value)
                .map_err(|error| Error::permanent(format!("state `{key}`: {error}")))
        })
        .transpose()
}

/// Puts `value` under `key`, as JSON.
///
/// # Errors
/// As [`set`], and if the value cannot be written as JSON.
pub fn set_json<T: Serialize>(key: &str, value: &T) -> Result<(), Error> {
    let value = serde_json::to_vec(value)
        .map_err(|error| Error::permanent(format!("state `{key}`: {error}")))?;
    set(key, &value)
}
