//! The shared connections to one machine: a directory of control sockets, each of an ssh that stays
//! in the background (a master, see `ssh_config(5)`).
//!
//! The name of a socket consists of a key, which identifies the configuration, and a unique number:
//! a master that ends removes its socket by name, and must not remove that of its successor. One
//! call at a time makes a master for a key and the others wait for it, so that many builds that
//! start together do not all log in (`MaxStartups` of sshd drops such connections). A master that
//! does not answer in time is not used again: its socket is removed, its sessions go on if they
//! can, and it ends some time later.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::call::SshCall;
use super::mux::{Client, MuxError, OpenSession, Session};
use hookrun_nix::process;

/// The number of seconds that a connection is kept without a session. A later build connects again.
const KEPT: u32 = 60;
/// The time for a master on this machine to send its greeting. A master that takes longer is
/// stopped or hangs.
const GREETING: Duration = Duration::from_secs(1);
/// The time for a session to open: a round trip and the start of a shell. If it takes longer, the
/// call connects again.
const OPENING: Duration = Duration::from_secs(3);
/// The time to wait for another call that connects. After that this call connects itself.
const OTHERS: Duration = Duration::from_secs(5);
/// The interval at which to check whether it has connected.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// The largest number of connections to a machine. sshd allows 10 sessions in each (`MaxSessions`).
const MOST: usize = 16;
/// Number of hexadecimal digits of the random part of a socket's name.
const RANDOM_DIGITS: usize = 8;
/// Length of the longest path of a socket (`unix(7)`: 108 with the final zero; macOS 104).
const LONGEST_PATH: usize = 103;
/// Largest number of characters after the path of the directory: `/`, the key, `-`, the number,
/// and what ssh adds while it makes the socket (`muxserver_listen` of mux.c: a dot and 16
/// characters).
const LONGEST_NAME: usize = 1 + 16 + 1 + RANDOM_DIGITS + 17;

/// The result of asking for a shared session.
#[derive(Debug)]
pub(super) enum Shared {
    /// An open session.
    OpenSession(OpenSession),
    /// The machine cannot be reached. Contains the output of ssh, and its exit code.
    Unreachable(Vec<u8>, i32),
    /// There is no session, but a new connection may work.
    Alone,
}

/// The masters of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Masters {
    directory: PathBuf,
}

