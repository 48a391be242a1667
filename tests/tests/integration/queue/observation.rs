//! What `hookrun log` and `hookrun status` show of the queue, also with a damaged journal.

use hookrun_tests::lab::{Scene, Script};

use super::{config, failing, keeper};

#[test]
fn the_log_is_filtered_and_followed() {
    use std::io::{BufRead as _, BufReader};
    let scene = Scene::new()
        .config(&config(failing("permanent")))
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
    // Another journal replaces this one.
    std::fs::remove_dir_all(scene.state_dir().join("journal")).unwrap();
    scene.set_config(&config(keeper()));
    let drv = scene.drv_path("beta");
    let mut hook = scene.private_nix().command(scene.path("bin/hookrun-post-build"));
    assert!(hook.env("DRV_PATH", drv).status().unwrap().success());
    scene.drain().expect_success();
    assert_eq!(name(), "beta done");
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn status_shows_the_success_of_plugins_and_watches_it() {
    use std::io::{BufRead as _, BufReader};
    let scene = Scene::new()
        .config(&config(failing("transient")))
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
        "the output is not a terminal, so it is a series of blocks"
    );
    watcher.kill().unwrap();
    watcher.wait().unwrap();
}

#[test]
fn status_reports_problems_of_the_spool() {
    use std::os::unix::fs::PermissionsExt as _;
    let scene = Scene::new().config(&config(keeper())).derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    let shown = scene.hookrun(&["status"]).expect_success();
    shown.expect_stdout("no worker runs").expect_silent_about("the spool");
    let spool = scene.state_dir().join("spool");
    std::fs::set_permissions(&spool, std::fs::Permissions::from_mode(0o777)).unwrap();
    scene.hookrun(&["status"]).expect_success().expect_stdout("has mode 0777");
    std::fs::write(spool.join("forged"), "not an event").unwrap();
    scene.drain();
    let shown =
        scene.hookrun(&["status"]).expect_success().expect_stdout("1 spool file was rejected");
    assert!(shown.stdout.contains("forged: it does not begin with"), "{}", shown.account());
}

#[test]
fn a_missing_configuration_that_is_named_is_an_error() {
    let scene = Scene::new().config(&config(keeper())).derivation("alpha", Script::text("hello"));
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
    let scene = Scene::new().config(&config(keeper())).derivation("alpha", Script::text("hello"));
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
