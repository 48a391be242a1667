//! The ssh of Nix's own hook: its options, and shared connections.
//!
//! Its options make it give up on a machine that does not answer, and notice a machine that
//! disappears during a build, which would otherwise take hours. If connections are shared, a link
//! to hookrun ([`client`]) comes first in `PATH`; it uses a connection that an earlier build has
//! made.

pub mod client;

mod call;
mod effective;
mod masters;
mod mux;

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use hookrun_config as config;
use hookrun_nix::dirs::Dirs;
use masters::{Masters, private_directory};

/// The variable with options for every ssh that Nix starts. Nix splits it at blanks up to 2.33, and
/// later as a shell does (`libstore/ssh.cc`).
const VARIABLE: &str = "NIX_SSHOPTS";
/// The number of seconds between two keep-alive messages; ssh gives up after three without an
/// answer (`ServerAliveCountMax`).
const ALIVE_EVERY: u32 = 15;
/// The search path of programs.
const PATH: &str = "PATH";
/// The variable with the real ssh, for [`client`].
const PROGRAM: &str = "HOOKRUN_SSH_PROGRAM";
/// The variable with the original `PATH`, for [`client`].
const SEARCH_PATH: &str = "HOOKRUN_SSH_PATH";
/// The variable with the directory of the machine's connections, for [`client`].
const MASTERS: &str = "HOOKRUN_SSH_MASTERS";
/// The name by which Nix starts ssh, and the name of the link.
const SSH: &str = "ssh";
/// Number of hexadecimal digits in the name of a machine's directory. Two machines may share one:
/// it only determines which connections are retired together.
const MACHINE_DIGITS: usize = 8;

/// Returns the variables for Nix's own hook.
pub fn variables(options: &config::Builders) -> Vec<(OsString, OsString)> {
    vec![(VARIABLE.into(), with_options(std::env::var_os(VARIABLE).unwrap_or_default(), options))]
}

/// Adds options after those of the user, because ssh uses the first value of an option
/// (`ssh_config(5)`).
fn with_options(mut words: OsString, options: &config::Builders) -> OsString {
    let seconds = options.connect_timeout.as_secs().max(1);
    words.push(format!(" -oConnectTimeout={seconds} -oServerAliveInterval={ALIVE_EVERY}"));
    words
}

/// Connections to machines that builds share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharing {
    directory: PathBuf,
    program: PathBuf,
    search_path: OsString,
}

/// Shared connections to one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connections {
    /// Variables for Nix's own hook.
    pub variables: Vec<(OsString, OsString)>,
    masters: Masters,
}

impl Sharing {
    /// Prepares shared connections. Returns `None` if they are not enabled, or if there is no ssh
    /// or no directory for them.
    pub fn prepare(options: &config::Builders, dirs: &Dirs) -> Option<Self> {
        if !options.share_connections {
            return None;
        }
        let search_path = std::env::var_os(PATH)?;
        let sharing =
            Self { directory: dirs.connections(), program: real_ssh(&search_path)?, search_path };
        sharing.link().ok().map(|()| sharing)
    }

    /// Returns the directory of the link.
    fn links(&self) -> PathBuf {
        self.directory.join("bin")
    }

    /// Creates the link, or updates it after an upgrade.
    fn link(&self) -> io::Result<()> {
        if let Some(above) = self.directory.parent() {
            std::fs::create_dir_all(above)?;
        }
        private_directory(&self.directory)?;
        private_directory(&self.links())?;
        let (us, link) = (std::env::current_exe()?, self.links().join(SSH));
        if std::fs::read_link(&link).is_ok_and(|target| target == us) {
            return Ok(());
        }
        let other = self.links().join(std::process::id().to_string());
        let _ = std::fs::remove_file(&other);
        std::os::unix::fs::symlink(us, &other)?;
        std::fs::rename(other, link)
    }

