//! The settings of Nix, which it sends to a build hook first. Some of them are secrets.
//!
//! They are kept unchanged and in order, to be repeated to Nix's own hook. Only values that this
//! file names are available to other code, and `Debug` shows only names.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use crate::choice::policy::Division;
use hookrun_nix::event::NixDirs;
use hookrun_nix::selection::{BUILTIN, LocalMachine};
use hookrun_nix::store_uri::LocalStore;
use hookrun_nix::wire::{self, WireError};

/// The setting that lists machines.
const BUILDERS: &str = "builders";
/// Evaluator settings that Nix 2.20 added, the release that made speed factors fractions.
const SINCE_2_20: [&str; 2] = ["max-call-depth", "debugger-on-trace"];
/// The largest number of settings that is read. Nix 2.34 sends 122.
const MAX_SETTINGS: usize = 4096;

/// The settings of the Nix that called.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Settings {
    entries: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Settings {
    /// Reads the settings. Returns `None` if the stream ended before the first.
    ///
    /// # Errors
    /// The stream is malformed or ends early.
    pub fn read(from: &mut impl Read) -> Result<Option<Self>, WireError> {
        let (mut entries, mut total) = (Vec::new(), 0);
        let Some(mut more) = wire::read_u64_or_eof(from, "the settings")? else { return Ok(None) };
        while more != 0 {
            if entries.len() >= MAX_SETTINGS {
                let (length, cap) = (entries.len() as u64 + 1, MAX_SETTINGS as u64);
                return Err(WireError::TooLong { what: "the list of settings", length, cap });
            }
            let name = wire::read_bytes(from, "the name of a setting")?;
            let value = wire::read_bytes(from, "the value of a setting")?;
            for part in [&name, &value] {
                wire::add_to(&mut total, part, "the list of settings")?;
            }
            entries.push((name, value));
            more = wire::read_u64(from, "the settings")?;
        }
        Ok(Some(Self { entries }))
    }

    /// Writes the settings, with `builders` set to one line.
    ///
    /// # Errors
    /// `to` cannot be written.
    pub fn write(&self, to: &mut impl Write, builders: &str) -> io::Result<()> {
        let mut replaced = false;
        for (name, value) in &self.entries {
            let is_builders = name == BUILDERS.as_bytes();
            replaced |= is_builders;
            write_setting(to, name, if is_builders { builders.as_bytes() } else { value })?;
        }
        // Lix 2.92 and 2.93 omit settings with their default value.
        if !replaced {
            write_setting(to, BUILDERS.as_bytes(), builders.as_bytes())?;
        }
        wire::write_u64(to, 0)
    }

    fn get_bytes(&self, name: &str) -> Option<&[u8]> {
        self.entries
            .iter()
            .rev()
            .find(|(known, _)| known == name.as_bytes())
            .map(|(_, value)| value.as_slice())
    }

    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        self.get_bytes(name).map(String::from_utf8_lossy)
    }

    fn words(&self, name: &str) -> Option<BTreeSet<String>> {
        self.get(name).map(|value| value.split_ascii_whitespace().map(ToOwned::to_owned).collect())
    }

    /// Returns the setting that lists machines.
    pub fn builders(&self) -> &[u8] {
        self.get_bytes(BUILDERS).unwrap_or_default()
    }

    /// Returns the system of this machine, such as `x86_64-linux`.
    pub fn system(&self) -> String {
        self.get("system")
            .filter(|system| !system.is_empty())
            .map_or_else(own_system, Cow::into_owned)
    }

    /// Returns how this Nix divides load by speed factor.
    pub fn division(&self) -> Division {
        if SINCE_2_20.iter().any(|name| self.get(name).is_some()) {
            Division::Float
        } else {
            Division::Integer
        }
    }

    /// Returns whether this machine can build such a derivation, and has a free slot (`willing`, as
    /// Nix reported).
    pub fn local_machine(&self, system: &str, features: &[String], willing: bool) -> LocalMachine {
        let slots = self.max_jobs();
        let platform = system == BUILTIN
            || system == self.system()
            || self.words("extra-platforms").is_some_and(|platforms| platforms.contains(system));
        // If the setting is missing (Lix omits defaults), Nix's default is used, except for values
        // that depend on the machine.
        let known = self.words("system-features").unwrap_or_else(|| {
            ["benchmark", "big-parallel", "nixos-test"].map(ToOwned::to_owned).into()
        });
        let able = slots > 0 && platform && features.iter().all(|feature| known.contains(feature));
        LocalMachine {
            able,
            willing,
            slots,
            whole_speed_factors: self.division() == Division::Integer,
            ..LocalMachine::default()
        }
    }

    /// Returns whether machines fetch inputs from their own substituters
    /// (`builders-use-substitutes`).
    pub fn builders_use_substitutes(&self) -> bool {
        self.get("builders-use-substitutes").is_some_and(|value| value == "true")
    }

    fn max_jobs(&self) -> u32 {
        match self.get("max-jobs").as_deref().map(str::trim) {
            Some("auto") => std::thread::available_parallelism()
                .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
            Some(text) => text.parse().unwrap_or(1),
            None => 1,
        }
    }

    /// Returns the directories of the store that the setting `store` names (`/srv/x`,
    /// `local?root=...`), or `usual` without one. Nix's hook keeps its slot files with the store.
    pub fn dirs_of_store(&self, usual: &NixDirs) -> NixDirs {
        let chosen = self.get("store").and_then(|store| LocalStore::parse(&store));
        chosen.map_or_else(|| usual.clone(), |store| store.dirs(usual.clone()))
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.entries.iter().map(|(name, _)| String::from_utf8_lossy(name)))
            .finish()
    }
}

