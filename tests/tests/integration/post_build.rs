//! From Nix's build through hook, spool, worker and plugin to a cache: what Nix builds is uploaded,
//! signed, and can be taken back by whoever trusts the key, and by nobody else. (`upload.rs` has
//! the upload plugin by itself.)

use hookrun_tests::lab::{Scene, Script};

/// Uploads to a directory, signed by `lab-1`.
const CONFIG: &str = r#"
[worker]
start = "none"

[plugins.cache]
source = "bundled:s3-upload"
hooks = ["post-build"]
config = { bucket = "cache" }
grant = { nix-store = "closure", object-store = ["cache"], signing = ["lab-1"] }

[object-stores.cache]
url = "file://@scene@/cache"

[signing-keys.lab-1]
file = "@scene@/keys/lab-1.secret"
"#;

/// Three derivations, each needing the one before, and two keys of which one signs.
fn three_derivations(config: &str) -> Scene {
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
fn three_derivations_are_uploaded_and_taken_back() {
    let scene = three_derivations(CONFIG);
    let gamma = scene.build("gamma").expect_success().path();
    assert_eq!(scene.spooled().len(), 3, "one event for each derivation");
    scene.drain().expect_success();
    assert_eq!(scene.spooled().len(), 0);
    scene.expect_tasks(&["alpha cache done", "beta cache done", "gamma cache done"]);

    let second = scene.second_store();
    second
        .substitute(&gamma, &cache_url(&scene), &[scene.public_key("stranger-1")])
        .expect_failure();
    assert!(!second.has(&gamma), "a signature of an unknown key is none");
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
fn what_is_there_is_not_uploaded_again() {
    let scene = three_derivations(CONFIG);
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
    // Its closure has both.
    scene.build("gamma").expect_success();
    scene.drain().expect_success();
    assert!(narinfo("gamma").exists());
    assert_eq!((written("alpha"), written("beta")), (alpha, beta));
}

#[test]
fn a_worker_that_the_hook_starts_needs_no_command() {
    let scene = three_derivations(
        &CONFIG.replace("start = \"none\"", "start = \"spawn\"\nidle-exit = \"1s\""),
    );
    let gamma = scene.build("gamma").expect_success().path();
    // Waits for the worker that runs; would do the work itself if there were none.
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
    let scene = three_derivations(CONFIG).derivation(
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
fn a_build_that_fails_is_no_event() {
    let scene = three_derivations(CONFIG).derivation("broken", Script::failing().uses("alpha"));
    scene.build("broken").expect_failure();
    scene.drain().expect_success();
    scene.expect_tasks(&["alpha cache done"]);
}

#[test]
fn outputs_are_kept_from_the_garbage_collector_until_they_are_uploaded() {
    let scene = three_derivations(CONFIG);
    let alpha = scene.build("alpha").expect_success().path();
    scene.nix("nix-store", &["--gc"]).expect_success();
    assert!(alpha.exists(), "the event in the queue keeps it");
    scene.drain().expect_success();
    scene.expect_tasks(&["alpha cache done"]);
    scene.nix("nix-store", &["--gc"]).expect_success();
    assert!(!alpha.exists(), "nothing keeps it any more");
}

#[test]
fn a_build_in_a_store_with_another_root_is_uploaded_from_there() {
    let scene = Scene::new()
        .signing_key("lab-1")
        .config(CONFIG)
        .derivation("alpha", Script::text("below another root"));
    let root = scene.path("root");
    let output =
        scene.build_with("alpha", &["--store", root.to_str().unwrap()]).expect_success().path();
    assert!(!output.exists(), "it is not in the store of this Nix");
    scene.drain().expect_success();
    scene.expect_tasks(&["alpha cache done"]);
    let second = scene.second_store();
    second.copy_from(&output, &cache_url(&scene), &[scene.public_key("lab-1")]).expect_success();
    assert!(second.has(&output));
}

#[test]
fn outputs_that_the_hook_cannot_know_are_found_by_the_worker() {
    let scene = Scene::new()
        .nix_conf("experimental-features", "nix-command ca-derivations")
        .signing_key("lab-1")
        .config(CONFIG);
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
