//! The upload plugin in its sandbox, which uploads what a real Nix built to a directory and to an
//! S3 server that checks signatures. Nix reads it back and trusts only the public key.

mod faults;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hookrun_capability::Services;
use hookrun_config::Config;
use hookrun_host::{Compiler, Host, LinkedPlugin};
use hookrun_nix::event::Event;
use hookrun_nix::outcome::{Outcome, RunReport};
use hookrun_tests::lab::s3::{Fault, S3Server, SECRET_ACCESS_KEY};
use hookrun_tests::lab::{ConfigFile, PluginTable, Scene, Script, toml};
use toml::Table;

/// Three derivations, each of which depends on the one before.
fn scene() -> Scene {
    Scene::new()
        .nix_conf("post-build-hook", "")
        .signing_key("lab-1")
        .signing_key("other-1")
        .derivation("alpha", Script::text("hello"))
        .derivation("beta", Script::naming(["alpha"]))
        .derivation("gamma", Script::naming(["beta"]))
}

/// Configures the upload plugin with additional keys of its table for this store.
pub(crate) fn configure(scene: &Scene, keys: Table, store: Table) {
    scene.set_config(&configuration(keys, store));
}

pub(crate) fn configuration(keys: Table, store: Table) -> ConfigFile {
    ConfigFile::new()
        .plugin("cache", PluginTable::uploader("lab-1").config(keys))
        .signing_key("lab-1", "keys/lab-1.secret")
        .object_store("cache", store)
}

fn s3_store(server: &S3Server, scene: &Scene) -> Table {
    server.object_store("s3://bucket/prefix", scene.dir(), SECRET_ACCESS_KEY)
}

/// The plugin in this process, with its services.
pub(crate) struct Uploader {
    plugin: LinkedPlugin,
    services: Services,
    runtime: tokio::runtime::Runtime,
}

impl Uploader {
    pub(crate) fn new(scene: &Scene) -> Self {
        let config = Config::load(&scene.config_path()).unwrap();
        let dirs = scene.dirs();
        // A runner makes this directory.
        std::fs::create_dir_all(dirs.uploads()).unwrap();
        let services = Services::new(&config, &dirs);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let plugin =
            Host::new(&dirs, Compiler::InProcess).load(&config.plugins["cache"], &config).unwrap();
        Self { plugin, services, runtime }
    }

    pub(crate) fn run(&self, event: &Event) -> RunReport {
        self.runtime.block_on(self.plugin.run_event(&self.services, event, 1))
    }
}

pub(crate) fn run(scene: &Scene, event: &Event) -> RunReport {
    Uploader::new(scene).run(event)
}

#[track_caller]
pub(crate) fn expect_done(report: &RunReport, message: &str) {
    assert!(matches!(&report.outcome, Outcome::Done { .. }), "{report:?}");
    assert!(report.outcome.message().starts_with(message), "{report:?}");
}

