//! `hookrun ci` and `hookrun sync` with real Nix: `ci` reports the builds of one command and waits
//! for them, and builds that no hook reported are found in the database of Nix.

use std::process::Stdio;
use std::time::{Duration, Instant};

use hookrun_tests::lab::{ConfigFile, Need, PluginTable, Ran, Scene, Script, require, toml};

fn keeper() -> PluginTable {
    PluginTable::keeper().retry_hourly()
}

/// The plugin `good`, which fails with a `transient` or a `permanent` error.
fn failing(kind: &str) -> PluginTable {
    keeper().config(toml! { fail = kind })
}

fn config(keeper: PluginTable) -> ConfigFile {
    ConfigFile::new().worker("idle-exit", "1s").plugin("keeper", keeper)
}

/// A Nix whose configuration sets no hook, and two derivations.
fn scene(keeper: PluginTable) -> Scene {
    Scene::new()
        .nix_conf("post-build-hook", "")
        .nix_conf("run-diff-hook", "false")
        .config(&config(keeper))
        .derivation("alpha", Script::text("the first"))
        .derivation("beta", Script::naming(["alpha"]))
}

/// Runs `hookrun ci ARGUMENTS -- nix-build` for a derivation.
fn ci(scene: &Scene, arguments: &[&str], derivation: &str) -> Ran {
    let build = scene.build_command(derivation, &[]);
    let mut words: Vec<&str> = vec!["ci"];
    words.extend(arguments);
    words.push("--");
    words.push(build.get_program().to_str().unwrap());
    words.extend(build.get_args().map(|word| word.to_str().unwrap()));
    scene.hookrun(&words)
}

#[test]
fn ci_reports_the_builds_of_a_command_and_waits_for_them() {
    let scene = scene(keeper());
    let report = scene.path("summary.json").display().to_string();
    let ran = ci(&scene, &["--report", &report], "beta").expect_success();
    assert_eq!(ran.path(), scene.out_path("beta"), "the standard output is that of the command");
    assert!(
        ran.stderr.contains("2 events") && ran.stderr.contains("keeper: 2 done"),
        "{}",
        ran.account()
    );
    scene.expect_tasks(&["alpha keeper done", "beta keeper done"]);
    let summary: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&report).unwrap()).unwrap();
    assert_eq!(summary["events"], 2);
    assert_eq!(summary["finished"], true);
    assert!(summary["output-bytes"].as_u64().unwrap() > 0, "{summary}");
    let ran = ci(&scene, &[], "beta").expect_success();
    assert!(ran.stderr.contains("no build was reported"), "{}", ran.account());
}

#[test]
fn ci_exits_with_the_code_of_the_command_or_with_that_of_unfinished_tasks() {
    let scene = scene(failing("permanent")).derivation("broken", Script::failing());
    ci(&scene, &[], "alpha").expect_exit(1).expect_stderr("1 dead");
    ci(&scene, &[], "broken").expect_exit(100);
    scene
        .hookrun(&["ci", "--", scene.path("missing").to_str().unwrap()])
        .expect_exit(127)
        .expect_stderr("cannot be started");
    scene.hookrun(&["ci", "--", "/bin/sh", "-c", "kill -TERM $$"]).expect_exit(143);
    scene.set_config(&toml! { worker.strat = 1 });
    scene
        .hookrun(&["ci", "--", "/bin/sh", "-c", "echo ran"])
        .expect_exit(3)
        .expect_silent_about("ran");
}

#[test]
fn ci_stops_waiting_after_an_idle_time() {
    let scene = scene(failing("transient"));
    let ran = ci(&scene, &["--wait-idle", "5s"], "alpha").expect_exit(1);
    assert!(
        ran.stderr.contains("keeper: 1 unfinished; ") && ran.stderr.contains("stay in the queue"),
        "{}",
        ran.account()
    );
}

