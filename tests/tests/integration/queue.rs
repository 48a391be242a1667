//! `hookrun queue`: dead letters are retried or dropped, and `wait` reports how the tasks ended.

mod observation;

use hookrun_tests::guests::guest;
use hookrun_tests::hostile::made::custom_section;
use hookrun_tests::lab::{ConfigFile, PluginTable, Scene, Script, toml, wait_for};

fn keeper() -> PluginTable {
    PluginTable::keeper().retry_hourly()
}

/// The plugin `good`, which fails with a `transient` or a `permanent` error.
fn failing(kind: &str) -> PluginTable {
    keeper().config(toml! { fail = kind })
}

fn config(keeper: PluginTable) -> ConfigFile {
    ConfigFile::new().plugin("keeper", keeper)
}

#[test]
fn a_dead_letter_is_listed_shown_and_retried() {
    let scene = Scene::new()
        .config(&config(failing("permanent")))
        .derivation("alpha", Script::text("hello"));
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
    scene.set_config(&config(keeper()));
    scene
        .hookrun(&["queue", "retry", "--dead"])
        .expect_success()
        .expect_stdout("again: keeper on alpha");
    let rooted =
        std::fs::read_dir(scene.private_nix().state_dir().join("gcroots/hookrun")).unwrap().count();
    assert_eq!(rooted, 1, "the outputs of a retried task have a root again");
    scene.drain().expect_success();
    scene.hookrun(&["queue", "list"]).expect_success().expect_stdout("no tasks");
    scene.hookrun(&["queue", "list", "--all"]).expect_success().expect_stdout("done");
    scene.hookrun(&["queue", "wait"]).expect_success().expect_stdout("all tasks are done");
    scene.hookrun(&["queue", "retry", "--dead"]).expect_exit(1);
}

#[test]
fn the_order_of_the_configuration_overrides_that_of_the_metadata() {
    let directory = tempfile::tempdir().unwrap();
    let ordered = directory.path().join("ordered.wasm");
    let mut component = std::fs::read(guest("good").unwrap()).unwrap();
    // The metadata of the component has precedence over that of its module.
    component.extend(custom_section(
        "hookrun:metadata",
        br#"{ "format": 1, "name": "ordered", "version": "1.0.0", "hooks": ["post-build"], "wants": { "state": "required" },
              "order": "dependencies-first" }"#,
    ));
    std::fs::write(&ordered, component).unwrap();
    let plugin = failing("transient").set("source", &ordered);
    for (by_metadata, plugin, tried) in [
        (true, plugin.clone(), &["alpha keeper transient"][..]),
        (false, plugin.set("order", "any"), &["alpha keeper transient", "omega keeper transient"]),
    ] {
        let scene = Scene::new()
            .config(&config(plugin))
            .derivation("alpha", Script::text("hello"))
            .derivation("omega", Script::naming(["alpha"]));
        scene.build("omega").expect_success();
        scene.drain().expect_exit(1);
        scene.expect_tasks(tried);
        let inspected = scene.hookrun(&["inspect", "keeper"]).expect_success();
        if by_metadata {
            inspected.expect_stdout("dependencies-first, by its metadata");
        }
    }
}