    /// Returns the connections to the machine with this URI, if it is reached by ssh.
    pub fn of(&self, uri: &str) -> Option<Connections> {
        if !is_by_ssh(uri) {
            return None;
        }
        let name = format!("{:.MACHINE_DIGITS$x}", Sha256::digest(uri));
        let directory = self.directory.join(name);
        let masters = Masters::open(&directory).ok()?;
        let path = std::env::join_paths(
            [self.links()].into_iter().chain(std::env::split_paths(&self.search_path)),
        )
        .ok()?;
        let variables = vec![
            (PATH.into(), path),
            (PROGRAM.into(), self.program.clone().into()),
            (SEARCH_PATH.into(), self.search_path.clone()),
            (MASTERS.into(), directory.into()),
        ];
        Some(Connections { variables, masters })
    }
}

impl Connections {
    /// Makes the next build connect again, because the machine was lost or cannot be used.
    pub fn retire(&self) {
        self.masters.retire_all();
    }
}

/// Returns whether Nix starts ssh for this machine. For the host `localhost` it starts the program
/// itself (`ssh.cc`).
fn is_by_ssh(uri: &str) -> bool {
    let host = uri.strip_prefix("ssh://").or_else(|| uri.strip_prefix("ssh-ng://"));
    host.is_some_and(|host| host.split(['?', '/']).next() != Some("localhost"))
}

/// Returns the first ssh in `search_path` that is not hookrun. Relative entries are ignored,
/// because they depend on the working directory.
fn real_ssh(search_path: &OsStr) -> Option<PathBuf> {
    let us = std::env::current_exe().and_then(std::fs::canonicalize).ok()?;
    let is_real = |program: &PathBuf| {
        let runs = program.is_file()
            && rustix::fs::access(program.as_path(), rustix::fs::Access::EXEC_OK).is_ok();
        runs && std::fs::canonicalize(program).is_ok_and(|program| program != us)
    };
    std::env::split_paths(search_path)
        .filter(|path| path.is_absolute())
        .map(|directory| directory.join(SSH))
        .find(is_real)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_user_come_first() {
        let words = with_options("-p 22".into(), &config::Builders::default());
        assert_eq!(words, "-p 22 -oConnectTimeout=10 -oServerAliveInterval=15");
    }

    #[test]
    fn machines_with_an_ssh_uri_are_reached_by_ssh() {
        for uri in ["ssh://m", "ssh-ng://root@m?x=y", "ssh://localhost:22", "ssh://root@localhost"]
        {
            assert!(is_by_ssh(uri), "{uri}");
        }
        for uri in
            ["ssh://localhost", "ssh-ng://localhost?remote-store=/x", "/srv/x", "auto", "unix:///x"]
        {
            assert!(!is_by_ssh(uri), "{uri}");
        }
    }

    #[test]
    fn the_hook_finds_the_link_first_in_path() {
        let directory = tempfile::tempdir().unwrap();
        let sharing = Sharing {
            directory: directory.path().join("ssh"),
            program: "/usr/bin/ssh".into(),
            search_path: "/usr/bin:/bin".into(),
        };
        sharing.link().unwrap();
        sharing.link().unwrap();
        let link = directory.path().join("ssh/bin/ssh");
        assert_eq!(std::fs::read_link(&link).unwrap(), std::env::current_exe().unwrap());
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("/old/hookrun", &link).unwrap();
        sharing.link().unwrap();
        assert_eq!(
            std::fs::read_link(&link).unwrap(),
            std::env::current_exe().unwrap(),
            "after an upgrade"
        );
        let connections = sharing.of("ssh://m").unwrap();
        let path = &connections.variables.iter().find(|(name, _)| name == PATH).unwrap().1;
        assert!(path.to_str().unwrap().ends_with("/ssh/bin:/usr/bin:/bin"), "{path:?}");
        assert_eq!(sharing.of("ssh://localhost"), None);
        assert_ne!(sharing.of("ssh://n").unwrap(), connections);
    }
}
