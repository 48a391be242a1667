//! Store URIs of stores on this machine whose directories are not Nix's usual ones: `/srv/root`,
//! `local?root=/srv/root`, `local?real=...&state=...` (Nix's `LocalFSStoreConfig`).

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::event::NixDirs;

/// A local store that is not where Nix's variables say; what is not set is as usual.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalStore {
    /// The store directory that the paths name.
    pub store: Option<PathBuf>,
    /// Where its files are.
    pub real: Option<PathBuf>,
    /// Nix's state directory.
    pub state: Option<PathBuf>,
}

impl LocalStore {
    /// The store that `uri` names, if it is a local one with directories of its own.
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
            // Whatever the store directory is called (Nix: `rootDir + "/nix/store"`).
            real: parameter("real").or_else(|| below("nix/store")),
            state: parameter("state").or_else(|| below("nix/var/nix")),
        };
        (found != Self::default()).then_some(found)
    }

    /// The directories of a Nix that works on this store, where they are otherwise `usual`.
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

/// The directories of the Nix that called a hook: those of its environment, or of the store that
/// the setting `store` names. Nix 2.4 and later hand all settings over in `NIX_CONFIG`, of which
/// nothing else is read: it holds secrets.
pub fn of_caller() -> NixDirs {
    let usual = NixDirs::from_env();
    let settings = std::env::var_os("NIX_CONFIG");
    let store = settings.as_deref().and_then(store_setting);
    let chosen = store.as_deref().and_then(LocalStore::parse);
    chosen
        .or_else(|| own_root(&usual, store.as_deref()))
        .map_or(usual.clone(), |store| store.dirs(usual))
}

/// The value of `store` in the text of `NIX_CONFIG`.
fn store_setting(settings: &OsStr) -> Option<String> {
    let settings = settings.to_string_lossy();
    let values = settings.lines().filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == "store").then(|| value.trim().to_owned())
    });
    // As Nix does it: the last one counts.
    values.fold(None, |_, value| Some(value))
}

/// The root of its own that Nix gives a user without root on a machine without `/nix/var/nix` and
/// without a daemon (since 2.5, `openFromNonUri` in `libstore/store-api.cc`).
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
    fn local_stores_with_directories_of_their_own() {
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
            "its files are where it says"
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
    fn the_store_of_all_the_settings() {
        let settings = "allow-dirty = true\nstore = local?root=/a=b\nsubstituters = x\n";
        assert_eq!(store_setting(OsStr::new(settings)).as_deref(), Some("local?root=/a=b"));
        assert_eq!(store_setting(OsStr::new("access-tokens = store = x\n")), None);
    }
}
