//! `hookrun queue`: what was given up gets another chance or goes, and waiting for the end tells
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
    scene.hookrun(&["queue", "list"]).expect_success().expect_stdout("waits ");
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
fn somebody_has_to_say_which() {
    let scene = Scene::new();
    scene.hookrun(&["queue", "retry"]).expect_exit(2).expect_stderr("which tasks?");
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
