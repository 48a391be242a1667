//! Plugins that misbehave: the build succeeds, the other plugins run, and `hookrun log` says which
//! limit and which key.

use hookrun_tests::guests;
use hookrun_tests::lab::{Attempt, Scene, Script};

/// The file of a guest of `tests/guests`.
fn component(name: &str) -> String {
    guests::guest(name).unwrap().display().to_string()
}

/// A configuration of a well-behaved plugin and of the same faulty one in several roles, `(name,
/// fault, limits)`.
fn config(faults: &[(&str, &str, &str)]) -> String {
    let mut text = format!(
        "[worker]\nstart = \"none\"\n[plugins.good]\nsource = \"{}\"\nhooks = [\"post-build\"]\ngrant = {{ state = true }}\n",
        component("good")
    );
    for (name, fault, limits) in faults {
        let table = format!(
            "[plugins.{name}]\nsource = \"{}\"\nhooks = [\"post-build\"]\nretry = {{ attempts = 1 }}\n\
             config = {{ fault = \"{fault}\" }}\ngrant = {{ state = true }}\nlimits = {{ {limits} }}\n",
            component("faulty")
        );
        text.push_str(&table);
    }
    text
}

/// The only attempt of a plugin.
#[track_caller]
fn attempt_of(scene: &Scene, plugin: &str) -> Attempt {
    let mut attempts = scene.attempts();
    attempts.retain(|attempt| attempt.plugin == plugin);
    assert_eq!(attempts.len(), 1, "{attempts:#?}");
    attempts.remove(0)
}

#[test]
fn a_loop_a_trap_and_a_glutton_harm_nobody() {
    let scene = Scene::new()
        .config(&config(&[
            ("loops", "loop", "wall-time = \"1s\""),
            ("traps", "trap", ""),
            ("eats", "memory", "memory = \"32MiB\""),
        ]))
        .derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    // Something has failed, and the exit code says so.
    scene.drain().expect_exit(1);
    scene.expect_tasks(&[
        "alpha eats limit",
        "alpha good done",
        "alpha loops limit",
        "alpha traps trapped",
    ]);
    let messages = ["loops", "eats", "traps"].map(|plugin| attempt_of(&scene, plugin).message);
    let [loops, eats, traps] = &messages;
    assert!(
        loops.contains("its limit `wall-time`") && loops.contains("write `wall-time = \"2s\"`"),
        "{loops}"
    );
    assert!(loops.contains("under [plugins.loops.limits]"), "{loops}");
    assert!(
        eats.contains("its limit `memory`") && eats.contains("write `memory = \"64MiB\"`"),
        "{eats}"
    );
    assert!(traps.contains("trapped"), "{traps}");
    let said = attempt_of(&scene, "traps").log.join("\n");
    assert!(said.contains("told to trap"), "the panic's own words are in its log: {said}");

    // What people see.
    let log = scene.hookrun(&["log"]).expect_success().stdout;
    for part in ["wall-time", "[plugins.loops.limits]", "memory", "[plugins.eats.limits]", "traps"]
    {
        assert!(log.contains(part), "`{part}` is not in:\n{log}");
    }
}

#[test]
fn every_limit_names_itself_and_its_key() {
    // The fault, and the limit that it meets.
    let faults = [
        ("stack", "stack"),
        ("host-calls", "host-calls"),
        ("log", "log-bytes"),
        ("call-bytes", "call-bytes"),
        ("output", "output-bytes"),
        ("state", "state-bytes"),
    ];
    let plugins: Vec<(&str, &str, &str)> =
        faults.iter().map(|(fault, _)| (*fault, *fault, "memory = \"512MiB\"")).collect();
    let scene = Scene::new().config(&config(&plugins)).derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    let _some_fail = scene.drain();
    for (fault, limit) in faults {
        let Attempt { class, message, log, .. } = attempt_of(&scene, fault);
        let said = format!("{message}\n{}", log.join("\n"));
        assert!(said.contains(&format!("`{limit}`")), "{fault} ({class}): {said}");
        assert!(said.contains(&format!("[plugins.{fault}.limits]")), "{fault} ({class}): {said}");
    }
}

#[test]
fn a_plugin_that_only_fails_is_tried_again_and_then_a_dead_letter() {
    let scene = Scene::new()
        .config(&format!(
            "[worker]\nstart = \"none\"\n[plugins.fails]\nsource = \"{}\"\nhooks = [\"post-build\"]\n\
             retry = {{ attempts = 3, min-delay = \"10ms\", max-delay = \"20ms\" }}\nconfig = {{ fail = \"transient\" }}\n\
             grant = {{ state = true }}\n",
            component("good")
        ))
        .derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    // Each drain makes the attempts whose time has come; the others wait.
    let mut attempts = Vec::new();
    while attempts.len() < 3 {
        scene.drain().expect_exit(1);
        attempts = scene.attempts();
    }
    scene.drain().expect_exit(1);
    assert_eq!(
        attempts.iter().map(|attempt| attempt.number).collect::<Vec<_>>(),
        [1, 2, 3],
        "{attempts:#?}"
    );
    assert!(attempts.iter().all(|attempt| attempt.class == "transient"), "{attempts:#?}");
}
