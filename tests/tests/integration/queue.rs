//! `hookrun queue`: dead letters are retried or dropped, and waiting for the end tells
//! how it ended.

use hookrun_tests::guests;
use hookrun_tests::hostile::made::custom_section;
use hookrun_tests::lab::{Scene, Script};

fn config(fail: &str) -> String {
    format!(
        "[worker]\nstart = \"none\"\n[plugins.keeper]\nsource = \"{}\"\nhooks = [\"post-build\"]\nconfig = {{ {fail} }}\n\
         grant = {{ state = true }}\nretry = {{ attempts = 3, min-delay = \"1h\", max-delay = \"1h\" }}\n",
        guests::guest("good").unwrap().display()
    )
}

const BROKEN: &str = "fail = \"permanent\"";

#[test]
fn a_dead_letter_is_listed_shown_and_given_another_chance() {
    let scene = Scene::new().config(&config(BROKEN)).derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    scene.drain().expect_exit(1);
    let listed = scene.hookrun(&["queue", "list"]).expect_success().expect_stdout("told to fail");
    let id = listed
        .stdout
        .lines()
        .nth(1)
        .and_then(|line| line.split_whitespace().next())
        .unwrap()
        .to_owned();
    assert_eq!(id.len(), 13, "{}", listed.stdout);
    scene
        .hookrun(&["queue", "show", &id])
        .expect_success()
        .expect_stdout("attempt 1")
        .expect_stdout("post-build of ");
    scene.set_config(&config(""));
    scene
        .hookrun(&["queue", "retry", "--dead"])
        .expect_success()
        .expect_stdout("again: keeper on alpha");
    let rooted =
        std::fs::read_dir(scene.private_nix().state_dir().join("gcroots/hookrun")).unwrap().count();
    assert_eq!(rooted, 1, "what is done again is kept from the garbage collector again");
    scene.drain().expect_success();
    scene.hookrun(&["queue", "list"]).expect_success().expect_stdout("no tasks");
    scene.hookrun(&["queue", "list", "--all"]).expect_success().expect_stdout("done");
    scene.hookrun(&["queue", "wait"]).expect_success().expect_stdout("nothing is left to do");
    scene.hookrun(&["queue", "retry", "--dead"]).expect_exit(1);
}

#[test]
fn a_plugin_asks_for_dependencies_first_and_the_configuration_has_the_last_word() {
    let directory = tempfile::tempdir().unwrap();
    let ordered = directory.path().join("ordered.wasm");
    let mut component = std::fs::read(guests::guest("good").unwrap()).unwrap();
    // What stands on the component itself counts before what its module says.
    component.extend(custom_section(
        "hookrun:metadata",
        br#"{ "format": 1, "name": "ordered", "version": "1.0.0", "hooks": ["post-build"], "wants": { "state": "required" },
              "order": "dependencies-first" }"#,
    ));
    std::fs::write(&ordered, component).unwrap();
    let config = |more: &str| {
        let source = guests::guest("good").unwrap().display().to_string();
        let config =
            config("fail = \"transient\"").replace(&source, &ordered.display().to_string());
        config.replace("[plugins.keeper]\n", &format!("[plugins.keeper]\n{more}\n"))
    };
    for (more, tried) in [
        ("", vec!["alpha keeper transient"]),
        ("order = \"any\"", vec!["alpha keeper transient", "omega keeper transient"]),
    ] {
        let scene = Scene::new()
            .config(&config(more))
            .derivation("alpha", Script::text("hello"))
            .derivation("omega", Script::naming(["alpha"]));
        scene.build("omega").expect_success();
        scene.drain().expect_exit(1);
        assert_eq!(scene.tasks(), tried, "{more}");
        let inspected = scene.hookrun(&["inspect", "keeper"]).expect_success();
        if more.is_empty() {
            inspected.expect_stdout("dependencies-first, by its metadata");
        }
    }
}