#[test]
fn a_dropped_task_stays_in_the_log() {
    let scene = Scene::new()
        .config(&config(failing("permanent")))
        .derivation("alpha", Script::text("hello"));
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
fn retry_runs_a_task_that_waits_for_its_next_attempt() {
    let scene = Scene::new()
        .config(&config(failing("transient")))
        .derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    scene.drain().expect_exit(1);
    scene.hookrun(&["queue", "list"]).expect_success().expect_stdout("waiting ");
    let waited = scene.hookrun(&["queue", "wait", "--timeout", "1s"]);
    waited.expect_exit(4).expect_stderr("no worker runs");
    scene.set_config(&config(keeper()));
    scene
        .hookrun(&["queue", "retry", "--plugin", "keeper"])
        .expect_success()
        .expect_stdout("no worker runs; run `hookrun drain`");
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

/// Returns the states in `queue list --all`, in its order.
fn states(scene: &Scene) -> Vec<String> {
    let listed = scene.hookrun(&["queue", "list", "--all", "--format", "json"]).expect_success();
    let tasks: Vec<serde_json::Value> = serde_json::from_str(&listed.stdout).unwrap();
    tasks.iter().map(|task| task["state"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_dead_letter_keeps_its_outputs_and_is_lost_without_them() {
    let reads_outputs = |plugin: PluginTable| config(plugin.grant("nix-store", "outputs"));
    let scene = Scene::new()
        .config(&reads_outputs(failing("permanent")))
        .derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    let output = scene.out_path("alpha");
    scene.drain().expect_exit(1).expect_stdout("in the queue: 1 dead");
    scene.drain().expect_exit(1);
    scene.hookrun(&["queue", "wait"]).expect_exit(1).expect_stdout("1 dead");
    scene.hookrun(&["status"]).expect_success().expect_stdout("1 of them for dead letters");
    scene.nix("nix-store", &["--gc"]).expect_success();
    assert!(output.exists(), "the root of a dead letter keeps its output");
    // The limits on roots remove them like this.
    std::fs::remove_dir_all(scene.private_nix().state_dir().join("gcroots/hookrun")).unwrap();
    scene.nix("nix-store", &["--gc"]).expect_success();
    assert!(!output.exists());
    scene.set_config(&reads_outputs(keeper()));
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
    // The fix that the message names.
    scene.build("alpha").expect_success();
    scene.hookrun(&["queue", "retry", "--dead"]).expect_success();
    scene.drain().expect_success();
    scene.hookrun(&["queue", "wait"]).expect_success();
}

#[test]
fn all_commands_show_an_open_breaker_and_retry_closes_it() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let plugin = failing("transient").retry("attempts", 20);
    let scene = Scene::new().config(&config(plugin)).derivations(&names, Script::text);
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
fn drain_returns_if_the_worker_only_waits_and_ends_by_sigterm_if_it_works() {
    let looping = keeper()
        .set("source", guest("faulty").unwrap())
        .config(toml! { fault = "loop" })
        .limit("wall-time", "10m");
    for (plugin, busy) in [(failing("transient"), false), (looping, true)] {
        let scene = Scene::new()
            .config(&config(plugin).worker("start", "service"))
            .derivation("alpha", Script::text("hello"));
        scene.build("alpha").expect_success();
        let mut worker = scene.hookrun_command(&["daemon"]).spawn().unwrap();
        let wanted = if busy { "running" } else { "waiting" };
        wait_for(wanted, || states(&scene) == [wanted]);
        let mut drain = scene.hookrun_command(&["drain"]).spawn().unwrap();
        if busy {
            std::thread::sleep(std::time::Duration::from_millis(500));
            assert_eq!(drain.try_wait().unwrap(), None, "drain waits for the running task");
            let pid = rustix::process::Pid::from_child(&drain);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        }
        assert_eq!(drain.wait().unwrap().code(), Some(1), "busy: {busy}");
        worker.kill().unwrap();
        worker.wait().unwrap();
    }
}

#[test]
fn wait_reports_spooled_events_without_a_worker() {
    let scene = Scene::new().config(&config(keeper())).derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    scene.hookrun(&["queue", "wait"]).expect_exit(4).expect_stderr("no worker runs");
}

#[test]
fn stop_ends_the_worker_and_the_process_that_waits_for_build_users() {
    let scene = Scene::new()
        .config(&config(keeper()).worker("start", "spawn").worker("idle-exit", "1h"))
        .derivation("alpha", Script::text("hello"));
    scene.hookrun(&["stop"]).expect_success().expect_stdout("no worker runs");
    scene.build("alpha").expect_success();
    scene.hookrun(&["queue", "wait"]).expect_success();
    scene.hookrun(&["stop"]).expect_success().expect_stdout("stopped");
    scene.hookrun(&["status"]).expect_stdout("does not run");
    scene.hookrun(&["stop"]).expect_success().expect_stdout("no worker runs");
}

#[test]
fn sync_hands_events_to_a_plugin_that_was_added_later() {
    let scene = Scene::new()
        .config(&config(keeper()))
        .derivation("alpha", Script::text("hello"))
        .derivation("beta", Script::text("hello again"));
    scene.build("alpha").expect_success();
    scene.drain().expect_success();
    scene.set_config(&config(keeper()).plugin("second", keeper()));
    scene
        .hookrun(&["sync", "--all", "--built", "--name", "alpha"])
        .expect_success()
        .expect_stdout("1 event handed over, 1 for second only");
    scene.drain().expect_success();
    scene.expect_tasks(&["alpha keeper done", "alpha second done"]);
    scene
        .hookrun(&["sync", "--all", "--built", "--name", "alpha"])
        .expect_success()
        .expect_stdout("0 events handed over, 1 path already in the journal");
    // A build that no hook reported, for one of the plugins.
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
fn events_without_a_plugin_are_matched_again_after_a_change_of_the_configuration() {
    let for_diffs = keeper().hooks(["diff"]);
    let scene = Scene::new().config(&config(for_diffs)).derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    scene.drain().expect_success();
    assert_eq!(scene.tasks(), Vec::<String>::new());
    scene.set_config(&config(keeper()));
    scene.drain().expect_success();
    scene.expect_tasks(&["alpha keeper done"]);
}
