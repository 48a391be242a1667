//! `hookrun daemon` as a systemd service: what it tells the service manager, over a socket as
//! systemd's is (sd_notify(3)).

use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use hookrun_tests::lab::{Scene, Script};
use rustix::process::{Pid, Signal};

/// The longest wait for a message: a machine under load.
const PATIENCE: Duration = Duration::from_mins(1);
/// Microseconds between two signs of life that are asked for; small, so that the test sees some.
const WATCHDOG: &str = "400000";

/// What the service says, line by line.
struct Manager {
    socket: UnixDatagram,
    said: Vec<String>,
}

impl Manager {
    /// Reads until a line begins with `word`.
    #[track_caller]
    fn wait_for(&mut self, word: &str) {
        while !self.said.iter().any(|line| line.starts_with(word)) {
            let mut message = [0; 4096];
            match self.socket.recv(&mut message) {
                Ok(size) => {
                    self.said.extend(
                        String::from_utf8_lossy(message.get(..size).unwrap())
                            .lines()
                            .map(str::to_owned),
                    );
                }
                Err(error) => panic!("no `{word}` ({error}): {:?}", self.said),
            }
        }
    }
}

#[test]
fn it_says_when_it_is_ready_alive_and_stopping() {
    let scene = Scene::new().derivation("alpha", Script::text("hello"));
    let path = scene.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut manager = Manager { socket, said: Vec::new() };
    let mut daemon = scene.hookrun_command(&["daemon"]);
    daemon.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", WATCHDOG).stderr(Stdio::null());
    let mut child = daemon.spawn().unwrap();
    manager.wait_for("READY=1");
    manager.wait_for("WATCHDOG=1");
    manager.wait_for("STATUS=");
    manager.said.clear();
    manager.wait_for("WATCHDOG=1");
    rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    manager.wait_for("STOPPING=1");
    assert!(child.wait().unwrap().success(), "asked to stop, it ends well");
}

#[test]
fn hooks_and_commands_tell_the_service_manager_nothing() {
    let scene = Scene::new().derivation("alpha", Script::text("hello"));
    let path = scene.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    // As below a unit that runs Nix.
    let mut build = scene.build_command("alpha", &[]);
    assert!(
        build
            .env("NOTIFY_SOCKET", &path)
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    let mut drain = scene.hookrun_command(&["drain"]);
    assert!(
        drain
            .env("NOTIFY_SOCKET", &path)
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(socket.recv(&mut [0; 4096]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}
