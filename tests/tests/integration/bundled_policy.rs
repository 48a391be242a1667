//! The bundled policy with real Nix: forty builds on four machines with features, one of them
//! behind a real sshd, and the local machine as a candidate.

use hookrun_builders::history::{BuildOutcome, BuildRow, RowSelection};
use hookrun_tests::lab::{ConfigFile, Need, PluginTable, Ran, Scene, Script, Sshd, require, toml};
use toml::Table;

/// A scene whose policy is `speed-factor` with this configuration.
fn scene(policy: Table) -> Scene {
    let policy = PluginTable::speed_factor().config(policy);
    Scene::new().nix_conf("post-build-hook", "").config(&ConfigFile::new().plugin("policy", policy))
}

/// Adds a machine that is a store of the scene. `rest` has its slots, speed factor, features and
/// mandatory features.
fn machine(scene: Scene, name: &str, rest: &str) -> Scene {
    scene.make_builder_store(name);
    scene.machine(&format!("ssh://localhost?remote-store=@scene@/builders/{name} - - {rest}"))
}

/// A build that logs its name and takes a moment.
fn part(name: &str) -> Script {
    Script::new(format!("echo log of {name}; /bin/sleep 0.2; echo {name} > $out"))
}

/// Counts the decisions of the policy, and fails if another decision is not because of a late
/// answer. On a busy machine the time for an answer, or for compiling at the first use, may be too
/// short, and then the rule of Nix decides. `cargo xtask bench` measures both.
fn by_policy(scene: &Scene) -> usize {
    let decisions = scene.builder_record().decisions(RowSelection::Last(1000)).unwrap();
    let is_late = |by: &str| by.contains("did not answer within") || by.contains("compile");
    let (policy, others): (Vec<_>, Vec<_>) =
        decisions.into_iter().partition(|decision| decision.decided_by == "policy");
    assert!(others.iter().all(|decision| is_late(&decision.decided_by)), "{others:#?}");
    policy.len()
}

#[test]
fn builds_on_a_fresh_state_directory_are_chosen_by_the_bundled_policy_as_soon_as_it_answers() {
    /// Commands until one has an answer in time.
    const COMMANDS: usize = 20;
    if !require(Need::Root) {
        return;
    }
    let scene = machine(machine(scene(Table::new()), "one", "4 1"), "two", "4 2");
    let names: Vec<String> = (0..16).map(|number| format!("part-{number}")).collect();
    let later: Vec<String> = (0..COMMANDS).map(|number| format!("later-{number}")).collect();
    let scene = scene.derivations(&names, part).derivations(&later, part);
    let scene = scene.derivation("all", Script::naming(names.iter().map(String::as_str)));
    scene.build_with("all", &["--max-jobs", "0"]).expect_success();
    let decisions = scene.builder_record().decisions(RowSelection::Last(1000)).unwrap().len();
    assert!(decisions > names.len(), "{decisions}");
    if by_policy(&scene) == decisions {
        return;
    }
    scene.hookrun(&["compile"]).expect_success();
    let before = by_policy(&scene);
    let chosen = later.iter().any(|name| {
        scene.build_with(name, &["--max-jobs", "0"]).expect_success();
        by_policy(&scene) > before
    });
    assert!(chosen, "no answer of the policy was in time");
}

