//! Plugins that may stop a build: a gate that is content, one that is not, and one that nobody has
//! compiled.

use std::collections::BTreeSet;
use std::ffi::OsString;

use hookrun_tests::guests;
use hookrun_tests::hostile::made::crafted;
use hookrun_tests::lab::{Scene, Script};

fn scene(config: &str) -> Scene {
    let guest = guests::guest("good").unwrap();
    Scene::new()
        .config(&format!(
            "[worker]\nstart = \"none\"\n[plugins.keeper]\nsource = \"{}\"\nhooks = [\"post-build\"]\ngate = true\n\
             grant = {{ state = true }}\nconfig = {{ {config} }}\n",
            guest.display()
        ))
        .derivation("alpha", Script::text("hello"))
}

#[test]
fn a_content_gate_lets_the_build_pass_and_runs_once() {
    let scene = scene("");
    scene.hookrun(&["compile"]).expect_success().expect_stdout("plugin keeper: compiled");
    scene.hookrun(&["compile"]).expect_success().expect_stdout("plugin keeper: found");
    scene.build("alpha").expect_success();
    assert!(scene.state_dir().join("plugin-state/keeper.sqlite").exists(), "it ran, in the hook");
    scene.drain().expect_success();
    scene.expect_tasks(&[]);
}

#[test]
fn seventy_test_runs_leave_the_plugins_of_the_configuration_alone() {
    const RUNS: usize = 70;
    let scene = scene("");
    let mut config = std::fs::read_to_string(scene.config_path()).unwrap();
    config.push_str("[plugins.policy]\nsource = \"bundled:speed-factor\"\n");
    scene.set_config(&config);
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
    assert!((2..RUNS).contains(&of_tests), "{of_tests} entries of plugins under test are kept");
}

#[test]
fn a_gate_that_refuses_fails_the_build_with_its_own_words() {
    let scene = scene("fail = \"permanent\"");
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
fn a_gate_that_is_not_compiled_stays_shut_and_is_compiled_for_the_next_build() {
    let scene = scene("");
    let ran = scene.build("alpha").expect_failure();
    assert!(
        ran.account().contains("is not compiled yet, and a hook does not wait for a compiler"),
        "{}",
        ran.account()
    );
    let artifacts = scene.state_dir().join("artifacts");
    for _ in 0..600 {
        if std::fs::read_dir(&artifacts).is_ok_and(|mut entries| {
            entries.any(|entry| !entry.unwrap().file_name().as_encoded_bytes().starts_with(b"."))
        }) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    scene.build("alpha").expect_success();
}
