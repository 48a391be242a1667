//! The ssh of Nix's own hook: what it is told, and how its connections are shared.
//!
//! It is told to give up on a machine that does not answer, and to notice one that is gone in the
//! middle of a build, which without this may take hours. And it is found, first in `PATH`, as a
//! link to hookrun ([`client`]), which goes over a connection that an earlier build has made.

pub mod client;

mod call;
mod effective;
mod masters;
mod mux;

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use hookrun_config as config;
use hookrun_nix::dirs::Dirs;
use masters::{Masters, private_directory};

/// Up to 2.33 Nix splits it at blanks, later as a shell does, and gives the words to every ssh that
/// it starts (`libstore/ssh.cc`).
const VARIABLE: &str = "NIX_SSHOPTS";
/// Seconds between two signs of life; ssh gives up after three that are not answered
/// (`ServerAliveCountMax`).
const ALIVE_EVERY: u32 = 15;
/// Where programs are looked for.
const PATH: &str = "PATH";
/// For [`client`]: the real ssh.
const PROGRAM: &str = "HOOKRUN_SSH_PROGRAM";
/// For [`client`]: `PATH` without us.
const SEARCH_PATH: &str = "HOOKRUN_SSH_PATH";
/// For [`client`]: the directory of the machine's connections.
const MASTERS: &str = "HOOKRUN_SSH_MASTERS";
/// The name by which Nix starts it, and so the link's.
const SSH: &str = "ssh";
/// Bytes of the name of a machine's directory. Two machines in one do no harm: it only says what is
/// put aside together.
const MACHINE_BYTES: usize = 4;

/// Variables for Nix's own hook.
pub fn variables(options: &config::Builders) -> Vec<(OsString, OsString)> {
    vec![(VARIABLE.into(), with_options(std::env::var_os(VARIABLE).unwrap_or_default(), options))]
}

/// The user's words come first: for ssh the first value of an option counts (`ssh_config(5)`).
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

/// Those to one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connections {
    /// For Nix's own hook.
    pub variables: Vec<(OsString, OsString)>,
    masters: Masters,
}

impl Sharing {
    /// Ready to be used, unless it is switched off, there is no ssh, or no directory for it.
    pub fn prepare(options: &config::Builders, dirs: &Dirs) -> Option<Self> {
        if !options.share_connections {
            return None;
        }
        let search_path = std::env::var_os(PATH)?;
        let sharing =
            Self { directory: dirs.connections(), program: real_ssh(&search_path)?, search_path };
        sharing.link().ok().map(|()| sharing)
    }

    /// Where the link is.
    fn links(&self) -> PathBuf {
        self.directory.join("bin")
    }

    /// Makes the link, or sets it right after an upgrade.
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

    /// The connections to the machine with this URI, if it is reached by ssh.
    pub fn of(&self, uri: &str) -> Option<Connections> {
        if !is_by_ssh(uri) {
            return None;
        }
        let name = hex(Sha256::digest(uri).iter().take(MACHINE_BYTES));
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
    /// The machine was lost, or cannot be used: the next build connects anew.
    pub fn retire(&self) {
        self.masters.retire_all();
    }
}

fn hex<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> String {
    bytes.into_iter().fold(String::new(), |mut text, byte| {
        // Writing to memory cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Does Nix start ssh for this machine? (`ssh.cc`: for the host `localhost` it starts the program
/// itself.)
fn is_by_ssh(uri: &str) -> bool {
    let host = uri.strip_prefix("ssh://").or_else(|| uri.strip_prefix("ssh-ng://"));
    host.is_some_and(|host| host.split(['?', '/']).next() != Some("localhost"))
}

/// The first ssh in `search_path` that is not hookrun.
fn real_ssh(search_path: &OsStr) -> Option<PathBuf> {
    let us = std::env::current_exe().and_then(std::fs::canonicalize).ok()?;
    let is_real = |program: &PathBuf| {
        let runs = program.is_file()
            && rustix::fs::access(program.as_path(), rustix::fs::Access::EXEC_OK).is_ok();
        runs && std::fs::canonicalize(program).is_ok_and(|program| program != us)
    };
    std::env::split_paths(search_path)
        .filter(|path| is_absolute(path))
        .map(|directory| directory.join(SSH))
        .find(is_real)
}

/// A relative entry would be another directory for who runs it elsewhere.
fn is_absolute(path: &Path) -> bool {
    path.is_absolute()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_words_come_first() {
        let words = with_options("-p 22".into(), &config::Builders::default());
        assert_eq!(words, "-p 22 -oConnectTimeout=10 -oServerAliveInterval=15");
    }

    #[test]
    fn which_machines_are_reached_by_ssh() {
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
    fn what_nixs_hook_gets() {
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
