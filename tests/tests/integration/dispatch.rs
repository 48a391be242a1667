//! Builder selection under load and with faults, with real Nix: machines that are lost during a
//! build, that hang or that answer garbage; many builds on few slots; two Nix commands at once.

use std::os::unix::fs::PermissionsExt as _;

use hookrun_builders::history::{BuildOutcome, BuildRow};
use hookrun_tests::lab::{
    ConfigFile, Need, PluginTable, Ran, Scene, Script, most_at_once, require, wait_for,
};

/// Adds a machine that is reached by this shell script instead of `nix-store --serve`.
fn machine(scene: Scene, name: &str, slots: usize, speed_factor: u32, script: &str) -> Scene {
    let program = scene.path(format!("serve-{name}"));
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    scene.make_builder_store(name);
    scene.machine(&format!(
        "ssh://localhost?remote-program=@scene@/serve-{name}&remote-store=@scene@/builders/{name} - - {slots} {speed_factor}"
    ))
}

/// The script of a machine without faults.
const GOOD: &str = "exec nix-store \"$@\"";

fn scene() -> Scene {
    Scene::new()
        .nix_conf("post-build-hook", "")
        .config(&ConfigFile::new().builders("connect-timeout", "20s"))
}

/// Runs `nix-build` for a derivation without local builds.
fn build(scene: &Scene, derivation: &str) -> Ran {
    // The machines read nix.conf too, so the option is not set there.
    scene.build_with(derivation, &["--max-jobs", "0"])
}

/// Returns a build that takes this long.
fn taking(seconds: f32) -> Script {
    Script::new(format!("/bin/sleep {seconds}; echo done > $out"))
}

#[test]
fn a_machine_that_is_lost_during_a_build_is_replaced() {
    if !require(Need::Root) {
        return;
    }
    let scene = machine(scene(), "flaky", 2, 9, "exec timeout -s KILL 1 nix-store \"$@\"");
    let scene = machine(scene, "good", 2, 1, GOOD).derivation("alpha", taking(3.0));
    let ran = build(&scene, "alpha").expect_success();
    assert!(scene.on_builder("good", &ran.path()));
    let ran = ran.expect_stderr("is lost (unexpected end-of-file); it moves to ssh://");
    assert!(!ran.account().contains("error:"), "{}", ran.account());
    let build = scene.last_build();
    assert_eq!((build.outcome, build.moves.len()), (Some(BuildOutcome::Built), 1), "{build:?}");
    assert!(build.seconds.is_some_and(|seconds| seconds >= 3.0), "{build:?}");
}

#[test]
fn a_machine_that_is_lost_while_inputs_are_copied_is_replaced() {
    if !require(Need::Root) {
        return;
    }
    // `head` ends while inputs are sent.
    let scene = machine(scene(), "flaky", 2, 9, "head -c 1000000 | nix-store \"$@\"");
    let scene = machine(scene, "good", 2, 1, GOOD)
        .derivation("input", Script::large(4 << 20))
        .derivation("alpha", Script::naming(["input"]));
    scene.build_with("input", &["--builders", "", "--max-jobs", "1"]).expect_success();
    let ran = build(&scene, "alpha").expect_success();
    assert!(scene.on_builder("good", &ran.path()));
    ran.expect_stderr("; it moves to ssh://");
}

#[test]
fn a_build_that_fails_is_reported_once_and_not_tried_again() {
    if !require(Need::Root) {
        return;
    }
    let scene = machine(scene(), "one", 1, 2, GOOD);
    let scene = machine(scene, "two", 1, 1, GOOD).derivation("bad", Script::failing());
    let ran = build(&scene, "bad").expect_failure().expect_stderr("failed with exit code 1");
    assert_eq!(ran.account().matches("this build fails").count(), 1, "{}", ran.account());
    assert_eq!(ran.account().matches("build of '").count(), 1, "{}", ran.account());
    assert!(
        !ran.account().contains("path-info-cache-size"),
        "an internal option is shown: {}",
        ran.account()
    );
    let build = scene.last_build();
    assert_eq!((build.outcome, build.moves.len()), (Some(BuildOutcome::Failed), 0));
}

