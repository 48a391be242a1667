//! URIs of stores on this machine with directories other than Nix's defaults: `/srv/root`,
//! `local?root=/srv/root`, `local?real=...&state=...` (Nix's `LocalFSStoreConfig`).

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::event::NixDirs;

/// A local store with other directories than Nix's variables name. Directories that are not set are
/// the usual ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalStore {
    /// The store directory in store paths.
    pub store: Option<PathBuf>,
    /// The directory of its files.
    pub real: Option<PathBuf>,
    /// Nix's state directory.
    pub state: Option<PathBuf>,
}

impl LocalStore {
    /// Returns the store that `uri` names, if it is a local one with other directories.
    pub fn parse(uri: &str) -> Option<Self> {
        let (base, query) = uri.split_once('?').unwrap_or((uri, ""));
        let path = base.strip_prefix("local://").unwrap_or(base);
        if !(path.is_empty() || path.starts_with('/') || matches!(path, "local" | "auto")) {
            return None;
        }
        let parameter = |name: &str| {
            url::form_urlencoded::parse(query.as_bytes())
                .find(|(key, value)| key == name && !value.is_empty())
                .map(|(_, value)| PathBuf::from(value.into_owned()))
        };
        let in_path = path.starts_with('/').then(|| PathBuf::from(path));
        let root = parameter("root").or(in_path);
        let below = |relative: &str| root.as_ref().map(|root| root.join(relative));
        let found = Self {
            store: parameter("store"),
            // Independent of the store directory (Nix: `rootDir + "/nix/store"`).
            real: parameter("real").or_else(|| below("nix/store")),
            state: parameter("state").or_else(|| below("nix/var/nix")),
        };
        (found != Self::default()).then_some(found)
    }

    /// Returns the directories of a Nix that uses this store; those that are not set are taken from
    /// `usual`.
    pub fn dirs(self, usual: NixDirs) -> NixDirs {
        let store = self.store.unwrap_or(usual.store);
        NixDirs {
            real_store: self.real.filter(|real| *real != store),
            store,
            state: self.state.unwrap_or(usual.state),
            conf: usual.conf,
        }
    }
}

/// Returns the directories of the Nix that called a hook: those of its environment, or of the store
/// in the setting `store`. Nix 2.4 and later pass all settings in `NIX_CONFIG`. No other setting is
/// read, because it contains secrets.
pub fn of_caller() -> NixDirs {
    let usual = NixDirs::from_env();
    let settings = std::env::var_os("NIX_CONFIG");
    let store = settings.as_deref().and_then(store_setting);
    let chosen = store.as_deref().and_then(LocalStore::parse);
    chosen
        .or_else(|| own_root(&usual, store.as_deref()))
        .map_or(usual.clone(), |store| store.dirs(usual))
}

/// Returns the value of `store` in the text of `NIX_CONFIG`.
fn store_setting(settings: &OsStr) -> Option<String> {
    let settings = settings.to_string_lossy();
    let values = settings.lines().filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == "store").then(|| value.trim().to_owned())
    });
    // The last value counts, as in Nix.
    values.fold(None, |_, value| Some(value))
}

/// Returns the private root that Nix uses for a user without root on a machine without
/// `/nix/var/nix` and without a daemon (since 2.5, `openFromNonUri` in `libstore/store-api.cc`).
fn own_root(usual: &NixDirs, store: Option<&str>) -> Option<LocalStore> {
    let chosen =
        ["NIX_STORE_DIR", "NIX_STATE_DIR"].iter().any(|name| std::env::var_os(name).is_some());
    let automatic = matches!(store, None | Some("" | "auto"));
    if chosen || !automatic || rustix::process::geteuid().is_root() || usual.state.exists() {
        return None;
    }
    let data = std::env::var_os("XDG_DATA_HOME")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".local/share")))?;
    let root = data.join("nix/root");
    let real = root.join("nix/store");
    real.is_dir().then(|| LocalStore {
        store: None,
        real: Some(real),
        state: Some(root.join("nix/var/nix")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_stores_with_other_directories_are_recognised() {
        let usual = || NixDirs::new("/nix/store", "/nix/var/nix", "/etc/nix");
        let shown = |uri: &str| {
            LocalStore::parse(uri).map(|store| {
                let NixDirs { store, state, conf: _, real_store } = store.dirs(usual());
                let real = real_store.unwrap_or_default();
                format!("{} {} {}", store.display(), real.display(), state.display())
            })
        };
        let rooted = Some("/nix/store /srv/r/nix/store /srv/r/nix/var/nix".to_owned());
        for uri in [
            "/srv/r",
            "local?root=/srv/r",
            "auto?root=/srv/r",
            "local://?root=/srv/r",
            "local:///srv/r",
            "local?root=%2Fsrv%2Fr",
            "/srv/r?trusted=1",
        ] {
            assert_eq!(shown(uri), rooted, "{uri}");
        }
        assert_eq!(
            shown("local?real=/mnt/store&state=/mnt/state").as_deref(),
            Some("/nix/store /mnt/store /mnt/state")
        );
        assert_eq!(
            shown("local?store=/gnu/store").as_deref(),
            Some("/gnu/store  /nix/var/nix"),
            "`real` takes precedence"
        );
        for uri in [
            "",
            "auto",
            "local",
            "daemon",
            "unix:///srv/socket?root=/srv/r",
            "ssh://m?root=/r",
            "s3://b",
        ] {
            assert_eq!(shown(uri), None, "{uri}");
        }
    }

    #[test]
    fn the_store_is_found_among_all_settings() {
        let settings = "allow-dirty = true\nstore = local?root=/a=b\nsubstituters = x\n";
        assert_eq!(store_setting(OsStr::new(settings)).as_deref(), Some("local?root=/a=b"));
        assert_eq!(store_setting(OsStr::new("access-tokens = store = x\n")), None);
    }
}
