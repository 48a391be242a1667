//! The upload plugin, the real one in the real sandbox, on what a real Nix built: to a directory,
//! and to an S3 server that checks signatures; read back by Nix with only the public key trusted.

use std::path::{Path, PathBuf};

use hookrun::capability::Services;
use hookrun::config::Config;
use hookrun::dirs::Dirs;
use hookrun::event::{Event, HookEvent, NixDirs, Output, PostBuild};
use hookrun::outcome::{Outcome, RunReport};
use hookrun::plugin::{Compiler, Host};
use hookrun_tests::lab::s3::{ACCESS_KEY_ID, S3Server, SECRET_ACCESS_KEY};
use hookrun_tests::lab::{Scene, Script};

/// Three derivations, each needing the one before.
fn scene() -> Scene {
    Scene::new()
        .nix_conf("post-build-hook", "")
        .signing_key("lab-1")
        .signing_key("other-1")
        .derivation("alpha", Script::text("hello"))
        .derivation("beta", Script::naming(["alpha"]))
        .derivation("gamma", Script::naming(["beta"]))
}

/// The configuration with the plugin's own lines and those of its store.
fn configure(scene: &Scene, config: &str, store: &str) {
    scene.set_config(&format!(
        "[plugins.cache]\nsource = \"bundled:s3-upload\"\nhooks = [\"post-build\"]\n\
         [plugins.cache.config]\nbucket = \"cache\"\n{config}\n\
         [plugins.cache.grant]\nnix-store = \"closure\"\nobject-store = [\"cache\"]\nsigning = [\"lab-1\"]\n\
         [signing-keys.lab-1]\nfile = \"@scene@/keys/lab-1.secret\"\n\
         [object-stores.cache]\n{store}\n"
    ));
}

fn s3_store(server: &S3Server, scene: &Scene, secret: &str) -> String {
    std::fs::write(scene.path("access-key-id"), format!("{ACCESS_KEY_ID}\n")).unwrap();
    std::fs::write(scene.path("secret-access-key"), format!("{secret}\n")).unwrap();
    format!(
        "url = \"s3://bucket/prefix\"\nregion = \"eu-west-1\"\nendpoint = \"{}\"\n\
         credentials.access-key-id-file = \"@scene@/access-key-id\"\n\
         credentials.secret-access-key-file = \"@scene@/secret-access-key\"",
        server.endpoint()
    )
}

/// What the post-build hook hands over for `derivation`.
fn event(scene: &Scene, derivation: &str) -> Event {
    let nix = scene.private_nix();
    let outputs =
        vec![Output { name: "out".into(), path: scene.out_path(derivation).display().to_string() }];
    let drv_path = scene.drv_path(derivation).display().to_string();
    let dirs = NixDirs { store: nix.store_dir(), state: nix.state_dir(), conf: nix.conf_dir() };
    Event { nix: dirs, ..Event::now(HookEvent::PostBuild(PostBuild { drv_path, outputs })) }
}

fn run(scene: &Scene, event: &Event) -> RunReport {
    let config = Config::load(&scene.config_path()).unwrap();
    let dirs = Dirs { config: scene.config_path(), state: scene.state_dir() };
    let services = Services::new(&config, &dirs);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let plugin =
        Host::new(&dirs, Compiler::InProcess).load(&config.plugins["cache"], &config).unwrap();
    runtime.block_on(plugin.run_event(&services, event, 1))
}

#[track_caller]
fn expect_done(report: &RunReport, message: &str) {
    assert!(matches!(&report.outcome, Outcome::Done { .. }), "{report:?}");
    assert!(report.outcome.message().starts_with(message), "{report:?}");
}

/// Takes `path` from the `file://` cache in `directory` into an empty store: with our key it comes,
/// with another it does not.
fn read_back(scene: &Scene, path: &Path, directory: &Path) {
    let url = format!("file://{}", directory.display());
    let distrustful = scene.second_store();
    distrustful.substitute(path, &url, &[scene.public_key("other-1")]).expect_failure();
    assert!(!distrustful.has(path));
    let second = scene.second_store();
    second.copy_from(path, &url, &[scene.public_key("lab-1")]).expect_success();
    assert_eq!(std::fs::read(second.locate(path)).unwrap(), std::fs::read(path).unwrap());
    let third = scene.second_store();
    third.substitute(path, &url, &[scene.public_key("lab-1")]).expect_success();
    assert!(third.has(path));
}

