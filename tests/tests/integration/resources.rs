//! Resources that builds take besides slots, with real Nix: they are never taken twice, `hookrun
//! builders` shows them, and a killed command frees them.

use std::collections::BTreeMap;
use std::process::Stdio;

use hookrun_builders::history::{BuildOutcome, BuildRow};
use hookrun_tests::lab::{
    ConfigFile, Need, Ran, Scene, Script, most_at_once, require, toml, wait_for,
};
use toml::Table;

/// Two machines with many slots. Each has one GPU, which builds that require `benchmark` take. Both
/// share one licence, which builds that require `big-parallel` take. The Nix of each machine has
/// these two features by default.
fn scene() -> Option<Scene> {
    if !require(Need::Root) {
        return None;
    }
    let scene = Scene::new().nix_conf("post-build-hook", "");
    let uri = |name: &str| {
        format!("ssh://localhost?remote-store={}", scene.builder_store(name).display())
    };
    let machines: BTreeMap<String, Table> =
        ["one", "two"].into_iter().map(|name| (uri(name), toml! { gpu = 1 })).collect();
    let file = ConfigFile::new()
        .builders("machine-resources", machines)
        .builders("feature-resources", toml! { benchmark.gpu = 1 big-parallel.licence = 1 })
        .builders("shared-resources", toml! { licence = 1 });
    let scene = scene.config(&file);
    Some(["one", "two"].into_iter().fold(scene, |scene, name| {
        scene.make_builder_store(name);
        scene.machine(&format!(
            "ssh://localhost?remote-store=@scene@/builders/{name} - - 8 1 benchmark,big-parallel"
        ))
    }))
}

fn taking(seconds: f32, features: &[&str]) -> Script {
    Script::new(format!("/bin/sleep {seconds}; echo done > $out")).requires(features)
}

#[test]
fn two_commands_never_take_more_resources_than_there_are() {
    let Some(scene) = scene() else { return };
    let kinds: [(&str, &[&str]); 3] =
        [("gpu", &["benchmark"]), ("licence", &["big-parallel"]), ("plain", &[])];
    let mut scene = scene;
    for command in ["left", "right"] {
        let mut names = Vec::new();
        for (kind, features) in kinds {
            for number in 0..4 {
                let name = format!("{kind}-{command}-{number}");
                scene = scene.derivation(&name, taking(0.4, features));
                names.push(name);
            }
        }
        scene = scene.derivation(command, Script::naming(names.iter().map(String::as_str)));
    }
    scene.hookrun(&["compile"]).expect_success();
    // Both commands would create the local store at the same time.
    scene.drv_path("left");
    let runs = std::thread::scope(|scope| {
        let run = |name: &'static str| {
            let scene = &scene;
            scope.spawn(move || Ran::of(&mut scene.build_command(name, &["--max-jobs", "0"])))
        };
        [run("left"), run("right")].map(|thread| thread.join().unwrap())
    });
    for ran in runs {
        assert!(!ran.account().contains("is lost"), "{}", ran.account());
        ran.expect_success();
    }
    let builds = scene.recorded_builds();
    assert!(builds.iter().all(|build| build.outcome == Some(BuildOutcome::Built)));
    let of = |kind: &str, machine: &str| -> Vec<&BuildRow> {
        builds
            .iter()
            .filter(|build| build.name.starts_with(kind) && build.machine.ends_with(machine))
            .collect()
    };
    for machine in ["/one", "/two"] {
        assert!(!of("gpu", machine).is_empty(), "{machine} was never used");
        assert_eq!(most_at_once(&of("gpu", machine)), 1, "{machine} has one GPU");
    }
    assert_eq!(
        (of("licence", "").len(), most_at_once(&of("licence", ""))),
        (8, 1),
        "there is one licence"
    );
    assert!(most_at_once(&of("plain", "")) > 1, "builds without resources run at the same time");
    assert!(
        of("gpu", "").iter().any(|build| build.waited_ms > Some(0)),
        "some builds have waited in the queue"
    );

    // The trace has the resources, and the simulator uses them.
    let trace = scene.hookrun(&["builders", "trace"]).expect_success().stdout;
    assert_eq!(trace.matches(r#""features":["big-parallel"],"command""#).count(), 8, "{trace}");
    let file = scene.dir().join("trace.jsonl");
    std::fs::write(&file, trace).unwrap();
    let file = file.display().to_string();
    let simulate = ["builders", "simulate", "--trace", &file, "--format", "json"];
    let compared: serde_json::Value =
        serde_json::from_str(&scene.hookrun(&simulate).expect_success().stdout).unwrap();
    let makespans: Vec<f64> = compared["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| rule["makespan-ms"].as_f64().unwrap() / 1000.0)
        .collect();
    let licensed: f64 = of("licence", "").iter().filter_map(|build| build.seconds).sum();
    assert!(makespans[1] >= licensed * 0.999, "one after the other: {makespans:?}, {licensed}");
}

#[test]
fn resources_of_a_killed_command_are_free_again() {
    let Some(scene) = scene() else { return };
    let scene = scene
        .derivation("long", taking(600.0, &["big-parallel"]))
        .derivation("short", Script::text("s").requires(&["big-parallel"]));
    scene.hookrun(&["compile"]).expect_success();
    scene.drv_path("short");
    let mut long = scene.build_command("long", &["--max-jobs", "0"]);
    let mut long = long.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let list = || scene.hookrun(&["builders", "list"]).expect_success().stdout;
    wait_for("a build with the licence", || list().contains("shared by all machines: licence 1/1"));
    let text = list();
    assert_eq!(text.matches("gpu 0/1").count(), 2, "{text}");

    std::thread::scope(|scope| {
        let short =
            scope.spawn(|| Ran::of(&mut scene.build_command("short", &["--max-jobs", "0"])));
        let waits = || {
            let ran = scene.hookrun(&["builders", "explain", "short"]);
            (
                ran.stdout
                    .contains("not enough licence is free on all machines together (1/1 taken)"),
                ran,
            )
        };
        wait_for("the decision about the second", || waits().0);
        let (_, explained) = waits();
        explained.expect_stdout("reply to Nix: accept: it waits for a slot");
        long.kill().unwrap();
        long.wait().unwrap();
        short.join().unwrap().expect_success();
    });
    wait_for("an idle fleet", || list().contains("shared by all machines: licence 0/1"));
}

#[test]
fn a_build_that_takes_more_than_any_machine_has_fails() {
    let Some(scene) = scene() else { return };
    // Twice the GPU of a machine.
    let file: Table = std::fs::read_to_string(scene.config_path()).unwrap().parse().unwrap();
    let more = toml! { builders.feature-resources.benchmark.gpu = 2 };
    scene.set_config(&ConfigFile::from(file).and(more));
    let scene = scene.derivation("large", taking(0.0, &["benchmark"]));
    scene.build_with("large", &["--max-jobs", "0"]).expect_failure();
    scene
        .hookrun(&["builders", "explain", "large"])
        .expect_success()
        .expect_stdout("it has only gpu 1, and the build takes 2");
    scene.hookrun(&["builders", "check"]).expect_exit(1).expect_stdout(
        "no build that requires `benchmark` can go there: it has only gpu 1, and the build takes 2",
    );
}
