//! Uploads to an S3 server that refuses requests, does not answer, or loses answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hookrun_nix::outcome::Outcome;
use hookrun_tests::lab::s3::{Fault, S3Server};
use hookrun_tests::lab::{ConfigFile, Scene, Script, toml, wait_for};
use toml::Table;

use super::{configure, count, expect_done, read_back, run, s3_store, scene};

/// Makes a scene in which `alpha` is built, and an S3 server with faults for its store, which has
/// more keys in its table.
fn with_faults(
    store: Table,
    rule: impl Fn(&str) -> Option<Fault> + Send + Sync + 'static,
) -> (Scene, S3Server) {
    let scene = scene();
    let server = S3Server::start_faulty(&scene.path("s3"), &["bucket"], rule);
    let mut settings = s3_store(&server, &scene);
    settings.extend(store);
    configure(&scene, toml! { compression = "none" }, settings);
    scene.build("alpha").expect_success();
    (scene, server)
}

/// Changes keys of the configuration.
fn change_config(scene: &Scene, keys: Table) {
    let file: Table = std::fs::read_to_string(scene.config_path()).unwrap().parse().unwrap();
    scene.set_config(&ConfigFile::from(file).and(keys));
}

#[test]
fn an_upload_with_a_wrong_secret_is_refused_with_store_and_status() {
    let scene = scene();
    let server = S3Server::start(&scene.path("s3"), &["bucket"]);
    let store = server.object_store("s3://bucket/prefix", scene.dir(), "wrong-secret");
    configure(&scene, Table::new(), store);
    scene.build("alpha").expect_success();
    let report = run(&scene, &scene.build_event("alpha"));
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

/// The first request is a HEAD, whose answer has only a status.
#[test]
fn wrong_settings_of_the_operator_are_refused_with_the_fix() {
    for (status, code, fix) in [
        (400, "ExpiredToken", "the credentials have expired"),
        (403, "RequestTimeTooSkewed", "this machine's clock is wrong"),
        (403, "InvalidAccessKeyId", "check the credentials of [object-stores.cache]"),
        (401, "Unauthorized", "check the credentials of [object-stores.cache]"),
        (400, "AuthorizationHeaderMalformed", "see [object-stores.cache]"),
    ] {
        let (scene, server) = with_faults(Table::new(), move |_| Some(Fault::Answer(status, code)));
        let report = run(&scene, &scene.build_event("alpha"));
        let Outcome::Refused { message } = &report.outcome else { panic!("{code}: {report:?}") };
        assert!(message.contains(code) && message.contains(fix), "{message}");
        assert_eq!(server.requests().len(), 2, "no retries: {:?}", server.requests());
    }
}

#[test]
fn a_bucket_without_the_permission_to_list_it_takes_uploads() {
    let (scene, server) = with_faults(Table::new(), |_| None);
    let root = server.bucket("bucket").parent().unwrap().to_owned();
    drop(server);
    let there = root.clone();
    // S3 answers this to users who may read and write objects but not list the bucket.
    let server = S3Server::start_faulty(&root, &[], move |asked| {
        let (method, uri) = asked.split_once(' ').unwrap();
        let path = uri.split('?').next().unwrap().trim_start_matches('/');
        (matches!(method, "GET" | "HEAD") && !there.join(path).exists())
            .then_some(Fault::Answer(403, "AccessDenied"))
    });
    configure(&scene, Table::new(), s3_store(&server, &scene));
    scene.build("gamma").expect_success();
    expect_done(&run(&scene, &scene.build_event("gamma")), "uploaded 3 paths (");
    expect_done(&run(&scene, &scene.build_event("gamma")), "uploaded nothing, 3 present");
}

#[test]
fn a_write_that_is_forbidden_is_refused() {
    let (scene, _server) = with_faults(Table::new(), |asked| {
        asked.starts_with("PUT ").then_some(Fault::Answer(403, "AccessDenied"))
    });
    let report = run(&scene, &scene.build_event("alpha"));
    assert_eq!(report.outcome.class().as_str(), "refused", "{report:?}");
    assert!(!report.progress, "nothing was stored");
}

#[test]
fn a_server_that_does_not_answer_is_a_transient_failure() {
    for method in ["GET", "PUT"] {
        let (scene, _server) = with_faults(toml! { timeout = "300ms" }, move |asked| {
            asked.starts_with(method).then_some(Fault::Hang)
        });
        // The wait for the server is longer, and does not count as wall time of the plugin.
        change_config(&scene, toml! { plugins.cache.limits.wall-time = "250ms" });
        let report = run(&scene, &scene.build_event("alpha"));
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
fn an_https_endpoint_without_tls_is_refused() {
    let (scene, server) = with_faults(Table::new(), |_| None);
    let with_tls = server.endpoint().replace("http://", "https://");
    change_config(&scene, toml! { object-stores.cache.endpoint = with_tls });
    let report = run(&scene, &scene.build_event("alpha"));
    let Outcome::Refused { message } = &report.outcome else { panic!("{report:?}") };
    assert!(
        message.contains("no secure connection (") && message.contains("endpoint"),
        "{message}"
    );
}

#[test]
fn an_endless_answer_is_cut() {
    for (status, method, class) in
        [(500, "PUT", "transient"), (403, "PUT", "refused"), (200, "POST", "transient")]
    {
        let (scene, _server) = with_faults(toml! { timeout = "5s" }, move |asked| {
            asked.starts_with(method).then_some(Fault::Endless(status))
        });
        let scene = scene.derivation("large", Script::large(20 << 20));
        scene.build("large").expect_success();
        let report = run(&scene, &scene.build_event("large"));
        assert_eq!(report.outcome.class().as_str(), class, "{report:?}");
        assert!(report.outcome.message().len() < 2000, "{}", report.outcome.message().len());
    }
}

/// The server completed the upload, but answered with an error or did not answer.
#[test]
fn an_upload_succeeds_although_the_answer_to_its_end_is_lost() {
    type Make = fn() -> Fault;
    let lost: Make = || Fault::Lost;
    let unknown: Make = || Fault::Answer(404, "NoSuchUpload");
    for (fault, attempts) in [(lost, 1), (unknown, 2)] {
        let completes = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&completes);
        let (scene, server) = with_faults(Table::new(), move |asked| {
            let completes = asked.starts_with("POST ") && asked.contains("uploadId=");
            (completes && count.fetch_add(1, Ordering::SeqCst) == 0).then(fault)
        });
        let scene = scene.derivation("large", Script::large(20 << 20));
        let large = scene.build("large").expect_success().path();
        let event = scene.build_event("large");
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

#[test]
fn a_run_that_stored_something_and_failed_has_made_progress() {
    let narinfos = Arc::new(AtomicUsize::new(0));
    let scene = scene();
    let server = S3Server::start_faulty(&scene.path("s3"), &["bucket"], move |asked| {
        let narinfo = asked.starts_with("PUT ") && asked.contains(".narinfo");
        (narinfo && narinfos.fetch_add(1, Ordering::SeqCst) > 0)
            .then_some(Fault::Answer(503, "SlowDown"))
    });
    configure(&scene, Table::new(), s3_store(&server, &scene));
    scene.build("gamma").expect_success();
    let report = run(&scene, &scene.build_event("gamma"));
    assert_eq!(report.outcome.class().as_str(), "transient", "{report:?}");
    assert!(report.outcome.message().starts_with("after 1 of 3 paths, "), "{report:?}");
    assert!(report.progress);
}

#[test]
fn an_upload_of_a_killed_worker_is_aborted_by_the_next_worker() {
    let stuck = Arc::new(AtomicBool::new(true));
    let hangs = Arc::clone(&stuck);
    let scene = Scene::new()
        .signing_key("lab-1")
        .signing_key("other-1")
        .derivation("large", Script::large(30 << 20));
    let server = S3Server::start_faulty(&scene.path("s3"), &["bucket"], move |asked| {
        (asked.contains("partNumber=2") && hangs.load(Ordering::SeqCst)).then_some(Fault::Hang)
    });
    configure(&scene, toml! { compression = "none" }, s3_store(&server, &scene));
    let large = scene.build("large").expect_success().path();
    let mut worker = scene.hookrun_command(&["drain"]).spawn().unwrap();
    wait_for("the second part is sent", || count(&server.requests(), "PUT ", "partNumber=2") > 0);
    worker.kill().unwrap();
    worker.wait().unwrap();
    let records = scene.dirs().uploads();
    assert_eq!(std::fs::read_dir(&records).unwrap().count(), 1, "the upload is on record");
    stuck.store(false, Ordering::SeqCst);
    scene.drain().expect_success();
    let requests = server.requests();
    assert_eq!(count(&requests, "DELETE ", "uploadId="), 1, "{requests:#?}");
    assert_eq!(std::fs::read_dir(&records).unwrap().count(), 0);
    read_back(&scene, &large, &server.bucket("bucket").join("prefix"));
}