impl Masters {
    /// Opens this directory, and creates it if necessary.
    ///
    /// # Errors
    /// The directory cannot be created, belongs to another user, or is open to others.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        private_directory(directory)?;
        if directory.as_os_str().len() + LONGEST_NAME > LONGEST_PATH || !is_plain(directory) {
            return Err(io::Error::other(
                "the path is too long for sockets, or ssh would read more than a path from it",
            ));
        }
        Ok(Self { directory: directory.to_owned() })
    }

    /// Makes sure that no connection to this machine is used again.
    pub(super) fn retire_all(&self) {
        for socket in self.sockets("") {
            let _ = std::fs::remove_file(socket);
        }
    }

    /// Returns the sockets of a key, sorted by name.
    fn sockets(&self, key: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let is_socket = |entry: &std::fs::DirEntry| {
            // Unfinished sockets of ssh start with a dot.
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(key)
                && !name.contains('.')
                && entry.file_type().is_ok_and(|kind| kind.is_socket())
        };
        let mut found: Vec<PathBuf> = entries.filter(is_socket).map(|entry| entry.path()).collect();
        found.sort();
        found
    }

    /// Opens a session over one of the connections of `key`, or over a new one that `program` makes
    /// for `call`.
    pub(super) fn session(
        &self,
        key: &str,
        program: &mut dyn FnMut() -> Command,
        call: &SshCall,
        session: Session<'_>,
        streams: [BorrowedFd<'_>; 3],
    ) -> Shared {
        let until = Instant::now() + OTHERS;
        let mut tried: Vec<PathBuf> = Vec::new();
        loop {
            if let Some(running) = self.over_existing(key, session, streams, &mut tried) {
                return Shared::OpenSession(running);
            }
            let Ok(lock) = File::create(self.directory.join(format!("{key}.lock"))) else {
                return Shared::Alone;
            };
            match lock.try_lock() {
                // Another call may have made a connection before the lock was taken.
                Ok(()) if self.sockets(key).iter().any(|socket| !tried.contains(socket)) => {}
                Ok(()) if tried.len() >= MOST => return Shared::Alone,
                Ok(()) => match self.connect(key, program(), call) {
                    Ok(()) => {}
                    Err(other) => return other,
                },
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(LOOK_EVERY);
                }
                Err(_) => return Shared::Alone,
            }
        }
    }

    /// Tries each socket of `key` that is not in `tried`.
    fn over_existing(
        &self,
        key: &str,
        session: Session<'_>,
        streams: [BorrowedFd<'_>; 3],
        tried: &mut Vec<PathBuf>,
    ) -> Option<OpenSession> {
        for socket in self.sockets(key) {
            if tried.contains(&socket) {
                continue;
            }
            let client = Client::connect(&socket, GREETING).map_err(MuxError::from);
            match client.and_then(|client| client.open(session, streams, OPENING)) {
                Ok(running) => return Some(running),
                Err(MuxError::Refused(_)) => tried.push(socket),
                Err(MuxError::Io(_)) => {
                    // The master has ended, or the connection is dead and the master has not
                    // noticed it yet.
                    let _ = std::fs::remove_file(&socket);
                    tried.push(socket);
                }
            }
        }
        None
    }

    /// Starts a master. It is ready when this returns `Ok`.
    fn connect(&self, key: &str, mut command: Command, call: &SshCall) -> Result<(), Shared> {
        self.remove_dead();
        let number = format!("{:0RANDOM_DIGITS$x}", rand::random::<u32>());
        let socket = self.directory.join(format!("{key}-{number}"));
        let Ok(mut said) = self.nameless_file() else { return Err(Shared::Alone) };
        let Ok(stderr) = said.try_clone() else { return Err(Shared::Alone) };
        command.args(call.arguments(&options(&socket)));
        // A file instead of a pipe, because its end does not depend on the processes that inherit
        // it.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).current_dir("/");
        // Until it has connected it ends with this process; then it goes to the background (`-f`).
        let Ok(status) = process::end_with_parent(&mut command).status() else {
            return Err(Shared::Alone);
        };
        let mut words = Vec::new();
        let _ = said.rewind().and_then(|()| said.read_to_end(&mut words));
        match status.code() {
            Some(0) if socket.exists() => Ok(()),
            Some(code) if code != 0 && !is_about_sharing(&words) => {
                Err(Shared::Unreachable(plain_lines(&words), code))
            }
            _ => Err(Shared::Alone),
        }
    }

    /// Removes the sockets, of any key, whose master has ended.
    fn remove_dead(&self) {
        for socket in self.sockets("") {
            let gone = std::os::unix::net::UnixStream::connect(&socket)
                .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
            if gone {
                let _ = std::fs::remove_file(socket);
            }
        }
    }

    /// Creates a file without a name.
    fn nameless_file(&self) -> io::Result<File> {
        let path = self.directory.join(format!("{}.said", std::process::id()));
        let file = File::options().read(true).append(true).create(true).open(&path)?;
        std::fs::remove_file(path)?;
        Ok(file)
    }
}

/// Returns the options of a master, which come before all others.
fn options(socket: &Path) -> Vec<OsString> {
    let mut path = OsString::from("-oControlPath=");
    path.push(socket);
    let kept = format!("-oControlPersist={KEPT}");
    // The master has no session and no output.
    ["-f", "-N", "-oControlMaster=yes", "-oPermitLocalCommand=no", &kept]
        .into_iter()
        .map(OsString::from)
        .chain([path])
        .collect()
}

/// Removes the CR before each LF. OpenSSH ends its lines with CR LF (`log.c`, `do_log`); Nix treats
/// text before a CR as overwritten, and does not show it from 2.34 on.
fn plain_lines(words: &[u8]) -> Vec<u8> {
    let mut plain = words.to_vec();
    plain.retain(|byte| *byte != b'\r');
    plain
}

/// Returns whether the error of ssh is about the sharing and not about the machine (texts in mux.c
/// and misc.c, 9.2).
fn is_about_sharing(words: &[u8]) -> bool {
    let words = String::from_utf8_lossy(words);
    ["ControlPath", "ControlSocket", "unix_listener", "mux_", "muxserver"]
        .iter()
        .any(|word| words.contains(word))
}

/// Returns whether the path contains nothing that ssh expands (`%`, `~`, `${}`) or unquotes.
fn is_plain(path: &Path) -> bool {
    path.is_absolute()
        && path.to_str().is_some_and(|path| {
            path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._+-@=".contains(&byte))
        })
}

