use super::*;
use crate::ErrorKind;

fn directory() -> (tempfile::TempDir, Bucket) {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::at(&format!("file://{}", dir.path().display())).unwrap();
    (dir, bucket)
}

#[tokio::test]
async fn objects_are_created_once_and_replaced_only_unchanged() {
    let (_dir, on_disk) = directory();
    for bucket in [Bucket::in_memory("cache"), on_disk] {
        let create = async |text: &str| bucket.create("a/b", "text/plain", text.into()).await;
        assert!(create("one").await.unwrap());
        assert!(!create("two").await.unwrap());
        let one = bucket.get("a/b", 10).await.unwrap().unwrap();
        assert_eq!(one.bytes, b"one");
        assert!(bucket.replace("a/b", "text/plain", &one, b"three".to_vec()).await.unwrap());
        assert!(!bucket.replace("a/b", "text/plain", &one, b"four".to_vec()).await.unwrap());
        assert_eq!(bucket.get("a/b", 10).await.unwrap().unwrap().bytes, b"three");
        assert_eq!(bucket.get("a/b", 4).await.unwrap_err().kind, ErrorKind::Limit);
        assert_eq!(bucket.head("a/b").await.unwrap().unwrap().size, 5);
        assert!(bucket.get("none", 1).await.unwrap().is_none());
        assert!(bucket.stream("none").await.unwrap().is_none());
    }
}

#[tokio::test]
async fn large_objects_are_streamed_whole_or_not_at_all() {
    let (dir, on_disk) = directory();
    for bucket in [Bucket::in_memory("cache"), on_disk] {
        let piece = || Ok(Bytes::from(vec![7; PART / 2 + 1]));
        let whole = futures_util::stream::iter((0..5).map(|_| piece()));
        bucket.put_stream("nar/large", "x/y", whole).await.unwrap();
        let read = bucket.stream("nar/large").await.unwrap().unwrap();
        assert_eq!(read.size, 5 * (PART as u64 / 2 + 1));
        let pieces: Vec<Bytes> = read.pieces.try_collect().await.unwrap();
        assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>() as u64, read.size);
        let broken = (0..5).map(|number| {
            if number < 4 { piece() } else { Err(CapabilityError::transient("cut off")) }
        });
        let broken = futures_util::stream::iter(broken);
        let error = bucket.put_stream("nar/broken", "x/y", broken).await.unwrap_err();
        assert_eq!(error.message, "cut off");
        assert!(bucket.head("nar/broken").await.unwrap().is_none());
    }
    assert_eq!(std::fs::read_dir(dir.path().join("nar")).unwrap().count(), 1, "no part is left");
}

#[tokio::test]
async fn everything_is_listed_and_deleted() {
    let (_dir, on_disk) = directory();
    for bucket in [Bucket::in_memory("cache"), on_disk] {
        for key in ["x.narinfo", "nar/1", "nar/2"] {
            bucket.create(key, "text/plain", b"12".to_vec()).await.unwrap();
        }
        let list = async |directory| {
            let mut keys = Vec::new();
            let count = bucket.list(directory, |found| {
                assert!(found.size == 2 && found.modified > 1_700_000_000);
                keys.push(found.key);
                ControlFlow::Continue(())
            });
            assert_eq!(count.await.unwrap(), keys.len() as u64);
            keys.sort();
            keys
        };
        assert_eq!(list(None).await, ["nar/1", "nar/2", "x.narinfo"]);
        assert_eq!(list(Some("nar")).await, ["nar/1", "nar/2"]);
        let keys = ["nar/1", "nar/3", "../x"].map(str::to_owned).to_vec();
        let (deleted, error) = bucket.delete(keys).await;
        assert_eq!((deleted, error.unwrap().kind), (2, ErrorKind::Invalid));
        assert_eq!(list(None).await, ["nar/2", "x.narinfo"]);
    }
}

#[test]
fn urls_of_nix_name_a_store_and_others_are_explained() {
    let of = |url: &str| settings_of_url(url).unwrap();
    let s3 = of("s3://bucket/a?endpoint=127.0.0.1:9000&scheme=http&region=eu&profile=p");
    assert_eq!(s3.url.as_deref(), Some("s3://bucket/a"));
    assert_eq!(s3.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
    assert_eq!((s3.region.as_deref(), s3.profile.as_deref()), (Some("eu"), Some("p")));
    let errors = [
        settings_of_url("cache").unwrap_err(),
        settings_of_url("s3://bucket?compression=zstd").unwrap_err(),
        Bucket::at("file:///does/not/exist").unwrap_err(),
    ];
    insta::assert_snapshot!(errors.map(|error| error.message).join("\n"));
}