/// Copies `path` from the `file://` cache in `directory` to an empty store, which works with our
/// key and fails with another.
pub(crate) fn read_back(scene: &Scene, path: &Path, directory: &Path) {
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
fn a_directory_store_is_a_substituter() {
    for (config, suffix) in [
        (Table::new(), "zst"),
        (toml! { compression = "xz" level = 1 }, "xz"),
        (toml! { compression = "none" }, "nar"),
    ] {
        let scene = scene();
        configure(&scene, config, Table::new());
        let gamma = scene.build("gamma").expect_success().path();
        let event = scene.build_event("gamma");
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
fn paths_are_uploaded_to_an_s3_server_and_read_back() {
    let scene = scene();
    let server = S3Server::start(&scene.path("s3"), &["bucket"]);
    configure(&scene, Table::new(), s3_store(&server, &scene));
    let gamma = scene.build("gamma").expect_success().path();
    let event = scene.build_event("gamma");
    expect_done(&run(&scene, &event), "uploaded 3 paths (");
    expect_done(&run(&scene, &event), "uploaded nothing, 3 present");
    read_back(&scene, &gamma, &server.bucket("bucket").join("prefix"));
}

#[test]
fn a_large_nar_is_uploaded_in_parts() {
    let scene = scene().derivation("large", Script::large(30 << 20));
    let server = S3Server::start(&scene.path("s3"), &["bucket"]);
    configure(&scene, toml! { compression = "none" }, s3_store(&server, &scene));
    let large = scene.build("large").expect_success().path();
    expect_done(&run(&scene, &scene.build_event("large")), "uploaded 1 path (30.0 MiB)");
    read_back(&scene, &large, &server.bucket("bucket").join("prefix"));
}

/// What Nix knows about each path of a closure in a store.
fn fields(scene: &Scene, store: &[&str], path: &Path) -> BTreeMap<String, serde_json::Value> {
    let mut words = vec!["path-info", "--json", "--recursive", path.to_str().unwrap()];
    words.extend(store);
    let ran = scene.nix("nix", &words).expect_success();
    let found: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    // A list in older versions of Nix, an object in newer ones.
    let infos: Vec<(String, serde_json::Value)> = match found {
        serde_json::Value::Array(infos) => infos
            .into_iter()
            .map(|info| (info["path"].as_str().unwrap().to_owned(), info))
            .collect(),
        serde_json::Value::Object(infos) => infos.into_iter().collect(),
        other => panic!("{other}"),
    };
    let compared = |info: serde_json::Value| {
        let mut references = info["references"].as_array().unwrap().clone();
        references.sort_by_key(ToString::to_string);
        serde_json::json!({
            "narHash": info["narHash"], "narSize": info["narSize"], "deriver": info["deriver"],
            "ca": info["ca"], "references": references,
        })
    };
    infos.into_iter().map(|(path, info)| (path, compared(info))).collect()
}

#[test]
fn nix_agrees_on_every_field_of_an_uploaded_closure() {
    let scene = scene();
    configure(&scene, toml! { listings = true }, Table::new());
    let gamma = scene.build("gamma").expect_success().path();
    expect_done(&run(&scene, &scene.build_event("gamma")), "uploaded 3 paths (");
    let cache = scene.state_dir().join("object-stores/cache");
    let url = format!("file://{}", cache.display());
    let stored = fields(&scene, &["--store", &url], &gamma);
    assert_eq!(stored.len(), 3);
    assert_eq!(stored, fields(&scene, &[], &gamma));
    let key = scene.public_key("lab-1");
    let verify = ["store", "verify", "--recursive", "--sigs-needed", "1", "--store", &url];
    let trusted = ["--option", "trusted-public-keys", key, gamma.to_str().unwrap()];
    scene.nix("nix", &[&verify[..], &trusted].concat()).expect_success();
    let name = gamma.file_name().unwrap().to_str().unwrap();
    let listing = std::fs::read(cache.join(format!("{}.ls", &name[..32]))).unwrap();
    let listing: serde_json::Value = serde_json::from_slice(&listing).unwrap();
    assert_eq!(listing["root"]["type"], "regular");
    let listed =
        scene.nix("nix", &["store", "ls", "--json", "--store", &url, gamma.to_str().unwrap()]);
    let nix: serde_json::Value = serde_json::from_str(&listed.expect_success().stdout).unwrap();
    assert_eq!(listing["root"]["size"], nix["size"]);
}

#[test]
fn an_upload_without_a_key_is_refused_with_the_fix() {
    let scene = scene();
    configure(&scene, toml! { key = [] }, Table::new());
    scene.build("alpha").expect_success();
    let report = run(&scene, &scene.build_event("alpha"));
    let Outcome::Refused { message } = &report.outcome else { panic!("{report:?}") };
    assert!(
        message.contains("has no signature, and no key signs it; write `signing = [")
            && message.contains("`allow-unsigned = true`"),
        "{message}"
    );
    configure(&scene, toml! { key = [] allow-unsigned = true }, Table::new());
    expect_done(&run(&scene, &scene.build_event("alpha")), "uploaded 1 path (");
}

#[test]
fn a_second_key_signs_what_the_cache_has() {
    let scene = scene();
    configure(&scene, Table::new(), Table::new());
    scene.build("alpha").expect_success();
    expect_done(&run(&scene, &scene.build_event("alpha")), "uploaded 1 path (");
    let both = ConfigFile::new()
        .plugin("cache", PluginTable::uploader("lab-1").grant("signing", ["lab-1", "other-1"]))
        .signing_key("lab-1", "keys/lab-1.secret")
        .signing_key("other-1", "keys/other-1.secret")
        .object_store("cache", Table::new());
    scene.set_config(&both);
    expect_done(
        &run(&scene, &scene.build_event("alpha")),
        "uploaded nothing, 1 present, 1 of them signed again",
    );
    let url = format!("file://{}", scene.state_dir().join("object-stores/cache").display());
    let second = scene.second_store();
    let alpha = scene.out_path("alpha");
    second.copy_from(&alpha, &url, &[scene.public_key("other-1")]).expect_success();
}

/// Returns `FileHash` and `FileSize` of a narinfo, and those of the object that it names.
fn hashes(cache: &Path, path: &Path) -> [(String, String); 2] {
    let name = path.file_name().unwrap().to_str().unwrap();
    let narinfo = cache.join(format!("{}.narinfo", &name[..32]));
    let text = std::fs::read_to_string(narinfo).unwrap();
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key}: ")));
        line.unwrap().to_owned()
    };
    let (hash, size) = hookrun_nix::nar::hash(&std::fs::read(cache.join(value("URL"))).unwrap());
    [(value("FileHash"), value("FileSize")), (hash, size.to_string())]
}

#[test]
fn a_narinfo_describes_the_stored_object_after_another_upload_of_it() {
    let same = || Script::text("the same contents");
    let scene = scene().derivation("first", same()).derivation("second", same());
    let cache = scene.state_dir().join("object-stores/cache");
    let mut paths = Vec::new();
    for (name, level) in [("first", 1), ("second", 19)] {
        configure(&scene, toml! { level = level }, Table::new());
        paths.push(scene.build(name).expect_success().path());
        expect_done(&run(&scene, &scene.build_event(name)), "uploaded 1 path (");
        for path in &paths {
            let [stated, stored] = hashes(&cache, path);
            assert_eq!(stated, stored, "{} after {name}", path.display());
        }
    }
}

/// Counts the requests with this method and this part.
fn count(requests: &[String], method: &str, part: &str) -> usize {
    requests.iter().filter(|asked| asked.starts_with(method) && asked.contains(part)).count()
}

#[test]
fn a_path_that_two_tasks_need_is_sent_once() {
    let scene = scene()
        .derivation("left", Script::new("echo left $dependencies > $out").uses("alpha"))
        .derivation("right", Script::new("echo right $dependencies > $out").uses("alpha"))
        .derivation("later", Script::naming(["left", "right"]));
    let server = S3Server::start_faulty(&scene.path("s3"), &["bucket"], |asked| {
        asked.starts_with("PUT ").then_some(Fault::Later(Duration::from_millis(300)))
    });
    configure(&scene, Table::new(), s3_store(&server, &scene));
    for name in ["left", "right", "later"] {
        scene.build(name).expect_success();
    }
    let uploader = Uploader::new(&scene);
    let (left, right) = (scene.build_event("left"), scene.build_event("right"));
    let reports = uploader.runtime.block_on(async {
        tokio::join!(
            uploader.plugin.run_event(&uploader.services, &left, 1),
            uploader.plugin.run_event(&uploader.services, &right, 1)
        )
    });
    let in_order = reports.0.outcome.message().starts_with("uploaded 2");
    let (first, second) = if in_order { reports } else { (reports.1, reports.0) };
    expect_done(&first, "uploaded 2 paths (");
    expect_done(&second, "uploaded 1 path (");
    assert!(second.outcome.message().ends_with(", 1 present"), "{second:?}");
    let requests = server.requests();
    // Three NARs, and one of them again to learn whether the server honours conditions.
    assert_eq!(count(&requests, "PUT ", "/nar/"), 3 + 1, "{requests:#?}");
    server.expect_written_once();
    assert_eq!(count(&requests, "PUT ", ".narinfo"), 3, "three narinfos in all: {requests:#?}");
    expect_done(&uploader.run(&scene.build_event("later")), "uploaded 1 path (");
    let asked = server.requests().len() - requests.len();
    // A look-up, the NAR and the narinfo.
    assert_eq!(asked, 3, "{:#?}", &server.requests()[requests.len()..]);
}

#[test]
fn bytes_of_a_store_never_pass_through_the_plugin() {
    let scene = scene().derivation("large", Script::large(20 << 20));
    let server = S3Server::start(&scene.path("s3"), &["bucket"]);
    configure(&scene, toml! { compression = "none" }, s3_store(&server, &scene));
    scene.build("large").expect_success();
    let report = run(&scene, &scene.build_event("large"));
    expect_done(&report, "uploaded 1 path (20.0 MiB)");
    assert!(server.bytes() > 20 << 20, "{}", server.bytes());
    assert!(report.usage.host_bytes < 64 << 10, "{:?}", report.usage);
    // Not even if the object exists and has to be read back.
    for narinfo in std::fs::read_dir(server.bucket("bucket").join("prefix")).unwrap() {
        let path = narinfo.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "narinfo") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let report = run(&scene, &scene.build_event("large"));
    expect_done(&report, "uploaded 1 path (20.0 MiB)");
    assert!(report.usage.host_bytes < 64 << 10, "{:?}", report.usage);
    server.expect_written_once();
}

#[test]
fn a_tree_of_any_depth_is_uploaded() {
    let script = "d=$out; i=0; while [ $i -lt 200 ]; do d=$d/d; i=$((i+1)); done; \
                  /bin/mkdir -p $d; echo deep > $d/file";
    let scene = scene().derivation("deep", Script::new(script));
    configure(&scene, Table::new(), Table::new());
    let deep = scene.build("deep").expect_success().path();
    expect_done(&run(&scene, &scene.build_event("deep")), "uploaded 1 path (");
    let url = format!("file://{}", scene.state_dir().join("object-stores/cache").display());
    let second = scene.second_store();
    second.copy_from(&deep, &url, &[scene.public_key("lab-1")]).expect_success();
    assert!(second.has(&deep));
}

#[test]
fn paths_that_others_signed_and_paths_that_are_gone_are_not_uploaded() {
    let scene = scene();
    configure(&scene, toml! { skip-signed-by = ["other-1"] }, Table::new());
    scene.build("gamma").expect_success();
    let alpha = scene.out_path("alpha");
    let key = scene.path("keys/other-1.secret").display().to_string();
    scene
        .nix("nix", &["store", "sign", "--key-file", &key, alpha.to_str().unwrap()])
        .expect_success();
    let report = run(&scene, &scene.build_event("gamma"));
    expect_done(&report, "uploaded 2 paths (");
    assert!(report.outcome.message().ends_with(", 1 signed by other-1"), "{report:?}");
    let event = scene.build_event("gamma");
    scene.nix("nix-store", &["--gc"]).expect_success();
    expect_done(&run(&scene, &event), "nothing to upload: no output of gamma is valid any longer");
}

#[test]
fn a_corrupt_path_is_permanent_and_leaves_no_narinfo() {
    let scene = scene();
    configure(&scene, Table::new(), Table::new());
    let alpha = scene.build("alpha").expect_success().path();
    hookrun::demo::private_nix::set_mode(&alpha, 0o644).unwrap();
    std::fs::write(&alpha, "jello\n").unwrap();
    let report = run(&scene, &scene.build_event("alpha"));
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
    configure(&scene, Table::new(), Table::new());
    scene.build("alpha").expect_success();
    let cache = scene.state_dir().join("object-stores/cache");
    std::fs::create_dir_all(&cache).unwrap();
    std::fs::write(cache.join("nix-cache-info"), "StoreDir: /gnu/store\n").unwrap();
    let report = run(&scene, &scene.build_event("alpha"));
    assert_eq!(report.outcome.class().as_str(), "permanent", "{report:?}");
    assert!(
        report.outcome.message().contains("its nix-cache-info says StoreDir `/gnu/store`"),
        "{report:?}"
    );
}
