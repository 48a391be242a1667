//! `hookrun queue`: what was given up gets another chance or goes, and waiting for the end tells how it ended.

#![allow(clippy::unwrap_used, reason = "what goes wrong has to fail the test")]

use hookrun_tests::guests;
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
    let id = listed.stdout.lines().nth(1).and_then(|line| line.split_whitespace().next()).unwrap().to_owned();
    assert_eq!(id.len(), 13, "{}", listed.stdout);
    scene.hookrun(&["queue", "show", &id]).expect_success().expect_stdout("attempt 1").expect_stdout("post-build of ");
    scene.set_config(&config(""));
    scene.hookrun(&["queue", "retry", "--dead"]).expect_success().expect_stdout("again: keeper on alpha");
    let rooted = std::fs::read_dir(scene.private_nix().state_dir().join("gcroots/hookrun")).unwrap().count();
    assert_eq!(rooted, 1, "what is done again is kept from the garbage collector again");
    scene.drain().expect_success();
    scene.hookrun(&["queue", "list"]).expect_success().expect_stdout("no tasks");
    scene.hookrun(&["queue", "list", "--all"]).expect_success().expect_stdout("done");
    scene.hookrun(&["queue", "wait"]).expect_success().expect_stdout("nothing is left to do");
    scene.hookrun(&["queue", "retry", "--dead"]).expect_exit(1);
}

#[test]
fn what_is_dropped_stays_in_the_log() {
    let scene = Scene::new().config(&config(BROKEN)).derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    scene.drain().expect_exit(1);
    scene.hookrun(&["queue", "drop", "--plugin", "keeper"]).expect_success().expect_stdout("dropped: keeper on alpha");
    scene.hookrun(&["queue", "list", "--all"]).expect_success().expect_stdout("no tasks");
    scene.hookrun(&["log"]).expect_success().expect_stdout("told to fail");
    scene.hookrun(&["status"]).expect_success().expect_silent_about("given up");
}

#[test]
fn what_waits_for_an_hour_is_done_now() {
    let scene = Scene::new().config(&config("fail = \"transient\"")).derivation("alpha", Script::text("hello"));
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
    scene.hookrun(&["queue", "show", "nothing"]).expect_exit(4).expect_stderr("there is no journal yet");
    scene.hookrun(&["queue", "list"]).expect_success().expect_stdout("no tasks");
    scene.hookrun(&["queue", "wait"]).expect_success();
}
