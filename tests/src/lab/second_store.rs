//! Empty stores into which a test copies what was uploaded.

use std::path::{Path, PathBuf};

use hookrun::demo::private_nix::PrivateNix;

use super::{Ran, Scene};

/// An empty store with the store directory of its scene, so that the same store paths are valid in
/// both.
pub struct SecondStore<'a> {
    scene: &'a Scene,
    directory: PathBuf,
}

impl Scene {
    /// Makes an empty second store.
    pub fn second_store(&self) -> SecondStore<'_> {
        let stores = self.path("stores");
        std::fs::create_dir_all(&stores).unwrap();
        let number = std::fs::read_dir(&stores).unwrap().count();
        let directory = stores.join(number.to_string());
        std::fs::create_dir(&directory).unwrap();
        SecondStore { scene: self, directory }
    }
}

impl SecondStore<'_> {
    /// Substitutes `path` from the cache `url`. Signatures are required, and only these keys are
    /// trusted.
    #[track_caller]
    pub fn substitute(&self, path: &Path, url: &str, trusted_keys: &[&str]) -> Ran {
        let mut command = self.scene.private_nix().command_on_store(&self.directory, "nix-store");
        Ran::of(command.arg("--realise").arg(path).args(Self::trust(trusted_keys)).args([
            "--option",
            "substituters",
            url,
        ]))
    }

    /// Runs `nix copy --from` the cache `url`. Signatures are required, and only these keys are
    /// trusted.
    #[track_caller]
    pub fn copy_from(&self, path: &Path, url: &str, trusted_keys: &[&str]) -> Ran {
        let mut command = self.scene.private_nix().command_on_store(&self.directory, "nix");
        Ran::of(command.args(["copy", "--from", url]).arg(path).args(Self::trust(trusted_keys)))
    }

    fn trust(keys: &[&str]) -> Vec<String> {
        ["--option", "require-sigs", "true", "--option", "trusted-public-keys"]
            .into_iter()
            .map(str::to_owned)
            .chain([keys.join(" ")])
            .collect()
    }

    /// Returns whether the store has the path.
    pub fn has(&self, path: &Path) -> bool {
        self.locate(path).exists()
    }

    /// Returns where the path is on disk.
    pub fn locate(&self, path: &Path) -> PathBuf {
        PrivateNix::path_in_store(&self.directory, path)
    }
}
