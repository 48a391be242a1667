//! What goes wrong around the queue: no build fails, nothing that was taken is lost, and `hookrun
//! status` says what is wrong.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hookrun_nix::dirs::Dirs;
use hookrun_nix::layout;
use hookrun_queue::{lock, spool};
use hookrun_tests::guests;
use hookrun_tests::lab::{Boundary, Need, Ran, Scene, Script, require};

/// Longer than anything here takes, the worker's look at its files every half minute included.
const PATIENCE: Duration = Duration::from_mins(2);
/// A plain user of the machine.
const NOBODY: u32 = 65534;

fn config(extra: &str) -> String {
    format!(
        "[worker]\nstart = \"none\"\n[plugins.keeper]\nsource = \"{}\"\nhooks = [\"post-build\", \"diff\"]\n\
         grant = {{ state = true }}\n{extra}",
        guests::guest_for_all("good").unwrap().display()
    )
}

fn scene() -> Scene {
    Scene::new()
        .config(&config(""))
        .derivation("alpha", Script::text("the first"))
        .derivation("beta", Script::text("the second"))
}

fn dirs(scene: &Scene) -> Dirs {
    Dirs { config: scene.config_path(), state: scene.state_dir() }
}

/// The fallbacks of an installation. One of them is beside those of other installations; they are
/// removed with the test.
struct Fallbacks(Vec<PathBuf>);

impl Fallbacks {
    fn of(scene: &Scene) -> Self {
        Self(layout::fallbacks(&dirs(scene)))
    }

    fn count(&self) -> usize {
        self.0.iter().map(|fallback| spool::count(fallback)).sum()
    }
}

impl Drop for Fallbacks {
    fn drop(&mut self) {
        for fallback in &self.0 {
            // It may never have been made.
            let _ = std::fs::remove_dir_all(fallback);
        }
    }
}

/// A command line for a shell.
fn words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| format!("'{}'", word.to_str().unwrap())).collect::<Vec<_>>().join(" ")
}

/// Runs a script in a mount namespace of its own, in the scene's environment. `$hookrun`, `$hook`,
/// `$store` and `$state` are variables, the builds functions.
fn in_namespace(scene: &Scene, script: &str) -> Ran {
    in_namespaces(scene, &[], script)
}

/// The same, with more options of `unshare`.
fn in_namespaces(scene: &Scene, options: &[&str], script: &str) -> Ran {
    let build = |name| words(&scene.build_command(name, &[]));
    let text = format!(
        "set -e\nhookrun={}\nhook={}\nstore={}\nstate={}\nalpha() {{ {}; }}\nbeta() {{ {}; }}\n{script}\n",
        scene.path("bin/hookrun").display(),
        scene.path("bin/hookrun-post-build").display(),
        scene.private_nix().store_dir().display(),
        scene.state_dir().display(),
        build("alpha"),
        build("beta"),
    );
    let mut command = scene.private_nix().command("unshare");
    command.args(["--mount", "--propagation", "private"]).args(options);
    Ran::of(command.args(["/bin/bash", "-c", &text]))
}

/// As in a container: the leaders of the session and of the process group are outside, so their ids
/// are 0 inside.
#[test]
fn a_pid_namespace_whose_session_began_outside() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let quick = config("").replace("[worker]", "[worker]\nidle-exit = \"100ms\"");
    scene.set_config(&quick);
    let script = "[ $(ps -o sid= -p $$) = 0 ]
         alpha
         $hookrun worker --spawned
         $hookrun log";
    in_namespaces(&scene, &["--pid", "--fork", "--mount-proc"], script)
        .expect_success()
        .expect_stdout("done  keeper");
}

#[test]
fn a_full_disk_loses_no_event() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let fallback = Fallbacks::of(&scene);
    std::fs::create_dir_all(scene.state_dir()).unwrap();
    // The journal is there and has something; then there is no room for anything.
    let ran = in_namespace(
        &scene,
        "mount -t tmpfs -o size=8m,mode=755 none $state
         alpha; $hookrun drain
         cat /dev/zero > $state/filler 2>/dev/null || true
         beta; echo built
         $hookrun status
         $hookrun drain || echo drain $?
         $hookrun status
         rm $state/filler
         $hookrun drain
         $hookrun log",
    )
    .expect_success()
    .expect_stderr("make space there; the event of beta is kept in");
    assert!(ran.stdout.contains("too little for events"), "status says it: {}", ran.account());
    assert!(
        ran.stdout.contains("events that the spool could not hold are in"),
        "and where they are: {}",
        ran.account()
    );
    let done = ran.stdout.lines().filter(|line| line.contains("done  keeper")).count();
    assert_eq!(done, 2, "both in the end: {}", ran.account());
    assert_eq!(fallback.count(), 0);
}

