//! `hookrun daemon` as a systemd service: its notifications over a socket like that of systemd
//! (sd_notify(3)), its priority, and upgrades of the program.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use hookrun_queue::lock;
use hookrun_tests::lab::{
    ConfigFile, PluginTable, Ran, Scene, Script, Worker, hookrun_program, wait_for,
};
use rustix::process::{Pid, Signal};

/// The longest wait for a message: a machine under load.
const PATIENCE: Duration = Duration::from_mins(1);
/// The requested interval of watchdog notifications in microseconds. It is short, so that the test
/// sees some.
const WATCHDOG: &str = "400000";

/// A service manager and the lines that it received.
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
fn a_service_reports_that_it_is_ready_alive_and_stopping() {
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
    assert!(child.wait().unwrap().success(), "a service that is asked to stop exits with 0");
}

#[test]
fn hooks_and_commands_send_nothing_to_the_service_manager() {
    let scene = Scene::new().derivation("alpha", Script::text("hello"));
    let path = scene.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    // A unit that runs Nix passes this variable on.
    for mut command in [scene.build_command("alpha", &[]), scene.hookrun_command(&["drain"])] {
        Ran::of(command.env("NOTIFY_SOCKET", &path)).expect_success();
    }
    assert_eq!(socket.recv(&mut [0; 4096]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

/// Returns the nice value and the scheduling policy of a process (proc(5)).
fn priority(pid: u32) -> (i64, i64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The second field, the name in parentheses, may have spaces in it.
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let field = |number: usize| rest.split(' ').nth(number - 3).unwrap().parse().unwrap();
    (field(19), field(41))
}

/// Returns the child processes of `pid`.
fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn a_worker_and_its_processes_have_the_configured_priority() {
    let before = priority(std::process::id());
    for (word, nice, policy) in [
        ("low", 10.max(before.0), i64::from(libc_policies::BATCH)),
        ("idle", 10.max(before.0), i64::from(libc_policies::IDLE)),
        ("normal", before.0, before.1),
    ] {
        let file = ConfigFile::new().worker("start", "service").worker("priority", word);
        let scene = Scene::new()
            .derivation("alpha", Script::text("hello"))
            .config(&file.plugin("keeper", PluginTable::keeper()));
        scene.hookrun(&["compile"]).expect_success();
        let worker = scene.start_daemon();
        scene.build("alpha").expect_success();
        wait_for("the task is done", || scene.tasks() == ["alpha keeper done"]);
        let pid = worker.id();
        let runners = children(pid);
        assert!(!runners.is_empty());
        for process in runners.into_iter().chain([pid]) {
            assert_eq!(priority(process), (nice, policy), "{word}: process {process}");
        }
        let version = env!("CARGO_PKG_VERSION");
        scene
            .hookrun(&["status"])
            .expect_stdout(&format!("runs (process {pid}, version {version}, {word} priority)"));
    }
}

/// Scheduling policies of sched(7).
mod libc_policies {
    pub(super) const BATCH: u8 = 3;
    pub(super) const IDLE: u8 = 5;
}

/// Makes a copy of the program that can be replaced.
fn installed(scene: &Scene) -> PathBuf {
    let path = scene.path("installed");
    std::fs::copy(hookrun_program(), &path).unwrap();
    path
}

/// Replaces the program as docs/install.md describes it.
fn upgrade(scene: &Scene, installed: &std::path::Path) {
    let new = scene.path("installed.new");
    let installed = installed.display();
    Ran::of(Command::new("install").arg("-Dm755").arg(hookrun_program()).arg(&new))
        .expect_success();
    let script = format!("mv -f {} {installed}", new.display());
    Ran::of(Command::new("/bin/sh").args(["-c", &script])).expect_success();
}

#[test]
fn a_spawned_worker_restarts_with_a_new_program_and_a_service_asks_for_a_restart() {
    let scene = Scene::new().config(&ConfigFile::default().worker("idle-exit", "1h"));
    let program = installed(&scene);
    let command = |words: &[&str]| {
        let mut command = scene.private_nix().command(&program);
        command.args(words);
        command
    };
    let lock = scene.state_dir().join("worker.lock");
    let mut worker = Worker::start(&scene, command(&["worker", "--spawned"]));
    let first = lock::holder(&lock).unwrap();
    upgrade(&scene, &program);
    scene.hookrun(&["status"]).expect_success().expect_stdout("its program was replaced since");
    wait_for("another worker runs", || {
        // Before it has ended, no other process can have its id.
        let ended = worker.0.try_wait().unwrap().is_some();
        ended && lock::holder(&lock).is_some_and(|pid| pid != first)
    });
    scene.hookrun(&["status"]).expect_success().expect_silent_about("was replaced");
    let second = Pid::from_raw(lock::holder(&lock).unwrap()).unwrap();
    rustix::process::kill_process(second, Signal::TERM).unwrap();
    wait_for("the worker ends", || !lock::is_held(&lock));

    let worker = Worker::start(&scene, command(&["daemon"]));
    upgrade(&scene, &program);
    wait_for("the status names the command", || {
        scene.hookrun(&["status"]).stdout.contains("run `systemctl restart hookrun`")
    });
    drop(worker);
}

#[test]
fn hooks_succeed_while_the_program_is_replaced() {
    let scene = Scene::new().config(&ConfigFile::new());
    let program = installed(&scene);
    let mut hooks = 0;
    let mut hook = || {
        hooks += 1;
        let path = format!("{}/{}-a", scene.private_nix().store_dir().display(), "0".repeat(32));
        let mut command = scene.private_nix().command(&program);
        command.args(["hook", "post-build"]);
        command.env("DRV_PATH", format!("{path}.drv")).env("OUT_PATHS", path);
        Ran::of(&mut command).expect_success();
    };
    std::thread::scope(|scope| {
        let upgrades = scope.spawn(|| (0..10).for_each(|_| upgrade(&scene, &program)));
        while !upgrades.is_finished() {
            hook();
        }
    });
    assert_eq!(scene.spooled().len(), hooks, "each hook has spooled its event");
}