#[test]
fn machines_that_hang_or_answer_garbage_are_tried_once() {
    if !require(Need::Root) {
        return;
    }
    let names: Vec<String> = (0..4).map(|number| format!("part-{number}")).collect();
    let scene = scene().config(&ConfigFile::new().builders("connect-timeout", "2s"));
    let scene = machine(scene, "hangs", 4, 9, "exec sleep 1000");
    let scene = machine(
        scene,
        "nonsense",
        4,
        8,
        "echo nonsense, and enough of it to be read as a greeting; exec cat > /dev/null",
    );
    let scene = machine(scene, "good", 4, 1, GOOD);
    let scene = scene.derivations(&names, Script::text);
    let scene = scene.derivation("all", Script::naming(names.iter().map(String::as_str)));
    let ran = build(&scene, "all").expect_success();
    assert!(scene.on_builder("good", &ran.path()));
    let machines = scene.builder_record().machines().unwrap();
    for (uri, health) in &machines {
        let bad = !uri.contains("serve-good");
        assert_eq!(health.failures > 0, bad, "{health:?}");
        assert!(health.failures <= 1, "attempts at the same time count once: {health:?}");
    }
    // The next build does not try these machines.
    let scene = scene.derivation("later", Script::text("later"));
    let ran = build(&scene, "later").expect_success();
    assert!(!ran.account().contains("is lost"), "{}", ran.account());
}

/// The script of a machine with a file system of this size, which exists for one connection.
fn with_disk_of(size: &str, name: &str) -> String {
    format!(
        "exec unshare -m sh -c 'mount -t tmpfs -o size={size} tmpfs @scene@/builders/{name} && exec nix-store \"$@\"' nix-store \"$@\""
    )
}

#[test]
fn a_machine_whose_disk_is_full_is_replaced() {
    if !require(Need::Root) {
        return;
    }
    // No space for the database, for the inputs, for the output.
    let copies = "/bin/dd if=/dev/zero of=$out bs=1M count=4";
    let careless = format!("{copies} || :");
    for (size, input, script) in [
        ("64k", 0, "echo x > $out"),
        ("2m", 4 << 20, "echo x > $out"),
        ("2m", 0, &careless),
        ("2m", 0, copies),
    ] {
        // Nix reserves 8 MiB, and newer versions leave no space on a smaller disk.
        let scene = scene().nix_conf("gc-reserved-space", "0");
        let serves =
            with_disk_of(size, "full").replace("@scene@", &scene.dir().display().to_string());
        let scene = machine(scene, "full", 2, 9, &serves);
        let scene = machine(scene, "good", 2, 1, GOOD)
            .derivation("input", Script::large(input))
            .derivation("alpha", Script::new(script).uses("input"));
        scene.build_with("input", &["--builders", "", "--max-jobs", "1"]).expect_success();
        let ran = build(&scene, "alpha");
        if script == copies {
            // The builder itself failed, and it may fail on other machines too.
            let ran = ran.expect_failure();
            assert_eq!(ran.account().matches("build of '").count(), 1, "{}", ran.account());
            assert!(!ran.account().contains("is lost"), "{}", ran.account());
        } else {
            let ran = ran.expect_success();
            assert!(scene.on_builder("good", &ran.path()), "{}", ran.account());
            assert_eq!(ran.account().matches("is lost (").count(), 1, "{}", ran.account());
        }
    }
}

/// Returns a scene with the compiled bundled policy, which omits slower machines from its answer.
fn balanced() -> Scene {
    let scene = Scene::new()
        .nix_conf("post-build-hook", "")
        .config(&ConfigFile::new().plugin("policy", PluginTable::speed_factor()));
    scene.hookrun(&["compile"]).expect_success();
    scene
}

