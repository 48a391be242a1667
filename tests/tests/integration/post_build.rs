//! From a build of Nix through hook, spool, worker and plugin to a cache: the outputs are uploaded
//! and signed, and only those who trust the key can copy them back. The tests of the upload plugin
//! alone are in `upload.rs`.

use hookrun_tests::lab::{ConfigFile, PluginTable, Scene, Script, toml};

/// Uploads to a directory with signatures of `lab-1`.
fn uploader() -> ConfigFile {
    ConfigFile::new()
        .plugin("cache", PluginTable::uploader("lab-1"))
        .signing_key("lab-1", "keys/lab-1.secret")
        .object_store("cache", toml! { url = "file://@scene@/cache" })
}

/// Three derivations, each of which depends on the ones before, and two keys, one of which signs.
fn three_derivations(config: &ConfigFile) -> Scene {
    Scene::new()
        .signing_key("lab-1")
        .signing_key("stranger-1")
        .config(config)
        .derivation("alpha", Script::text("the first"))
        .derivation("beta", Script::naming(["alpha"]))
        .derivation("gamma", Script::naming(["alpha", "beta"]))
}

fn cache_url(scene: &Scene) -> String {
    format!("file://{}", scene.path("cache").display())
}

#[test]
fn three_derivations_are_uploaded_and_copied_back() {
    let scene = three_derivations(&uploader());
    let gamma = scene.build("gamma").expect_success().path();
    assert_eq!(scene.spooled().len(), 3, "one event for each derivation");
    scene.drain().expect_success();
    assert_eq!(scene.spooled().len(), 0);
    scene.expect_tasks(&["alpha cache done", "beta cache done", "gamma cache done"]);

    let second = scene.second_store();
    second
        .substitute(&gamma, &cache_url(&scene), &[scene.public_key("stranger-1")])
        .expect_failure();
    assert!(!second.has(&gamma), "signatures of other keys do not count");
    second.substitute(&gamma, &cache_url(&scene), &[scene.public_key("lab-1")]).expect_success();
    for name in ["alpha", "beta", "gamma"] {
        let path = scene.out_path(name);
        assert_eq!(
            std::fs::read(second.locate(&path)).unwrap(),
            std::fs::read(&path).unwrap(),
            "{name}"
        );
    }

    let third = scene.second_store();
    third.copy_from(&gamma, &cache_url(&scene), &[scene.public_key("stranger-1")]).expect_failure();
    third.copy_from(&gamma, &cache_url(&scene), &[scene.public_key("lab-1")]).expect_success();
    assert!(third.has(&gamma));
}

#[test]
fn paths_that_the_store_has_are_not_uploaded_again() {
    let scene = three_derivations(&uploader());
    scene.build("beta").expect_success();
    scene.drain().expect_success();
    let narinfo = |name: &str| {
        let path = scene.out_path(name);
        let hash =
            path.file_name().unwrap().to_str().unwrap().split('-').next().unwrap().to_owned();
        scene.path("cache").join(format!("{hash}.narinfo"))
    };
    let written = |name: &str| narinfo(name).metadata().unwrap().modified().unwrap();
    let (alpha, beta) = (written("alpha"), written("beta"));
    // The closure contains both.
    scene.build("gamma").expect_success();
    scene.drain().expect_success();
    assert!(narinfo("gamma").exists());
    assert_eq!((written("alpha"), written("beta")), (alpha, beta));
}

#[test]
fn a_worker_that_the_hook_starts_uploads_without_a_command() {
    let scene = three_derivations(&uploader().worker("start", "spawn").worker("idle-exit", "1s"));
    let gamma = scene.build("gamma").expect_success().path();
    // Waits for the worker that the hook started.
    scene.drain().expect_success();
    scene.expect_tasks(&["alpha cache done", "beta cache done", "gamma cache done"]);
    let log = std::fs::read_to_string(scene.state_dir().join("worker.log"))
        .expect("the hook starts a worker, which has a log");
    let second = scene.second_store();
    let taken = second.substitute(&gamma, &cache_url(&scene), &[scene.public_key("lab-1")]);
    assert!(taken.status.success(), "{}\nworker: {log}", taken.account());
}

#[test]
fn every_output_is_uploaded() {
    let scene = three_derivations(&uploader()).derivation(
        "many",
        Script::new("echo out > $out; echo dev > $dev; echo doc > $doc")
            .outputs(&["out", "dev", "doc"]),
    );
    scene.build("many").expect_success();
    scene.drain().expect_success();
    let second = scene.second_store();
    for path in scene.out_paths("many") {
        second.substitute(&path, &cache_url(&scene), &[scene.public_key("lab-1")]).expect_success();
        assert_eq!(
            std::fs::read(second.locate(&path)).unwrap(),
            std::fs::read(&path).unwrap(),
            "{}",
            path.display()
        );
    }
}

#[test]
fn a_failed_build_has_no_event() {
    let scene =
        three_derivations(&uploader()).derivation("broken", Script::failing().uses("alpha"));
    scene.build("broken").expect_failure();
    scene.drain().expect_success();
    scene.expect_tasks(&["alpha cache done"]);
}

#[test]
fn outputs_are_kept_from_the_garbage_collector_until_they_are_uploaded() {
    let scene = three_derivations(&uploader());
    let alpha = scene.build("alpha").expect_success().path();
    scene.nix("nix-store", &["--gc"]).expect_success();
    assert!(alpha.exists(), "the root of the event keeps it");
    scene.drain().expect_success();
    scene.expect_tasks(&["alpha cache done"]);
    scene.nix("nix-store", &["--gc"]).expect_success();
    assert!(!alpha.exists(), "no root keeps it any more");
}

#[test]
fn a_build_in_a_store_with_another_root_is_uploaded_from_there() {
    let scene = Scene::new()
        .signing_key("lab-1")
        .config(&uploader())
        .derivation("alpha", Script::text("below another root"));
    let root = scene.path("root");
    let output =
        scene.build_with("alpha", &["--store", root.to_str().unwrap()]).expect_success().path();
    assert!(!output.exists(), "the output is in the other store");
    scene.drain().expect_success();
    scene.expect_tasks(&["alpha cache done"]);
    let second = scene.second_store();
    second.copy_from(&output, &cache_url(&scene), &[scene.public_key("lab-1")]).expect_success();
    assert!(second.has(&output));
}

#[test]
fn outputs_without_a_path_in_the_derivation_are_uploaded() {
    let scene = Scene::new()
        .nix_conf("experimental-features", "nix-command ca-derivations")
        .signing_key("lab-1")
        .config(&uploader());
    let expression = r#"
        let
          common = { system = builtins.currentSystem; builder = "/bin/sh"; };
          floating = derivation (common // {
            name = "floating"; args = [ "-c" "echo content > $out" ];
            __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";
          });
        in derivation (common // { name = "deferred"; args = [ "-c" "echo ${floating} > $out" ]; })
    "#;
    let deferred =
        scene.nix("nix-build", &["-E", expression, "--no-out-link"]).expect_success().path();
    scene.drain().expect_success();
    let tasks = scene.tasks();
    assert!(tasks.contains(&"floating cache done".to_owned()), "{tasks:?}");
    let second = scene.second_store();
    second.substitute(&deferred, &cache_url(&scene), &[scene.public_key("lab-1")]).expect_success();
    assert!(second.has(&deferred));
}
