//! A real ssh server on the loopback interface with its own keys and configuration, and machines
//! behind it that are stores of a scene. It does not use the ssh files of the user or the system,
//! except for the directory `/run/sshd`, which sshd needs.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Ran, Scene, machine};

/// The path on Debian. sshd has to be started by its full path.
const PROGRAM: &str = "/usr/sbin/sshd";
/// Nix treats `localhost` as the local machine, but not this address.
const HOST: &str = "127.0.0.1";

/// A server that runs until it is dropped. Needs root.
pub struct Sshd {
    directory: PathBuf,
    port: u16,
    child: Child,
}

impl Sshd {
    /// Starts a server for `scene` with more lines of `sshd_config`.
    pub fn start(scene: &Scene, lines: &str) -> Self {
        machine::require_program(Path::new(PROGRAM));
        let directory = scene.path("sshd");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::create_dir_all("/run/sshd").unwrap();
        for key in ["host", "user"] {
            Ran::of(
                Command::new("ssh-keygen")
                    .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                    .arg(directory.join(key)),
            )
            .expect_success();
        }
        // A free port, which another process could take before sshd does.
        let port = std::net::TcpListener::bind((HOST, 0)).unwrap().local_addr().unwrap().port();
        let path = |name: &str| directory.join(name).display().to_string();
        let config = format!(
            "Port {port}\nListenAddress {HOST}\nHostKey {}\nAuthorizedKeysFile {}\nPermitRootLogin yes\nStrictModes no\nUsePAM no\n\
             PidFile none\n{lines}\n",
            path("host"),
            path("user.pub"),
        );
        std::fs::write(directory.join("sshd_config"), config).unwrap();
        let host_key = std::fs::read_to_string(directory.join("host.pub")).unwrap();
        std::fs::write(directory.join("known_hosts"), format!("[{HOST}]:{port} {host_key}"))
            .unwrap();
        let child = Command::new(PROGRAM)
            .args(["-D", "-f", &path("sshd_config"), "-E", &path("log")])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { directory, port, child };
        let start = Instant::now();
        while std::net::TcpStream::connect((HOST, port)).is_err() {
            assert!(
                start.elapsed() < Duration::from_mins(1),
                "sshd does not listen: {}",
                server.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// Returns `NIX_SSHOPTS` for this server.
    pub fn options(&self) -> String {
        format!(
            "-F /dev/null -p {} -oUserKnownHostsFile={} -oGlobalKnownHostsFile=/dev/null -oIdentitiesOnly=yes",
            self.port,
            self.directory.join("known_hosts").display()
        )
    }

    /// Returns a line for `builders` with the store `builders/NAME` of the scene over ssh. Later
    /// changes to the variables of the scene do not affect this machine.
    pub fn machine(&self, scene: &Scene, name: &str, slots: u32, speed_factor: u32) -> String {
        scene.make_builder_store(name);
        let mut script = "#!/bin/sh\n".to_owned();
        for (variable, value) in scene.private_nix().variables() {
            let (variable, value) = (variable.to_str().unwrap(), value.to_str().unwrap());
            writeln!(script, "export {variable}='{value}'").unwrap();
        }
        script.push_str("exec nix-store \"$@\"\n");
        let program = scene.path(format!("serve-{name}"));
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        format!(
            "ssh://root@{HOST}?remote-program={}&remote-store={} - {} {slots} {speed_factor}",
            program.display(),
            scene.builder_store(name).display(),
            self.directory.join("user").display()
        )
    }

    /// Returns the log of the server.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Returns the number of logins.
    pub fn logins(&self) -> usize {
        self.log().matches("Accepted publickey").count()
    }

    /// Returns the server processes of the open connections. Since OpenSSH 9.8 a connection has a
    /// second process, which is a child of the first.
    pub fn connections(&self) -> Vec<rustix::process::Pid> {
        sshds_below(self.child.id())
    }
}

fn sshds_below(pid: u32) -> Vec<rustix::process::Pid> {
    let children =
        std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok());
    let is_sshd = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name.starts_with("sshd"))
    };
    let with_its_own = |pid: u32| {
        let own = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        own.into_iter().chain(sshds_below(pid))
    };
    children.filter(is_sshd).flat_map(with_its_own).collect()
}

impl Drop for Sshd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- sshd's log\n{}", self.log());
        }
        for connection in self.connections() {
            // It may have ended.
            let _ = rustix::process::kill_process(connection, rustix::process::Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
