//! The directories of hookrun's configuration and state.
//!
//! A system installation (root, or a build user called by root's Nix) uses `/etc/hookrun` and
//! `/var/lib/hookrun`. A user without root who has a home directory uses the XDG directories.
//! `HOOKRUN_CONFIG` and `HOOKRUN_STATE_DIR` override both.

use std::path::{Path, PathBuf};

/// The configuration file of a system installation.
pub const SYSTEM_CONFIG: &str = "/etc/hookrun/hookrun.toml";
/// The state directory of a system installation.
pub const SYSTEM_STATE: &str = "/var/lib/hookrun";

/// The directory for files that a system installation needs only until the machine stops.
pub const SYSTEM_RUNTIME: &str = "/run/hookrun";

/// Root's cache directory.
const SYSTEM_CACHE: &str = "/var/cache";

/// The directories of one installation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Dirs {
    /// The configuration file, which need not exist.
    pub config: PathBuf,
    /// The state directory, which need not exist.
    pub state: PathBuf,
}

impl Dirs {
    /// Returns the directories for this process, from the environment or from its user.
    pub fn from_env() -> Self {
        let var = |name: &str| {
            std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
        };
        let home = || var("HOME").unwrap_or_else(|| PathBuf::from("/"));
        let own_state =
            || var("XDG_STATE_HOME").unwrap_or_else(|| home().join(".local/state")).join("hookrun");
        let system = rustix::process::getuid().is_root() || !is_own(&own_state());
        Self {
            config: var("HOOKRUN_CONFIG").unwrap_or_else(|| {
                if system {
                    PathBuf::from(SYSTEM_CONFIG)
                } else {
                    var("XDG_CONFIG_HOME")
                        .unwrap_or_else(|| home().join(".config"))
                        .join("hookrun/hookrun.toml")
                }
            }),
            state: var("HOOKRUN_STATE_DIR")
                .unwrap_or_else(|| if system { PathBuf::from(SYSTEM_STATE) } else { own_state() }),
        }
    }

    /// Returns the directory of events handed over by hooks; see `hookrun_queue::spool`.
    pub fn spool(&self) -> PathBuf {
        self.state.join("spool")
    }

    /// Returns the directory of rejected spool files and their reasons.
    pub fn rejected(&self) -> PathBuf {
        self.state.join("rejected")
    }

    /// Returns the directory of the journal (0700), which contains the database `journal.sqlite`.
    pub fn journal(&self) -> PathBuf {
        self.state.join("journal")
    }

    /// Returns the directory of compiled plugins (0700).
    pub fn artifacts(&self) -> PathBuf {
        self.state.join("artifacts")
    }

    /// Returns the directory of examination results of plugins (0700).
    pub fn verdicts(&self) -> PathBuf {
        self.state.join("verdicts")
    }

    /// Returns the directory of the capability `state` (0700), with one file per plugin.
    pub fn plugin_state(&self) -> PathBuf {
        self.state.join("plugin-state")
    }

    /// Returns the directory of the state of policies. Their session writes it, and no other user
    /// may.
    pub fn policy_state(&self) -> PathBuf {
        self.state.join("policy-state")
    }

    /// Returns the directory of load, health and history of builders.
    pub fn builders(&self) -> PathBuf {
        self.state.join("builders")
    }

    /// Returns the directory of shared ssh connections to builders (0700). It is below `/run` or
    /// `$XDG_RUNTIME_DIR`, whose paths are short and which are empty after a start of the machine;
    /// or below the state directory if the user chose that, or if there is neither.
    pub fn connections(&self) -> PathBuf {
        let user = || {
            std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty()).map(PathBuf::from)
        };
        let runtime = if self.state == Path::new(SYSTEM_STATE) {
            Some(PathBuf::from(SYSTEM_RUNTIME))
        } else if std::env::var_os("HOOKRUN_STATE_DIR").is_some_and(|value| !value.is_empty()) {
            None
        } else {
            user().map(|directory| directory.join("hookrun"))
        };
        runtime.unwrap_or_else(|| self.state.join("run")).join("ssh")
    }

    /// Returns the directory of the maildir for a mail transport without a setting.
    pub fn maildir(&self, transport: &str) -> PathBuf {
        self.state.join("mail").join(transport)
    }

    /// Returns the directory that records which recipient has which mail.
    pub fn mail_progress(&self) -> PathBuf {
        self.state.join("mail-progress")
    }

    /// Returns the directory of an object store without a URL.
    pub fn object_store(&self, name: &str) -> PathBuf {
        self.state.join("object-stores").join(name)
    }

    /// Returns the directory of multipart uploads in progress (0700).
    pub fn uploads(&self) -> PathBuf {
        self.state.join("uploads")
    }

    /// Returns the directory of the progress of `hookrun cache verify`.
    pub fn verifications(&self) -> PathBuf {
        self.state.join("verifications")
    }

    /// Returns the directory of the record of paths that binary caches are known to have (0700).
    pub fn presence(&self) -> PathBuf {
        self.state.join("presence")
    }

    /// Returns the file that the worker locks.
    pub fn worker_lock(&self) -> PathBuf {
        self.state.join("worker.lock")
    }

    /// Returns the file that is locked by the process that waits for events of build users.
    pub fn waiter_lock(&self) -> PathBuf {
        self.state.join("waiter.lock")
    }

    /// Returns the file with the status of the running worker.
    pub fn worker_state(&self) -> PathBuf {
        self.state.join("worker.json")
    }

    /// Returns the file with the last configuration that a worker applied, which is used while the
    /// configuration file is missing.
    pub fn last_config(&self) -> PathBuf {
        self.state.join("last-config.json")
    }

    /// Returns the file to which a detached worker writes instead of standard error.
    pub fn worker_log(&self) -> PathBuf {
        self.state.join("worker.log")
    }
}

/// Returns the directory of compiled plugins under test (0700). It is in the user's cache
/// directory, so that tests do not change an installation.
pub fn test_artifacts() -> PathBuf {
    test_cache().join("test-artifacts")
}

/// Returns the directory of examination results of plugins under test (0700).
pub fn test_verdicts() -> PathBuf {
    test_cache().join("test-verdicts")
}

fn test_cache() -> PathBuf {
    let variable =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = rustix::process::geteuid().is_root();
    let cache = variable("XDG_CACHE_HOME").unwrap_or_else(|| match variable("HOME") {
        // With sudo, the home directory may be another user's.
        _ if root => PathBuf::from(SYSTEM_CACHE),
        Some(home) => home.join(".cache"),
        None => std::env::temp_dir()
            .join(format!("hookrun-cache-{}", rustix::process::geteuid().as_raw())),
    });
    cache.join("hookrun")
}

/// Returns whether the nearest existing directory belongs to this user or is writable for it. If
/// not, this is a build user called by root's Nix, which has no home directory (`/var/empty` and
/// similar) and inherits root's variables. Whether it can reach the system's spool does not matter:
/// if it cannot, the system's fallback is used.
fn is_own(directory: &Path) -> bool {
    use rustix::fs::Access;
    let there = directory.ancestors().find_map(|path| Some((path, rustix::fs::stat(path).ok()?)));
    there.is_some_and(|(path, stat)| {
        stat.st_uid == rustix::process::getuid().as_raw()
            || rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_home_is_judged_by_its_nearest_parent() {
        let dir = tempfile::tempdir().unwrap();
        assert!(is_own(&dir.path().join("a/b/c")));
        // The root directory is the home of a build user.
        let root = rustix::process::getuid().is_root();
        assert_eq!(is_own(Path::new("/there-is-no-such-directory/a")), root);
    }
}
