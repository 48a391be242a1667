//! Reads what Nix passes to its post-build hook: `DRV_PATH` and `OUT_PATHS` in the environment.
//!
//! The post-build hook calls this. It never reads standard input (below `nix-store --serve` that is
//! the client's protocol stream) and never reads `NIX_CONFIG` (which contains secrets).

use crate::event::{NixDirs, Output, PostBuild};

use super::{is_store_path, output_name_from_path};

/// The reason why a call of Nix gives no event.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostBuildError {
    /// There is no `DRV_PATH`.
    #[error(
        "DRV_PATH is not set, because only Nix calls this hook; to try it, set it as post-build-hook of `nix-build`"
    )]
    NoDerivation,
    /// `DRV_PATH` is not in the store.
    #[error(
        "DRV_PATH `{path}` is not a store path below {store}; set NIX_STORE_DIR for both Nix and hookrun"
    )]
    NotInStore {
        /// The value of `DRV_PATH`.
        path: String,
        /// The store directory.
        store: String,
    },
}

/// Returns the event for Nix's two variables and the derivation. `OUT_PATHS` alone is not enough:
/// it is empty in Nix 2.8.0, contains only the wanted outputs in 2.8.1 to 2.15, is empty with
/// `--check` in 2.30.0 to 2.32.2, and never contains the outputs' names. The derivation alone is
/// not enough either: it does not contain the paths of floating content-addressed outputs, and may
/// not be readable in a store with another root. `derivation` returns the outputs that the
/// derivation contains. If no output is known (a content-addressed build with 2.8.0), the event has
/// no outputs, and the worker finds them in Nix's database.
///
/// # Errors
/// The variables are not those of Nix.
pub fn read<E>(
    drv_path: Option<String>,
    out_paths: &str,
    dirs: &NixDirs,
    derivation: impl FnOnce(&str) -> Result<Vec<Output>, E>,
) -> Result<PostBuild, PostBuildError> {
    let drv_path = drv_path.filter(|path| !path.is_empty()).ok_or(PostBuildError::NoDerivation)?;
    let store = dirs.store.to_string_lossy();
    if !is_store_path(&store, &drv_path) {
        return Err(PostBuildError::NotInStore { path: drv_path, store: store.into_owned() });
    }
    let mut outputs = derivation(&drv_path).unwrap_or_default();
    outputs.retain(|output| is_store_path(&store, &output.path));
    for path in out_paths.split_ascii_whitespace().filter(|path| is_store_path(&store, path)) {
        if !outputs.iter().any(|output| output.path == path) {
            let name = output_name_from_path(&drv_path, path).unwrap_or_default().to_owned();
            outputs.push(Output { name, path: path.to_owned() });
        }
    }
    outputs.sort();
    Ok(PostBuild { drv_path, outputs })
}

/// Returns the event for this process's environment.
///
/// # Errors
/// Returns the errors of [`read`].
pub fn from_env(dirs: &NixDirs) -> Result<PostBuild, PostBuildError> {
    let text =
        |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    read(text("DRV_PATH"), &text("OUT_PATHS").unwrap_or_default(), dirs, |path| {
        super::outputs_of(dirs, path, super::derivation::MAX_SIZE_IN_HOOK)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRV: &str = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-b-1.0.drv";
    const OUT: &str = "/nix/store/h7vfijp7wiaxzqw9rx3rhqqv1h7vf29d-b-1.0";
    const DEV: &str = "/nix/store/cvar8nqq71gb8af77ichz56mh6f9hd65-b-1.0-dev";

    fn dirs() -> NixDirs {
        NixDirs::new("/nix/store", "/nix/var/nix", "/etc/nix")
    }

    fn outputs(list: &[(&str, &str)]) -> Vec<Output> {
        list.iter()
            .map(|(name, path)| Output { name: (*name).into(), path: (*path).into() })
            .collect()
    }

    fn call(
        out_paths: &str,
        derivation: Result<Vec<Output>, &'static str>,
    ) -> Result<Vec<Output>, PostBuildError> {
        read(Some(DRV.into()), out_paths, &dirs(), |_| derivation).map(|event| event.outputs)
    }

    #[test]
    fn outputs_are_those_of_nix_and_of_the_derivation() {
        let both = outputs(&[("dev", DEV), ("out", OUT)]);
        assert_eq!(call("", Ok(both.clone())), Ok(both.clone()), "2.8.0");
        assert_eq!(call(OUT, Ok(both.clone())), Ok(both.clone()), "2.8.1 to 2.15");
        assert_eq!(
            call(&format!("{DEV} {OUT}"), Ok(Vec::new())),
            Ok(both.clone()),
            "floating: only Nix knows the path"
        );
        assert_eq!(
            call(&format!("{DEV} {OUT}"), Err("gone")),
            Ok(both),
            "the names are taken from the paths"
        );
        assert_eq!(
            call("", Ok(Vec::new())),
            Ok(Vec::new()),
            "2.8.0, content-addressed: no path is known"
        );
        assert_eq!(call("", Err("gone")), Ok(Vec::new()), "the worker finds them");
        assert_eq!(
            call("/etc/passwd relative", Ok(outputs(&[("out", OUT)]))),
            Ok(outputs(&[("out", OUT)]))
        );
    }

    #[test]
    fn invalid_calls_are_refused() {
        let error = |drv: Option<&str>| {
            read(drv.map(Into::into), "", &dirs(), |_| Err("it cannot be read")).unwrap_err()
        };
        insta::assert_snapshot!(error(None), @"DRV_PATH is not set, because only Nix calls this hook; to try it, set it as post-build-hook of `nix-build`");
        insta::assert_snapshot!(error(Some("/etc/passwd")), @"DRV_PATH `/etc/passwd` is not a store path below /nix/store; set NIX_STORE_DIR for both Nix and hookrun");
    }
}
