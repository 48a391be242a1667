//! Object stores against real servers with faults: objects are written once, transient faults are
//! retried, permanent ones stop with the fix, and nothing wrong is ever visible.

mod credentials;
mod installations;
mod kills;
mod odd_paths;
mod plain_http;
mod servers;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hookrun_capability::nix_store::Nar;
use hookrun_capability::object_store::{ObjectAttributes, ObjectStores, StoredNar};
use hookrun_capability::{CapabilityError, ErrorKind};
use hookrun_config::Config;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::nar::{Compression, Expected, Source, decode};
use hookrun_tests::lab::s3::{Conditions, Fault, S3Server, SECRET_ACCESS_KEY};
use hookrun_tests::lab::toml;
use toml::Table;

/// Three parts of a multipart upload.
const LARGE: usize = 17 << 20;
const SMALL: usize = 1000;

/// The store `cache` with this table, as a process that has just started has it.
fn stores(state: &Path, store: Table) -> ObjectStores {
    let file = toml! { object-stores.cache = store };
    let config = Config::parse(Path::new("hookrun.toml"), &file.to_string()).unwrap();
    let dirs = Dirs { config: "hookrun.toml".into(), state: state.to_owned() };
    std::fs::create_dir_all(dirs.uploads()).unwrap();
    ObjectStores::new(&config, &dirs)
}

/// Bytes that do not compress, other ones for each seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

fn nar(bytes: Vec<u8>) -> Nar {
    let (nar_hash, nar_size) = hookrun_nix::nar::hash(&bytes);
    let path = "/nix/store/7yqz1aw5s3jr0vkxg2h9w4l6dqm8nfbc-greet".into();
    Nar { source: Source::Bytes(bytes.into()), expected: Expected { path, nar_hash, nar_size } }
}

async fn put(stores: &ObjectStores, nar: &Nar) -> Result<StoredNar, CapabilityError> {
    let attributes = ObjectAttributes::default();
    stores.put_nar_once("cache", "nar", Compression::None, nar.clone(), &attributes).await
}

/// The texts of the narinfos in a cache that is a directory.
fn narinfos(cache: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(cache) else { return Vec::new() };
    let files = entries.map(|entry| entry.unwrap().path());
    files
        .filter(|file| file.extension().is_some_and(|extension| extension == "narinfo"))
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .collect()
}

/// The value of a line of a narinfo.
#[track_caller]
fn value<'a>(narinfo: &'a str, key: &str) -> &'a str {
    let of = |line: &'a str| line.strip_prefix(key)?.strip_prefix(": ");
    narinfo.lines().find_map(of).unwrap_or_else(|| panic!("no {key}: {narinfo}"))
}

/// Checks every narinfo of a cache that is a directory: its NAR has the stated hashes and sizes,
/// and its references are in the cache. Returns the number of narinfos.
#[track_caller]
fn check_cache(cache: &Path) -> usize {
    let narinfos = narinfos(cache);
    for narinfo in &narinfos {
        let compression = Compression::parse(value(narinfo, "Compression"), None).unwrap();
        let file = std::fs::File::open(cache.join(value(narinfo, "URL"))).unwrap();
        let size: u64 = value(narinfo, "NarSize").parse().unwrap();
        let decoded = decode(compression, file, size).unwrap();
        assert_eq!(decoded.nar_hash, value(narinfo, "NarHash"), "{narinfo}");
        assert_eq!(decoded.nar_size, size, "{narinfo}");
        assert_eq!(decoded.stored.file_hash, value(narinfo, "FileHash"), "{narinfo}");
        assert_eq!(decoded.stored.file_size.to_string(), value(narinfo, "FileSize"), "{narinfo}");
        for reference in value(narinfo, "References").split_whitespace() {
            let (hash, _) = reference.split_once('-').unwrap();
            assert!(cache.join(format!("{hash}.narinfo")).exists(), "{reference} of {narinfo}");
        }
    }
    narinfos.len()
}

