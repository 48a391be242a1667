//! Faults of the file system and of the clock: no build fails, no event is lost, and `hookrun
//! status` reports the fault.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use hookrun_nix::dirs::Dirs;
use hookrun_nix::layout;
use hookrun_queue::{lock, spool};
use hookrun_tests::lab::{
    Boundary, ConfigFile, Need, PluginTable, Ran, Scene, Script, require, toml, wait_for,
};

/// A plain user of the machine.
const NOBODY: u32 = 65534;

fn config(keeper: PluginTable) -> ConfigFile {
    ConfigFile::new().plugin("keeper", keeper)
}

fn keeper() -> PluginTable {
    PluginTable::keeper().hooks(["post-build", "diff"])
}

/// The plugin `good`, which waits this long between two attempts.
fn retrying(min_delay: &str, max_delay: &str) -> PluginTable {
    keeper().retry("min-delay", min_delay).retry("max-delay", max_delay)
}

fn scene() -> Scene {
    Scene::new()
        .config(&config(keeper()))
        .derivation("alpha", Script::text("the first"))
        .derivation("beta", Script::text("the second"))
}

/// The fallback directories of an installation, which are removed with the test. One of them is in
/// a directory of all installations.
struct Fallbacks(Vec<PathBuf>);

impl Fallbacks {
    fn of(scene: &Scene) -> Self {
        Self(layout::fallbacks(&scene.dirs()))
    }

    fn count(&self) -> usize {
        self.0.iter().map(|fallback| spool::count(fallback)).sum()
    }
}

impl Drop for Fallbacks {
    fn drop(&mut self) {
        for fallback in &self.0 {
            // It may not exist.
            let _ = std::fs::remove_dir_all(fallback);
        }
    }
}

/// Returns the command line for a shell.
fn words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| format!("'{}'", word.to_str().unwrap())).collect::<Vec<_>>().join(" ")
}

/// Runs a script in its own mount namespace and in the scene's environment. It has the variables
/// `$hookrun`, `$hook`, `$store` and `$state`, and a function for each derivation.
fn in_namespace(scene: &Scene, script: &str) -> Ran {
    in_namespaces(scene, &[], script)
}

/// Runs a script like [`in_namespace`], with more options of `unshare`.
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

/// In a container the leaders of the session and of the process group are outside, so their ids are
/// 0 inside.
#[test]
fn a_worker_runs_in_a_pid_namespace_whose_session_leader_is_outside() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    scene.set_config(&config(keeper()).worker("idle-exit", "100ms"));
    let script = "[ $(ps -o sid= -p $$) = 0 ]
         alpha
         $hookrun worker --spawned
         $hookrun log";
    in_namespaces(&scene, &["--pid", "--fork", "--mount-proc"], script)
        .expect_success()
        .expect_stdout("done  keeper");
}

/// Checks that the tasks of both builds of a script are done at its end.
#[track_caller]
fn expect_both_done(ran: &Ran) {
    let done = ran.stdout.lines().filter(|line| line.contains("done  keeper")).count();
    assert_eq!(done, 2, "{}", ran.account());
}

#[test]
fn a_full_disk_loses_no_event() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let fallback = Fallbacks::of(&scene);
    std::fs::create_dir_all(scene.state_dir()).unwrap();
    // There is a journal with a task before the disk is full.
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
    assert!(
        ran.stdout.contains("too little for events"),
        "the status reports it: {}",
        ran.account()
    );
    assert!(
        ran.stdout.contains("events that could not be written to the spool are in"),
        "the status names the fallback: {}",
        ran.account()
    );
    expect_both_done(&ran);
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
    expect_both_done(&ran);
    assert_eq!(fallback.count(), 0);
}

/// Runs a program of the scene as a plain user with its own state directory.
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
        .expect_stdout("events that could not be written to the spool are in");
    assert!(shown.stdout.contains("has mode 0500"), "{}", shown.account());
    // The worker repairs the mode.
    hookrun(&["drain"]).expect_success();
    hookrun(&["log"]).expect_success().expect_stdout("done  keeper");
    assert_eq!(fallback.count(), 0);
}