/// Returns the state directory of the store that the setting `store` names, if that is another one
/// than this machine's own.
pub fn state_dir_of(store: &str) -> Option<PathBuf> {
    LocalStore::parse(store)?.state
}

fn write_setting(to: &mut impl Write, name: &[u8], value: &[u8]) -> io::Result<()> {
    wire::write_u64(to, 1)?;
    wire::write_bytes(to, name)?;
    wire::write_bytes(to, value)
}

/// Returns the system of this machine as Nix names it, for a Nix that does not send the setting.
fn own_system() -> String {
    let cpu = match std::env::consts::ARCH {
        "x86" => "i686",
        "arm" => "armv7l",
        other => other,
    };
    let kernel = if std::env::consts::OS == "macos" { "darwin" } else { std::env::consts::OS };
    format!("{cpu}-{kernel}")
}

#[cfg(test)]
impl Settings {
    /// Returns settings for tests.
    pub(crate) fn of(entries: &[(&str, &str)]) -> Self {
        Self {
            entries: entries
                .iter()
                .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
                .collect(),
        }
    }

    /// Returns the bytes that Nix sends, for tests.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let builders = String::from_utf8(self.builders().to_vec()).unwrap();
        self.write(&mut out, &builders).unwrap();
        out
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn settings_are_repeated_with_one_machine() {
        let settings = Settings::of(&[
            ("access-tokens", "github.com=s3cret"),
            ("builders", "@/etc/nix/machines"),
            ("cores", "2"),
        ]);
        let mut out = Vec::new();
        settings.write(&mut out, "ssh://m").unwrap();
        let back = Settings::read(&mut out.as_slice()).unwrap().unwrap();
        assert_eq!(
            back,
            Settings::of(&[
                ("access-tokens", "github.com=s3cret"),
                ("builders", "ssh://m"),
                ("cores", "2")
            ])
        );
        let mut out = Vec::new();
        Settings::default().write(&mut out, "ssh://m").unwrap();
        assert_eq!(Settings::read(&mut out.as_slice()).unwrap().unwrap().builders(), b"ssh://m");
        assert_eq!(
            format!("{settings:?}"),
            r#"["access-tokens", "builders", "cores"]"#,
            "values are secret"
        );
    }

    #[test]
    fn this_machine_builds_its_systems_and_features() {
        let settings = Settings::of(&[
            ("system", "x86_64-linux"),
            ("extra-platforms", "i686-linux"),
            ("system-features", "kvm big-parallel"),
            ("max-jobs", "4"),
        ]);
        let able = |system: &str, features: &[&str]| {
            settings
                .local_machine(
                    system,
                    &features.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>(),
                    true,
                )
                .able
        };
        assert!(able("x86_64-linux", &["kvm"]));
        assert!(able("i686-linux", &[]));
        assert!(able("builtin", &[]));
        assert!(!able("aarch64-linux", &[]));
        assert!(!able("x86_64-linux", &["cuda"]));
        assert!(
            !Settings::of(&[("system", "x86_64-linux"), ("max-jobs", "0")])
                .local_machine("x86_64-linux", &[], true)
                .able
        );
    }

    #[test]
    fn directories_of_other_stores_are_recognised() {
        let usual = NixDirs::new("/nix/store", "/nix/var/nix", "/etc/nix");
        let dirs = |store: &str| Settings::of(&[("store", store)]).dirs_of_store(&usual);
        assert_eq!((dirs("auto"), dirs("daemon")), (usual.clone(), usual.clone()));
        assert_eq!(dirs("/srv/x").state, Path::new("/srv/x/nix/var/nix"));
        assert_eq!(dirs("/srv/x").real_path("/nix/store/a"), Path::new("/srv/x/nix/store/a"));
        assert_eq!(dirs("local?root=/srv/x&state=/srv/s").state, Path::new("/srv/s"));
        assert_eq!(state_dir_of("auto"), None);
    }

    #[test]
    fn the_load_is_divided_as_in_the_version() {
        assert_eq!(Settings::of(&[("cores", "1")]).division(), Division::Integer);
        assert_eq!(Settings::of(&[("max-call-depth", "10000")]).division(), Division::Float);
    }
}
