//! Pins: names for store paths that garbage collection keeps, one object for each.
//!
//! ```text
//! hookrun-pin 1
//! time 1764300000
//! /nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-hello-2.12
//! ```
//!
//! The object is `hookrun/pins/NAME`. Setting a pin again replaces it. A pin that was set protects
//! its closure: [`set`] writes the pin first, waits for the end of a sweep that may not have seen
//! it, and then checks that the whole closure is there.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hookrun_nix::is_store_path;
use serde::Serialize;

use crate::cache::ATTEMPTS;
use crate::inventory::HashPart;
use crate::{Cache, CacheError};

/// The directory of the pins, with a slash.
pub const DIRECTORY: &str = "hookrun/pins/";
/// The first line.
const HEADER: &str = "hookrun-pin 1";
/// The content type of a pin.
const CONTENT_TYPE: &str = "text/plain";
/// The maximum size of a pin: more than 10,000 paths.
const MAX_SIZE: u64 = 4 << 20;
/// The longest name.
const MAX_NAME: usize = 200;
/// How often the end of a sweep is looked for.
const LOOK: Duration = Duration::from_secs(5);

/// A pin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pin {
    /// Its name.
    pub name: String,
    /// When it was set, in seconds since 1970.
    pub time: u64,
    /// The full store paths.
    pub paths: Vec<String>,
}

impl Pin {
    fn parse(name: &str, store_dir: &str, text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut lines = text.lines();
        if lines.next() != Some(HEADER) {
            return None;
        }
        let time = lines.next()?.strip_prefix("time ")?.parse().ok()?;
        let paths: Vec<String> = lines.map(str::to_owned).collect();
        let all_are_paths = paths.iter().all(|path| is_store_path(store_dir, path));
        all_are_paths.then(|| Self { name: name.to_owned(), time, paths })
    }

    fn text(&self) -> String {
        let paths = self.paths.iter().map(|path| format!("{path}\n"));
        format!("{HEADER}\ntime {}\n{}", self.time, paths.collect::<Vec<_>>().concat())
    }
}

/// Checks the name of a pin: a part of a key.
///
/// # Errors
/// The name is empty, too long, or has other characters than letters, digits and `+-._`.
pub fn check_name(name: &str) -> Result<(), CacheError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._".contains(&byte);
    let is_name = (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(is_plain)
        && !name.starts_with('.');
    if is_name {
        return Ok(());
    }
    Err(CacheError::Usage(format!(
        "`{}` is not a name for a pin; use at most {MAX_NAME} letters, digits and `+-._`, and no \
         dot at the beginning",
        name.escape_debug()
    )))
}

/// Returns the pin with this name; none if there is none.
///
/// # Errors
/// As the store has it, or the object is not a pin. Nothing may be collected then.
pub async fn get(cache: &Cache, name: &str) -> Result<Option<Pin>, CacheError> {
    check_name(name)?;
    let Some(object) = cache.bucket().get(&key(name), MAX_SIZE).await? else { return Ok(None) };
    let pin = Pin::parse(name, cache.store_dir(), &object.bytes);
    pin.map(Some).ok_or_else(|| {
        CacheError::Usage(format!(
            "the pin `{name}` of `{}` cannot be read; set it again with `hookrun cache pin`, or \
             remove it with `hookrun cache unpin`",
            cache.bucket().name()
        ))
    })
}

/// Returns all pins, sorted by name.
///
/// # Errors
/// As [`get`].
pub async fn list(cache: &Cache) -> Result<Vec<Pin>, CacheError> {
    let mut names = Vec::new();
    let directory = DIRECTORY.trim_end_matches('/');
    let take = |listed: hookrun_capability::object_store::Listed| {
        names.extend(listed.key.strip_prefix(DIRECTORY).map(str::to_owned));
        std::ops::ControlFlow::Continue(())
    };
    cache.bucket().list(Some(directory), take).await?;
    names.sort();
    named(cache, names).await
}

/// Returns the pins with these names.
///
/// # Errors
/// As [`get`].
pub async fn named(cache: &Cache, names: Vec<String>) -> Result<Vec<Pin>, CacheError> {
    let reading = stream::iter(names).map(|name| async move { get(cache, &name).await });
    let pins: Vec<Option<Pin>> = reading.buffered(16).try_collect().await?;
    Ok(pins.into_iter().flatten().collect())
}