#[test]
fn to_a_directory_and_back() {
    for (config, suffix) in
        [("", "zst"), ("compression = \"xz\"\nlevel = 1", "xz"), ("compression = \"none\"", "nar")]
    {
        let scene = scene();
        configure(&scene, config, "");
        let gamma = scene.build("gamma").expect_success().path();
        let event = event(&scene, "gamma");
        expect_done(&run(&scene, &event), "uploaded 3 paths (");
        expect_done(&run(&scene, &event), "uploaded nothing, 3 present");
        let cache = scene.state_dir().join("object-stores/cache");
        let nars: Vec<PathBuf> = std::fs::read_dir(cache.join("nar"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(nars.len(), 3);
        assert!(
            nars.iter().all(|nar| nar.extension().is_some_and(|extension| extension == suffix))
        );
        read_back(&scene, &gamma, &cache);
    }
}

#[test]
fn to_an_s3_server_that_checks_signatures_and_back() {
    let scene = scene();
    let server = S3Server::start(&scene.path("s3"), &["bucket"]);
    configure(&scene, "", &s3_store(&server, &scene, SECRET_ACCESS_KEY));
    let gamma = scene.build("gamma").expect_success().path();
    let event = event(&scene, "gamma");
    expect_done(&run(&scene, &event), "uploaded 3 paths (");
    expect_done(&run(&scene, &event), "uploaded nothing, 3 present");
    read_back(&scene, &gamma, &server.bucket("bucket").join("prefix"));
}

#[test]
fn a_nar_of_many_parts_goes_to_s3() {
    let scene = scene().derivation("large", Script::large(30 << 20));
    let server = S3Server::start(&scene.path("s3"), &["bucket"]);
    configure(&scene, "compression = \"none\"", &s3_store(&server, &scene, SECRET_ACCESS_KEY));
    let large = scene.build("large").expect_success().path();
    expect_done(&run(&scene, &event(&scene, "large")), "uploaded 1 path (30.0 MiB)");
    read_back(&scene, &large, &server.bucket("bucket").join("prefix"));
}

#[test]
fn a_wrong_secret_is_permanent_and_names_store_and_status() {
    let scene = scene();
    let server = S3Server::start(&scene.path("s3"), &["bucket"]);
    configure(&scene, "", &s3_store(&server, &scene, "wrong-secret"));
    scene.build("alpha").expect_success();
    let report = run(&scene, &event(&scene, "alpha"));
    let Outcome::Failed { message, transient: false, .. } = &report.outcome else {
        panic!("{report:?}")
    };
    assert!(
        message.contains("object store `cache`") && message.contains("HTTP status 403"),
        "{message}"
    );
    assert!(
        message.contains("[object-stores.cache]") && !message.contains("wrong-secret"),
        "{message}"
    );
}

#[test]
fn what_others_signed_is_left_out_and_what_is_gone_is_no_failure() {
    let scene = scene();
    configure(&scene, "skip-signed-by = [\"other-1\"]", "");
    scene.build("gamma").expect_success();
    let alpha = scene.out_path("alpha");
    let key = scene.path("keys/other-1.secret").display().to_string();
    scene
        .nix("nix", &["store", "sign", "--key-file", &key, alpha.to_str().unwrap()])
        .expect_success();
    let report = run(&scene, &event(&scene, "gamma"));
    expect_done(&report, "uploaded 2 paths (");
    assert!(report.outcome.message().ends_with(", 1 signed by other-1"), "{report:?}");
    let event = event(&scene, "gamma");
    scene.nix("nix-store", &["--gc"]).expect_success();
    expect_done(&run(&scene, &event), "nothing to upload: no output of gamma is valid any more");
}

#[test]
fn a_corrupt_path_is_permanent_and_leaves_no_narinfo() {
    let scene = scene();
    configure(&scene, "", "");
    let alpha = scene.build("alpha").expect_success().path();
    hookrun::demo::private_nix::set_mode(&alpha, 0o644).unwrap();
    std::fs::write(&alpha, "jello\n").unwrap();
    let report = run(&scene, &event(&scene, "alpha"));
    let Outcome::Failed { message, transient: false, .. } = &report.outcome else {
        panic!("{report:?}")
    };
    assert!(
        message.contains("is corrupt: its NAR hash is")
            && message.contains("nix-store --verify-path"),
        "{message}"
    );
    let cache = scene.state_dir().join("object-stores/cache");
    let files: Vec<_> =
        std::fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(files.iter().all(|file| !file.to_string_lossy().ends_with(".narinfo")), "{files:?}");
}

#[test]
fn a_cache_for_another_store_directory_is_refused() {
    let scene = scene();
    configure(&scene, "", "");
    scene.build("alpha").expect_success();
    let cache = scene.state_dir().join("object-stores/cache");
    std::fs::create_dir_all(&cache).unwrap();
    std::fs::write(cache.join("nix-cache-info"), "StoreDir: /gnu/store\n").unwrap();
    let report = run(&scene, &event(&scene, "alpha"));
    assert_eq!(report.outcome.class(), "permanent", "{report:?}");
    assert!(
        report.outcome.message().contains("its nix-cache-info says StoreDir `/gnu/store`"),
        "{report:?}"
    );
}