#[test]
fn forty_builds_are_distributed_over_four_machines_by_their_features() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene(Table::new());
    let server = Sshd::start(&scene, "");
    let scene = scene.variable("NIX_SSHOPTS", &server.options());
    let scene = machine(scene, "plain", "2 1");
    let scene = machine(scene, "benchmarks", "2 2 benchmark");
    let scene = machine(scene, "kept", "1 9 big-parallel big-parallel");
    let remote = server.machine(&scene, "remote", 2, 2);
    let scene = scene.machine(&remote);
    let names: Vec<String> = (0..40).map(|number| format!("part-{number}")).collect();
    // The Nix of each machine has these two features by default.
    let feature = |number: usize| match number % 10 {
        0 => Some("benchmark"),
        5 => Some("big-parallel"),
        _ => None,
    };
    let scene = names.iter().enumerate().fold(scene, |scene, (number, name)| {
        let script = feature(number)
            .into_iter()
            .fold(part(name), |script, feature| script.requires(&[feature]));
        scene.derivation(name, script)
    });
    let scene = scene.derivation("all", Script::naming(names.iter().map(String::as_str)));
    scene.hookrun(&["compile"]).expect_success();
    let ran = scene.build_with("all", &["--max-jobs", "0"]).expect_success();
    assert!(
        !ran.account().contains("is lost") && !ran.account().contains("skipped"),
        "{}",
        ran.account()
    );

    let decisions = scene.builder_record().decisions(RowSelection::Last(100)).unwrap();
    assert!(
        decisions.len() >= 41 && decisions.iter().all(|decision| decision.decided_by == "policy"),
        "{decisions:#?}"
    );
    let builds = scene.recorded_builds();
    assert_eq!(builds.len(), 41);
    let on = |name: &str| -> Vec<&BuildRow> {
        let end = format!("/builders/{name}");
        builds.iter().filter(|build| build.machine.ends_with(&end)).collect()
    };
    for build in &builds {
        assert_eq!(build.outcome, Some(BuildOutcome::Built), "{build:?}");
        let number: Option<usize> =
            build.name.strip_prefix("part-").map(|number| number.parse().unwrap());
        match number.and_then(feature) {
            Some("benchmark") => assert!(build.machine.ends_with("/benchmarks"), "{build:?}"),
            Some(_) => assert!(build.machine.ends_with("/kept"), "{build:?}"),
            None => assert!(!build.machine.ends_with("/kept"), "{build:?}"),
        }
    }
    assert!(
        !on("remote").is_empty() && !on("benchmarks").is_empty() && on("kept").len() == 4,
        "{builds:#?}"
    );
    assert!(server.logins() >= 1);

    let paths: Vec<String> =
        names.iter().map(|name| scene.out_path(name).display().to_string()).collect();
    let mut arguments = vec!["--read-log"];
    arguments.extend(paths.iter().map(String::as_str));
    let logs = scene.nix("nix-store", &arguments).expect_success().stdout;
    for name in &names {
        assert!(logs.lines().any(|line| line == format!("log of {name}")), "{name}: {logs}");
    }

    let scene = scene.derivation("bad", Script::failing());
    let ran = scene
        .build_with("bad", &["--max-jobs", "0"])
        .expect_failure()
        .expect_stderr("failed with exit code 1");
    assert_eq!(ran.account().matches("build of '").count(), 1, "{}", ran.account());
    assert_eq!(ran.account().matches("this build fails").count(), 1, "{}", ran.account());
    let build = scene.last_build();
    assert_eq!((build.outcome, build.moves.len()), (Some(BuildOutcome::Failed), 0));
}

/// Returns the number of remote builds that Nix announces.
fn announced(ran: &Ran) -> usize {
    ran.account()
        .lines()
        .filter(|line| line.starts_with("building '") && line.contains("' on '"))
        .count()
}

#[test]
fn short_builds_stay_on_a_fast_local_machine_while_it_has_a_slot() {
    if !require(Need::Root) {
        return;
    }
    let scene = machine(scene(toml! { local-speed-factor = 8.0 }), "slow", "4 1");
    // Each depends on the one before, so there is always a free local slot.
    let names: Vec<String> = (0..4).map(|number| format!("step-{number}")).collect();
    let scene = names.iter().enumerate().fold(scene, |scene, (number, name)| {
        let script = number
            .checked_sub(1)
            .and_then(|before| names.get(before))
            .into_iter()
            .fold(part(name), |s, n| s.uses(n));
        scene.derivation(name, script)
    });
    scene.hookrun(&["compile"]).expect_success();
    let ran = scene.build_with("step-3", &["--max-jobs", "1"]).expect_success();
    assert_eq!(announced(&ran), 0, "{}", ran.account());
    let reasons = scene.builder_record().decisions(RowSelection::Last(10)).unwrap();
    assert!(
        reasons.iter().all(|decision| decision.reason.contains("this machine should finish it")),
        "{reasons:#?}"
    );

    // No local builds.
    let scene = scene.derivation("far", Script::text("far"));
    let ran = scene.build_with("far", &["--max-jobs", "0"]).expect_success();
    assert_eq!(announced(&ran), 1, "{}", ran.account());
    assert!(scene.on_builder("slow", &ran.path()));
}