/// Sets a pin, and checks that everything that it protects is there. `waiting` is called with the
/// time until which a sweep runs.
///
/// # Errors
/// As the store has it, or a path of the closure is absent. The pin stays set then, so that the
/// missing paths can be uploaded.
pub async fn set(
    cache: &Cache,
    name: &str,
    paths: Vec<String>,
    mut waiting: impl FnMut(u64),
) -> Result<(Pin, u64), CacheError> {
    check_name(name)?;
    let pin = Pin { name: name.to_owned(), time: cache.now(), paths };
    write(cache, &pin).await?;
    // A sweep that began before may not have seen the pin.
    while let Some(until) = cache.condemned().await?.0.sweeping_until(cache.now()) {
        waiting(until);
        cache.sleep(LOOK).await;
    }
    let (count, missing) = closure(cache, &pin.paths).await?;
    if missing.is_empty() {
        return Ok((pin, count));
    }
    let more = match missing.len() {
        0 | 1 => String::new(),
        more => format!(" and {} more paths", more - 1),
    };
    Err(CacheError::Usage(format!(
        "the pin `{name}` is set, but `{}` does not have `{}`{more}; upload it with `hookrun cache \
         push`",
        cache.bucket().name(),
        missing.first().map_or("", String::as_str),
    )))
}

async fn write(cache: &Cache, pin: &Pin) -> Result<(), CacheError> {
    let key = key(&pin.name);
    let bucket = cache.bucket();
    for _ in 0..ATTEMPTS {
        let text = pin.text().into_bytes();
        let written = match bucket.get(&key, MAX_SIZE).await? {
            None => bucket.create(&key, CONTENT_TYPE, text).await?,
            Some(old) => bucket.replace(&key, CONTENT_TYPE, &old, text).await?,
        };
        if written {
            return Ok(());
        }
    }
    Err(CacheError::Contended { key })
}

/// Returns the number of paths in the closure, and the names of those that are absent.
async fn closure(cache: &Cache, paths: &[String]) -> Result<(u64, Vec<String>), CacheError> {
    let base = |path: &String| path.rsplit('/').next().unwrap_or(path).to_owned();
    let mut wave: Vec<String> = paths.iter().map(base).collect();
    let mut seen: HashSet<HashPart> = wave.iter().filter_map(|name| HashPart::of(name)).collect();
    let mut missing = Vec::new();
    while !wave.is_empty() {
        let reading = stream::iter(wave).map(|name| async move {
            let stored = match HashPart::of(&name) {
                Some(hash) => cache.narinfo(hash.as_str()).await?,
                None => None,
            };
            Ok::<_, CacheError>((name, stored))
        });
        let read: Vec<_> = reading
            .buffered(hookrun_capability::object_store::BUCKET_REQUESTS)
            .try_collect()
            .await?;
        wave = Vec::new();
        for (name, stored) in read {
            let Some(Ok(narinfo)) = stored.map(|stored| stored.narinfo) else {
                missing.push(name);
                continue;
            };
            wave.extend(
                narinfo
                    .references()
                    .filter(|name| HashPart::of(name).is_some_and(|hash| seen.insert(hash))),
            );
        }
    }
    Ok((seen.len() as u64, missing))
}

/// Removes a pin; returns whether there was one.
///
/// # Errors
/// As the store has it.
pub async fn remove(cache: &Cache, name: &str) -> Result<bool, CacheError> {
    check_name(name)?;
    let key = key(name);
    if cache.bucket().head(&key).await?.is_none() {
        return Ok(false);
    }
    match cache.bucket().delete(vec![key]).await {
        (_, Some(error)) => Err(error.into()),
        (_, None) => Ok(true),
    }
}

fn key(name: &str) -> String {
    format!("{DIRECTORY}{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_read_back_as_it_was_written() {
        let path = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-hello-2.12";
        let pin = Pin { name: "a".into(), time: 7, paths: vec![path.into()] };
        assert_eq!(Pin::parse("a", "/nix/store", pin.text().as_bytes()), Some(pin));
        for text in ["", "hookrun-pin 2\ntime 1\n", "hookrun-pin 1\ntime 1\n/etc/passwd\n"] {
            assert_eq!(Pin::parse("a", "/nix/store", text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn names_are_parts_of_keys() {
        for name in ["release-24.05", "a+b_c"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a b", &"x".repeat(201), ".hidden"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
