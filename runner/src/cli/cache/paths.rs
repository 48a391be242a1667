//! The arguments PATH: store paths, links to them, and installables.

use std::ffi::OsString;

use super::super::{CliError, sync};
use hookrun_cache::Cache;
use hookrun_nix::event::NixDirs;
use hookrun_nix::is_store_path;

/// Returns the store paths that the arguments name. A store path need not be valid on this machine.
pub(super) fn resolve(cache: &Cache, arguments: &[OsString]) -> Result<Vec<String>, CliError> {
    let nix = NixDirs::from_env();
    let mut paths = Vec::new();
    for argument in arguments {
        let text = argument.to_string_lossy();
        if is_store_path(cache.store_dir(), &text) {
            paths.push(text.into_owned());
            continue;
        }
        let found = match sync::store_path(argument, &nix) {
            Some(path) => vec![path],
            None => sync::installable(argument)?,
        };
        for path in found {
            if !is_store_path(cache.store_dir(), &path) {
                return Err(CliError::usage(format!(
                    "`{path}` is not a path of {}, which the cache is for",
                    cache.store_dir()
                )));
            }
            paths.push(path);
        }
    }
    paths.sort();
    paths.dedup();
    Ok(paths)
}
