//! A small, durable key-value store that is private to the plugin. Wants `state`, grant `state =
//! true`.
//!
//! A run sees its own writes immediately. They are committed together when the run returns, whether
//! it succeeds or fails. If a trap or a limit ends the run, they are discarded.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::bindings::imports::hookrun::host::state;
use crate::error::host;

/// Returns the value of `key`.
///
/// # Errors
/// The call is not granted, or the store cannot be read.
pub fn get(key: &str) -> Result<Option<Vec<u8>>, Error> {
    host!("state.get", state::get(key), |host| Ok(host.state_get(key)))
}

/// Sets the value of `key`. A key has at most `limits.state-key-bytes` bytes (512 by default).
///
/// # Errors
/// The call is not granted, or the store would exceed its limit.
pub fn set(key: &str, value: &[u8]) -> Result<(), Error> {
    host!("state.set", state::set(key, value), |host| {
        host.state_set(key, value);
        Ok(())
    })
}

/// Removes `key`. It is not an error if the key does not exist.
///
/// # Errors
/// The call is not granted.
pub fn delete(key: &str) -> Result<(), Error> {
    host!("state.delete", state::delete(key), |host| {
        host.state_delete(key);
        Ok(())
    })
}

/// Returns the keys that start with `prefix`, in byte order.
///
/// # Errors
/// The call is not granted, or the store cannot be read.
pub fn keys(prefix: &str) -> Result<Vec<String>, Error> {
    host!("state.keys", state::keys(prefix), |host| Ok(host.state_keys(prefix)))
}

/// Returns the value of `key`, parsed as JSON.
///
/// # Errors
/// As for [`get`], or the value does not fit `T`.
pub fn get_json<T: DeserializeOwned>(key: &str) -> Result<Option<T>, Error> {
    get(key)?
        .map(|value| {
            serde_json::from_slice(&value)
                .map_err(|error| Error::permanent(format!("state `{key}`: {error}")))
        })
        .transpose()
}

/// Sets the value of `key`, written as JSON.
///
/// # Errors
/// As for [`set`], or the value cannot be written as JSON.
pub fn set_json<T: Serialize>(key: &str, value: &T) -> Result<(), Error> {
    let value = serde_json::to_vec(value)
        .map_err(|error| Error::permanent(format!("state `{key}`: {error}")))?;
    set(key, &value)
}
