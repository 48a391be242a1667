//! The worker and its runner: a runner that dies, programs that the worker starts for it, secrets
//! that only root can read, a policy in its own process, and a compiler that takes too much.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use hookrun_tests::guests::guest;
use hookrun_tests::hostile::made::slow_to_compile;
use hookrun_tests::lab::s3::{S3Server, SECRET_ACCESS_KEY};
use hookrun_tests::lab::{
    ConfigFile, Need, PluginTable, Scene, Script, hookrun_program, require, toml, wait_for,
    wait_until,
};

/// The guest `faulty` with this fault, which may run for ten minutes.
fn faulty(fault: &str) -> PluginTable {
    PluginTable::guest("faulty")
        .hooks(["post-build"])
        .config(toml! { fault = fault })
        .retry("attempts", 1)
        .grant("state", true)
        .limit("wall-time", "10m")
}

/// A policy in this file.
fn policy(table: PluginTable) -> ConfigFile {
    let table = table.hooks(["builder-selection"]).grant("state", true);
    ConfigFile::new().plugin("policy", table)
}

/// Lets users other than root traverse the scene.
fn open_to_others(scene: &Scene) {
    std::fs::set_permissions(scene.dir(), std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Waits for the runner that this worker starts.
fn runner_of(worker: u32) -> u32 {
    wait_until("the worker starts a runner", || {
        let threads =
            std::fs::read_dir(format!("/proc/{worker}/task")).into_iter().flatten().flatten();
        let children: Vec<String> = threads
            .map(|thread| {
                std::fs::read_to_string(thread.path().join("children")).unwrap_or_default()
            })
            .collect();
        let mut pids = children.iter().flat_map(|line| line.split_whitespace());
        let runner = pids.find(|pid| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.starts_with(b"hookrun\0runner")
        })?;
        runner.parse().ok()
    })
}

#[test]
fn a_runner_dies_of_sigterm_whatever_its_starter_has_blocked() {
    use std::os::unix::process::ExitStatusExt as _;
    // A session of builder selection blocks the signals that it answers, and so do some service
    // managers.
    let mut command = std::process::Command::new("env");
    command.args([
        "--block-signal=TERM".into(),
        hookrun_program().into_os_string(),
        "runner".into(),
    ]);
    let mut runner = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
    let blocked = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let mask =
            status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap().trim().to_owned();
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        name.trim() == "env" || u64::from_str_radix(&mask, 16).unwrap() != 0
    };
    while blocked(runner.id()) {
        assert!(runner.try_wait().unwrap().is_none(), "it has ended");
        std::thread::sleep(Duration::from_millis(10));
    }
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&runner),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert_eq!(runner.wait().unwrap().signal(), Some(15));
}