#[test]
fn a_slower_machine_that_the_policy_left_out_replaces_the_fast_one() {
    if !require(Need::Root) {
        return;
    }
    for (fast, words) in [
        ("exit 1", "is lost ("),
        ("exec timeout -s KILL 1 nix-store \"$@\"", "is lost (unexpected end-of-file)"),
    ] {
        let scene = machine(balanced(), "fast", 2, 100, fast);
        let scene = machine(scene, "slow", 2, 1, GOOD)
            .derivation("alpha", taking(3.0))
            .derivation("beta", Script::text("b"));
        let ran = build(&scene, "alpha").expect_success().expect_stderr(words);
        assert!(scene.on_builder("slow", &ran.path()), "{}", ran.account());
        // The next build does not try the fast machine.
        let ran = build(&scene, "beta").expect_success();
        assert!(scene.on_builder("slow", &ran.path()), "{}", ran.account());
        assert!(!ran.account().contains("is lost"), "{}", ran.account());
    }
}

#[test]
fn a_build_falls_back_to_the_local_machine_when_the_only_machine_is_gone() {
    if !require(Need::Root) {
        return;
    }
    let serves = "test ! -e @scene@/gone || exit 1; exec nix-store \"$@\"";
    let scene = scene();
    let serves = serves.replace("@scene@", &scene.dir().display().to_string());
    let scene = machine(scene, "only", 2, 1, &serves)
        .derivation("alpha", Script::text("a"))
        .derivation("beta", Script::text("b"));
    let ran = scene.build_with("alpha", &["--max-jobs", "1"]).expect_success();
    assert!(scene.on_builder("only", &ran.path()), "{}", ran.account());
    std::fs::write(scene.path("gone"), "").unwrap();
    let ran = scene.build_with("beta", &["--max-jobs", "1"]).expect_success();
    assert!(!scene.on_builder("only", &ran.path()), "{}", ran.account());
}

#[test]
fn words_in_the_log_of_a_failed_build_do_not_count_against_its_machine() {
    if !require(Need::Root) {
        return;
    }
    // The messages of ssh-ng:// contain the last lines of the log.
    let scene = ["one", "two"].into_iter().fold(scene(), |scene, name| {
        scene.make_builder_store(name);
        scene.machine(&format!("ssh-ng://localhost?remote-store=@scene@/builders/{name} - - 1 1"))
    });
    let words = [
        "error: libfoo 2.0 is required to build this package",
        "you are not privileged to build derivations",
        "error: unexpected end-of-file",
        "cp: writing to file: No space left on device",
        r#"@nix {"action":"msg","level":0,"msg":"error: unexpected end-of-file"}"#,
    ];
    let scene = words.iter().enumerate().fold(scene, |scene, (number, words)| {
        let script = Script::new(format!("echo begun-here; echo '{words}'; exit 1"));
        scene.derivation(&format!("bad-{number}"), script)
    });
    for (number, words) in words.iter().enumerate() {
        let ran = build(&scene, &format!("bad-{number}")).expect_failure();
        assert!(!ran.account().contains("is lost"), "{words}: {}", ran.account());
        let build = scene.last_build();
        assert_eq!(
            (build.outcome, build.moves.len()),
            (Some(BuildOutcome::Failed), 0),
            "{build:?}"
        );
    }
    for health in scene.builder_record().machines().unwrap().values() {
        assert_eq!(health.failures, 0, "{health:?}");
    }
}

/// Runs `command` with a file system of this size in `directory`.
fn with_small(directory: &std::path::Path, size: &str, command: &std::process::Command) -> Ran {
    let mut small = std::process::Command::new("unshare");
    let mount = format!("mount -t tmpfs -o size={size} tmpfs \"$0\" && exec \"$@\"");
    small.args(["-m", "sh", "-c", &mount]).arg(directory);
    small.arg(command.get_program()).args(command.get_args());
    small.env_clear();
    small.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if !command.get_envs().any(|(name, _)| name == "PATH") {
        small.env("PATH", std::env::var_os("PATH").unwrap());
    }
    Ran::of(&mut small)
}

