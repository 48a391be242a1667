//! The two processes, as an operator meets them: a runner that dies, programs that the worker
//! starts for it, secrets that stay root's, a policy in a process of its own, and a compiler that
//! takes too much.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use hookrun_tests::guests;
use hookrun_tests::hostile::made::slow_to_compile;
use hookrun_tests::lab::s3::{ACCESS_KEY_ID, S3Server, SECRET_ACCESS_KEY};
use hookrun_tests::lab::{Need, Scene, Script, hookrun_program, require};

fn component(name: &str) -> String {
    guests::guest(name).unwrap().display().to_string()
}

/// For tests with a user other than root: everybody may walk through the scene.
fn open_to_others(scene: &Scene) {
    std::fs::set_permissions(scene.dir(), std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// The process that runs plugins below this one, once there is one.
fn runner_of(worker: u32) -> u32 {
    for _ in 0..600 {
        let children = std::fs::read_to_string(format!("/proc/{worker}/task/{worker}/children"))
            .unwrap_or_default();
        let others =
            std::fs::read_dir(format!("/proc/{worker}/task")).into_iter().flatten().flatten();
        let threads: String = others
            .map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default())
            .collect::<Vec<_>>()
            .join(" ");
        for child in format!("{children} {threads}").split_whitespace() {
            let command = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            if command.starts_with(b"hookrun\0runner") {
                return child.parse().unwrap();
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("the worker started no runner in a minute");
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
fn a_runner_that_dies_costs_one_attempt_and_is_replaced() {
    let scene = Scene::new()
        .config(&format!(
            "[worker]\nstart = \"none\"\n[plugins.loops]\nsource = \"{0}\"\nhooks = [\"post-build\"]\nretry = {{ attempts = 1 }}\n\
             config = {{ fault = \"loop\" }}\ngrant = {{ state = true }}\nlimits = {{ wall-time = \"10m\" }}\n",
            component("faulty"),
        ))
        .derivation("alpha", Script::text("hello"))
        .derivation("beta", Script::text("world"));
    scene.build("alpha").expect_success();
    let worker = scene.hookrun_command(&["drain"]).spawn().unwrap();
    let runner = runner_of(worker.id());
    // Behind its wall it starts threads; killed before, the attempt would end in another way.
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
    assert_eq!(attempt.class, "trapped", "it was alone, and so it is the one");
    assert!(
        attempt.message.contains("the process that runs plugins died in this run")
            && attempt.message.contains("signal: 9")
    );
    // The next task finds another.
    scene.set_config(&format!(
        "[worker]\nstart = \"none\"\n[plugins.good]\nsource = \"{}\"\nhooks = [\"post-build\"]\ngrant = {{ state = true }}\n",
        component("good")
    ));
    scene.build("beta").expect_success();
    scene.drain();
    assert!(scene.tasks().contains(&"beta good done".to_owned()), "{:?}", scene.tasks());
}

/// How many tasks are in this state.
fn tasks_in(scene: &Scene, state: &str) -> usize {
    let listed = scene.hookrun(&["queue", "list", "--all", "--format", "json"]).expect_success();
    let tasks: Vec<serde_json::Value> = serde_json::from_str(&listed.stdout).unwrap();
    tasks.iter().filter(|task| task["state"] == state).count()
}

#[test]
fn a_runner_that_dies_under_several_runs_costs_only_the_one_that_ends_it_alone_too() {
    let scene = Scene::new();
    let marks = scene.path("marks");
    std::fs::create_dir(&marks).unwrap();
    let scene = scene
        .config(&format!(
            "[worker]\nstart = \"service\"\n[plugins.loops]\nsource = \"{0}\"\nhooks = [\"post-build\"]\n\
             retry = {{ attempts = 1, min-delay = \"10ms\" }}\nconfig = {{ fault = \"mark-then-loop\" }}\n\
             grant = {{ state = true, object-store = [\"marks\"] }}\nlimits = {{ wall-time = \"10m\" }}\n\
             [object-stores.marks]\nurl = \"file://{1}\"\n",
            component("faulty"),
            marks.display(),
        ))
        .derivation("alpha", Script::text("hello"))
        .derivation("beta", Script::text("world"));
    scene.build("alpha").expect_success();
    scene.build("beta").expect_success();
    let mut worker = scene.hookrun_command(&["daemon"]).spawn().unwrap();
    // Runs that have begun in a runner, since the test began.
    let begun = || {
        let names = std::fs::read_dir(&marks).unwrap().map(|mark| mark.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().chars().all(|c| c.is_ascii_digit())).count()
    };
    let until = |what: &str, holds: &dyn Fn() -> bool| {
        let end = Instant::now() + Duration::from_mins(2);
        while !holds() {
            assert!(Instant::now() < end, "two minutes passed without {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let kill = |runner: u32| {
        let pid = rustix::process::Pid::from_raw(i32::try_from(runner).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    };
    let classes =
        || -> Vec<String> { scene.attempts().into_iter().map(|attempt| attempt.class).collect() };
    until("two runs", &|| begun() == 2);
    kill(runner_of(worker.id()));
    until("two attempts", &|| classes().len() == 2);
    assert_eq!(classes(), ["transient", "transient"]);
    assert_eq!(tasks_in(&scene, "dead"), 0, "with one attempt each: it was not counted");
    until("a third run", &|| begun() == 3);
    // Both are begun, and one has a process; the other waits for its turn.
    kill(runner_of(worker.id()));
    until("a third attempt", &|| classes().len() == 3);
    assert_eq!(classes()[2], "trapped");
    assert_eq!(
        (tasks_in(&scene, "dead"), tasks_in(&scene, "running")),
        (1, 1),
        "the other one goes on"
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
    scene.set_config(&format!(
        "[worker]\nstart = \"none\"\n[plugins.mail]\nsource = \"bundled:email-on-nondeterminism\"\n\
         config = {{ to = [\"ops@example.org\"] }}\ngrant = {{ mail = [\"default\"], state = true }}\n\
         [mail.default]\ntransport = \"sendmail\"\nprogram = \"{}\"\nfrom = \"hookrun@example.org\"\n",
        program.display()
    ));
    scene.build("dice").expect_success();
    scene.check("dice").expect_failure();
    scene.drain().expect_success();
    let mail = std::fs::read_to_string(&taken).unwrap();
    assert!(mail.starts_with("-i -f hookrun@example.org -- ops@example.org\n"), "{mail}");
    assert!(mail.contains("dice"), "{mail}");
}

#[test]
fn secrets_stay_roots_and_uploads_work_as_another_user() {
    if !require(Need::Root) {
        return;
    }
    let scene = Scene::new().signing_key("lab-1").derivation("alpha", Script::text("hello"));
    open_to_others(&scene);
    let server = S3Server::start(&scene.path("s3"), &["bucket"]);
    let secret = |name: &str, text: &str| {
        let path = scene.path(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    secret("id", ACCESS_KEY_ID);
    secret("secret", SECRET_ACCESS_KEY);
    scene.set_config(&format!(
        "[worker]\nstart = \"none\"\nuser = \"nobody\"\n[plugins.cache]\nsource = \"bundled:s3-upload\"\n\
         config = {{ bucket = \"cache\" }}\ngrant = {{ nix-store = \"closure\", object-store = [\"cache\"], signing = [\"lab-1\"] }}\n\
         [signing-keys.lab-1]\nfile = \"@scene@/keys/lab-1.secret\"\n\
         [object-stores.cache]\nurl = \"s3://bucket\"\nendpoint = \"{}\"\n\
         credentials.access-key-id-file = \"@scene@/id\"\ncredentials.secret-access-key-file = \"@scene@/secret\"\n",
        server.endpoint()
    ));
    let alpha = scene.build("alpha").expect_success().path();
    scene.drain().expect_success();
    scene.expect_tasks(&["alpha cache done"]);
    let url = format!("file://{}", server.bucket("bucket").display());
    scene.second_store().copy_from(&alpha, &url, &[scene.public_key("lab-1")]).expect_success();
    scene.hookrun(&["status"]).expect_success().expect_stdout("guests run as  nobody (uid 65534)");
}

#[test]
fn a_user_that_is_not_there_keeps_the_task_and_names_the_command() {
    if !require(Need::Root) {
        return;
    }
    let config = |user: &str| {
        format!(
            "[worker]\nstart = \"none\"\nuser = \"{user}\"\n[plugins.good]\nsource = \"{}\"\nhooks = [\"post-build\"]\n\
             grant = {{ state = true }}\n",
            component("good")
        )
    };
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
fn a_policy_chooses_in_a_process_of_its_own() {
    if !require(Need::Root) {
        return;
    }
    // As offered: the slow one stands first. Nix's own rule would take the other.
    let scene = Scene::new()
        .nix_conf("post-build-hook", "")
        .config(&format!(
            "[worker]\nstart = \"none\"\n[plugins.policy]\nsource = \"{}\"\nhooks = [\"builder-selection\"]\ngrant = {{ state = true }}\n",
            component("good")
        ))
        .builder("slow", 1, 1.0)
        .builder("fast", 1, 4.0)
        .derivation("alpha", Script::text("a"))
        .derivation("beta", Script::text("b"));
    // It is compiled while Nix waits.
    let account = scene.build_with("alpha", &["--max-jobs", "0"]).expect_success().account();
    assert!(account.contains("builders/slow'"), "{account}");
}

#[test]
fn a_policy_that_takes_long_to_compile_is_replaced_without_a_word() {
    if !require(Need::Root) {
        return;
    }
    let scene = Scene::new()
        .nix_conf("post-build-hook", "")
        .builder("slow", 1, 1.0)
        .builder("fast", 1, 4.0)
        .derivation("alpha", Script::text("a"));
    let large = scene.path("large.wasm");
    std::fs::write(&large, slow_to_compile(&std::fs::read(component("good")).unwrap())).unwrap();
    scene.set_config(&format!(
        "[worker]\nstart = \"none\"\n[plugins.policy]\nsource = \"{}\"\nhooks = [\"builder-selection\"]\n\
         grant = {{ state = true }}\n",
        large.display()
    ));
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
fn a_compiler_that_takes_too_much_is_stopped() {
    let mut said = String::new();
    for limits in ["compile-time = \"1ms\"", "compile-memory = \"1MiB\""] {
        let scene = Scene::new().config(&format!(
            "[plugins.x]\nsource = \"{}\"\ngrant = {{ state = true }}\nlimits = {{ {limits} }}\n",
            component("good")
        ));
        let ran = scene.hookrun(&["compile"]).expect_exit(3);
        let place = scene.dir().display().to_string();
        said.push_str(&ran.stderr.replace(&place, "DIR"));
        let artifacts = scene.state_dir().join("artifacts");
        assert!(entries(&artifacts) == 0, "nothing half-made is kept");
    }
    insta::assert_snapshot!(said);
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}
