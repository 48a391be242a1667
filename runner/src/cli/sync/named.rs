//! Finds the store paths that the user names.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::CliError;
use super::plan::is_derivation;
use hookrun_nix::database::Database;
use hookrun_nix::derivation::MAX_SIZE;
use hookrun_nix::event::NixDirs;
use hookrun_nix::{self as nix, is_store_path};
use hookrun_system::process::describe_end;

/// Returns the store paths that the arguments name.
pub(super) fn named(arguments: &[OsString], nix: &NixDirs) -> Result<BTreeSet<String>, CliError> {
    let database = Database::open(nix).map_err(CliError::environment)?;
    let mut found = BTreeSet::new();
    for argument in arguments {
        let shown = argument.to_string_lossy();
        let paths = match store_path(argument, nix) {
            Some(path) if is_derivation(&path) => {
                let outputs =
                    hookrun_nix::outputs_of(nix, &path, MAX_SIZE).map_err(CliError::environment)?;
                outputs.into_iter().map(|output| output.path).collect()
            }
            Some(path) => vec![path],
            None => installable(argument)?,
        };
        let infos = database.path_infos(&paths).map_err(CliError::environment)?;
        let valid: Vec<String> = infos.into_iter().flatten().map(|info| info.path).collect();
        if valid.is_empty() {
            return Err(CliError::usage(format!(
                "`{shown}` is not valid in {}; build it first",
                nix.store.display()
            )));
        }
        found.extend(valid);
    }
    Ok(found)
}

/// Returns the store path to which a file system path leads; none if it is not one.
pub(in crate::cli) fn store_path(argument: &OsStr, nix: &NixDirs) -> Option<String> {
    let store = nix.store.to_string_lossy();
    let within = |path: &Path| {
        let first = path.strip_prefix(&nix.store).ok()?.components().next()?;
        let path = nix.store.join(first).to_str()?.to_owned();
        is_store_path(&store, &path).then_some(path)
    };
    // A store path may be a symbolic link itself.
    within(Path::new(argument))
        .or_else(|| within(&std::fs::canonicalize(PathBuf::from(argument)).ok()?))
}

/// Asks Nix for the store paths of an installable.
pub(in crate::cli) fn installable(argument: &OsStr) -> Result<Vec<String>, CliError> {
    let output = nix::command("nix")
        .args(["--extra-experimental-features", "nix-command flakes", "path-info"])
        .arg(argument)
        .stdin(std::process::Stdio::null())
        .output()
        .context("`nix` cannot be started; install Nix, or name existing store paths")
        .map_err(CliError::environment)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(CliError::usage(format!(
            "`{}` is neither a valid path nor an installable that is built: `nix path-info` {}",
            argument.to_string_lossy(),
            describe_end(output.status, &said)
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}
