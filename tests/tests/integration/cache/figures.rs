//! Requests, time and memory of `hookrun cache` on large caches that are made here. By default the
//! caches are small; `HOOKRUN_CACHE_NARINFOS` and `HOOKRUN_CACHE_OBJECTS` make them large:
//!
//! ```console
//! $ HOOKRUN_CACHE_NARINFOS=10000 HOOKRUN_CACHE_OBJECTS=100000 \
//!       cargo nextest run --test integration cache::figures --no-capture
//! ```

use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use hookrun_capability::object_store::{Bucket, ObjectStores};
use hookrun_tests::lab::s3::{S3Server, SECRET_ACCESS_KEY};
use hookrun_tests::lab::{ConfigFile, Scene};

/// Narinfos for `verify`, unless the environment says otherwise.
const NARINFOS: usize = 300;
/// Objects for `gc`, likewise.
const OBJECTS: usize = 3_000;
/// Requests at the same time, as `hookrun cache` has them.
const PARALLEL: usize = 32;

fn parameter(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Writes a cache of so many paths without Nix. Each refers to the three before it.
fn make(directory: &Path, paths: usize) {
    std::fs::create_dir_all(directory.join("nar")).unwrap();
    std::fs::write(directory.join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
    // The SHA-256 hash of nothing.
    let hash = "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
    for number in 0..paths {
        let name = |number: usize| format!("{number:032}-path-{number}");
        let mut references = String::new();
        for reference in number.saturating_sub(3)..number {
            write!(references, "{} ", name(reference)).unwrap();
        }
        let text = format!(
            "StorePath: /nix/store/{}\nURL: nar/{number:032}.nar.zst\nCompression: zstd\n\
             FileHash: {hash}\nFileSize: 4\nNarHash: {hash}\nNarSize: 120\nReferences: {}\n\
             Deriver: {}.drv\nSig: lab-1:{}\n",
            name(number),
            references.trim_end(),
            name(number),
            "A".repeat(88)
        );
        std::fs::write(directory.join(format!("{number:032}.narinfo")), text).unwrap();
        std::fs::write(directory.join(format!("nar/{number:032}.nar.zst")), "none").unwrap();
    }
}

/// Runs a command; returns its time, and its peak of resident memory in MiB.
fn measured(scene: &Scene, arguments: &[&str], exit: i32) -> (Duration, u64) {
    let begun = Instant::now();
    let mut command = scene.hookrun_command(arguments);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let ended = loop {
        // The peak only grows, so the last value that can be read is the peak.
        if let Ok(text) = std::fs::read_to_string(&status) {
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            peak = peak.max(kib.unwrap_or_default());
        }
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(ended.code(), Some(exit), "{arguments:?}");
    (begun.elapsed(), peak / 1024)
}

/// Reads the list and every narinfo, and nothing else.
async fn raw_requests(bucket: &Bucket) -> Duration {
    let begun = Instant::now();
    let mut keys = Vec::new();
    let take = |listed: hookrun_capability::object_store::Listed| {
        keys.push(listed.key);
        std::ops::ControlFlow::Continue(())
    };
    bucket.list(None, take).await.unwrap();
    let narinfos = keys.into_iter().filter(|key| key.ends_with(".narinfo"));
    stream::iter(narinfos)
        .map(|key| async move { bucket.get(&key, 1 << 20).await.unwrap().unwrap() })
        .buffer_unordered(PARALLEL)
        .for_each(|_| async {})
        .await;
    begun.elapsed()
}

#[test]
fn verify_costs_one_request_for_each_narinfo() {
    let narinfos = parameter("HOOKRUN_CACHE_NARINFOS", NARINFOS);
    let scene = Scene::new().signing_key("lab-1");
    let server = S3Server::start(&scene.path("s3"), &["bucket"]);
    make(&server.bucket("bucket"), narinfos);
    let store = server.object_store("s3://bucket", scene.dir(), SECRET_ACCESS_KEY);
    scene.set_config(&ConfigFile::new().object_store("cache", store));
    let config = hookrun_config::Config::load(&scene.config_path()).unwrap();
    let bucket = ObjectStores::new(&config, &scene.dirs()).bucket("cache").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let raw = runtime.block_on(raw_requests(&bucket));
    let before = server.requests().len();
    // The signatures are not valid, and are verified.
    let key = scene.public_key("lab-1").to_owned();
    let verify = ["cache", "verify", "cache", "--trusted-public-key", &key];
    let (time, peak) = measured(&scene, &verify, 1);
    let requests = server.requests().len() - before;
    let each = (requests * 1000 / narinfos) as u64;
    eprintln!(
        "verify of {narinfos} narinfos on S3: {requests} requests, {}.{:03} per narinfo; {} ms, raw \
         requests {} ms; peak {peak} MiB",
        each / 1000,
        each % 1000,
        time.as_millis(),
        raw.as_millis()
    );
    let pages = 2 * narinfos / 1000 + 1;
    assert!(requests <= narinfos + pages + 10, "{requests} requests for {narinfos} narinfos");
}

#[test]
fn gc_costs_one_request_for_each_narinfo_and_little_memory() {
    let objects = parameter("HOOKRUN_CACHE_OBJECTS", OBJECTS);
    let scene = Scene::new();
    let server = S3Server::start(&scene.path("s3"), &["bucket"]);
    let directory = server.bucket("bucket");
    make(&directory, objects / 2);
    let store = server.object_store("s3://bucket", scene.dir(), SECRET_ACCESS_KEY);
    scene.set_config(&ConfigFile::new().object_store("cache", store));
    let roots = scene.path("roots.txt");
    let half = objects / 4;
    std::fs::write(&roots, format!("/nix/store/{half:032}-path-{half}\n")).unwrap();
    let roots = roots.display().to_string();
    let before = server.requests().len();
    let gc = ["cache", "gc", "cache", "--roots-file", &roots];
    let (time, peak) = measured(&scene, &gc, 0);
    let requests = server.requests().len() - before;
    eprintln!(
        "gc (dry run) of {objects} objects on S3: {requests} requests; {} ms; peak {peak} MiB",
        time.as_millis()
    );
    assert!(requests <= objects / 2 + objects / 1000 + 10, "{requests} requests");
    let url = format!("file://{}", directory.display());
    let gc = ["cache", "gc", &url, "--roots-file", &roots, "--run", "--grace", "0s"];
    let (time, peak) = measured(&scene, &gc, 0);
    eprintln!(
        "gc --run of {objects} objects in a directory: {} ms; peak {peak} MiB",
        time.as_millis()
    );
    // A debug build has about 60 MiB without any object.
    let most = 100 + objects as u64 / 1000;
    assert!(peak <= most, "{peak} MiB for {objects} objects");
}