#[test]
fn tasks_run_after_the_clock_is_set_back_by_an_hour() {
    let scene = scene();
    let failing = toml! { fail = "transient" };
    scene.set_config(&config(retrying("1s", "2s").config(failing)));
    let boundary = Boundary::compile(&scene);
    let hour = 3600;
    // In the hour that repeats there are an event that waits for its next attempt, and one that no
    // worker has taken.
    Ran::of(boundary.shift_clock(&mut scene.build_command("alpha", &[]), hour)).expect_success();
    Ran::of(boundary.shift_clock(&mut scene.hookrun_command(&["drain"]), hour)).expect_exit(1);
    Ran::of(boundary.shift_clock(&mut scene.build_command("beta", &[]), hour)).expect_success();
    scene.set_config(&config(retrying("1s", "2s")));
    let _worker = scene.start_daemon();
    wait_for("both are done, not in an hour", || {
        scene.tasks() == ["alpha keeper done", "beta keeper done"]
    });
    scene.hookrun(&["status"]).expect_success().expect_silent_about("problems");
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
    // The event may arrive a moment later.
    wait_for("the event is in a fallback", || fallback.count() >= 1);
    scene.drain().expect_success();
    assert_eq!((fallback.count(), scene.tasks()), (0, vec!["alpha keeper done".to_owned()]));
}

#[test]
fn a_file_system_that_does_not_answer_does_not_block_a_build() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let fallback = Fallbacks::of(&scene);
    std::fs::create_dir_all(scene.state_dir()).unwrap();
    // A process that writes to a frozen file system sleeps until it is thawed, and no signal ends
    // it.
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
    // A command that reads the directory does not hang either.
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
fn a_worker_continues_after_its_spool_was_removed() {
    let scene = scene();
    let _worker = scene.start_daemon();
    scene.build("alpha").expect_success();
    wait_for("alpha is done", || scene.tasks() == ["alpha keeper done"]);
    std::fs::remove_dir_all(scene.state_dir().join("spool")).unwrap();
    scene.hookrun(&["status"]).expect_success().expect_stdout("was removed while a worker runs");
    scene.build("beta").expect_success();
    wait_for("beta is done", || scene.tasks() == ["alpha keeper done", "beta keeper done"]);
    scene.hookrun(&["status"]).expect_success().expect_silent_about("problems");
}

#[test]
fn outputs_survive_a_garbage_collection_between_two_attempts() {
    let scene = scene();
    let failing = toml! { fail = "transient" };
    scene.set_config(&config(retrying("1h", "1h").config(failing)));
    let alpha = scene.build("alpha").expect_success().path();
    scene.nix("nix-store", &["--gc"]).expect_success();
    assert!(alpha.exists(), "the root of the hook keeps it without a worker");
    scene.drain().expect_exit(1);
    scene.nix("nix-store", &["--gc"]).expect_success();
    assert!(alpha.exists(), "the root keeps it until the next attempt");
    scene.set_config(&config(keeper()));
    scene.hookrun(&["queue", "retry", "--plugin", "keeper"]).expect_success();
    scene.drain().expect_success();
    scene.nix("nix-store", &["--gc"]).expect_success();
    assert!(!alpha.exists(), "no root keeps it any more");
}

#[test]
fn wrong_modes_lose_no_event_and_are_repaired() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene().derivation("chance", Script::random()).through_daemon();
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
        scene
            .hookrun(&["status"])
            .expect_stdout("events that could not be written to the spool are in");
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
    scene.hookrun(&["status"]).expect_success().expect_silent_about("problems");
    let artifacts = scene.state_dir().join("artifacts");
    let entries = || std::fs::read_dir(&artifacts).unwrap().map(|entry| entry.unwrap().path());
    assert!(entries().count() > 0);
    // Plugins run as another user, which gets descriptors of these files.
    assert!(entries().all(|entry| mode(&entry) == 0o644), "new artifacts");
    for entry in entries() {
        std::fs::set_permissions(entry, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    scene.hookrun(&["compile"]).expect_success().expect_stdout("found");
    assert!(entries().all(|entry| mode(&entry) == 0o644), "artifacts that exist already");
    if rustix::process::geteuid().is_root() {
        assert_eq!(mode(&scene.state_dir()), 0o755);
        assert_eq!(mode(&scene.state_dir().join("spool")), 0o1733);
    }
    assert_eq!(mode(&scene.state_dir().join("worker.lock")), 0o600);
}

#[test]
fn an_event_of_a_build_user_waits_for_the_next_worker() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene().derivation("chance", Script::random()).through_daemon();
    scene.build("chance").expect_success();
    scene.drain().expect_success();
    scene.check("chance").expect_failure();
    let spooled = scene.spooled();
    let owner = |path: &PathBuf| std::os::unix::fs::MetadataExt::uid(&path.metadata().unwrap());
    assert!(spooled.iter().any(|path| owner(path) != 0), "a build user's event waits: {spooled:?}");
    assert!(!lock::is_held(&scene.state_dir().join("worker.lock")), "no worker runs");
    scene.drain().expect_success();
    assert_eq!(scene.tasks(), ["chance keeper done", "chance keeper done"]);
}
