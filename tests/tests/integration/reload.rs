//! Changes on disk while `hookrun daemon` runs: the next run uses them, or `hookrun status` reports
//! why they are not used.

use std::path::Path;
use std::time::Duration;

use hookrun_tests::guests::guest;
use hookrun_tests::lab::{ConfigFile, PluginTable, Scene, Script, toml, wait_until};
use toml::Table;

/// Returns the message of the plugin's only attempt for the derivation.
fn message(scene: &Scene, derivation: &str) -> String {
    wait_until(derivation, || {
        scene
            .attempts()
            .into_iter()
            .find(|attempt| attempt.name == derivation)
            .map(|attempt| attempt.message)
    })
}

fn problems(scene: &Scene) -> Vec<String> {
    let status: serde_json::Value = serde_json::from_str(
        &scene.hookrun(&["status", "--format", "json"]).expect_success().stdout,
    )
    .unwrap();
    let problems = status.get("problems").and_then(serde_json::Value::as_array).unwrap().iter();
    problems
        .map(|problem| problem.as_str().unwrap().to_owned())
        .filter(|problem| problem.starts_with("worker: "))
        .collect()
}

fn refreshed(scene: &Scene) -> Option<u64> {
    let status: serde_json::Value = serde_json::from_str(
        &scene.hookrun(&["status", "--format", "json"]).expect_success().stdout,
    )
    .unwrap();
    status.get("refreshed-ms").and_then(serde_json::Value::as_u64)
}

/// Makes a change, and waits until the worker uses it.
fn taken_up(scene: &Scene, change: impl FnOnce()) {
    let before = refreshed(scene);
    // The times in the status are in milliseconds.
    std::thread::sleep(Duration::from_millis(2));
    change();
    wait_until("the worker uses the change", || (refreshed(scene) > before).then_some(()));
}

/// A service with the plugin `keeper` in this file, with this configuration.
fn config(plugin: &Path, keys: Table) -> ConfigFile {
    let keeper = PluginTable::file(plugin).hooks(["post-build"]).config(keys).grant("state", true);
    ConfigFile::new().worker("start", "service").plugin("keeper", keeper)
}

/// A service with the plugin `good` and its greeting.
fn greeting(text: &str) -> ConfigFile {
    config(&guest("good").unwrap(), toml! { greeting = text })
}

#[test]
fn a_changed_configuration_is_used_unless_it_is_broken() {
    let scene = Scene::new().config(&greeting("hello"));
    let scene = scene.derivations(&["alpha", "beta", "gamma"], Script::text);
    let _daemon = scene.start_daemon();
    scene.build("alpha").expect_success();
    assert_eq!(message(&scene, "alpha"), "hello alpha");
    taken_up(&scene, || scene.set_config(&greeting("bye")));
    scene.build("beta").expect_success();
    assert_eq!(message(&scene, "beta"), "bye beta");
    scene.set_config("[plugins.keeper\n");
    let problem = wait_until("a problem in the status", || problems(&scene).pop());
    assert!(
        problem.contains(":1: ")
            && problem.ends_with("; the worker keeps the previous configuration"),
        "{problem}"
    );
    scene.build("gamma").expect_success();
    assert_eq!(message(&scene, "gamma"), "bye gamma");
    // A missing grant is only found in the sandbox of the runner. The worker does not stop for that
    // either.
    scene.set_config(&greeting("bye").and(toml! { plugins.keeper.grant.state = false }));
    let problem = wait_until("another problem in the status", || {
        problems(&scene).into_iter().find(|problem| problem.contains("state"))
    });
    assert!(problem.ends_with("; the previous state stays in use"), "{problem}");
    taken_up(&scene, || scene.set_config(&greeting("again")));
    assert_eq!(problems(&scene), Vec::<String>::new());
}

