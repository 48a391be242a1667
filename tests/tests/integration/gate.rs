//! Gates, which are plugins that may fail a build: one that accepts the build, one that refuses it,
//! and one that is not compiled yet.

use std::collections::BTreeSet;
use std::ffi::OsString;

use hookrun_tests::hostile::made::crafted;
use hookrun_tests::lab::{ConfigFile, PluginTable, Scene, Script, toml, wait_for};

fn gate() -> PluginTable {
    PluginTable::keeper().set("gate", true)
}

fn config(gate: PluginTable) -> ConfigFile {
    ConfigFile::new().plugin("keeper", gate)
}

fn scene(gate: PluginTable) -> Scene {
    Scene::new().config(&config(gate)).derivation("alpha", Script::text("hello"))
}

#[test]
fn a_gate_that_accepts_a_build_runs_once_in_the_hook() {
    let scene = scene(gate());
    scene.hookrun(&["compile"]).expect_success().expect_stdout("plugin keeper: compiled");
    scene.hookrun(&["compile"]).expect_success().expect_stdout("plugin keeper: found");
    scene.build("alpha").expect_success();
    assert!(scene.state_dir().join("plugin-state/keeper.sqlite").exists(), "it ran in the hook");
    scene.drain().expect_success();
    scene.expect_tasks(&[]);
}

#[test]
fn seventy_test_runs_do_not_evict_the_artifacts_of_configured_plugins() {
    const RUNS: usize = 70;
    let scene = scene(gate());
    scene.set_config(&config(gate()).plugin("policy", PluginTable::bundled("speed-factor")));
    scene.hookrun(&["compile"]).expect_success();
    let entries = || -> BTreeSet<OsString> {
        let listed = std::fs::read_dir(scene.state_dir().join("artifacts")).unwrap();
        listed.map(|entry| entry.unwrap().file_name()).collect()
    };
    let before = entries();
    for number in 0..RUNS {
        let path = scene.path("under-test.wasm");
        std::fs::write(&path, crafted().says(&format!("attempt {number}")).build()).unwrap();
        scene.hookrun(&["test", path.to_str().unwrap()]).expect_success();
    }
    assert_eq!(entries(), before);
    scene.hookrun(&["compile"]).expect_success().expect_stdout("plugin policy: found");
    scene.build("alpha").expect_success();
    let of_tests = std::fs::read_dir(scene.path("cache/hookrun/test-artifacts")).unwrap().count();
    assert!((2..RUNS).contains(&of_tests), "{of_tests} artifacts of tested plugins are kept");
}

#[test]
fn a_gate_that_refuses_fails_the_build_with_its_message() {
    let scene = scene(gate().config(toml! { fail = "permanent" }));
    scene.hookrun(&["compile"]).expect_success();
    let ran = scene.build("alpha").expect_failure();
    let account = ran.account();
    assert!(
        account.contains("the gate `keeper` stops the build at alpha: told to fail"),
        "{account}"
    );
    assert!(account.contains("remove `gate = true` under [plugins.keeper]"), "{account}");
    assert_eq!(scene.spooled().len(), 1, "the event was handed over before");
}

#[test]
fn a_gate_that_is_not_compiled_fails_the_build_and_is_compiled_for_the_next_one() {
    let scene = scene(gate());
    let ran = scene.build("alpha").expect_failure();
    assert!(
        ran.account().contains("is not compiled yet, and a hook does not wait for a compiler"),
        "{}",
        ran.account()
    );
    let artifacts = scene.state_dir().join("artifacts");
    wait_for("the gate is compiled", || {
        std::fs::read_dir(&artifacts).is_ok_and(|mut entries| {
            entries.any(|entry| !entry.unwrap().file_name().as_encoded_bytes().starts_with(b"."))
        })
    });
    scene.build("alpha").expect_success();
}