#[test]
fn a_runner_that_dies_is_replaced_after_one_failed_attempt() {
    let scene = Scene::new()
        .config(&ConfigFile::new().plugin("loops", faulty("loop")))
        .derivation("alpha", Script::text("hello"))
        .derivation("beta", Script::text("world"));
    scene.build("alpha").expect_success();
    let worker = scene.hookrun_command(&["drain"]).spawn().unwrap();
    let runner = runner_of(worker.id());
    // The runner starts threads after it has closed its sandbox. An earlier death would end the
    // attempt in another way.
    while std::fs::read_dir(format!("/proc/{runner}/task")).unwrap().count() < 2 {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(500));
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(i32::try_from(runner).unwrap()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    assert_eq!(worker.wait_with_output().unwrap().status.code(), Some(1), "the task was given up");
    let [attempt] = &scene.attempts()[..] else { panic!("{:#?}", scene.attempts()) };
    assert_eq!(attempt.class, "trapped", "no other attempt can be the cause");
    assert!(
        attempt.message.contains("the process that runs plugins died in this run")
            && attempt.message.contains("signal: 9")
    );
    // The next task gets another runner.
    scene.set_config(&ConfigFile::new().plugin("good", PluginTable::keeper()));
    scene.build("beta").expect_success();
    scene.drain();
    assert!(scene.tasks().contains(&"beta good done".to_owned()), "{:?}", scene.tasks());
}

/// Returns the number of tasks in this state.
fn tasks_in(scene: &Scene, state: &str) -> usize {
    let listed = scene.hookrun(&["queue", "list", "--all", "--format", "json"]).expect_success();
    let tasks: Vec<serde_json::Value> = serde_json::from_str(&listed.stdout).unwrap();
    tasks.iter().filter(|task| task["state"] == state).count()
}

#[test]
fn a_death_of_the_runner_counts_only_against_a_run_that_kills_it_alone_too() {
    let scene = Scene::new();
    let marks = scene.path("marks");
    std::fs::create_dir(&marks).unwrap();
    let scene = scene
        .config(
            &ConfigFile::new()
                .worker("start", "service")
                .plugin(
                    "loops",
                    faulty("mark-then-loop")
                        .retry("min-delay", "10ms")
                        .grant("object-store", ["marks"]),
                )
                .object_store("marks", toml! { url = (format!("file://{}", marks.display())) }),
        )
        .derivation("alpha", Script::text("hello"))
        .derivation("beta", Script::text("world"));
    scene.build("alpha").expect_success();
    scene.build("beta").expect_success();
    let mut worker = scene.hookrun_command(&["daemon"]).spawn().unwrap();
    // The number of runs that have begun since the start of the test.
    let begun = || {
        let names = std::fs::read_dir(&marks).unwrap().map(|mark| mark.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().chars().all(|c| c.is_ascii_digit())).count()
    };
    let kill = |runner: u32| {
        let pid = rustix::process::Pid::from_raw(i32::try_from(runner).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    };
    let classes =
        || -> Vec<String> { scene.attempts().into_iter().map(|attempt| attempt.class).collect() };
    wait_for("two runs", || begun() == 2);
    kill(runner_of(worker.id()));
    wait_for("two attempts", || classes().len() == 2);
    assert_eq!(classes(), ["transient", "transient"]);
    assert_eq!(tasks_in(&scene, "dead"), 0, "the only attempt of each task was not counted");
    wait_for("a third run", || begun() == 3);
    // Both tasks are running, and one of them has a process.
    kill(runner_of(worker.id()));
    wait_for("a third attempt", || classes().len() == 3);
    assert_eq!(classes()[2], "trapped");
    assert_eq!(
        (tasks_in(&scene, "dead"), tasks_in(&scene, "running")),
        (1, 1),
        "the other task goes on"
    );
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&worker),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    worker.wait().unwrap();
}

#[test]
fn a_mail_program_is_started_by_the_worker() {
    let scene = Scene::new().derivation("dice", Script::random());
    let program = scene.path("mailer");
    let taken = scene.path("taken");
    std::fs::write(&program, format!("#!/bin/sh\n{{ echo \"$*\"; cat; }} > {}\n", taken.display()))
        .unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let transport = toml! {
        transport = "sendmail"
        program = (program.display().to_string())
        from = "hookrun@example.org"
    };
    scene.set_config(
        &ConfigFile::new()
            .plugin("mail", PluginTable::mailer("default", "ops@example.org"))
            .mail("default", transport),
    );
    scene.build("dice").expect_success();
    scene.check("dice").expect_failure();
    scene.drain().expect_success();
    let mail = std::fs::read_to_string(&taken).unwrap();
    assert!(mail.starts_with("-i -f hookrun@example.org -- ops@example.org\n"), "{mail}");
    assert!(mail.contains("dice"), "{mail}");
}

#[test]
fn an_upload_as_another_user_works_with_secrets_of_root() {
    if !require(Need::Root) {
        return;
    }
    let scene = Scene::new().signing_key("lab-1").derivation("alpha", Script::text("hello"));
    open_to_others(&scene);
    let server = S3Server::start(&scene.path("s3"), &["bucket"]);
    let store = server.object_store("s3://bucket", scene.dir(), SECRET_ACCESS_KEY);
    scene.set_config(
        &ConfigFile::new()
            .worker("user", "nobody")
            .plugin("cache", PluginTable::uploader("lab-1"))
            .signing_key("lab-1", "keys/lab-1.secret")
            .object_store("cache", store),
    );
    let alpha = scene.build("alpha").expect_success().path();
    scene.drain().expect_success();
    scene.expect_tasks(&["alpha cache done"]);
    let url = format!("file://{}", server.bucket("bucket").display());
    scene.second_store().copy_from(&alpha, &url, &[scene.public_key("lab-1")]).expect_success();
    scene.hookrun(&["status"]).expect_success().expect_stdout("guests run as  nobody (uid 65534)");
}

#[test]
fn a_missing_user_keeps_the_task_and_the_error_names_the_command() {
    if !require(Need::Root) {
        return;
    }
    let config =
        |user: &str| ConfigFile::new().worker("user", user).plugin("good", PluginTable::keeper());
    let scene =
        Scene::new().config(&config("no-such-user")).derivation("alpha", Script::text("hello"));
    open_to_others(&scene);
    scene.build("alpha").expect_success();
    scene.drain().expect_exit(1).expect_stderr("useradd --system --no-create-home no-such-user");
    scene.set_config(&config("nobody"));
    scene.drain().expect_success();
    assert_eq!(
        scene.tasks().last().map(String::as_str),
        Some("alpha good done"),
        "{:?}",
        scene.tasks()
    );
}

#[test]
fn a_policy_chooses_a_machine_in_its_own_process() {
    if !require(Need::Root) {
        return;
    }
    // The policy takes the first machine. The rule of Nix would take the other.
    let scene = Scene::new()
        .nix_conf("post-build-hook", "")
        .config(&policy(PluginTable::guest("good")))
        .builder("slow", 1, 1.0)
        .builder("fast", 1, 4.0)
        .derivation("alpha", Script::text("a"))
        .derivation("beta", Script::text("b"));
    // The policy is compiled while Nix waits.
    let account = scene.build_with("alpha", &["--max-jobs", "0"]).expect_success().account();
    assert!(account.contains("builders/slow'"), "{account}");
}

#[test]
fn a_policy_that_takes_long_to_compile_is_replaced_silently_by_the_rule_of_nix() {
    if !require(Need::Root) {
        return;
    }
    let scene = Scene::new()
        .nix_conf("post-build-hook", "")
        .builder("slow", 1, 1.0)
        .builder("fast", 1, 4.0)
        .derivation("alpha", Script::text("a"));
    let large = scene.path("large.wasm");
    let component = std::fs::read(guest("good").unwrap()).unwrap();
    std::fs::write(&large, slow_to_compile(&component)).unwrap();
    scene.set_config(&policy(PluginTable::file(&large)));
    let ran = scene.build_with("alpha", &["--max-jobs", "0"]).expect_success();
    let account = ran.account();
    assert!(account.contains("builders/fast'"), "Nix's own rule: {account}");
    assert!(!account.contains("policy") && !account.contains("compile"), "{account}");
    let drv_path = scene.drv_path("alpha");
    scene
        .hookrun(&["builders", "explain", drv_path.to_str().unwrap()])
        .expect_stdout("is not compiled yet");
}

#[test]
fn a_compilation_that_reaches_a_limit_is_stopped() {
    let mut said = String::new();
    for (limit, value) in [("compile-time", "1ms"), ("compile-memory", "1MiB")] {
        let plugin = PluginTable::guest("good").grant("state", true).limit(limit, value);
        let scene = Scene::new().config(&ConfigFile::from(plugin));
        let ran = scene.hookrun(&["compile"]).expect_exit(3);
        let place = scene.dir().display().to_string();
        said.push_str(&ran.stderr.replace(&place, "DIR"));
        let artifacts = scene.state_dir().join("artifacts");
        assert!(entries(&artifacts) == 0, "no part of an artifact is kept");
    }
    insta::assert_snapshot!(said);
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}
