//! Plugins that may stop a build: a gate that is content, one that is not, and one that nobody has
//! compiled.

use hookrun_tests::guests;
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
