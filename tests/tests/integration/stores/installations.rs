//! Two installations with different settings push the same closures to one bucket again and again,
//! while a client downloads in two pieces (`Range`). No download is ever corrupt.
//!
//! `cargo xtask crash --installations` runs the long form.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hookrun_nix::nar::{Compression, decode};
use hookrun_tests::lab::s3::{Conditions, S3Server};
use hookrun_tests::lab::{Scene, Script, toml};

use super::{check_cache, narinfos, value};
use crate::upload::{Uploader, configuration, expect_done};

#[test]
fn two_installations_never_make_a_download_corrupt() {
    for conditions in [Conditions::Honour, Conditions::Ignore] {
        push(6, conditions);
    }
}

#[test]
#[ignore = "takes minutes: `cargo xtask crash --installations` runs it"]
fn two_installations_never_make_a_download_corrupt_in_a_long_run() {
    let pushes = std::env::var("HOOKRUN_CRASH_PUSHES").map_or(1000, |text| text.parse().unwrap());
    for conditions in [Conditions::Honour, Conditions::Ignore] {
        push(pushes / 2, conditions);
    }
}

fn push(times: usize, conditions: Conditions) {
    let scene = Scene::new()
        .nix_conf("post-build-hook", "")
        .signing_key("lab-1")
        .derivation("alpha", Script::text("hello"))
        .derivation("beta", Script::large(10 << 20).uses("alpha"))
        .derivation("gamma", Script::naming(["alpha", "beta"]))
        .derivation("delta", Script::naming(["beta"]));
    let server = S3Server::start_old(&scene.path("s3"), &["bucket"], conditions, |_| None);
    let bucket = server.bucket("bucket");
    scene.build("gamma").expect_success();
    scene.build("delta").expect_success();
    let events = [scene.build_event("gamma"), scene.build_event("delta")];
    let settings = [toml! { compression = "none" }, toml! { level = 1 }];
    let ended = AtomicBool::new(false);
    let downloads = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            while !ended.load(Ordering::SeqCst) {
                for narinfo in narinfos(&bucket) {
                    download(&server.endpoint(), &narinfo);
                    downloads.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        for _ in 0..times {
            // As after a collection of narinfos: the NARs stay.
            for path in std::fs::read_dir(&bucket).unwrap().map(|entry| entry.unwrap().path()) {
                if path.extension().is_some_and(|extension| extension == "narinfo") {
                    std::fs::remove_file(path).unwrap();
                }
            }
            let uploaders = settings.clone().map(|keys| {
                scene.set_config(&configuration(keys, server.anonymous_store("s3://bucket")));
                Uploader::new(&scene)
            });
            std::thread::scope(|pushing| {
                for (uploader, event) in uploaders.iter().zip(&events) {
                    pushing.spawn(|| {
                        let report = uploader.run(event);
                        expect_done(&report, "uploaded ");
                    });
                }
            });
        }
        ended.store(true, Ordering::SeqCst);
        client.join().unwrap();
    });
    check_cache(&bucket);
    server.expect_written_once();
    assert_eq!(server.open_uploads(), Vec::<String>::new());
    let downloads = downloads.into_inner();
    println!("{times} pushes of two installations ({conditions:?}), {downloads} downloads");
    assert!(downloads > 0);
}

/// Downloads the NAR of a narinfo in two pieces and checks it.
fn download(endpoint: &str, narinfo: &str) {
    let url = value(narinfo, "URL");
    let size: usize = value(narinfo, "FileSize").parse().unwrap();
    let get = |from: usize, to: usize| range(endpoint, &format!("/bucket/{url}"), from, to);
    let mut bytes = get(0, size / 2);
    bytes.extend(get(bytes.len(), size));
    assert_eq!(bytes.len(), size, "{url}");
    let compression = Compression::parse(value(narinfo, "Compression"), None).unwrap();
    let size = value(narinfo, "NarSize").parse().unwrap();
    let decoded = decode(compression, bytes.as_slice(), size).unwrap();
    assert_eq!(decoded.nar_hash, value(narinfo, "NarHash"), "{url}");
    assert_eq!(decoded.stored.file_hash, value(narinfo, "FileHash"), "{url}");
}

/// Returns the bytes of an object from `from` to before `to`.
fn range(endpoint: &str, path: &str, from: usize, to: usize) -> Vec<u8> {
    if from >= to {
        return Vec::new();
    }
    let address = endpoint.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nRange: bytes={from}-{}\r\nConnection: close\r\n\r\n",
        to - 1
    )
    .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    assert!(head.starts_with("HTTP/1.1 206 "), "{path}: {head}");
    answer.split_off(end + 4)
}
