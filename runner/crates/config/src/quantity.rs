//! Durations such as `"15m"` and sizes such as `"2GiB"`, for `deserialize_with`.
//!
//! The errors of `humantime-serde` and of bytesize's own deserialiser only say "expected a
//! duration". These messages show the value and an accepted form.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize as _, Deserializer};

use super::Limit;

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|error| {
        D::Error::custom(format!(
            "`{text}` is not a valid duration ({error}); write for example \"15m\""
        ))
    })
}

pub(super) fn optional_duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

/// A size, or a number of bytes.
pub(super) fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let value = toml::Value::deserialize(deserializer)?;
    Limit::Memory.parse(&value).map_err(|_| {
        D::Error::custom(format!("{value} is not a valid size; write for example \"2GiB\""))
    })
}

pub(super) fn optional_size<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u64>, D::Error> {
    size(deserializer).map(Some)
}
