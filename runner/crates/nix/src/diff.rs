//! Reads the four arguments that Nix passes to its diff hook (since 2.3): the previous result, the
//! current result, the derivation, and the build directory.
//!
//! The diff hook calls this as the build user. With `--check` the current result ends in `.check`;
//! in rounds of `repeat` (up to Nix 2.12) the previous one does. The build directory is ignored,
//! because it is not accessible if Nix uses its sandbox.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::event::{NixDirs, Output};

use super::{is_store_path, output_name_from_path};

/// The suffix that Nix gives to the result that it does not register.
const CHECK: &str = ".check";

/// A checked call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiffArguments {
    /// The full store path of the derivation.
    pub drv_path: String,
    /// The output that differs.
    pub output: Output,
    /// The previous result.
    pub previous: String,
    /// The current result.
    pub current: String,
    /// The directory with the files of the store, if the store has another root. In that case Nix
    /// names the results by their real paths, and the derivation by its store path.
    pub real_store: Option<PathBuf>,
}

/// The reason why a call of Nix gives no event.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiffError {
    /// There are not four arguments.
    #[error(
        "the diff hook takes four arguments (previous result, current result, derivation, build directory), but got {0}; Nix passes them since 2.3"
    )]
    Arguments(usize),
    /// An argument is not in the store.
    #[error(
        "`{path}` is not a store path below {store}; set NIX_STORE_DIR for both Nix and hookrun"
    )]
    NotInStore {
        /// The argument.
        path: String,
        /// The store directory.
        store: String,
    },
}

/// Returns the call for Nix's arguments. `derivation` returns the outputs of a derivation; if it
/// does not know the output, the name is taken from the path.
///
/// # Errors
/// The arguments are not those of Nix.
pub fn read<E>(
    arguments: &[OsString],
    dirs: &NixDirs,
    derivation: impl FnOnce(&str) -> Result<Vec<Output>, E>,
) -> Result<DiffArguments, DiffError> {
    let [previous, current, drv_path, _build_directory] = arguments else {
        return Err(DiffError::Arguments(arguments.len()));
    };
    let store = dirs.store.to_string_lossy();
    let real_store = Path::new(current)
        .parent()
        .filter(|real| *real != dirs.store && real.ends_with(in_root(&dirs.store)))
        .map(Path::to_owned);
    let store_path = |argument: &OsString| {
        let below =
            real_store.as_ref().and_then(|real| Path::new(argument).strip_prefix(real).ok());
        let path = below.map_or_else(
            || argument.to_string_lossy().into_owned(),
            |below| dirs.store.join(below).to_string_lossy().into_owned(),
        );
        if is_store_path(&store, &path) {
            Ok(path)
        } else {
            Err(DiffError::NotInStore { path, store: store.clone().into_owned() })
        }
    };
    let (previous, current, drv_path) =
        (store_path(previous)?, store_path(current)?, store_path(drv_path)?);
    // The name of an output may itself end in `.check`, so the derivation decides.
    let known = derivation(&drv_path).unwrap_or_default();
    let known = known.into_iter().find(|output| output.path == previous || output.path == current);
    let output = known.unwrap_or_else(|| {
        let path =
            if previous.strip_suffix(CHECK) == Some(&current) { &current } else { &previous };
        Output {
            name: output_name_from_path(&drv_path, path).unwrap_or_default().to_owned(),
            path: path.clone(),
        }
    });
    Ok(DiffArguments { drv_path, output, previous, current, real_store })
}

/// Returns the store directory below a root.
fn in_root(store: &Path) -> &Path {
    store.strip_prefix("/").unwrap_or(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRV: &str = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-b-1.0.drv";
    const OUT: &str = "/nix/store/h7vfijp7wiaxzqw9rx3rhqqv1h7vf29d-b-1.0";
    const DEV: &str = "/nix/store/cvar8nqq71gb8af77ichz56mh6f9hd65-b-1.0-dev";

    fn call(
        arguments: &[&str],
        derivation: Option<Vec<Output>>,
    ) -> Result<DiffArguments, DiffError> {
        let dirs = NixDirs::new("/nix/store", "/nix/var/nix", "/etc/nix");
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        read(&arguments, &dirs, |_| derivation.ok_or(()))
    }

    #[test]
    fn calls_with_three_and_with_four_arguments_are_read() {
        let check = format!("{DEV}.check");
        let known = || {
            Some(vec![
                Output { name: "dev".into(), path: DEV.into() },
                Output { name: "out".into(), path: OUT.into() },
            ])
        };
        for derivation in [known(), None] {
            let checked = call(&[DEV, &check, DRV, "/tmp/x"], derivation.clone()).unwrap();
            assert_eq!(checked.output, Output { name: "dev".into(), path: DEV.into() });
            assert_eq!(
                (checked.previous.as_str(), checked.current.as_str()),
                (DEV, check.as_str())
            );
            let repeated = call(&[&check, DEV, DRV, "/tmp/x"], derivation).unwrap();
            assert_eq!(repeated.output, checked.output, "`repeat` passes them in the other order");
        }
    }

    #[test]
    fn a_store_with_another_root_is_recognised() {
        let real = |path: &str| format!("/srv/root{path}");
        let check = format!("{DEV}.check");
        let call = call(&[&real(DEV), &real(&check), DRV, "/tmp/x"], None).unwrap();
        assert_eq!((call.previous.as_str(), call.current.as_str()), (DEV, check.as_str()));
        assert_eq!(call.real_store, Some("/srv/root/nix/store".into()));
    }

    #[test]
    fn invalid_calls_are_refused() {
        insta::assert_snapshot!(call(&[OUT], None).unwrap_err(), @"the diff hook takes four arguments (previous result, current result, derivation, build directory), but got 1; Nix passes them since 2.3");
        insta::assert_snapshot!(call(&[OUT, "/etc", DRV, "/tmp"], None).unwrap_err(), @"`/etc` is not a store path below /nix/store; set NIX_STORE_DIR for both Nix and hookrun");
    }
}