/// Creates a directory of this user that no other user may enter.
///
/// # Errors
/// It cannot be created, is a link, belongs to another user, or is open to others.
pub(super) fn private_directory(path: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = std::fs::symlink_metadata(path)?;
    if !found.is_dir()
        || found.uid() != rustix::process::geteuid().as_raw()
        || found.mode() & 0o077 != 0
    {
        let why = format!("{} is not a directory of this user alone (mode 0700)", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn call() -> SshCall {
        SshCall { options: vec!["-p22".into()], host: "m".into(), command: b"true".to_vec() }
    }

    fn ask(masters: &Masters, script: &str) -> Shared {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let mut program = || {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script, "ssh"]);
            command
        };
        masters.session(
            "k",
            &mut program,
            &call(),
            Session { command: b"true", environment: &[] },
            streams,
        )
    }

    #[test]
    fn a_directory_of_others_or_a_link_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("m");
        Masters::open(&inner).unwrap();
        assert_eq!(inner.metadata().unwrap().mode() & 0o777, 0o700);
        std::fs::set_permissions(&inner, std::fs::Permissions::from_mode(0o750)).unwrap();
        assert!(Masters::open(&inner).unwrap_err().to_string().contains("mode 0700"));
        std::os::unix::fs::symlink(directory.path(), directory.path().join("link")).unwrap();
        assert!(Masters::open(&directory.path().join("link")).is_err());
        assert!(Masters::open(&directory.path().join("x".repeat(LONGEST_PATH))).is_err());
        assert!(Masters::open(&directory.path().join("%h")).is_err());
    }

    #[test]
    fn a_machine_that_cannot_be_reached_is_reported_once() {
        let directory = tempfile::tempdir().unwrap();
        let masters = Masters::open(&directory.path().join("m")).unwrap();
        let Shared::Unreachable(words, code) =
            ask(&masters, "printf 'no route\\r\\n' >&2; exit 255")
        else {
            panic!("reached")
        };
        assert_eq!((words.as_slice(), code), (&b"no route\n"[..], 255));
        assert!(matches!(ask(&masters, "echo ControlPath too long >&2; exit 255"), Shared::Alone));
        assert!(matches!(ask(&masters, "exit 0"), Shared::Alone), "it has created no socket");
    }

    #[test]
    fn dead_and_silent_masters_are_not_used_again() {
        let directory = tempfile::tempdir().unwrap();
        let masters = Masters::open(&directory.path().join("m")).unwrap();
        let (dead, dumb) = (directory.path().join("m/k-1"), directory.path().join("m/k-2"));
        drop(UnixListener::bind(&dead).unwrap());
        let listener = UnixListener::bind(&dumb).unwrap();
        assert!(matches!(ask(&masters, "exit 1"), Shared::Unreachable(..)));
        assert!(!dead.exists() && !dumb.exists());
        drop(listener);
    }

    #[test]
    fn the_wait_for_another_connecting_call_is_limited() {
        let directory = tempfile::tempdir().unwrap();
        let masters = Masters::open(&directory.path().join("m")).unwrap();
        let lock = File::create(directory.path().join("m/k.lock")).unwrap();
        lock.lock().unwrap();
        assert!(matches!(ask(&masters, "exit 1"), Shared::Alone));
        drop(lock);
        assert!(matches!(ask(&masters, "exit 1"), Shared::Unreachable(..)));
    }

    #[test]
    fn a_master_starts_with_these_options() {
        let directory = tempfile::tempdir().unwrap();
        let masters = Masters::open(&directory.path().join("m")).unwrap();
        let heard = directory.path().join("heard");
        assert!(matches!(
            ask(&masters, &format!("echo \"$@\" > {}; exit 1", heard.display())),
            Shared::Unreachable(..)
        ));
        let heard = std::fs::read_to_string(heard).unwrap();
        let socket = heard
            .split_whitespace()
            .find_map(|word| word.strip_prefix("-oControlPath="))
            .unwrap()
            .to_owned();
        let (directory_of, name) = socket.rsplit_once('/').unwrap();
        assert_eq!(
            (directory_of, name.len()),
            (directory.path().join("m").to_str().unwrap(), 2 + RANDOM_DIGITS)
        );
        assert_eq!(
            heard.replace(&socket, "SOCKET").trim_end(),
            "-f -N -oControlMaster=yes -oPermitLocalCommand=no -oControlPersist=60 -oControlPath=SOCKET -p22 -- m"
        );
    }
}