#[test]
fn a_private_queue_is_removed_only_if_all_tasks_are_done() {
    let scene = scene(keeper());
    let directories = || {
        let entries = std::fs::read_dir(scene.path("tmp")).unwrap().flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| path.to_string_lossy().contains("hookrun-ci-"))
            .collect::<Vec<_>>()
    };
    ci(&scene, &["--private"], "alpha").expect_success().expect_stderr("keeper: 1 done");
    assert!(directories().is_empty(), "{:?}", directories());
    assert!(!scene.state_dir().join("journal").exists(), "the ordinary queue was not used");
    assert!(scene.processes().is_empty(), "no process is left");
    scene.set_config(&config(failing("permanent")));
    ci(&scene, &["--private"], "beta").expect_exit(1).expect_stderr("the queue is kept");
    let kept = directories();
    let state = kept.first().unwrap().join("state").display().to_string();
    scene
        .hookrun(&["--state-dir", &state, "status"])
        .expect_success()
        .expect_stdout("told to fail");
}

#[test]
fn ci_forwards_signals_to_the_command() {
    let scene = scene(keeper());
    let mut child = scene
        .hookrun_command(&[
            "ci",
            "--",
            "/bin/sh",
            "-c",
            "trap 'echo trapped; exit 7' INT; echo ready; while :; do sleep 0.05; done",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "trapped");
    assert_eq!(child.wait().unwrap().code(), Some(7));
}

#[test]
fn ci_reports_a_difference_with_diff_hook() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene(keeper()).derivation("chance", Script::random());
    scene.set_config(&config(keeper().hooks(["diff"])));
    scene.build("chance").expect_success();
    let build = scene.build_command("chance", &["--check"]);
    let mut words = vec!["ci", "--diff-hook", "--", "nix-build"];
    words.extend(build.get_args().map(|word| word.to_str().unwrap()));
    let ran = scene.hookrun(&words).expect_failure();
    assert!(ran.stderr.contains("1 event; keeper: 1 done"), "{}", ran.account());
}

/// Writes an executable shell script into the scene.
fn program(scene: &Scene, name: &str, text: &str) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let path = scene.path(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn the_post_build_hook_of_the_user_is_called_as_well() {
    let scene = scene(keeper());
    let called = scene.path("called");
    let own = program(
        &scene,
        "own hook",
        &format!(
            "echo \"$DRV_PATH\" >> {}; test ! -e {}",
            called.display(),
            scene.path("fail").display()
        ),
    );
    let scene = scene.variable("NIX_CONFIG", &format!("post-build-hook = {own}"));
    let ran = ci(&scene, &[], "alpha").expect_success();
    assert!(
        ran.stderr
            .contains(&format!("post-build-hook = {own} of your configuration is also called")),
        "{}",
        ran.account()
    );
    assert!(ran.stderr.contains("keeper: 1 done"), "{}", ran.account());
    let drv = scene.drv_path("alpha").display().to_string();
    assert_eq!(std::fs::read_to_string(&called).unwrap().trim(), drv);
    // The hook of the user fails a build as it does without hookrun.
    std::fs::write(scene.path("fail"), "").unwrap();
    ci(&scene, &[], "beta").expect_exit(1).expect_stderr("the command failed");
}

#[test]
fn hooks_work_with_special_characters_in_the_temporary_directory() {
    let scene = scene(keeper());
    for (number, name) in ["a b", "a#b", "a\tb", "ü"].iter().enumerate() {
        let directory = scene.path(name);
        std::fs::create_dir(&directory).unwrap();
        let scene_name = format!("odd{number}");
        let text = format!(
            "{{}}: derivation {{ name = \"{scene_name}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\" \"echo > $out\" ]; }}"
        );
        let file = scene.path(format!("{scene_name}.nix"));
        std::fs::write(&file, text).unwrap();
        let mut command =
            scene.hookrun_command(&["ci", "--private", "--", "nix-build", "--no-out-link"]);
        command.arg(&file).env("TMPDIR", &directory);
        Ran::of(&mut command)
            .expect_success()
            .expect_stderr("1 event")
            .expect_stderr("keeper: 1 done");
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0, "no file is left in {name}");
    }
}