#[test]
fn a_changed_plugin_is_used_unless_it_is_broken() {
    let good = std::fs::read(guest("good").unwrap()).unwrap();
    let scene = Scene::new();
    let plugin = scene.path("plugin.wasm");
    std::fs::write(&plugin, &good).unwrap();
    let scene = scene.config(&config(&plugin, toml! { fail = "permanent" }));
    let scene = scene.derivations(&["alpha", "beta", "gamma"], Script::text);
    let _daemon = scene.start_daemon();
    scene.build("alpha").expect_success();
    assert_eq!(message(&scene, "alpha"), "told to fail");
    // An installation puts a new file in the place of the old one.
    let install = |bytes: &[u8]| {
        std::fs::write(scene.path("plugin.new"), bytes).unwrap();
        std::fs::rename(scene.path("plugin.new"), &plugin).unwrap();
    };
    let other = replaced(&good, b"told to fail", b"sold to fail");
    taken_up(&scene, || install(&other));
    scene.build("beta").expect_success();
    assert_eq!(message(&scene, "beta"), "sold to fail");
    install(b"\0asm but not for long");
    let problem = wait_until("a problem in the status", || problems(&scene).pop());
    assert!(
        problem.contains("plugin.wasm") && problem.ends_with("; the previous state stays in use"),
        "{problem}"
    );
    scene.build("gamma").expect_success();
    assert_eq!(message(&scene, "gamma"), "sold to fail", "the last plugin that was not broken");
    taken_up(&scene, || install(&good));
    assert_eq!(problems(&scene), Vec::<String>::new());
}

#[test]
fn a_refused_task_runs_when_its_secret_exists() {
    let scene =
        Scene::new().signing_key("cache.example.org-1").derivation("alpha", Script::text("hello"));
    let key = scene.path("key-to-come");
    let scene = scene.config(
        &ConfigFile::new()
            .worker("start", "service")
            .plugin("cache", PluginTable::uploader("cache.example.org-1"))
            .signing_key("cache.example.org-1", &key)
            .object_store("cache", Table::new()),
    );
    let _daemon = scene.start_daemon();
    scene.build("alpha").expect_success();
    let refusal = message(&scene, "alpha");
    assert!(refusal.contains("key-to-come"), "{refusal}");
    std::fs::copy(scene.path("keys/cache.example.org-1.secret"), &key).unwrap();
    wait_until("the upload is done", || {
        scene.tasks().contains(&"alpha cache done".to_owned()).then_some(())
    });
}

#[test]
fn a_configuration_that_is_missing_for_a_while_loses_no_event() {
    let scene = Scene::new().config(&greeting("hello"));
    let scene = scene.derivations(&["alpha", "beta", "gamma"], Script::text);
    let _daemon = scene.start_daemon();
    scene.build("alpha").expect_success();
    assert_eq!(message(&scene, "alpha"), "hello alpha");
    let away = scene.path("away.toml");
    std::fs::rename(scene.config_path(), &away).unwrap();
    scene.build("beta").expect_success();
    // The commands get the new path, since `HOOKRUN_CONFIG` has to name a file that exists.
    let look = |arguments: &[&str]| {
        let mut all = vec!["--config", away.to_str().unwrap()];
        all.extend(arguments);
        scene.hookrun(&all).expect_success().stdout
    };
    wait_until("beta is done with the previous configuration", || {
        look(&["log"]).contains("hello beta").then_some(())
    });
    wait_until("a problem in the status", || {
        look(&["status"]).contains("keeps the previous configuration").then_some(())
    });
    std::fs::rename(&away, scene.config_path()).unwrap();
    scene.build("gamma").expect_success();
    assert_eq!(message(&scene, "gamma"), "hello gamma");
    wait_until("the problem is gone", || problems(&scene).is_empty().then_some(()));
}

/// Returns `bytes` with each `from` replaced by `to`, which has the same length.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes.to_vec();
    let places: Vec<usize> = memchr::memmem::find_iter(&bytes, from).collect();
    assert!(!places.is_empty());
    for place in places {
        bytes.get_mut(place..place + to.len()).unwrap().copy_from_slice(to);
    }
    bytes
}
