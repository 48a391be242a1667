//! The program that Nix starts as `ssh`: it opens a session over a shared connection if possible,
//! and otherwise executes the real ssh with the same arguments.
//!
//! It prints `started` if Nix waits for that, runs as long as the session, and ends with its exit
//! code. It never waits longer than a new connection would take. It needs only its environment; if
//! anything is missing, the real ssh is run.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::call::SshCall;
use super::effective::SshConfig;
use super::masters::{Masters, Shared};
use super::mux::Session;
use super::{MASTERS, PATH, PROGRAM, SEARCH_PATH, real_ssh};
use hookrun_nix::exit_code::Exit;
use hookrun_nix::process;

/// The exit code of ssh for its own errors (`ssh(1)`).
const FAILED: u8 = 255;

/// Runs as `ssh`.
pub fn main(arguments: &[OsString]) -> Exit {
    process::close_others();
    let Some(program) =
        std::env::var_os(PROGRAM).map(PathBuf::from).or_else(|| real_ssh(&std::env::var_os(PATH)?))
    else {
        let _ = writeln!(std::io::stderr(), "there is no program ssh in PATH");
        return Exit::Command(FAILED);
    };
    let ssh = Ssh { program };
    match ssh.shared(arguments) {
        Some(code) => Exit::Command(code),
        None => {
            let error = ssh.command().args(arguments).exec();
            let _ = writeln!(std::io::stderr(), "{} cannot be run: {error}", ssh.program.display());
            Exit::Command(FAILED)
        }
    }
}

/// The real ssh.
struct Ssh {
    program: PathBuf,
}

impl Ssh {
    /// Returns the command with the environment that it would have without hookrun.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg0("ssh");
        if let Some(path) = std::env::var_os(SEARCH_PATH) {
            command.env(PATH, path);
        }
        for name in [PROGRAM, SEARCH_PATH, MASTERS] {
            command.env_remove(name);
        }
        command
    }

    /// Runs a session over a shared connection. Returns its exit code, or `None` if there is no
    /// session.
    fn shared(&self, arguments: &[OsString]) -> Option<u8> {
        let call = SshCall::parse(arguments)?;
        let masters = Masters::open(&PathBuf::from(std::env::var_os(MASTERS)?)).ok()?;
        let said = self
            .command()
            .arg("-G")
            .args(call.arguments(&[]))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        if !said.status.success() {
            return None;
        }
        let environment: Vec<_> = std::env::vars_os().collect();
        let SshConfig { key, started, environment } =
            SshConfig::of(&said.stdout, &environment, &self.program)?;
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let session = Session { command: &call.command, environment: &environment };
        match masters.session(&key, &mut || self.command(), &call, session, streams) {
            Shared::OpenSession(running) => {
                if started {
                    // Nix sends nothing before it has read this, and the other side sends nothing
                    // before Nix does.
                    let _ = std::io::stdout()
                        .write_all(b"started\n")
                        .and_then(|()| std::io::stdout().flush());
                }
                // The master has its own copies now. Nix must see the end of these streams when the
                // session ends.
                process::release_standard_streams();
                let code = running.wait().and_then(|code| u8::try_from(code).ok());
                Some(code.unwrap_or(FAILED))
            }
            Shared::Unreachable(words, code) => {
                let _ = std::io::stderr().write_all(&words);
                Some(u8::try_from(code).unwrap_or(FAILED))
            }
            Shared::Alone => None,
        }
    }
}