#[test]
fn a_full_local_disk_does_not_count_against_a_machine() {
    if !require(Need::Root) {
        return;
    }
    let large = "/bin/dd if=/dev/zero of=$out bs=1M count=20 2> /dev/null";
    let scene =
        ["one", "two"].into_iter().fold(scene(), |scene, name| machine(scene, name, 1, 1, GOOD));
    let scene = scene.derivation("large", Script::new(large));
    let command = scene.build_command("large", &["--max-jobs", "0"]);
    let ran = with_small(&scene.path("store"), "8m", &command)
        .expect_failure()
        .expect_stderr("this machine cannot store the outputs: ");
    assert!(!ran.account().contains("is lost"), "{}", ran.account());
    let build = scene.last_build();
    assert_eq!((build.outcome, build.moves.len()), (Some(BuildOutcome::Failed), 0), "{build:?}");
    for health in scene.builder_record().machines().unwrap().values() {
        assert_eq!(health.failures, 0, "{health:?}");
    }
}

#[test]
fn a_build_without_a_machine_left_fails_with_all_reasons() {
    if !require(Need::Root) {
        return;
    }
    let scene = machine(scene(), "one", 1, 2, "exit 1");
    let scene = machine(scene, "two", 1, 1, "exit 1").derivation("alpha", Script::text("a"));
    build(&scene, "alpha").expect_failure().expect_stderr("no machine is left to build it");
}

/// The machines and their slots.
const MACHINES: [(&str, usize); 4] = [("a", 1), ("b", 2), ("c", 2), ("d", 3)];

#[test]
fn forty_builds_of_two_commands_never_take_more_slots_than_there_are() {
    if !require(Need::Root) {
        return;
    }
    let mut scene = scene();
    for (name, slots) in MACHINES {
        scene = machine(scene, name, slots, 1, GOOD);
    }
    let names: Vec<String> = (0..40).map(|number| format!("part-{number}")).collect();
    let scene = scene.derivations(&names, |_| taking(0.5));
    let (left, right) = names.split_at(20);
    let scene = scene
        .derivation("left", Script::naming(left.iter().map(String::as_str)))
        .derivation("right", Script::naming(right.iter().map(String::as_str)));
    // Both commands would create the local store at the same time.
    scene.drv_path("left");
    let runs = std::thread::scope(|scope| {
        let run = |name: &'static str| {
            scope.spawn({
                let scene = &scene;
                move || Ran::of(&mut scene.build_command(name, &["--max-jobs", "0"]))
            })
        };
        [run("left"), run("right")].map(|thread| thread.join().unwrap())
    });
    for ran in &runs {
        assert!(!ran.account().contains("is lost"), "{}", ran.account());
    }
    let [left, right] = runs;
    left.expect_success();
    right.expect_success();
    let builds = scene.recorded_builds();
    assert_eq!(builds.len(), 42);
    assert!(builds.iter().all(|build| build.outcome == Some(BuildOutcome::Built)));
    assert!(
        builds.iter().any(|build| build.waited_ms > Some(0)),
        "some builds have waited in the queue"
    );
    for (name, slots) in MACHINES {
        let of: Vec<&BuildRow> = builds
            .iter()
            .filter(|build| build.machine.contains(&format!("serve-{name}&")))
            .collect();
        assert!(!of.is_empty(), "{name} was never used");
        let most = most_at_once(&of);
        assert!(most <= slots, "{name} had {most} builds at once, with {slots} slots");
    }
}

#[test]
fn a_session_that_is_killed_frees_its_slot() {
    if !require(Need::Root) {
        return;
    }
    let scene = machine(scene(), "only", 1, 1, GOOD)
        .derivation("long", taking(600.0))
        .derivation("short", Script::text("s"));
    scene.drv_path("short");
    let mut long = scene.build_command("long", &["--max-jobs", "0"]);
    long.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut long = long.spawn().unwrap();
    let sessions =
        hookrun_builders::slots::sessions::directory(&scene.state_dir().join("builders"));
    wait_for("a session", || !hookrun_builders::slots::sessions::live(&sessions).is_empty());
    std::thread::scope(|scope| {
        let short =
            scope.spawn(|| Ran::of(&mut scene.build_command("short", &["--max-jobs", "0"])));
        // The second build may wait already or not. Either way the slot is free in the end.
        std::thread::sleep(std::time::Duration::from_millis(300));
        long.kill().unwrap();
        long.wait().unwrap();
        short.join().unwrap().expect_success();
    });
    assert!(hookrun_builders::slots::sessions::live(&sessions).is_empty());
}
