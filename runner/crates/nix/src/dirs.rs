//! Where hookrun keeps its configuration and its state.
//!
//! A system installation (root, or a build user called by root's Nix) uses `/etc/hookrun` and
//! `/var/lib/hookrun`; a user without root, with a home, uses the XDG directories. `HOOKRUN_CONFIG`
//! and `HOOKRUN_STATE_DIR` override.

use std::path::{Path, PathBuf};

/// The configuration of a system installation.
pub const SYSTEM_CONFIG: &str = "/etc/hookrun/hookrun.toml";
/// The state of a system installation.
pub const SYSTEM_STATE: &str = "/var/lib/hookrun";

/// What a system installation keeps only until the machine stops.
pub const SYSTEM_RUNTIME: &str = "/run/hookrun";

/// Where root keeps what can be made again.
const SYSTEM_CACHE: &str = "/var/cache";

/// The directories of one installation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Dirs {
    /// The configuration file; it need not exist.
    pub config: PathBuf,
    /// The state directory; it need not exist.
    pub state: PathBuf,
}

impl Dirs {
    /// The directories for this process: from the environment, or from who runs it.
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

    /// Events handed over by hooks; see `hookrun_queue::spool`.
    pub fn spool(&self) -> PathBuf {
        self.state.join("spool")
    }

    /// Spool files that were set aside, with the reason.
    pub fn rejected(&self) -> PathBuf {
        self.state.join("rejected")
    }

    /// The journal's directory (0700); the database is `journal.sqlite` in it.
    pub fn journal(&self) -> PathBuf {
        self.state.join("journal")
    }

    /// Plugins compiled ahead of time (0700).
    pub fn artifacts(&self) -> PathBuf {
        self.state.join("artifacts")
    }

    /// What was found out about plugins without running them (0700).
    pub fn verdicts(&self) -> PathBuf {
        self.state.join("verdicts")
    }

    /// The `state` capability's stores (0700), one file a plugin.
    pub fn plugin_state(&self) -> PathBuf {
        self.state.join("plugin-state")
    }

    /// The same for policies of builder selection, whose session writes them: no other user may.
    pub fn policy_state(&self) -> PathBuf {
        self.state.join("policy-state")
    }

    /// Load, health and history of builders.
    pub fn builders(&self) -> PathBuf {
        self.state.join("builders")
    }

    /// Shared ssh connections to builders (0700): below `/run` or `$XDG_RUNTIME_DIR`, whose paths
    /// are short and which are empty after a start; below the state directory if that was chosen,
    /// or if there is neither.
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

    /// Where a mail transport without a setting keeps its maildir.
    pub fn maildir(&self, transport: &str) -> PathBuf {
        self.state.join("mail").join(transport)
    }

    /// Who has which mail already.
    pub fn mail_progress(&self) -> PathBuf {
        self.state.join("mail-progress")
    }

    /// Where an object store without a URL keeps its objects.
    pub fn object_store(&self, name: &str) -> PathBuf {
        self.state.join("object-stores").join(name)
    }

    /// Uploads in several parts that are under way (0700).
    pub fn uploads(&self) -> PathBuf {
        self.state.join("uploads")
    }

    /// Locked by the one worker.
    pub fn worker_lock(&self) -> PathBuf {
        self.state.join("worker.lock")
    }

    /// Locked by the one process that waits for what build users hand over.
    pub fn waiter_lock(&self) -> PathBuf {
        self.state.join("waiter.lock")
    }

    /// What the running worker says about itself.
    pub fn worker_state(&self) -> PathBuf {
        self.state.join("worker.json")
    }

    /// The configuration that a worker last took up, for when its file is away.
    pub fn last_config(&self) -> PathBuf {
        self.state.join("last-config.json")
    }

    /// What a detached worker writes in place of standard error.
    pub fn worker_log(&self) -> PathBuf {
        self.state.join("worker.log")
    }
}

/// Plugins under test, compiled: in the user's cache directory, so that no test touches what an
/// installation has (0700).
pub fn test_artifacts() -> PathBuf {
    test_cache().join("test-artifacts")
}

/// What was found out about plugins under test (0700).
pub fn test_verdicts() -> PathBuf {
    test_cache().join("test-verdicts")
}

fn test_cache() -> PathBuf {
    let variable =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = rustix::process::geteuid().is_root();
    let cache = variable("XDG_CACHE_HOME").unwrap_or_else(|| match variable("HOME") {
        // With sudo the home may be another user's.
        _ if root => PathBuf::from(SYSTEM_CACHE),
        Some(home) => home.join(".cache"),
        None => std::env::temp_dir()
            .join(format!("hookrun-cache-{}", rustix::process::geteuid().as_raw())),
    });
    cache.join("hookrun")
}

/// Is the nearest directory that is there this user's own, or one that it may write? If not, this
/// is a build user called by root's Nix: it has no home of its own (`/var/empty` and the like) and
/// inherits root's variables. Whether it can reach the system's spool is not asked: if it cannot,
/// the fallback is still that of the system.
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
    fn a_home_that_is_not_there_is_judged_by_what_is_above() {
        let dir = tempfile::tempdir().unwrap();
        assert!(is_own(&dir.path().join("a/b/c")));
        // The root directory, as for a build user without a home.
        let root = rustix::process::getuid().is_root();
        assert_eq!(is_own(Path::new("/there-is-no-such-directory/a")), root);
    }
}