/// Starts a server with a directory of its own. One that knows no conditions checks no signatures.
fn server(
    directory: &Path,
    conditions: Conditions,
    rule: impl Fn(&str) -> Option<Fault> + Send + Sync + 'static,
) -> (S3Server, Table) {
    let root = directory.join("s3");
    std::fs::create_dir_all(&root).unwrap();
    if conditions == Conditions::Honour {
        let server = S3Server::start_faulty(&root, &["bucket"], rule);
        let table = server.object_store("s3://bucket/prefix", directory, SECRET_ACCESS_KEY);
        (server, table)
    } else {
        let server = S3Server::start_old(&root, &["bucket"], conditions, rule);
        let table = server.anonymous_store("s3://bucket/prefix");
        (server, table)
    }
}

const SERVERS: [Conditions; 3] = [Conditions::Honour, Conditions::Ignore, Conditions::Refuse];

#[tokio::test(flavor = "multi_thread")]
async fn an_object_is_written_once_on_each_kind_of_server() {
    for conditions in SERVERS {
        for (seed, length) in [(1, SMALL), (2, LARGE)] {
            let dir = tempfile::tempdir().unwrap();
            let (server, table) = server(dir.path(), conditions, |_| None);
            let nar = nar(noise(seed, length));
            let first = put(&stores(dir.path(), table.clone()), &nar).await.unwrap();
            assert!(first.created);
            let second = put(&stores(dir.path(), table.clone()), &nar).await.unwrap();
            assert_eq!(second, StoredNar { created: false, ..first.clone() }, "{conditions:?}");
            // Another object under the name, as by a defect of another writer.
            let file = server.bucket("bucket").join("prefix").join(&first.key);
            std::fs::write(&file, noise(3, length + 1)).unwrap();
            let error = put(&stores(dir.path(), table), &nar).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Permanent, "{conditions:?}: {error}");
            assert!(error.message.contains("is not the NAR of"), "{error}");
            assert!(error.message.contains(&first.key), "{error}");
            assert_eq!(std::fs::read(&file).unwrap(), noise(3, length + 1), "it is left as it is");
            assert_eq!(server.expect_written_once(), 1);
            assert_eq!(server.open_uploads(), Vec::<String>::new(), "{conditions:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_of_an_object_agree_on_each_kind_of_server() {
    for conditions in SERVERS {
        let dir = tempfile::tempdir().unwrap();
        let (server, table) = server(dir.path(), conditions, |_| None);
        for (seed, length) in [(1, SMALL), (2, LARGE)] {
            let nar = nar(noise(seed, length));
            let writers: Vec<_> = (0..4)
                .map(|_| {
                    let (stores, nar) = (stores(dir.path(), table.clone()), nar.clone());
                    tokio::spawn(async move { put(&stores, &nar).await.unwrap().written })
                })
                .collect();
            for writer in writers {
                assert_eq!(writer.await.unwrap().file_hash, nar.expected.nar_hash);
            }
        }
        assert_eq!(server.expect_written_once(), 2);
        assert_eq!(server.open_uploads(), Vec::<String>::new(), "{conditions:?}");
    }
}

/// Puts the NAR as the queue does: again after a transient error.
async fn put_with_retries(directory: &Path, table: &Table, nar: &Nar) -> StoredNar {
    for _ in 0..6 {
        match put(&stores(directory, table.clone()), nar).await {
            Ok(stored) => return stored,
            Err(error) => assert_eq!(error.kind, ErrorKind::Transient, "{error}"),
        }
    }
    panic!("it never succeeds")
}

#[tokio::test(flavor = "multi_thread")]
async fn transient_faults_are_retried_and_leave_nothing_wrong() {
    type Make = fn() -> Fault;
    let faults: [(&str, Make); 9] = [
        ("SlowDown", || Fault::SlowDown(0)),
        ("503", || Fault::Answer(503, "ServiceUnavailable")),
        ("500", || Fault::Answer(500, "InternalError")),
        ("conflict", || Fault::Answer(409, "ConditionalRequestConflict")),
        ("reset", || Fault::Reset),
        ("lost answer", || Fault::Lost),
        ("cut answer", || Fault::CutAnswer),
        ("race", || Fault::Race),
        ("later", || Fault::Later(Duration::from_millis(200))),
    ];
    for (name, fault) in faults {
        for (method, part, length) in [
            ("HEAD ", "", SMALL),
            ("PUT ", "/nar/", SMALL),
            ("POST ", "uploads", LARGE),
            ("PUT ", "partNumber=2", LARGE),
            ("POST ", "uploadId=", LARGE),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let count = Arc::new(AtomicUsize::new(0));
            let (server, table) = server(dir.path(), Conditions::Honour, move |asked| {
                let meets = asked.starts_with(method) && asked.contains(part);
                (meets && count.fetch_add(1, Ordering::SeqCst) < 2).then(fault)
            });
            let nar = nar(noise(1, length));
            let stored = put_with_retries(dir.path(), &table, &nar).await;
            let what = format!("{name} of {method}{part}");
            assert_eq!(stored.written.file_hash, nar.expected.nar_hash, "{what}");
            let file = server.bucket("bucket").join("prefix").join(&stored.key);
            assert_eq!(std::fs::read(file).unwrap(), noise(1, length), "{what}");
            server.expect_written_once();
            // A lost answer to the begin of an upload leaves its name unknown to the client.
            if !(part == "uploads" && matches!(name, "lost answer" | "cut answer" | "race")) {
                if !server.open_uploads().is_empty() {
                    // The next process ends what this one could not.
                    put(&stores(dir.path(), table), &self::nar(noise(9, SMALL))).await.unwrap();
                }
                assert_eq!(server.open_uploads(), Vec::<String>::new(), "{what}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn permanent_faults_stop_with_the_fix_and_nothing_is_visible() {
    for (status, code, fix) in [
        (403, "RequestTimeTooSkewed", "this machine's clock is wrong"),
        (400, "ExpiredToken", "the credentials have expired"),
        (403, "AccessDenied", "that they may read and write there"),
        (403, "InvalidAccessKeyId", "check the credentials of [object-stores.cache]"),
        (404, "NoSuchBucket", "see that the bucket of `url`"),
    ] {
        for length in [SMALL, LARGE] {
            let dir = tempfile::tempdir().unwrap();
            let (server, table) = server(dir.path(), Conditions::Honour, move |asked| {
                let writes = asked.starts_with("PUT ") || asked.starts_with("POST ");
                writes.then_some(Fault::Answer(status, code))
            });
            let nar = nar(noise(1, length));
            let error = put(&stores(dir.path(), table), &nar).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Refused, "{code}: {error}");
            assert!(error.message.contains(code) && error.message.contains(fix), "{error}");
            assert!(server.writes().is_empty());
            let writes =
                server.requests().iter().filter(|asked| !asked.starts_with("HEAD ")).count();
            assert_eq!(writes, 1, "it is not tried again: {:?}", server.requests());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_expire_during_an_upload_leave_nothing_after_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let expired = Arc::new(AtomicUsize::new(0));
    let asked_parts = Arc::clone(&expired);
    let (server, table) = server(dir.path(), Conditions::Honour, move |asked| {
        if asked.contains("partNumber=2") {
            asked_parts.fetch_max(1, Ordering::SeqCst);
        }
        // From the second part on, until the operator has renewed them.
        (asked_parts.load(Ordering::SeqCst) == 1).then_some(Fault::Answer(400, "ExpiredToken"))
    });
    let nar = nar(noise(1, LARGE));
    let error = put(&stores(dir.path(), table.clone()), &nar).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused, "{error}");
    assert!(error.message.contains("the credentials have expired"), "{error}");
    assert_eq!(server.open_uploads().len(), 1, "it could not be aborted");
    assert!(server.writes().is_empty());
    expired.store(2, Ordering::SeqCst);
    let stored = put(&stores(dir.path(), table), &nar).await.unwrap();
    assert!(stored.created);
    assert_eq!(server.open_uploads(), Vec::<String>::new());
    assert_eq!(server.expect_written_once(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_may_not_be_read_is_missing_for_reads_and_an_error_for_writes() {
    let dir = tempfile::tempdir().unwrap();
    let writes_too = Arc::new(AtomicUsize::new(0));
    let (root, forbidden) = (dir.path().join("s3"), Arc::clone(&writes_too));
    let (server, table) = server(dir.path(), Conditions::Honour, move |asked| {
        let (method, uri) = asked.split_once(' ').unwrap();
        let path = uri.split('?').next().unwrap().trim_start_matches('/');
        let reads = matches!(method, "GET" | "HEAD");
        let denied =
            if reads { !root.join(path).exists() } else { forbidden.load(Ordering::SeqCst) > 0 };
        denied.then_some(Fault::Answer(403, "AccessDenied"))
    });
    let stores = stores(dir.path(), table);
    let attributes = ObjectAttributes::content_type("text/plain");
    assert_eq!(stores.exists("cache", &["a".to_owned()]).await.unwrap(), [false]);
    assert_eq!(stores.get("cache", "a", 10).await.unwrap(), None);
    for length in [SMALL, LARGE] {
        assert!(put(&stores, &nar(noise(1, length))).await.unwrap().created);
    }
    stores.put_new("cache", "a", b"text".to_vec(), &attributes).await.unwrap();
    assert_eq!(stores.get("cache", "a", 10).await.unwrap(), Some(b"text".to_vec()));
    writes_too.store(1, Ordering::SeqCst);
    let error = stores.put_new("cache", "b", b"text".to_vec(), &attributes).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused, "{error}");
    assert!(error.message.contains("that they may read and write there"), "{error}");
    assert_eq!(server.expect_written_once(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_kept_by_all_requests_to_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let (server, table) = server(dir.path(), Conditions::Honour, move |asked| {
        let first = asked.starts_with("PUT ") && count.fetch_add(1, Ordering::SeqCst) == 0;
        first.then_some(Fault::SlowDown(2))
    });
    let stores = Arc::new(stores(dir.path(), table.clone()));
    let start = Instant::now();
    let attributes = ObjectAttributes::default();
    stores.put_new("cache", "a", b"text".to_vec(), &attributes).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(stores.throttled("cache"), 1);
    assert_eq!(server.expect_written_once(), 1);
    drop(server);
    // A long pause is for the queue.
    let (_server, table) = self::server(dir.path(), Conditions::Honour, |asked| {
        asked.starts_with("PUT ").then_some(Fault::SlowDown(3600))
    });
    let stores = self::stores(dir.path(), table);
    let start = Instant::now();
    let error = stores.put_new("cache", "b", b"text".to_vec(), &attributes).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Transient, "{error}");
    assert!(error.retry_after.is_some_and(|wait| wait > Duration::from_mins(59)), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(20), "no call waits that long");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_byte_by_byte_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, mut table) = server(dir.path(), Conditions::Honour, |asked| {
        asked.starts_with("GET ").then_some(Fault::Drip(Duration::from_secs(5)))
    });
    table.insert("timeout".to_owned(), "300ms".into());
    let stores = stores(dir.path(), table);
    let attributes = ObjectAttributes::default();
    stores.put_new("cache", "a", b"text".to_vec(), &attributes).await.unwrap();
    let error = stores.get("cache", "a", 10).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Transient, "{error}");
    assert!(error.message.contains("no answer in time"), "{error}");
}