#[test]
fn a_read_only_directory_loses_no_event() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let fallback = Fallbacks::of(&scene);
    std::fs::create_dir_all(scene.state_dir()).unwrap();
    let ran = in_namespace(
        &scene,
        "mount --bind $state $state
         alpha; $hookrun drain
         mount -o remount,bind,ro $state
         beta; echo built
         $hookrun status
         mount -o remount,bind,rw $state
         $hookrun drain
         $hookrun log",
    )
    .expect_success()
    .expect_stderr("mount it writable");
    assert!(ran.stdout.contains("is mounted read-only"), "{}", ran.account());
    let done = ran.stdout.lines().filter(|line| line.contains("done  keeper")).count();
    assert_eq!(done, 2, "{}", ran.account());
    assert_eq!(fallback.count(), 0);
}

/// A program of the scene as a plain user with a state directory of its own.
fn as_nobody(scene: &Scene, home: &Path, program: &Path) -> Command {
    let mut command = scene.private_nix().command(program);
    command
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir(home)
        .env("HOME", home)
        .env("HOOKRUN_STATE_DIR", home.join("state"));
    command
}

#[test]
fn a_directory_without_permission_loses_no_event() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let home = scene.path("plain");
    let spool = home.join("state/spool");
    std::fs::create_dir_all(&spool).unwrap();
    for path in [home.as_path(), &home.join("state"), &spool] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    std::fs::set_permissions(&spool, std::fs::Permissions::from_mode(0o500)).unwrap();
    let own = Dirs { config: scene.config_path(), state: home.join("state") };
    let fallback = Fallbacks(layout::fallbacks(&own));
    let path = format!("{}/{}-alpha", scene.private_nix().store_dir().display(), "0".repeat(32));
    let mut hook = as_nobody(&scene, &home, &scene.path("bin/hookrun-post-build"));
    Ran::of(hook.env("DRV_PATH", format!("{path}.drv")).env("OUT_PATHS", &path))
        .expect_success()
        .expect_stderr("the event of alpha is kept in");
    assert_eq!(fallback.count(), 1);
    let hookrun = |arguments: &[&str]| {
        Ran::of(as_nobody(&scene, &home, &scene.path("bin/hookrun")).args(arguments))
    };
    let shown = hookrun(&["status"])
        .expect_success()
        .expect_stdout("events that the spool could not hold are in");
    assert!(shown.stdout.contains("has mode 0500"), "{}", shown.account());
    // The worker sets it right.
    hookrun(&["drain"]).expect_success();
    hookrun(&["log"]).expect_success().expect_stdout("done  keeper");
    assert_eq!(fallback.count(), 0);
}

/// A worker that runs until the end of the test.
struct Worker(Child);

