//! Builder selection with this machine as a candidate, with real Nix: builds that become ready
//! together, times of local builds, and inputs that a machine has already.

use hookrun_builders::history::{BuildOutcome, RowSelection};
use hookrun_tests::lab::{ConfigFile, Need, PluginTable, Scene, Script, require, toml};

/// A scene with one builder of four slots and this speed factor of the local machine.
fn scene(speed_factor: f32) -> Option<Scene> {
    if !require(Need::Root) {
        return None;
    }
    let policy = PluginTable::speed_factor().config(toml! { local-speed-factor = speed_factor });
    let scene = Scene::new()
        .nix_conf("post-build-hook", "")
        .config(&ConfigFile::new().plugin("policy", policy));
    let scene = scene.builder("only", 4, 1.0);
    scene.hookrun(&["compile"]).expect_success();
    Some(scene)
}

/// A build of a package that takes this long.
fn package(seconds: f32, version: u32) -> Script {
    Script::new(format!("/bin/sleep {seconds}; echo {version} > $out"))
}

#[test]
fn only_as_many_builds_stay_local_as_there_are_local_slots() {
    let Some(scene) = scene(2.0) else { return };
    let names: Vec<String> = (0..4).map(|number| format!("part-{number}")).collect();
    let scene = scene.derivations(&names, |_| package(2.0, 1));
    let scene = scene.derivation("all", Script::naming(names.iter().map(String::as_str)));
    scene.build_with("all", &["--max-jobs", "1"]).expect_success();
    let builds = scene.recorded_builds();
    let remote: Vec<&str> = builds
        .iter()
        .filter(|build| build.name.starts_with("part"))
        .map(|build| build.name.as_str())
        .collect();
    assert_eq!(remote.len(), 3, "one build stays local: {builds:#?}");
    assert!(builds.iter().all(|build| build.outcome == Some(BuildOutcome::Built)));
}

#[test]
fn the_policy_knows_the_times_of_local_builds() {
    let Some(scene) = scene(9.0) else { return };
    let scene = scene.derivation("pkg-1", package(1.5, 1)).derivation("pkg-2", package(1.6, 2));
    scene.build_with("pkg-1", &["--max-jobs", "2"]).expect_success();
    // The next session records the end of the first build.
    scene.build_with("pkg-2", &["--max-jobs", "2"]).expect_success();
    let system =
        scene.builder_record().decisions(RowSelection::Last(1)).unwrap().remove(0).candidate.system;
    let past =
        scene.builder_record().past_local("pkg", &system).unwrap().expect("the build was local");
    assert_eq!(past.count, 1);
    assert!(past.median_seconds >= 1.4, "{past:?}");
    let scene = scene.derivation("pkg-3", package(0.1, 3));
    scene.build_with("pkg-3", &["--max-jobs", "2"]).expect_success();
    let reason = scene.builder_record().decisions(RowSelection::Last(1)).unwrap().remove(0).reason;
    assert!(reason.starts_with("this machine should finish it in "), "{reason}");
    assert!(
        !reason.starts_with("this machine should finish it in 6.7 s"),
        "not the guess of 60 s at factor 9: {reason}"
    );
}

#[test]
fn the_policy_knows_which_inputs_a_machine_has() {
    let Some(scene) = scene(1.0) else { return };
    let scene = scene
        .derivation("input", Script::large(4 << 20))
        .derivation("first", Script::naming(["input"]))
        .derivation(
            "second",
            Script::new("read -r line < $input; echo second > $out").uses("input"),
        );
    scene.build_with("input", &["--builders", "", "--max-jobs", "1"]).expect_success();
    scene.build_with("first", &["--max-jobs", "0"]).expect_success();
    scene.build_with("second", &["--max-jobs", "0"]).expect_success();
    let decisions = scene.builder_record().decisions(RowSelection::Last(2)).unwrap();
    let [second, first] = decisions.as_slice() else { panic!("{decisions:#?}") };
    assert!(first.candidate.input_bytes.unwrap() >= 4 << 20, "{first:?}");
    assert_eq!(first.machines[0].missing_bytes, None, "nothing is known of the machine");
    assert!(second.candidate.input_bytes.unwrap() >= 4 << 20, "{second:?}");
    assert_eq!(second.machines[0].missing_bytes, Some(0), "all of it is there: {second:?}");
    scene.hookrun(&["builders", "explain", "second"]).expect_success().expect_stdout("to send");
}
