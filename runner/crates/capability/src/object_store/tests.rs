use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use super::*;
use crate::nix_store::sample::Sample;
use crate::nix_store::{Backend as _, Nar};
use hookrun_nix::nar::{Compression, Expected, Source};

fn stores(text: &str, state: &FilePath) -> ObjectStores {
    let config = Config::parse(FilePath::new("hookrun.toml"), text).unwrap();
    ObjectStores::new(&config, &Dirs { config: "hookrun.toml".into(), state: state.to_owned() })
}

fn nar(bytes: Vec<u8>) -> Nar {
    let (nar_hash, nar_size) = hookrun_nix::nar::hash(&bytes);
    let expected = Expected {
        path: "/nix/store/7yqz1aw5s3jr0vkxg2h9w4l6dqm8nfbc-greet".into(),
        nar_hash,
        nar_size,
    };
    Nar { source: Source::Bytes(bytes.into()), expected }
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}

/// All files below `dir`.
fn files(dir: &FilePath) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                found.push(path.strip_prefix(dir).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn small_objects_are_written_read_and_listed() {
    let state = tempfile::tempdir().unwrap();
    for text in ["[object-stores.cache]", "[object-stores.cache]\nurl = \"memory:///prefix\""] {
        let stores = stores(text, state.path());
        stores.put("cache", "a/1", "text/plain", b"one".to_vec()).await.unwrap();
        stores.put("cache", "a/12", "text/plain", b"two".to_vec()).await.unwrap();
        stores.put("cache", "b", "text/plain", vec![]).await.unwrap();
        let keys = ["a/1", "a/3", "b"].map(str::to_owned);
        assert_eq!(stores.exists("cache", &keys).await.unwrap(), [true, false, true]);
        assert_eq!(stores.get("cache", "a/12", 3).await.unwrap(), Some(b"two".to_vec()));
        assert_eq!(stores.get("cache", "none", 3).await.unwrap(), None);
        assert_eq!(stores.get("cache", "a/12", 2).await.unwrap_err().kind, ErrorKind::Limit);
        let mut listed = stores.list("cache", "a/1", 10, 100).await.unwrap();
        listed.sort();
        assert_eq!(listed, ["a/1", "a/12"]);
        assert_eq!(stores.list("cache", "", 2, 100).await.unwrap().len(), 2);
        assert_eq!(
            stores.list("cache", "", u32::MAX, 4).await.unwrap().len(),
            2,
            "no more is gathered than may cross"
        );
        for key in ["", "/a", "a//b", "../a", "a/", "."] {
            assert_eq!(
                stores.get("cache", key, 1).await.unwrap_err().kind,
                ErrorKind::Invalid,
                "{key}"
            );
        }
    }
    let directory = state.path().join("object-stores/cache");
    assert_eq!(files(&directory), ["a/1", "a/12", "b"]);
    let mode = std::os::unix::fs::MetadataExt::mode(&directory.metadata().unwrap());
    assert_eq!(mode & 0o777, 0o700, "others do not read hookrun's own directories");
}

#[tokio::test]
async fn nars_of_one_part_and_of_many() {
    let state = tempfile::tempdir().unwrap();
    let stores = stores("[object-stores.cache]", state.path());
    let sample = Sample::new();
    let (_, outputs) = Sample::built();
    let mut infos = Vec::new();
    let take = &mut |info: Option<hookrun_nix::database::PathInfo>| {
        infos.extend(info);
        Ok(())
    };
    sample.each_info(&[outputs[0].path.clone()], take).unwrap();
    let info = infos.remove(0);
    let expected =
        Expected { path: info.path.clone(), nar_hash: info.nar_hash, nar_size: info.nar_size };
    let small = Nar { source: sample.nar_source(&info.path), expected };
    let exact = nar(noise(2 * put_nar::PART));
    let large = nar(noise(3 * put_nar::PART + 5));
    for (key, nar) in [("small", small), ("exact", exact), ("large", large)] {
        for compression in [Compression::None, Compression::Zstd(3)] {
            let key = format!("{key}-{}", compression.object_name("n"));
            let written = stores.put_nar("cache", &key, compression, nar.clone()).await.unwrap();
            let bytes = std::fs::read(state.path().join("object-stores/cache").join(key)).unwrap();
            assert_eq!((written.file_hash, written.file_size), hookrun_nix::nar::hash(&bytes));
            let plain = if compression == Compression::None {
                bytes
            } else {
                zstd::decode_all(bytes.as_slice()).unwrap()
            };
            assert_eq!(
                hookrun_nix::nar::hash(&plain),
                (nar.expected.nar_hash.clone(), nar.expected.nar_size)
            );
        }
    }
    assert_eq!(files(&state.path().join("object-stores/cache")).len(), 6, "and no other file");
}

/// A NAR that compresses, and needs several parts if it is not compressed.
fn text_nar(length: usize) -> (Vec<u8>, Nar) {
    let mut bytes = b"a line of text\n".repeat(length / 15);
    bytes.extend(noise(length / 2));
    (bytes.clone(), nar(bytes))
}

async fn put_once(
    stores: &ObjectStores,
    compression: Compression,
    nar: &Nar,
) -> Result<StoredNar, CapabilityError> {
    let attributes = ObjectAttributes::default();
    stores.put_nar_once("cache", "nar", compression, nar.clone(), &attributes).await
}

#[tokio::test]
async fn a_stored_nar_is_never_replaced() {
    for (length, compression) in [
        (100, Compression::Zstd(3)),
        (3 * put_nar::PART, Compression::Zstd(3)),
        (3 * put_nar::PART, Compression::None),
        (100, Compression::Xz(0)),
    ] {
        let state = tempfile::tempdir().unwrap();
        // As another process, which remembers nothing.
        let fresh = || stores("[object-stores.cache]", state.path());
        let (bytes, nar) = text_nar(length);
        let first = put_once(&fresh(), compression, &nar).await.unwrap();
        assert!(first.created);
        let file = state.path().join("object-stores/cache").join(&first.key);
        let second = put_once(&fresh(), compression, &nar).await.unwrap();
        assert_eq!(second, StoredNar { created: false, ..first.clone() });
        // Another encoding of the same NAR, as by another version of the library.
        let other = match compression {
            Compression::Zstd(_) => zstd::encode_all(bytes.as_slice(), 1).unwrap(),
            Compression::Xz(_) | Compression::None => std::fs::read(&file).unwrap(),
        };
        std::fs::write(&file, &other).unwrap();
        let third = put_once(&fresh(), compression, &nar).await.unwrap();
        let written = &third.written;
        assert_eq!(
            (written.file_hash.clone(), written.file_size),
            hookrun_nix::nar::hash(&other),
            "what is published is true for the stored object"
        );
        let (half, _) = other.split_at(other.len() / 2);
        std::fs::write(&file, half).unwrap();
        let error = put_once(&fresh(), compression, &nar).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Permanent);
        assert!(error.message.contains("is not the NAR of /nix/store/"), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), half, "it is left as it is");
        assert_eq!(files(state.path()).len(), 1, "{:?}", files(state.path()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_writers_of_a_nar_creates_it() {
    let state = tempfile::tempdir().unwrap();
    let (_, nar) = text_nar(3 * put_nar::PART);
    for compression in [Compression::Zstd(1), Compression::None] {
        let writers: Vec<_> = (0..6)
            .map(|_| {
                let stores = stores("[object-stores.cache]", state.path());
                let nar = nar.clone();
                tokio::spawn(async move { put_once(&stores, compression, &nar).await.unwrap() })
            })
            .collect();
        let mut stored = Vec::new();
        for writer in writers {
            stored.push(writer.await.unwrap());
        }
        assert_eq!(stored.iter().filter(|stored| stored.created).count(), 1);
        assert!(stored.iter().all(|other| other.written == stored[0].written));
    }
    assert_eq!(files(&state.path().join("object-stores/cache")).len(), 2);
}

#[tokio::test]
async fn a_new_object_does_not_replace_another() {
    let state = tempfile::tempdir().unwrap();
    let stores = stores("[object-stores.cache]", state.path());
    let attributes = ObjectAttributes::content_type("text/plain");
    let put = |body: &str| stores.put_new("cache", "a", body.as_bytes().to_vec(), &attributes);
    assert_eq!(put("one").await.unwrap(), Creation::Created);
    assert_eq!(put("two").await.unwrap(), Creation::Exists);
    assert_eq!(stores.get("cache", "a", 3).await.unwrap(), Some(b"one".to_vec()));
    stores.put_with("cache", "a", b"two".to_vec(), &attributes).await.unwrap();
    assert_eq!(stores.get("cache", "a", 3).await.unwrap(), Some(b"two".to_vec()));
    let wrong = ObjectAttributes::content_type("");
    let error = stores.put_new("cache", "b", vec![], &wrong).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
}

#[tokio::test]
async fn a_corrupt_path_leaves_nothing_visible() {
    let state = tempfile::tempdir().unwrap();
    let stores = stores("[object-stores.cache]", state.path());
    for length in [100, 3 * put_nar::PART] {
        let good = nar(noise(length));
        let mut bytes = noise(length);
        bytes[length / 2] ^= 1;
        let bad = Nar { source: Source::Bytes(bytes.into()), ..good };
        let error = stores.put_nar("cache", "nar/x", Compression::Zstd(1), bad).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Permanent);
        assert!(error.message.contains("is corrupt: its NAR hash is"), "{error}");
    }
    let gone = Nar { source: Source::Path(state.path().join("gone")), ..nar(noise(10)) };
    let error = stores.put_nar("cache", "nar/x", Compression::None, gone).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(files(&state.path().join("object-stores/cache")).is_empty());
}

#[tokio::test]
async fn an_upload_that_is_cut_off_leaves_nothing_visible() {
    let state = tempfile::tempdir().unwrap();
    let directory = state.path().join("object-stores/cache");
    let stores = Arc::new(stores("[object-stores.cache]", state.path()));
    // A NAR that never ends: a FIFO nobody closes would block the reader for good, so the source is
    // merely long.
    let long = nar(noise(6 * put_nar::PART));
    let upload = tokio::spawn({
        let stores = stores.clone();
        async move { stores.put_nar("cache", "x", Compression::Xz(9), long).await }
    });
    upload.abort();
    assert!(upload.await.unwrap_err().is_cancelled());
    assert!(!directory.exists() || !files(&directory).contains(&"x".to_owned()));
}

#[tokio::test]
async fn settings_that_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("empty"), "\n").unwrap();
    std::fs::write(dir.path().join("secret"), "hunter2").unwrap();
    let place = dir.path().display();
    let mut errors = Vec::new();
    for keys in [
        "url = \"bucket\"".to_owned(),
        "url = \"ftp://host/\"".to_owned(),
        "url = \"https://user:hunter2@host/\"".to_owned(),
        "url = \"file://host/dir\"".to_owned(),
        "url = \"s3://bucket?endpoint=127.0.0.1:9&scheme=http&region=eu&profile=ci\"".to_owned(),
        "url = \"s3://bucket?compression=xz&secret-key=/k&endpoint=https://e\"".to_owned(),
        "url = \"https://host/p?token=1\"".to_owned(),
        "url = \"gs://bucket#x\"".to_owned(),
        "url = \"gs://bucket\"\nregion = \"x\"".to_owned(),
        "url = \"s3://bucket\"\nendpoint = \"localhost:9000\"".to_owned(),
        format!("url = \"s3://bucket\"\ncredentials.access-key-id-file = \"{place}/secret\""),
        format!(
            "url = \"s3://bucket\"\ncredentials.access-key-id-file = \"{place}/secret\"\n\
             credentials.secret-access-key-file = \"{place}/empty\""
        ),
        format!(
            "url = \"s3://bucket\"\ncredentials.access-key-id-file = \"{place}/secret\"\n\
             credentials.secret-access-key-file = \"{place}/none\""
        ),
        format!("url = \"file://{place}/secret/below\""),
    ] {
        let stores = stores(&format!("[object-stores.cache]\n{keys}\n"), dir.path());
        let error = stores.get("cache", "key", 1).await.unwrap_err();
        let uid = format!("uid {}", rustix::process::geteuid().as_raw());
        errors.push(
            format!("{}: {error}", error.kind.as_str())
                .replace(&place.to_string(), "/etc")
                .replace(&uid, "uid N"),
        );
    }
    errors.push(stores("", dir.path()).get("cache", "key", 1).await.unwrap_err().to_string());
    assert!(errors.iter().all(|error| !error.contains("hunter2")), "no secret in a message");
    insta::assert_snapshot!(errors.join("\n"));
}

