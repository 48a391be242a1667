//! Plain HTTP servers: large objects by a streamed PUT, private authorities and client
//! certificates.

use hookrun_capability::ErrorKind;
use hookrun_nix::nar::Compression;
use hookrun_tests::lab::http_store::HttpStore;
use hookrun_tests::lab::toml;

use super::{LARGE, ObjectAttributes, SMALL, nar, noise, put, stores};

#[tokio::test(flavor = "multi_thread")]
async fn a_large_nar_is_one_streamed_request_with_its_length() {
    let dir = tempfile::tempdir().unwrap();
    let server = HttpStore::plain();
    let store = || stores(dir.path(), toml! { url = (server.url() + "/cache") });
    let mut puts = 0;
    for (length, compression) in
        [(SMALL, Compression::None), (LARGE, Compression::None), (LARGE + 1, Compression::Zstd(1))]
    {
        let nar = nar(noise(1, length));
        let attributes = ObjectAttributes::default();
        let put = || async {
            store().put_nar_once("cache", "nar", compression, nar.clone(), &attributes).await
        };
        let first = put().await.unwrap();
        assert!(first.created);
        let objects = server.objects();
        let stored = &objects[&format!("/cache/{}", first.key)];
        assert_eq!(stored.size, first.written.file_size);
        assert_eq!(stored.content_type.as_deref(), Some("application/x-nix-nar"));
        puts += 1;
        if length == SMALL {
            let second = put().await.unwrap();
            assert!(!second.created);
            assert_eq!(second.written, first.written);
        }
    }
    assert_eq!(server.objects().len(), puts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_put_is_retried_and_a_limit_of_the_server_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let server = HttpStore::plain();
    let store = || stores(dir.path(), toml! { url = (server.url()) });
    server.fail_next(&[503, 500]);
    assert!(put(&store(), &nar(noise(1, LARGE))).await.unwrap().created);
    assert_eq!(server.requests().iter().filter(|asked| asked.starts_with("PUT ")).count(), 3);
    server.fail_next(&[413]);
    let error = put(&store(), &nar(noise(2, LARGE))).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused);
    assert!(error.message.contains("raise the server's limit"), "{error}");
    assert_eq!(server.objects().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_changes_between_the_passes_is_not_published() {
    let dir = tempfile::tempdir().unwrap();
    let server = HttpStore::plain();
    let stores = stores(dir.path(), toml! { url = (server.url()) });
    let mut nar = nar(noise(1, LARGE));
    nar.source = hookrun_nix::nar::Source::Bytes(noise(2, LARGE).into());
    let error = put(&stores, &nar).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Permanent);
    assert!(error.message.contains("is corrupt"), "{error}");
    assert!(server.objects().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_authority_and_a_client_certificate_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let (server, files) = HttpStore::tls(dir.path());
    let path = |path: &std::path::Path| path.display().to_string();
    let all = toml! {
        url = (server.url())
        ca-file = (path(&files.authority))
        client-certificate-file = (path(&files.certificate))
        client-key-file = (path(&files.key))
    };
    for length in [SMALL, LARGE] {
        assert!(
            put(&stores(dir.path(), all.clone()), &nar(noise(1, length))).await.unwrap().created
        );
    }
    assert_eq!(server.objects().len(), 2);
    // Without the authority, the server is not trusted.
    let mut without = all.clone();
    without.remove("ca-file");
    let error = put(&stores(dir.path(), without), &nar(noise(3, SMALL))).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused, "{error}");
    assert!(error.message.contains("ca-file"), "{error}");
    // Without the certificate, the server ends the connection.
    let mut without = all.clone();
    without.remove("client-certificate-file");
    without.remove("client-key-file");
    put(&stores(dir.path(), without), &nar(noise(3, SMALL))).await.unwrap_err();
    // One without the other.
    let mut half = all;
    half.remove("client-key-file");
    let error = put(&stores(dir.path(), half), &nar(noise(3, SMALL))).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused, "{error}");
    assert!(error.message.contains("belong together; write both"), "{error}");
    assert_eq!(server.objects().len(), 2);
}