#[test]
fn what_is_dropped_stays_in_the_log() {
    let scene = Scene::new().config(&config(BROKEN)).derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    scene.drain().expect_exit(1);
    scene
        .hookrun(&["queue", "drop", "--plugin", "keeper"])
        .expect_success()
        .expect_stdout("dropped: keeper on alpha");
    scene.hookrun(&["queue", "list", "--all"]).expect_success().expect_stdout("no tasks");
    scene.hookrun(&["log"]).expect_success().expect_stdout("told to fail");
    scene.hookrun(&["status"]).expect_success().expect_silent_about("dead letters");
}

#[test]
fn what_waits_for_an_hour_is_done_now() {
    let scene = Scene::new()
        .config(&config("fail = \"transient\""))
        .derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    scene.drain().expect_exit(1);
    scene.hookrun(&["queue", "list"]).expect_success().expect_stdout("waiting ");
    let waited = scene.hookrun(&["queue", "wait", "--timeout", "1s"]);
    waited.expect_exit(4).expect_stderr("no worker runs");
    scene.set_config(&config(""));
    scene
        .hookrun(&["queue", "retry", "--plugin", "keeper"])
        .expect_success()
        .expect_stdout("no worker runs: `hookrun drain`");
    scene.drain().expect_success();
    assert_eq!(scene.tasks().last().map(String::as_str), Some("alpha keeper done"));
}

#[test]
fn retry_and_drop_without_a_selection_are_usage_errors() {
    let scene = Scene::new();
    scene.hookrun(&["queue", "retry"]).expect_exit(2).expect_stderr("no tasks selected");
    scene
        .hookrun(&["queue", "show", "nothing"])
        .expect_exit(4)
        .expect_stderr("there is no state directory");
    std::fs::create_dir(scene.state_dir()).unwrap();
    scene
        .hookrun(&["queue", "show", "nothing"])
        .expect_exit(4)
        .expect_stderr("there is no journal yet");
    scene.hookrun(&["queue", "list"]).expect_success().expect_stdout("no tasks");
    scene.hookrun(&["queue", "wait"]).expect_success();
}