#[tokio::test]
async fn a_server_that_is_down_is_worth_a_retry() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), "hunter2").unwrap();
    // Bound and closed again, so that nothing listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = format!(
        "[object-stores.cache]\nurl = \"s3://bucket/prefix\"\nendpoint = \"http://127.0.0.1:{port}\"\n\
         credentials.access-key-id-file = \"{0}/secret\"\ncredentials.secret-access-key-file = \"{0}/secret\"\n",
        dir.path().display()
    );
    let error =
        stores(&text, dir.path()).exists("cache", &["a.narinfo".to_owned()]).await.unwrap_err();
    let message = format!("{}: {error}", error.kind.as_str()).replace(&port.to_string(), "PORT");
    insta::assert_snapshot!(message);
}

proptest::proptest! {
    /// Whatever key a plugin gives, it is the same key for the service, or refused.
    #[test]
    fn any_key(key in "(\\.\\./|/|a/|\\.|%2e|\\PC){0,8}") {
        if let Ok(path) = path("cache", &key) {
            proptest::prop_assert_eq!(path.as_ref(), key.as_str());
            proptest::prop_assert!(!key.split('/').any(|segment| matches!(segment, "" | "." | "..")));
        }
    }
}

/// An HTTP server that answers each request by its number. Returns its port, and how many requests
/// there were.
fn server(answer: impl Fn(usize) -> String + Send + 'static) -> (u16, Arc<AtomicUsize>) {
    use std::io::{BufRead as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let head = std::io::BufReader::new(&connection).lines();
            // The client may have left.
            let _head = head.map_while(Result::ok).take_while(|line| !line.is_empty()).count();
            let number = counted.fetch_add(1, Ordering::SeqCst);
            let _written = connection.write_all(answer(number).as_bytes());
        }
    });
    (port, requests)
}