#[test]
fn ci_finds_builds_that_no_hook_reported_in_the_database() {
    let scene = scene(keeper());
    let build = scene.build_command("beta", &[]);
    let mut words = vec!["ci", "--", "env", "-u", "NIX_CONFIG", "nix-build"];
    words.extend(build.get_args().map(|word| word.to_str().unwrap()));
    let ran = scene.hookrun(&words).expect_success();
    assert!(ran.stderr.contains("no hook was called for the built paths"), "{}", ran.account());
    assert!(ran.stderr.contains("2 found in Nix's database; keeper: 2 done"), "{}", ran.account());
}

#[test]
fn ci_reports_that_no_plugin_takes_the_events() {
    let scene = scene(keeper());
    scene.set_config(&ConfigFile::new());
    ci(&scene, &[], "alpha")
        .expect_success()
        .expect_stderr("1 event")
        .expect_stderr("no plugin of the configuration takes them");
}

/// The user id of `nobody`.
const NOBODY: u32 = 65534;

/// Runs `hookrun ci ARGUMENTS -- nix-build` as a plain user, through the daemon of the scene.
fn as_a_plain_user(scene: &Scene, arguments: &[&str], derivation: &str, options: &[&str]) -> Ran {
    use std::os::unix::process::CommandExt as _;
    let home = scene.path("plain");
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
    let build = scene.build_command(derivation, options);
    let mut command = scene.hookrun_command(&["ci"]);
    command.args(arguments).args(["--", "nix-build"]).args(build.get_args());
    command.uid(NOBODY).gid(NOBODY).current_dir(&home);
    command.env("HOME", &home).env("TMPDIR", scene.path("tmp")).env("NIX_REMOTE", "daemon");
    command.env("HOOKRUN_STATE_DIR", home.join("state"));
    Ran::of(&mut command)
}

#[test]
fn a_trusted_user_of_a_daemon_has_its_own_queue() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene(keeper()).nix_conf("trusted-users", "root nobody").through_daemon();
    let ran = as_a_plain_user(&scene, &[], "beta", &[]).expect_success();
    assert!(ran.stderr.contains("keeper: 2 done"), "{}\n{}", ran.account(), scene.daemon_log());
    let owner =
        |path: &std::path::Path| std::os::unix::fs::MetadataExt::uid(&path.metadata().unwrap());
    assert_eq!(
        owner(&scene.path("plain/state/spool")),
        NOBODY,
        "the hook of root writes as this user"
    );
}

#[test]
fn a_difference_that_a_build_user_reports_reaches_the_private_queue_of_a_trusted_user() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene(keeper()).derivation("chance", Script::random());
    scene.set_config(&config(keeper().hooks(["diff"])));
    let scene = scene.nix_conf("trusted-users", "root nobody").through_daemon();
    scene.build("chance").expect_success();
    let ran = as_a_plain_user(&scene, &["--private", "--diff-hook"], "chance", &["--check"])
        .expect_failure();
    assert!(
        ran.stderr.contains("1 event; keeper: 1 done"),
        "{}\n{}",
        ran.account(),
        scene.daemon_log()
    );
    std::fs::remove_dir_all(scene.path("plain")).unwrap();
    as_a_plain_user(&scene, &["--diff-hook"], "chance", &[])
        .expect_exit(2)
        .expect_stderr("--diff-hook needs --private");
}

#[test]
fn builds_of_an_untrusted_user_are_found_in_the_database() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene(keeper()).through_daemon();
    let ran = as_a_plain_user(&scene, &[], "beta", &[])
        .expect_success()
        .expect_stderr("ignores the hooks of this user");
    assert!(ran.stderr.contains("2 found in Nix's database; keeper: 2 done"), "{}", ran.account());
}