impl Worker {
    fn start(scene: &Scene, mut command: Command) -> Self {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let worker = Self(child);
        let lock = scene.state_dir().join("worker.lock");
        wait_for("the worker takes its lock", || lock::is_held(&lock));
        worker
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[track_caller]
fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_clock_that_is_set_back_an_hour() {
    let scene = scene();
    scene.set_config(&config(
        "config = { fail = \"transient\" }\nretry = { min-delay = \"1s\", max-delay = \"2s\" }\n",
    ));
    let boundary = Boundary::compile(&scene);
    let hour = 3600;
    // In the hour that comes again: an event that waits for its next attempt, and one that nobody
    // has taken.
    Ran::of(boundary.shift_clock(&mut scene.build_command("alpha", &[]), hour)).expect_success();
    Ran::of(boundary.shift_clock(&mut scene.hookrun_command(&["drain"]), hour)).expect_exit(1);
    Ran::of(boundary.shift_clock(&mut scene.build_command("beta", &[]), hour)).expect_success();
    scene.set_config(&config("retry = { min-delay = \"1s\", max-delay = \"2s\" }\n"));
    let _worker = Worker::start(&scene, scene.hookrun_command(&["daemon"]));
    wait_for("both are done, not in an hour", || {
        scene.tasks() == ["alpha keeper done", "beta keeper done"]
    });
    scene.hookrun(&["status"]).expect_success().expect_silent_about("to look at");
}

#[test]
fn a_spool_that_hangs_does_not_block_nix() {
    let scene = scene();
    let fallback = Fallbacks::of(&scene);
    let boundary = Boundary::compile(&scene);
    let built = Ran::of(
        boundary.hang(&mut scene.build_command("alpha", &[]), &scene.state_dir().join("spool")),
    )
    .expect_success();
    built.expect_stderr("a file system did not answer in time");
    // On a busy machine it is there a moment later.
    wait_for("the event is in a fallback", || fallback.count() >= 1);
    scene.drain().expect_success();
    assert_eq!((fallback.count(), scene.tasks()), (0, vec!["alpha keeper done".to_owned()]));
}

#[test]
fn a_file_system_that_does_not_answer_holds_up_no_build() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let fallback = Fallbacks::of(&scene);
    std::fs::create_dir_all(scene.state_dir()).unwrap();
    // A process that writes to a file system that is frozen sleeps until it is thawed, and no
    // signal ends it.
    let ran = in_namespace(
        &scene,
        "truncate -s 32M $state.disk
         mkfs.ext4 -q $state.disk
         mount -o loop $state.disk $state
         chmod 755 $state
         trap 'fsfreeze -u $state' EXIT
         alpha; $hookrun drain
         fsfreeze -f $state
         begun=$(date +%s%N)
         DRV_PATH=$store/00bgd045z0d4icpbc2yyz4gx48ak44la-gamma.drv \\
           OUT_PATHS=$store/00bgd045z0d4icpbc2yyz4gx48ak44la-gamma $hook
         echo took $(( ($(date +%s%N) - begun) / 1000000 ))
         beta; echo built
         $hookrun status || echo \"status ended with $?\"
         while [ $(ls $state-fallback | wc -l) -lt 2 ]; do sleep 0.1; done
         fsfreeze -u $state; trap - EXIT
         $hookrun drain || true
         $hookrun log",
    )
    .expect_success()
    .expect_stderr("a file system did not answer in time")
    .expect_stdout("built")
    // Nor does a command hang that looks.
    .expect_stderr("did not answer in 5 s")
    .expect_stdout("status ended with 4");
    let took = ran.stdout.lines().find_map(|line| line.strip_prefix("took ")).unwrap();
    let took: u64 = took.parse().unwrap();
    assert!(took < 2500, "the hook took {took} ms: {}", ran.account());
    let attempts = ran.stdout.lines().filter(|line| line.contains("keeper")).count();
    assert_eq!(attempts, 3, "each event once, however often it was written: {}", ran.account());
    assert_eq!(fallback.count(), 0);
}

#[test]
fn a_spool_that_is_removed_under_the_worker() {
    let scene = scene();
    let _worker = Worker::start(&scene, scene.hookrun_command(&["daemon"]));
    scene.build("alpha").expect_success();
    wait_for("alpha is done", || scene.tasks() == ["alpha keeper done"]);
    std::fs::remove_dir_all(scene.state_dir().join("spool")).unwrap();
    scene.hookrun(&["status"]).expect_success().expect_stdout("is gone while a worker runs");
    scene.build("beta").expect_success();
    wait_for("beta is done", || scene.tasks() == ["alpha keeper done", "beta keeper done"]);
    scene.hookrun(&["status"]).expect_success().expect_silent_about("to look at");
}

#[test]
fn a_collection_between_two_attempts_loses_nothing() {
    let scene = scene();
    let failing =
        "config = { fail = \"transient\" }\nretry = { min-delay = \"1h\", max-delay = \"1h\" }\n";
    scene.set_config(&config(failing));
    let alpha = scene.build("alpha").expect_success().path();
    scene.nix("nix-store", &["--gc"]).expect_success();
    assert!(alpha.exists(), "kept by the hook's root, with no worker");
    scene.drain().expect_exit(1);
    scene.nix("nix-store", &["--gc"]).expect_success();
    assert!(alpha.exists(), "kept while the next attempt is waited for");
    scene.set_config(&config(""));
    scene.hookrun(&["queue", "retry", "--plugin", "keeper"]).expect_success();
    scene.drain().expect_success();
    scene.nix("nix-store", &["--gc"]).expect_success();
    assert!(!alpha.exists(), "nothing keeps it any more");
}

#[test]
fn wrong_modes_cost_no_event_and_are_set_right() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene()
        .derivation("chance", Script::new("read x < /proc/sys/kernel/random/uuid; echo $x > $out"))
        .through_daemon();
    scene.build("chance").expect_success();
    scene.drain().expect_success();
    let fallback = Fallbacks::of(&scene);
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let (state, spool) = (scene.state_dir(), scene.state_dir().join("spool"));
    for (number, (path, mode)) in [(&state, 0o700), (&spool, 0o755)].into_iter().enumerate() {
        set(path, mode);
        let shown = path.display().to_string();
        scene.hookrun(&["status"]).expect_success().expect_stdout(&format!("{shown} has mode"));
        scene.check("chance").expect_failure();
        let kept = format!("is kept in {}", fallback.0.first().unwrap().display());
        assert!(scene.daemon_log().contains(&kept), "{}", scene.daemon_log());
        scene.hookrun(&["status"]).expect_stdout("events that the spool could not hold are in");
        let repaired = scene.hookrun(&["check"]).expect_success();
        assert!(repaired.stderr.contains(&shown), "{}", repaired.account());
        scene.hookrun(&["status"]).expect_silent_about("has mode");
        scene.drain().expect_success();
        assert_eq!(scene.tasks().len(), 2 + number);
        assert_eq!(fallback.count(), 0);
    }
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    let scene = scene();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    for command in ["compile", "drain", "check"] {
        // Each may be the first on a machine.
        let _ = std::fs::remove_dir_all(scene.state_dir());
        let script = format!("umask 077; exec {} {command}", scene.path("bin/hookrun").display());
        Ran::of(scene.private_nix().command("/bin/sh").args(["-c", &script]))
            .expect_success()
            .expect_silent_about("has mode");
        if rustix::process::geteuid().is_root() {
            assert_eq!(mode(&scene.state_dir()), 0o755, "after `hookrun {command}`");
        }
    }
    scene.drain().expect_success();
    scene.hookrun(&["status"]).expect_success().expect_silent_about("to look at");
    let artifacts = scene.state_dir().join("artifacts");
    let entries = || std::fs::read_dir(&artifacts).unwrap().map(|entry| entry.unwrap().path());
    assert!(entries().count() > 0);
    // Another user opens them by a descriptor that it is handed.
    assert!(entries().all(|entry| mode(&entry) == 0o644), "as they are made");
    for entry in entries() {
        std::fs::set_permissions(entry, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    scene.hookrun(&["compile"]).expect_success().expect_stdout("found");
    assert!(entries().all(|entry| mode(&entry) == 0o644), "as they are found");
    if rustix::process::geteuid().is_root() {
        assert_eq!(mode(&scene.state_dir()), 0o755);
        assert_eq!(mode(&scene.state_dir().join("spool")), 0o1733);
    }
    assert_eq!(mode(&scene.state_dir().join("worker.lock")), 0o600);
}

#[test]
fn what_a_build_user_hands_over_waits_for_the_next_worker() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene()
        .derivation("chance", Script::new("read x < /proc/sys/kernel/random/uuid; echo $x > $out"))
        .through_daemon();
    scene.build("chance").expect_success();
    scene.drain().expect_success();
    scene.check("chance").expect_failure();
    let spooled = scene.spooled();
    let owner = |path: &PathBuf| std::os::unix::fs::MetadataExt::uid(&path.metadata().unwrap());
    assert!(spooled.iter().any(|path| owner(path) != 0), "a build user's event waits: {spooled:?}");
    assert!(!lock::is_held(&scene.state_dir().join("worker.lock")), "nobody has come for it");
    scene.drain().expect_success();
    assert_eq!(scene.tasks(), ["chance keeper done", "chance keeper done"]);
}
