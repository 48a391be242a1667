//! Reads what Nix passes to its post-build hook: `DRV_PATH` and `OUT_PATHS` in the environment.
//!
//! The thin hook calls this. It never reads standard input (below `nix-store --serve` that is the
//! client's protocol stream) and never looks at `NIX_CONFIG` (it holds secrets).

use crate::event::{NixDirs, Output, PostBuild};

use super::{is_store_path, output_name_from_path};

/// Why Nix's call gives no event.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostBuildError {
    /// There is no `DRV_PATH`.
    #[error(
        "DRV_PATH is not set: only Nix calls this; to try it, run it as post-build-hook of `nix-build`"
    )]
    NoDerivation,
    /// `DRV_PATH` is not in the store.
    #[error(
        "DRV_PATH `{path}` is not a store path below {store}; set NIX_STORE_DIR for both Nix and hookrun"
    )]
    NotInStore {
        /// What it says.
        path: String,
        /// The store directory.
        store: String,
    },
}

/// The event that Nix's two variables and the derivation give. `OUT_PATHS` alone does not do: it is
/// empty in Nix 2.8.0, holds only the wanted outputs in 2.8.1 to 2.15, is empty under `--check` in
/// 2.30.0 to 2.32.2, and never says the outputs' names. The derivation alone does not do either: it
/// does not know where floating content-addressed outputs are, and may be out of reach in a store
/// with another root. `derivation` reads the outputs that the derivation knows. Where nobody knows
/// any (a content-addressed build with 2.8.0), the event is without outputs: the worker, which may
/// read Nix's database, finds them.
///
/// # Errors
/// If the call is not Nix's.
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

/// The event of this process's environment.
///
/// # Errors
/// As [`read`].
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
            "floating: only Nix knows"
        );
        assert_eq!(call(&format!("{DEV} {OUT}"), Err("gone")), Ok(both), "names from the paths");
        assert_eq!(
            call("", Ok(Vec::new())),
            Ok(Vec::new()),
            "2.8.0, content-addressed: nobody knows"
        );
        assert_eq!(call("", Err("gone")), Ok(Vec::new()), "the worker looks for them");
        assert_eq!(
            call("/etc/passwd relative", Ok(outputs(&[("out", OUT)]))),
            Ok(outputs(&[("out", OUT)]))
        );
    }

    #[test]
    fn calls_that_give_no_event() {
        let error = |drv: Option<&str>| {
            read(drv.map(Into::into), "", &dirs(), |_| Err("it cannot be read")).unwrap_err()
        };
        insta::assert_snapshot!(error(None), @"DRV_PATH is not set: only Nix calls this; to try it, run it as post-build-hook of `nix-build`");
        insta::assert_snapshot!(error(Some("/etc/passwd")), @"DRV_PATH `/etc/passwd` is not a store path below /nix/store; set NIX_STORE_DIR for both Nix and hookrun");
    }
}
