//! Plugins that fail or reach a limit: the build succeeds, the other plugins run, and `hookrun log`
//! names the limit and its key.

use hookrun_tests::lab::{Attempt, ConfigFile, PluginTable, Scene, Script, toml};

/// A plugin with this fault that is tried once.
fn faulty(fault: &str) -> PluginTable {
    PluginTable::guest("faulty")
        .hooks(["post-build"])
        .retry("attempts", 1)
        .config(toml! { fault = fault })
        .grant("state", true)
}

/// Returns the only attempt of a plugin.
#[track_caller]
fn attempt_of(scene: &Scene, plugin: &str) -> Attempt {
    let mut attempts = scene.attempts();
    attempts.retain(|attempt| attempt.plugin == plugin);
    assert_eq!(attempts.len(), 1, "{attempts:#?}");
    attempts.remove(0)
}

#[test]
fn plugins_that_loop_trap_or_take_memory_do_not_affect_others() {
    let scene = Scene::new()
        .config(
            &ConfigFile::new()
                .plugin("good", PluginTable::keeper())
                .plugin("loops", faulty("loop").limit("wall-time", "1s"))
                .plugin("traps", faulty("trap"))
                .plugin("eats", faulty("memory").limit("memory", "32MiB")),
        )
        .derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    // The exit code reports the failures.
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
    assert!(traps.contains("panicked at ") && traps.contains(": told to trap"), "{traps}");
    let said = attempt_of(&scene, "traps").log.join("\n");
    assert!(said.contains("told to trap"), "the message of the panic is in its log: {said}");

    let log = scene.hookrun(&["log"]).expect_success().stdout;
    for part in ["wall-time", "[plugins.loops.limits]", "memory", "[plugins.eats.limits]", "traps"]
    {
        assert!(log.contains(part), "`{part}` is not in:\n{log}");
    }
}

#[test]
fn a_plugin_that_reaches_a_limit_fails_with_its_name_and_its_key() {
    // The fault, and the limit that it reaches.
    let faults = [
        ("stack", "stack"),
        ("host-calls", "host-calls"),
        ("log", "log-bytes"),
        ("call-bytes", "call-bytes"),
        ("output", "output-bytes"),
        ("state", "state-bytes"),
    ];
    let file = faults.iter().fold(ConfigFile::new(), |file, (fault, _)| {
        file.plugin(fault, faulty(fault).limit("memory", "512MiB"))
    });
    let scene = Scene::new().config(&file).derivation("alpha", Script::text("hello"));
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
fn a_plugin_that_always_fails_is_retried_and_then_becomes_a_dead_letter() {
    let scene = Scene::new()
        .config(
            &ConfigFile::new().plugin(
                "fails",
                PluginTable::keeper()
                    .config(toml! { fail = "transient" })
                    .retry("attempts", 3)
                    .retry("min-delay", "10ms")
                    .retry("max-delay", "20ms"),
            ),
        )
        .derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    // Each drain makes the attempts that are due.
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
