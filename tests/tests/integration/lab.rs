//! The lab itself: a scene without hookrun is a working Nix, alone and through a daemon, with a
//! second store and a builder.

use std::process::Command;

use hookrun_tests::lab::{BUILD_GROUP, Ran, Scene, Script, is_root};

/// A scene whose Nix calls no hook.
fn bare() -> Scene {
    Scene::new().nix_conf("post-build-hook", "").nix_conf("run-diff-hook", "false")
}

#[test]
fn a_scene_is_a_private_nix() {
    let scene = bare()
        .derivation("alpha", Script::text("it's \"quoted\" and ${this} \\ too"))
        .derivation("beta-2.0", Script::naming(["alpha"]).uses("gamma"))
        .derivation(
            "gamma",
            Script::new("echo out > $out; echo dev > $dev").outputs(&["out", "dev"]),
        );
    let beta = scene.build("beta-2.0").expect_success().path();
    assert!(beta.starts_with(scene.dir()));
    let alpha = scene.out_path("alpha");
    assert_eq!(std::fs::read_to_string(&alpha).unwrap(), "it's \"quoted\" and ${this} \\ too\n");
    assert!(std::fs::read_to_string(&beta).unwrap().starts_with(alpha.to_str().unwrap()));
    scene.check("alpha").expect_success();
}

#[test]
fn random_builds_differ_and_large_ones_do_not() {
    let scene =
        bare().derivation("random", Script::random()).derivation("large", Script::large(100_000));
    scene.build("random").expect_success();
    scene.check("random").expect_exit(104).expect_stderr("may not be deterministic");
    let large = scene.build("large").expect_success().path();
    assert!(large.metadata().unwrap().len() >= 100_000);
    scene.check("large").expect_success();
}

#[test]
fn through_a_daemon_builds_run_as_build_users() {
    if !is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let uid = "while read key value; do case $key in Uid:) echo \"$value\";; esac; done < /proc/self/status > $out";
    let scene = bare().derivation("who", Script::new(uid)).through_daemon();
    let who = std::fs::read_to_string(scene.build("who").expect_success().path()).unwrap();
    let uid = who.split_whitespace().next().unwrap().to_owned();
    let user = Ran::of(Command::new("id").args(["-nu", &uid])).expect_success();
    assert!(user.stdout.starts_with(BUILD_GROUP), "built as {}", user.stdout);
    let store = Ran::of(Command::new("stat").args(["-c", "%G %a"]).arg(scene.path("store")))
        .expect_success();
    assert_eq!(store.stdout.trim(), "nixbld 1775");
    assert!(scene.daemon_log().contains("accepted connection"), "{}", scene.daemon_log());
}

#[test]
fn a_second_store_takes_signed_paths_only() {
    let scene = bare()
        .signing_key("lab-1")
        .signing_key("other-1")
        .derivation("alpha", Script::text("hello"));
    let alpha = scene.build("alpha").expect_success().path();
    let cache = format!("file://{}", scene.path("cache").display());
    let secret = scene.path("keys/lab-1.secret").display().to_string();
    scene
        .nix(
            "nix",
            &["copy", "--to", &format!("{cache}?secret-key={secret}"), alpha.to_str().unwrap()],
        )
        .expect_success();
    let second = scene.second_store();
    second.substitute(&alpha, &cache, &[scene.public_key("other-1")]).expect_failure();
    assert!(!second.has(&alpha));
    second.substitute(&alpha, &cache, &[scene.public_key("lab-1")]).expect_success();
    assert_eq!(std::fs::read_to_string(second.locate(&alpha)).unwrap(), "hello\n");
    let third = scene.second_store();
    third.copy_from(&alpha, &cache, &[scene.public_key("other-1")]).expect_failure();
    third.copy_from(&alpha, &cache, &[scene.public_key("lab-1")]).expect_success();
    assert!(third.has(&alpha) && !scene.second_store().has(&alpha));
}

#[test]
fn a_builder_is_a_store_in_the_scene() {
    if !is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    // The stock hook here: Nix's default.
    let scene = bare().derivation("alpha", Script::text("hello"));
    let builders =
        hookrun::demo::private_nix::PrivateNix::local_machine(&scene.builder_store("only"), 1, 1.0);
    let built =
        scene.build_with("alpha", &["--max-jobs", "0", "--builders", &builders]).expect_success();
    assert!(scene.on_builder("only", &built.path()), "{}", built.account());
}