#[test]
fn sync_queues_builds_that_no_hook_reported() {
    let scene = scene(keeper());
    scene.build("beta").expect_success();
    assert!(scene.spooled().is_empty(), "no hook is set");
    scene.hookrun(&["sync"]).expect_exit(2).expect_stderr("no paths selected");
    let shown = scene
        .hookrun(&["sync", "--dry-run", "--all"])
        .expect_success()
        .expect_stdout("2 events would be");
    assert!(
        shown.stdout.contains(scene.out_path("alpha").to_str().unwrap()),
        "{}",
        shown.account()
    );
    assert!(scene.spooled().is_empty());
    scene.hookrun(&["sync", "--since", "2099-01-01"]).expect_success().expect_stdout("0 events");
    scene
        .hookrun(&["sync", "--name", "alpha"])
        .expect_success()
        .expect_stdout("1 event handed over");
    scene.drain().expect_success();
    scene.expect_tasks(&["alpha keeper done"]);
    scene.hookrun(&["queue", "list", "--all"]).expect_success().expect_stdout("alpha (sync)");
    scene
        .hookrun(&["sync", "--since", "1h"])
        .expect_success()
        .expect_stdout("1 event handed over, 1 path already in the journal");
    scene.drain().expect_success();
    scene.expect_tasks(&["alpha keeper done", "beta keeper done"]);
    scene.hookrun(&["sync", "--all"]).expect_success().expect_stdout("0 events");
    // Arguments may be paths, links to paths, and derivations. `--force` queues known ones again.
    let link = scene.path("result");
    std::os::unix::fs::symlink(scene.out_path("alpha"), &link).unwrap();
    scene
        .hookrun(&["sync", "--force", link.to_str().unwrap()])
        .expect_success()
        .expect_stdout("1 event handed over");
    let drv = scene.drv_path("beta");
    scene
        .hookrun(&["sync", "--force", drv.to_str().unwrap()])
        .expect_success()
        .expect_stdout("1 event handed over");
    scene.drain().expect_success();
    assert_eq!(scene.attempts().len(), 4);
    scene
        .hookrun(&["sync", scene.path("missing").to_str().unwrap()])
        .expect_exit(2)
        .expect_stderr("is neither a valid path nor an installable that is built");
    let unbuilt = scene.derivation("gamma", Script::text("x"));
    let path = unbuilt.out_path("gamma").display().to_string();
    unbuilt.hookrun(&["sync", &path]).expect_exit(2).expect_stderr("build it first");
}

#[test]
fn ci_starts_another_worker_after_one_was_killed() {
    let scene = scene(keeper());
    // The first worker dies as soon as it has its lock.
    let build = scene.build_command("beta", &[]);
    let mut words = vec!["ci", "--", "nix-build"];
    words.extend(build.get_args().map(|word| word.to_str().unwrap()));
    let mut child = scene.hookrun_command(&words).stdout(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    let lock = scene.state_dir().join("worker.lock");
    while begun.elapsed() < Duration::from_mins(1) && child.try_wait().unwrap().is_none() {
        if let Some(pid) =
            hookrun_queue::lock::holder(&lock).and_then(rustix::process::Pid::from_raw)
        {
            // It may have left by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(scene.tasks(), ["alpha keeper done", "beta keeper done"]);
}

#[test]
fn the_directory_of_a_ci_run_can_be_passed_and_not_listed() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene(keeper());
    let place = scene.path("shared");
    std::fs::create_dir(&place).unwrap();
    std::fs::set_permissions(&place, std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
    // A hook makes the spool.
    let look = format!(
        "DRV_PATH={0}.drv OUT_PATHS={0} $(echo \"$NIX_CONFIG\" | sed -n 's/^post-build-hook = //p')
         stat -c '%a %u' $TMPDIR/hookrun-ci-* $TMPDIR/hookrun-ci-*/state/spool
         setpriv --reuid 4242 --regid 4242 --clear-groups sh -c '
           ls $TMPDIR/hookrun-ci-*; ls $TMPDIR/hookrun-ci-*/state/spool; cat $TMPDIR/hookrun-ci-*/*'",
        scene.private_nix().store_dir().join("00bgd045z0d4icpbc2yyz4gx48ak44la-a").display()
    );
    let mut command = scene.hookrun_command(&["ci", "--private", "--", "sh", "-c", &look]);
    let ran = Ran::of(command.env("TMPDIR", &place));
    assert_eq!(ran.stdout, "711 0\n1733 0\n", "{}", ran.account());
}