#[test]
fn the_log_is_sifted_and_followed() {
    use std::io::{BufRead as _, BufReader};
    let scene = Scene::new()
        .config(&config(BROKEN))
        .derivation("alpha", Script::text("hello"))
        .derivation("beta", Script::text("hello again"));
    scene.build("alpha").expect_success();
    scene.drain().expect_exit(1);
    scene
        .hookrun(&["log", "--outcome", "dead", "--since", "3d"])
        .expect_success()
        .expect_stdout("told to fail");
    for nothing in
        [["--derivation", "beta"], ["--outcome", "done"], ["--since", "2099-01-01T00:00:00Z"]]
    {
        let mut arguments = vec!["log"];
        arguments.extend(nothing);
        assert_eq!(scene.hookrun(&arguments).expect_success().stdout, "", "{nothing:?}");
    }
    scene
        .hookrun(&["log", "--since", "yesterday"])
        .expect_exit(2)
        .expect_stderr("write `2h` or `3d`");
    let mut follower = scene
        .hookrun_command(&["log", "--follow", "--format", "json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut name = || {
        let line: serde_json::Value =
            serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        format!("{} {}", line["name"].as_str().unwrap(), line["class"].as_str().unwrap())
    };
    assert_eq!(name(), "alpha permanent");
    scene.build("beta").expect_success();
    scene.drain().expect_exit(1);
    assert_eq!(name(), "beta permanent");
    // Another journal takes the place of this one.
    std::fs::remove_dir_all(scene.state_dir().join("journal")).unwrap();
    scene.set_config(&config(""));
    let drv = scene.drv_path("beta");
    let mut hook = scene.private_nix().command(scene.path("bin/hookrun-post-build"));
    assert!(hook.env("DRV_PATH", drv).status().unwrap().success());
    scene.drain().expect_success();
    assert_eq!(name(), "beta done");
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn status_tells_how_plugins_fare_and_goes_on_telling() {
    use std::io::{BufRead as _, BufReader};
    let scene = Scene::new()
        .config(&config("fail = \"transient\""))
        .derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    scene.drain().expect_exit(1);
    let shown = scene.hookrun(&["status"]).expect_success();
    for part in ["0% of 1", "next attempt", "oldest task", "roots          1 ("] {
        assert!(shown.stdout.contains(part), "{part}: {}", shown.account());
    }
    let mut watcher = scene
        .hookrun_command(&["status", "--watch", "--interval", "100ms"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(watcher.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert_eq!(
        lines.filter(|line| line.starts_with("--- ")).take(2).count(),
        2,
        "blocks, since this is no terminal"
    );
    watcher.kill().unwrap();
    watcher.wait().unwrap();
}

#[test]
fn status_says_what_is_wrong_with_the_spool() {
    use std::os::unix::fs::PermissionsExt as _;
    let scene = Scene::new().config(&config("")).derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    let shown = scene.hookrun(&["status"]).expect_success();
    shown.expect_stdout("no worker runs").expect_silent_about("the spool");
    let spool = scene.state_dir().join("spool");
    std::fs::set_permissions(&spool, std::fs::Permissions::from_mode(0o777)).unwrap();
    scene.hookrun(&["status"]).expect_success().expect_stdout("has mode 0777");
    std::fs::write(spool.join("forged"), "not an event").unwrap();
    scene.drain();
    let shown =
        scene.hookrun(&["status"]).expect_success().expect_stdout("1 spool file was set aside");
    assert!(shown.stdout.contains("forged: it does not begin with"), "{}", shown.account());
}

/// As [`config`], for a plugin that reads the outputs.
fn reading_the_store(fail: &str) -> String {
    config(fail).replace("state = true", "state = true, nix-store = \"outputs\"")
}

/// The words of the states in `queue list --all`, in its order.
fn states(scene: &Scene) -> Vec<String> {
    let listed = scene.hookrun(&["queue", "list", "--all", "--format", "json"]).expect_success();
    let tasks: Vec<serde_json::Value> = serde_json::from_str(&listed.stdout).unwrap();
    tasks.iter().map(|task| task["state"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_dead_letter_keeps_its_outputs_and_a_task_without_outputs_is_lost() {
    let scene =
        Scene::new().config(&reading_the_store(BROKEN)).derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    let output = scene.out_path("alpha");
    scene.drain().expect_exit(1).expect_stdout("in the queue: 1 dead");
    scene.drain().expect_exit(1);
    scene.hookrun(&["queue", "wait"]).expect_exit(1).expect_stdout("1 dead");
    scene.hookrun(&["status"]).expect_success().expect_stdout("of these 1 of dead letters");
    scene.nix("nix-store", &["--gc"]).expect_success();
    assert!(output.exists(), "a dead letter may be tried again");
    // As the bounds on roots do it.
    std::fs::remove_dir_all(scene.private_nix().state_dir().join("gcroots/hookrun")).unwrap();
    scene.nix("nix-store", &["--gc"]).expect_success();
    assert!(!output.exists());
    scene.set_config(&reading_the_store(""));
    let retried = scene.hookrun(&["queue", "retry", "--dead", "--format", "json"]);
    let retried: serde_json::Value =
        serde_json::from_str(&retried.expect_success().stdout).unwrap();
    assert_eq!(retried["tasks"][0]["plugin"], "keeper");
    scene.drain().expect_exit(1).expect_stdout("1 lost");
    scene.expect_tasks(&["alpha keeper lost"]);
    assert_eq!(states(&scene), ["lost"]);
    let waited = scene.hookrun(&["queue", "wait", "--format", "json"]).expect_exit(1);
    let waited: serde_json::Value = serde_json::from_str(&waited.stdout).unwrap();
    assert_eq!((&waited["finished"], &waited["lost"]), (&true.into(), &1.into()));
    scene.hookrun(&["queue", "list", "--dead"]).expect_success().expect_stdout("is not valid");
    // Its own words are the fix.
    scene.build("alpha").expect_success();
    scene.hookrun(&["queue", "retry", "--dead"]).expect_success();
    scene.drain().expect_success();
    scene.hookrun(&["queue", "wait"]).expect_success();
}

#[test]
fn an_open_breaker_is_one_state_everywhere_and_retry_closes_it() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let patient = config("fail = \"transient\"").replace("attempts = 3", "attempts = 20");
    let scene = names.iter().fold(Scene::new().config(&patient), |scene, name| {
        scene.derivation(name, Script::text(name))
    });
    for name in names {
        scene.build(name).expect_success();
    }
    scene.drain().expect_exit(1).expect_stdout("in the queue: 6 waiting (next attempt in ");
    assert_eq!(states(&scene), ["waiting"; 6]);
    let status = || -> serde_json::Value {
        let shown = scene.hookrun(&["status", "--format", "json"]).expect_success();
        serde_json::from_str(&shown.stdout).unwrap()
    };
    let before = status();
    assert_eq!(before["breakers"].as_array().unwrap().len(), 1);
    let plugin = &before["plugins"][0];
    assert_eq!((&plugin["due"], &plugin["waiting"]), (&0.into(), &6.into()));
    scene
        .hookrun(&["queue", "retry", "--plugin", "keeper"])
        .expect_success()
        .expect_stdout("breaker closed: keeper");
    assert_eq!(status()["breakers"].as_array().unwrap().len(), 0);
    assert_eq!(states(&scene), ["due"; 6]);
    scene.hookrun(&["queue", "retry", "--plugin", "keeper"]).expect_exit(1);
}

#[test]
fn drain_returns_beside_a_worker_that_waits_and_obeys_signals_beside_one_that_works() {
    let faulty = |extra: &str| {
        let good = guests::guest("good").unwrap().display().to_string();
        config("fault = \"loop\"")
            .replace(&good, &guests::guest("faulty").unwrap().display().to_string())
            .replace("start = \"none\"", "start = \"service\"")
            .replace("retry =", &format!("limits = {{ wall-time = \"10m\" }}\n{extra}retry ="))
    };
    let waiting = config("fail = \"transient\"").replace("\"none\"", "\"service\"");
    for (config, busy) in [(waiting, false), (faulty(""), true)] {
        let scene = Scene::new().config(&config).derivation("alpha", Script::text("hello"));
        scene.build("alpha").expect_success();
        let mut worker = scene.hookrun_command(&["daemon"]).spawn().unwrap();
        let wanted = if busy { "running" } else { "waiting" };
        while states(&scene) != [wanted] {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let mut drain = scene.hookrun_command(&["drain"]).spawn().unwrap();
        if busy {
            std::thread::sleep(std::time::Duration::from_millis(500));
            assert_eq!(drain.try_wait().unwrap(), None, "there is work");
            let pid = rustix::process::Pid::from_child(&drain);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        }
        assert_eq!(drain.wait().unwrap().code(), Some(1), "busy: {busy}");
        worker.kill().unwrap();
        worker.wait().unwrap();
    }
}

#[test]
fn events_that_no_worker_has_taken_are_work_without_a_worker() {
    let scene = Scene::new().config(&config("")).derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    scene.hookrun(&["queue", "wait"]).expect_exit(4).expect_stderr("no worker runs");
}

#[test]
fn stop_ends_the_worker_and_the_process_that_waits() {
    let scene = Scene::new()
        .config(&config("").replace("start = \"none\"", "start = \"spawn\"\nidle-exit = \"1h\""))
        .derivation("alpha", Script::text("hello"));
    scene.hookrun(&["stop"]).expect_success().expect_stdout("no worker runs");
    scene.build("alpha").expect_success();
    scene.hookrun(&["queue", "wait"]).expect_success();
    scene.hookrun(&["stop"]).expect_success().expect_stdout("stopped");
    scene.hookrun(&["status"]).expect_stdout("does not run");
    scene.hookrun(&["stop"]).expect_success().expect_stdout("no worker runs");
}

#[test]
fn a_second_plugin_gets_what_it_lacks() {
    let scene = Scene::new()
        .config(&config(""))
        .derivation("alpha", Script::text("hello"))
        .derivation("beta", Script::text("hello again"));
    scene.build("alpha").expect_success();
    scene.drain().expect_success();
    let second = config("").split_once("[plugins.keeper]").unwrap().1.to_owned();
    scene.set_config(&format!("{}[plugins.second]{second}", config("")));
    scene
        .hookrun(&["sync", "--all", "--built", "--name", "alpha"])
        .expect_success()
        .expect_stdout("1 event handed over, 1 for second only");
    scene.drain().expect_success();
    scene.expect_tasks(&["alpha keeper done", "alpha second done"]);
    scene
        .hookrun(&["sync", "--all", "--built", "--name", "alpha"])
        .expect_success()
        .expect_stdout("0 events handed over, 1 path in the journal already");
    // What no hook told of, for one of them.
    scene.build("beta").expect_success();
    for file in scene.spooled() {
        std::fs::remove_file(file).unwrap();
    }
    let sync = ["sync", "--all", "--built", "--name", "beta", "--plugin"];
    scene.hookrun(&[&sync[..], &["second"]].concat()).expect_success();
    scene.drain().expect_success();
    assert!(!scene.tasks().contains(&"beta keeper done".to_owned()), "{:?}", scene.tasks());
    scene
        .hookrun(&[&sync[..], &["secnod"]].concat())
        .expect_exit(2)
        .expect_stderr("did you mean `second`?");
}

#[test]
fn events_that_nobody_wanted_are_matched_again_when_the_configuration_changes() {
    let for_diffs = config("").replace("\"post-build\"", "\"diff\"");
    let scene = Scene::new().config(&for_diffs).derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    scene.drain().expect_success();
    assert_eq!(scene.tasks(), Vec::<String>::new());
    scene.set_config(&config(""));
    scene.drain().expect_success();
    scene.expect_tasks(&["alpha keeper done"]);
}

#[test]
fn a_configuration_that_is_named_has_to_be_there() {
    let scene = Scene::new().config(&config("")).derivation("alpha", Script::text("hello"));
    std::fs::rename(scene.config_path(), scene.path("away.toml")).unwrap();
    for command in [&["check"][..], &["status"], &["drain"], &["queue", "list"], &["doctor"]] {
        scene.hookrun(command).expect_exit(3).expect_stderr("HOOKRUN_CONFIG names it");
    }
    scene.build("alpha").expect_success();
    let there = scene.path("away.toml").display().to_string();
    scene
        .hookrun(&["--config", "/no/such.toml", "check"])
        .expect_exit(3)
        .expect_stderr("--config names it");
    scene.hookrun(&["--config", &there, "drain"]).expect_success();
    std::fs::rename(scene.path("away.toml"), scene.config_path()).unwrap();
    scene.expect_tasks(&["alpha keeper done"]);
}

#[test]
fn a_damaged_journal_is_replaced_by_drain_and_reported_by_other_commands() {
    let scene = Scene::new().config(&config("")).derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    scene.drain().expect_success();
    std::fs::write(scene.state_dir().join("journal/journal.sqlite"), "x".repeat(9000)).unwrap();
    for command in [&["queue", "list"][..], &["queue", "retry", "--dead"], &["log"]] {
        scene.hookrun(command).expect_exit(4).expect_stderr("run `hookrun drain`");
    }
    scene.build_with("alpha", &["--check"]).expect_success();
    scene.drain().expect_success().expect_stderr("the journal was damaged");
    scene.expect_tasks(&["alpha keeper done"]);
}
