//! Everything that garbage collection keeps: pins, paths of lists, and the roots of the local Nix.

use std::collections::HashSet;

use hookrun_nix::database::Database;
use hookrun_nix::event::NixDirs;
use hookrun_nix::is_store_path;

use crate::inventory::HashPart;
use crate::pins::Pin;
use crate::{Cache, CacheError};

/// The roots of a collection.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    /// The hash parts of all paths.
    pub hashes: HashSet<HashPart>,
    /// The number of paths by their source.
    pub counts: Vec<(String, u64)>,
}

impl Roots {
    /// Adds the paths of pins.
    pub fn add_pins(&mut self, pins: &[Pin]) {
        let paths = pins.iter().flat_map(|pin| &pin.paths).map(String::as_str);
        let count = self.add(paths);
        let word = if pins.len() == 1 { "pin" } else { "pins" };
        self.counts.push((format!("{} {word}", pins.len()), count));
    }

    /// Adds the paths of a list: one on each line; empty lines and lines that start with `#` are
    /// ignored.
    ///
    /// # Errors
    /// A line is not a store path of the cache: an incomplete list would remove too much.
    pub fn add_list(&mut self, cache: &Cache, name: &str, text: &str) -> Result<(), CacheError> {
        let lines = text.lines().map(str::trim).enumerate();
        let lines: Vec<(usize, &str)> =
            lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).collect();
        if let Some((index, line)) =
            lines.iter().find(|(_, line)| !is_store_path(cache.store_dir(), line))
        {
            return Err(CacheError::Usage(format!(
                "line {} of {name} is not a store path of {}: `{}`; remove or correct it",
                index + 1,
                cache.store_dir(),
                line.escape_debug()
            )));
        }
        let count = self.add(lines.iter().map(|(_, line)| *line));
        self.counts.push((name.to_owned(), count));
        Ok(())
    }

    /// Adds what the roots of the local Nix reach, also if a root itself is not in the cache.
    ///
    /// # Errors
    /// Nix cannot be asked.
    pub fn add_local(&mut self, cache: &Cache) -> Result<(), CacheError> {
        let failed = |what: String| {
            CacheError::Environment(format!(
                "the roots of the local Nix cannot be listed: {what}; see that `nix-store --gc \
                 --print-roots` works"
            ))
        };
        let output = hookrun_nix::command("nix-store")
            .args(["--gc", "--print-roots"])
            .stdin(std::process::Stdio::null())
            .output()
            .map_err(|error| failed(format!("`nix-store` cannot be started ({error})")))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(failed(hookrun_system::process::describe_end(output.status, &said)));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        // `LINK -> PATH`, and `PATH` alone from Nix 2.3 on for some.
        let roots = text.lines().filter_map(|line| line.rsplit(" -> ").next()).map(str::trim);
        let roots: Vec<String> = roots
            .filter(|path| is_store_path(cache.store_dir(), path))
            .map(str::to_owned)
            .collect();
        let closure = Database::open(&NixDirs::from_env())?.closure(&roots)?;
        let count = self.add(closure.iter().map(String::as_str));
        self.counts.push((format!("{} local roots", roots.len()), count));
        Ok(())
    }

    fn add<'a>(&mut self, paths: impl IntoIterator<Item = &'a str>) -> u64 {
        let mut count = 0;
        for hash in paths.into_iter().filter_map(HashPart::of) {
            self.hashes.insert(hash);
            count += 1;
        }
        count
    }
}