/// Pages of a list without an end, with a key in every page whose number `has_key`.
fn endless_list(has_key: fn(usize) -> bool) -> (u16, Arc<AtomicUsize>) {
    server(move |number| {
        let key = "<Contents><Key>prefix/found</Key><Size>1</Size>\
                   <LastModified>2026-01-01T00:00:00Z</LastModified></Contents>";
        let key = if has_key(number) { key } else { "" };
        let body = format!(
            "<ListBucketResult><IsTruncated>true</IsTruncated>\
             <NextContinuationToken>{number}</NextContinuationToken>{key}</ListBucketResult>"
        );
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
    })
}

/// The bucket of the server at this port.
fn bucket(port: u16, dir: &FilePath) -> ObjectStores {
    std::fs::write(dir.join("secret"), "x").unwrap();
    let text = format!(
        "[object-stores.cache]\nurl = \"s3://bucket/prefix\"\nendpoint = \"http://127.0.0.1:{port}\"\n\
         credentials.access-key-id-file = \"{0}/secret\"\ncredentials.secret-access-key-file = \"{0}/secret\"\n",
        dir.display()
    );
    stores(&text, dir)
}

#[tokio::test]
async fn a_redirect_of_a_store_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx";
    let (elsewhere, followed) = server(move |_| answer.to_owned());
    for status in [301, 302, 307, 308] {
        let (port, requests) = server(move |_| {
            format!(
                "HTTP/1.1 {status} Moved\r\nConnection: close\r\nContent-Length: 0\r\n\
                 Location: http://127.0.0.1:{elsewhere}/stolen\r\n\r\n"
            )
        });
        let store = bucket(port, dir.path());
        store.get("cache", "a", 10).await.unwrap_err();
        store.put("cache", "a", "text/plain", vec![1]).await.unwrap_err();
        assert!(requests.load(Ordering::SeqCst) >= 2, "{status}");
    }
    assert_eq!(followed.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_list_whose_pages_hold_no_key_ends() {
    let dir = tempfile::tempdir().unwrap();
    let open = |port: u16| bucket(port, dir.path());
    let (port, requests) = endless_list(|_| false);
    let error = open(port).list("cache", "", 10, 1000).await.unwrap_err();
    let message = format!("{}: {error}", error.kind.as_str()).replace(&port.to_string(), "PORT");
    insta::assert_snapshot!(message);
    let most = connector::MAX_EMPTY_PAGES as usize + 1;
    assert_eq!(requests.load(Ordering::SeqCst), most);
    // Some empty pages are nothing unusual.
    let (port, requests) = endless_list(|number| number % 100 == 99);
    let keys = open(port).list("cache", "", 5, 1000).await.unwrap();
    assert_eq!((keys.len(), requests.load(Ordering::SeqCst)), (5, 500));
}
