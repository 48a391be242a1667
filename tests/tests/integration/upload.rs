//! The upload plugin, the real one in the real sandbox, on what a real Nix built: to a directory,
//! and to an S3 server that checks signatures; read back by Nix with only the public key trusted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hookrun_capability::Services;
use hookrun_config::Config;
use hookrun_host::{Compiler, Host, LinkedPlugin};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{Event, HookEvent, NixDirs, Output, PostBuild};
use hookrun_nix::outcome::{Outcome, RunReport};
use hookrun_tests::lab::s3::{ACCESS_KEY_ID, Fault, S3Server, SECRET_ACCESS_KEY};
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
    let dirs = NixDirs::new(nix.store_dir(), nix.state_dir(), nix.conf_dir());
    Event { nix: dirs, ..Event::now(HookEvent::PostBuild(PostBuild { drv_path, outputs })) }
}

/// The plugin in this process, with what it has behind it.
struct Uploader {
    plugin: LinkedPlugin,
    services: Services,
    runtime: tokio::runtime::Runtime,
}

impl Uploader {
    fn new(scene: &Scene) -> Self {
        let config = Config::load(&scene.config_path()).unwrap();
        let dirs = Dirs { config: scene.config_path(), state: scene.state_dir() };
        // As a runner's set-up does.
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

    fn run(&self, event: &Event) -> RunReport {
        self.runtime.block_on(self.plugin.run_event(&self.services, event, 1))
    }
}

fn run(scene: &Scene, event: &Event) -> RunReport {
    Uploader::new(scene).run(event)
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
fn a_directory_store_is_a_substituter() {
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
fn a_wrong_secret_is_refused_and_names_store_and_status() {
    let scene = scene();
    let server = S3Server::start(&scene.path("s3"), &["bucket"]);
    configure(&scene, "", &s3_store(&server, &scene, "wrong-secret"));
    scene.build("alpha").expect_success();
    let report = run(&scene, &event(&scene, "alpha"));
    let Outcome::Refused { message } = &report.outcome else { panic!("{report:?}") };
    assert!(
        message.contains("object store `cache`")
            && message.contains("HTTP status 403, SignatureDoesNotMatch"),
        "{message}"
    );
    assert!(
        message.contains("[object-stores.cache]") && !message.contains("wrong-secret"),
        "{message}"
    );
}

/// A scene with `alpha` built, and an S3 server with faults as its store.
fn with_faults(
    store: &str,
    rule: impl Fn(&str) -> Option<Fault> + Send + Sync + 'static,
) -> (Scene, S3Server) {
    let scene = scene();
    let server = S3Server::start_faulty(&scene.path("s3"), &["bucket"], rule);
    let settings = s3_store(&server, &scene, SECRET_ACCESS_KEY);
    configure(&scene, "compression = \"none\"", &format!("{settings}\n{store}"));
    scene.build("alpha").expect_success();
    (scene, server)
}

/// The first request is a HEAD, whose answer says nothing but the status.
#[test]
fn settings_that_the_operator_has_to_fix_are_refused_by_name() {
    for (status, code, fix) in [
        (400, "ExpiredToken", "the credentials have expired"),
        (403, "RequestTimeTooSkewed", "this machine's clock is wrong"),
        (403, "InvalidAccessKeyId", "check the credentials of [object-stores.cache]"),
        (401, "Unauthorized", "check the credentials of [object-stores.cache]"),
        (400, "AuthorizationHeaderMalformed", "see [object-stores.cache]"),
    ] {
        let (scene, server) = with_faults("", move |_| Some(Fault::Answer(status, code)));
        let report = run(&scene, &event(&scene, "alpha"));
        let Outcome::Refused { message } = &report.outcome else { panic!("{code}: {report:?}") };
        assert!(message.contains(code) && message.contains(fix), "{message}");
        assert_eq!(server.requests().len(), 2, "a HEAD and a GET: {:?}", server.requests());
    }
}

#[test]
fn a_bucket_that_may_not_be_listed_takes_uploads() {
    let (scene, server) = with_faults("", |_| None);
    let root = server.bucket("bucket").parent().unwrap().to_owned();
    drop(server);
    let there = root.clone();
    // As S3 answers to those who may read and write objects, and not list the bucket.
    let server = S3Server::start_faulty(&root, &[], move |asked| {
        let (method, uri) = asked.split_once(' ').unwrap();
        let path = uri.split('?').next().unwrap().trim_start_matches('/');
        (matches!(method, "GET" | "HEAD") && !there.join(path).exists())
            .then_some(Fault::Answer(403, "AccessDenied"))
    });
    configure(&scene, "", &s3_store(&server, &scene, SECRET_ACCESS_KEY));
    scene.build("gamma").expect_success();
    expect_done(&run(&scene, &event(&scene, "gamma")), "uploaded 3 paths (");
    expect_done(&run(&scene, &event(&scene, "gamma")), "uploaded nothing, 3 present");
}

#[test]
fn a_write_that_is_forbidden_is_refused() {
    let (scene, _server) = with_faults("", |asked| {
        asked.starts_with("PUT ").then_some(Fault::Answer(403, "AccessDenied"))
    });
    let report = run(&scene, &event(&scene, "alpha"));
    assert_eq!(report.outcome.class().as_str(), "refused", "{report:?}");
    assert!(!report.progress, "nothing was stored");
}

#[test]
fn a_server_that_does_not_answer_is_worth_another_try() {
    for method in ["HEAD", "PUT"] {
        let (scene, _server) = with_faults("timeout = \"300ms\"", move |asked| {
            asked.starts_with(method).then_some(Fault::Hang)
        });
        // Less than the waiting takes: it is not the plugin's time.
        let config = std::fs::read_to_string(scene.config_path()).unwrap();
        scene.set_config(&format!("{config}\n[plugins.cache.limits]\nwall-time = \"250ms\"\n"));
        let report = run(&scene, &event(&scene, "alpha"));
        let Outcome::Failed { message, transient: true, .. } = &report.outcome else {
            panic!("{method}: {report:?}")
        };
        assert!(
            message.contains("no answer in time (waited 300ms)") && message.contains(" at http://"),
            "{message}"
        );
    }
}

#[test]
fn a_server_without_tls_where_tls_is_asked_for_is_refused() {
    let (scene, _server) = with_faults("", |_| None);
    let config = std::fs::read_to_string(scene.config_path()).unwrap();
    scene.set_config(&config.replace("endpoint = \"http://", "endpoint = \"https://"));
    let report = run(&scene, &event(&scene, "alpha"));
    let Outcome::Refused { message } = &report.outcome else { panic!("{report:?}") };
    assert!(
        message.contains("no secure connection (") && message.contains("endpoint"),
        "{message}"
    );
}

#[test]
fn an_answer_without_an_end_is_cut() {
    for (status, method, class) in
        [(500, "PUT", "transient"), (403, "PUT", "refused"), (200, "POST", "transient")]
    {
        let (scene, _server) = with_faults("timeout = \"5s\"", move |asked| {
            asked.starts_with(method).then_some(Fault::Endless(status))
        });
        let scene = scene.derivation("large", Script::large(20 << 20));
        scene.build("large").expect_success();
        let report = run(&scene, &event(&scene, "large"));
        assert_eq!(report.outcome.class().as_str(), class, "{report:?}");
        assert!(report.outcome.message().len() < 2000, "{}", report.outcome.message().len());
    }
}

/// What was done although the answer says otherwise, or no answer came.
#[test]
fn a_lost_answer_to_the_end_of_an_upload_loses_nothing() {
    type Make = fn() -> Fault;
    let lost: Make = || Fault::Lost;
    let unknown: Make = || Fault::Answer(404, "NoSuchUpload");
    for (fault, attempts) in [(lost, 1), (unknown, 2)] {
        let completes = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&completes);
        let (scene, server) = with_faults("", move |asked| {
            let completes = asked.starts_with("POST ") && asked.contains("uploadId=");
            (completes && count.fetch_add(1, Ordering::SeqCst) == 0).then(fault)
        });
        let scene = scene.derivation("large", Script::large(20 << 20));
        let large = scene.build("large").expect_success().path();
        let event = event(&scene, "large");
        for attempt in 1..attempts {
            let report = run(&scene, &event);
            assert_eq!(
                report.outcome.class().as_str(),
                "transient",
                "attempt {attempt}: {report:?}"
            );
        }
        expect_done(&run(&scene, &event), "uploaded 1 path (");
        assert!(completes.load(Ordering::SeqCst) >= attempts);
        read_back(&scene, &large, &server.bucket("bucket").join("prefix"));
    }
}

/// `FileHash` and `FileSize` of a narinfo, and those of the object that it names.
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
fn a_narinfo_describes_the_object_that_is_stored_whoever_stored_it() {
    let same = || Script::text("the same contents");
    let scene = scene().derivation("first", same()).derivation("second", same());
    let cache = scene.state_dir().join("object-stores/cache");
    let mut paths = Vec::new();
    for (name, config) in [("first", "level = 1"), ("second", "level = 19")] {
        configure(&scene, config, "");
        paths.push(scene.build(name).expect_success().path());
        expect_done(&run(&scene, &event(&scene, name)), "uploaded 1 path (");
        for path in &paths {
            let [said, stored] = hashes(&cache, path);
            assert_eq!(said, stored, "{} after {name}", path.display());
        }
    }
}

/// How often each kind of request was made.
fn count(requests: &[String], method: &str, part: &str) -> usize {
    requests.iter().filter(|asked| asked.starts_with(method) && asked.contains(part)).count()
}

#[test]
fn tasks_that_need_the_same_path_send_it_once_and_ask_for_it_once() {
    let scene = scene()
        .derivation("left", Script::new("echo left $dependencies > $out").uses("alpha"))
        .derivation("right", Script::new("echo right $dependencies > $out").uses("alpha"))
        .derivation("later", Script::naming(["left", "right"]));
    let server = S3Server::start_faulty(&scene.path("s3"), &["bucket"], |asked| {
        asked.starts_with("PUT ").then_some(Fault::Later(Duration::from_millis(300)))
    });
    configure(&scene, "", &s3_store(&server, &scene, SECRET_ACCESS_KEY));
    for name in ["left", "right", "later"] {
        scene.build(name).expect_success();
    }
    let uploader = Uploader::new(&scene);
    let (left, right) = (event(&scene, "left"), event(&scene, "right"));
    let reports = uploader.runtime.block_on(async {
        tokio::join!(
            uploader.plugin.run_event(&uploader.services, &left, 1),
            uploader.plugin.run_event(&uploader.services, &right, 1)
        )
    });
    expect_done(&reports.0, "uploaded 2 paths (");
    expect_done(&reports.1, "uploaded 2 paths (");
    let requests = server.requests();
    assert_eq!(count(&requests, "PUT ", "/nar/"), 3, "three NARs in all: {requests:#?}");
    expect_done(&uploader.run(&event(&scene, "later")), "uploaded 1 path (");
    let asked = server.requests().len() - requests.len();
    // A look-up of its own, the nix-cache-info, its NAR and its narinfo.
    assert_eq!(asked, 4, "{:#?}", &server.requests()[requests.len()..]);
}

#[test]
fn a_run_that_stored_something_and_failed_has_made_progress() {
    let narinfos = Arc::new(AtomicUsize::new(0));
    let scene = scene();
    let server = S3Server::start_faulty(&scene.path("s3"), &["bucket"], move |asked| {
        let narinfo = asked.starts_with("PUT ") && asked.contains(".narinfo");
        (narinfo && narinfos.fetch_add(1, Ordering::SeqCst) > 0)
            .then_some(Fault::Answer(503, "SlowDown"))
    });
    configure(&scene, "", &s3_store(&server, &scene, SECRET_ACCESS_KEY));
    scene.build("gamma").expect_success();
    let report = run(&scene, &event(&scene, "gamma"));
    assert_eq!(report.outcome.class().as_str(), "transient", "{report:?}");
    assert!(report.outcome.message().starts_with("after 1 of 3 paths, "), "{report:?}");
    assert!(report.progress);
}

#[test]
fn a_tree_of_any_depth_is_uploaded() {
    let script = "d=$out; i=0; while [ $i -lt 200 ]; do d=$d/d; i=$((i+1)); done; \
                  /bin/mkdir -p $d; echo deep > $d/file";
    let scene = scene().derivation("deep", Script::new(script));
    configure(&scene, "", "");
    let deep = scene.build("deep").expect_success().path();
    expect_done(&run(&scene, &event(&scene, "deep")), "uploaded 1 path (");
    let url = format!("file://{}", scene.state_dir().join("object-stores/cache").display());
    let second = scene.second_store();
    second.copy_from(&deep, &url, &[scene.public_key("lab-1")]).expect_success();
    assert!(second.has(&deep));
}

/// What a killed worker has left at the server is ended by the next.
#[test]
fn an_upload_that_a_killed_process_has_left_is_aborted() {
    let stuck = Arc::new(AtomicBool::new(true));
    let hangs = Arc::clone(&stuck);
    let scene = Scene::new()
        .signing_key("lab-1")
        .signing_key("other-1")
        .derivation("large", Script::large(30 << 20));
    let server = S3Server::start_faulty(&scene.path("s3"), &["bucket"], move |asked| {
        (asked.contains("partNumber=2") && hangs.load(Ordering::SeqCst)).then_some(Fault::Hang)
    });
    configure(&scene, "compression = \"none\"", &s3_store(&server, &scene, SECRET_ACCESS_KEY));
    let config = std::fs::read_to_string(scene.config_path()).unwrap();
    scene.set_config(&format!("[worker]\nstart = \"none\"\n{config}"));
    let large = scene.build("large").expect_success().path();
    let mut worker = scene.hookrun_command(&["drain"]).spawn().unwrap();
    let begun = Instant::now();
    while count(&server.requests(), "PUT ", "partNumber=2") == 0 {
        assert!(begun.elapsed() < Duration::from_mins(2), "{:?}", server.requests());
        std::thread::sleep(Duration::from_millis(50));
    }
    worker.kill().unwrap();
    worker.wait().unwrap();
    let records = Dirs { config: scene.config_path(), state: scene.state_dir() }.uploads();
    assert_eq!(std::fs::read_dir(&records).unwrap().count(), 1, "it is on record");
    stuck.store(false, Ordering::SeqCst);
    scene.drain().expect_success();
    let requests = server.requests();
    assert_eq!(count(&requests, "DELETE ", "uploadId="), 1, "{requests:#?}");
    assert_eq!(std::fs::read_dir(&records).unwrap().count(), 0);
    read_back(&scene, &large, &server.bucket("bucket").join("prefix"));
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
    assert_eq!(report.outcome.class().as_str(), "permanent", "{report:?}");
    assert!(
        report.outcome.message().contains("its nix-cache-info says StoreDir `/gnu/store`"),
        "{report:?}"
    );
}
