//! Other S3 servers, behind the recording proxy: `cargo xtask s3-servers` starts them and runs
//! these tests with `HOOKRUN_S3_SERVER=ADDRESS:PORT` and `HOOKRUN_S3_CONDITIONS=honoured|ignored`.

use std::path::Path;

use hookrun_tests::lab::s3::{Fault, S3Server, SECRET_ACCESS_KEY};
use toml::Table;

use super::{LARGE, ObjectAttributes, SMALL, nar, noise, put, stores};

/// Starts the proxy in front of the server. With credentials, `bucket` must exist and is used below
/// a new prefix; without, a new bucket is made, and the server must take any credentials.
fn server(
    directory: &Path,
    bucket: &str,
    rule: impl Fn(&str) -> Option<Fault> + Send + Sync + 'static,
) -> (S3Server, Table) {
    let variable = |name: &str| std::env::var(name).ok();
    let address = variable("HOOKRUN_S3_SERVER").expect("`cargo xtask s3-servers` sets it");
    let server = S3Server::in_front_of(address.parse().unwrap(), rule);
    let fresh = format!("{:x}", fastrand::u64(..));
    let files = variable("HOOKRUN_S3_ID_FILE").zip(variable("HOOKRUN_S3_SECRET_FILE"));
    let table = match files {
        Some((id, secret)) => toml::toml! {
            url = (format!("s3://{bucket}/{fresh}"))
            region = "us-east-1"
            endpoint = (server.endpoint())
            credentials.access-key-id-file = id
            credentials.secret-access-key-file = secret
        },
        None => {
            let bucket = format!("{bucket}-{fresh}");
            server.make_bucket(&bucket);
            server.object_store(&format!("s3://{bucket}/prefix"), directory, SECRET_ACCESS_KEY)
        }
    };
    (server, table)
}

fn honours() -> bool {
    std::env::var("HOOKRUN_S3_CONDITIONS").is_ok_and(|text| text == "honoured")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a server: `cargo xtask s3-servers` runs it"]
async fn another_server_keeps_objects_that_are_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let (server, table) = server(dir.path(), "hookrun-1", |_| None);
    let state: &Path = dir.path();
    for (seed, length) in [(1, SMALL), (2, LARGE)] {
        let nar = nar(noise(seed, length));
        let first = put(&stores(state, table.clone()), &nar).await.unwrap();
        assert!(first.created);
        let second = put(&stores(state, table.clone()), &nar).await.unwrap();
        assert!(!second.created);
        assert_eq!(second.written, first.written);
    }
    // Many writers of the same objects.
    for (seed, length) in [(3, SMALL), (4, LARGE)] {
        let nar = nar(noise(seed, length));
        let writers: Vec<_> = (0..4)
            .map(|_| {
                let (stores, nar) = (stores(state, table.clone()), nar.clone());
                tokio::spawn(async move { put(&stores, &nar).await.unwrap() })
            })
            .collect();
        let mut created = 0;
        for writer in writers {
            let stored = writer.await.unwrap();
            assert_eq!(stored.written.file_hash, nar.expected.nar_hash);
            created += usize::from(stored.created);
        }
        // A server that checks and then writes may let several of them write the same bytes.
        assert!(created >= 1);
        println!("{created} of 4 writers created the object of {length} bytes");
    }
    assert_eq!(server.expect_written_once(), 4);
    assert_eq!(server.open_uploads(), Vec::<String>::new());
    // Headers, storage class and tags.
    let stores = stores(state, table);
    let attributes = ObjectAttributes {
        cache_control: Some("max-age=60".to_owned()),
        storage_class: Some("STANDARD".to_owned()),
        tags: vec![("class".to_owned(), "debug outputs".to_owned())],
        ..ObjectAttributes::content_type("text/plain")
    };
    stores.put_new("cache", "a.txt", b"text".to_vec(), &attributes).await.unwrap();
    assert_eq!(stores.get("cache", "a.txt", 10).await.unwrap(), Some(b"text".to_vec()));
    assert_eq!(stores.get("cache", "none", 10).await.unwrap(), None);
    println!("honoured: {}, {} requests", honours(), server.requests().len());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a server: `cargo xtask s3-servers` runs it"]
async fn another_server_behind_faults_keeps_objects_whole() {
    let dir = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicUsize::new(0);
    let (server, table) = server(dir.path(), "hookrun-2", move |asked| {
        // Each fifth write meets one.
        let writes = asked.starts_with("PUT ") || asked.starts_with("POST ");
        let number = count.fetch_add(usize::from(writes), std::sync::atomic::Ordering::SeqCst);
        match number {
            number if !writes || number % 5 != 4 => None,
            number if number % 3 == 0 => Some(Fault::SlowDown(0)),
            number if number % 3 == 1 => Some(Fault::Reset),
            _ => Some(Fault::Lost),
        }
    });
    for seed in 0..20 {
        let length = if seed % 4 == 0 { LARGE } else { SMALL };
        let nar = nar(noise(seed, length));
        let stored = super::put_with_retries(dir.path(), &table, &nar).await;
        assert_eq!(stored.written.file_hash, nar.expected.nar_hash);
        let again = super::put_with_retries(dir.path(), &table, &nar).await;
        assert_eq!(again.written, stored.written);
    }
    server.expect_written_once();
}
