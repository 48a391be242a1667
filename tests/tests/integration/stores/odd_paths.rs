//! Paths that are hard to archive: names that are not UTF-8, many small files, and large sparse
//! files.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use hookrun_capability::ErrorKind;
use hookrun_capability::nix_store::Nar;
use hookrun_nix::nar::{Compression, Expected, NarError, Source, decode, write};
use hookrun_tests::lab::http_store::HttpStore;
use hookrun_tests::lab::{Scene, Script, toml};

use super::{ObjectAttributes, stores};
use crate::upload::{configure, expect_done, run};

/// The NAR of a directory, with its hash as Nix's database would have it.
fn nar_of(path: &Path) -> Nar {
    let source = Source::Path(path.to_owned());
    let path = path.display().to_string();
    // The hash is in the error about another one.
    let mut expected = Expected { path, nar_hash: String::new(), nar_size: u64::MAX };
    for _ in 0..2 {
        match write(&source, &expected, Compression::None, std::io::sink()) {
            Ok(_) => break,
            Err(NarError::Corrupt { reason, .. }) => {
                let words: Vec<&str> = reason.split_whitespace().collect();
                if reason.starts_with("its NAR hash is") {
                    words[4].trim_end_matches(',').clone_into(&mut expected.nar_hash);
                } else {
                    expected.nar_size = words[3].parse().unwrap();
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
    Nar { source, expected }
}

#[test]
fn names_that_are_not_utf8_are_uploaded_and_read_back_by_nix() {
    // `printf` of the shell writes the byte 255.
    let script =
        r#"n=$(printf 'odd-\377-name'); d=$out; /bin/mkdir "$d" "$d/$n"; echo text > "$d/$n/$n""#;
    let scene = Scene::new()
        .nix_conf("post-build-hook", "")
        .signing_key("lab-1")
        .signing_key("other-1")
        .derivation("odd", Script::new(script));
    configure(&scene, toml::Table::new(), toml::Table::new());
    let odd = scene.build("odd").expect_success().path();
    let name = OsStr::from_bytes(b"odd-\xff-name");
    assert!(odd.join(name).join(name).is_file());
    expect_done(&run(&scene, &scene.build_event("odd")), "uploaded 1 path (");
    let url = format!("file://{}", scene.state_dir().join("object-stores/cache").display());
    let second = scene.second_store();
    second.copy_from(&odd, &url, &[scene.public_key("lab-1")]).expect_success();
    assert!(second.locate(&odd).join(name).join(name).is_file());
}

/// Makes a tree of so many files of a few bytes.
fn many_files(count: usize) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    for number in 0..count {
        let directory = root.join((number / 1000).to_string());
        if number % 1000 == 0 {
            std::fs::create_dir_all(&directory).unwrap();
        }
        std::fs::write(directory.join(number.to_string()), number.to_string()).unwrap();
    }
    (dir, root)
}

async fn upload_many_files(count: usize) {
    let (dir, root) = many_files(count);
    let nar = nar_of(&root);
    let stores = stores(dir.path(), toml::Table::new());
    let attributes = ObjectAttributes::default();
    let put = stores.put_nar_once("cache", "nar", Compression::Zstd(3), nar.clone(), &attributes);
    let stored = put.await.unwrap();
    let file = dir.path().join("object-stores/cache").join(&stored.key);
    let file = std::fs::File::open(file).unwrap();
    let decoded = decode(Compression::Zstd(3), file, nar.expected.nar_size).unwrap();
    assert_eq!(decoded.nar_hash, nar.expected.nar_hash);
    assert_eq!(decoded.stored, stored.written);
    println!("{count} files, {} bytes, {} stored", nar.expected.nar_size, stored.written.file_size);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_files_are_uploaded() {
    upload_many_files(20_000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: `cargo xtask crash --odd-paths` runs it"]
async fn a_million_small_files_are_uploaded() {
    upload_many_files(1_000_000).await;
}

/// Uploads a sparse file to a plain HTTP server, which only hashes, and to a directory.
async fn upload_sparse(size: u64) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("sparse");
    let file = std::fs::File::create(&root).unwrap();
    file.set_len(size).unwrap();
    let nar = nar_of(&root);
    let server = HttpStore::plain();
    let attributes = ObjectAttributes::default();
    for compression in [Compression::None, Compression::Zstd(3)] {
        let stores = stores(dir.path(), toml! { url = (server.url()) });
        let put = stores.put_nar_once("cache", "nar", compression, nar.clone(), &attributes);
        let stored = put.await.unwrap();
        let object = server.objects()[&format!("/{}", stored.key)].clone();
        assert_eq!(object.size, stored.written.file_size);
        println!("{size} bytes as {compression:?}: {} stored", object.size);
    }
    let peak = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = peak.lines().find(|line| line.starts_with("VmHWM")).unwrap().to_owned();
    println!("{peak}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sparse_file_is_uploaded() {
    upload_sparse(64 << 20).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: `cargo xtask crash --odd-paths` runs it"]
async fn a_sparse_file_of_ten_gib_is_uploaded() {
    upload_sparse(10 << 30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_gone_or_changes_is_a_final_error() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::write(&root, "text").unwrap();
    let nar = nar_of(&root);
    let stores = stores(dir.path(), toml::Table::new());
    let attributes = ObjectAttributes::default();
    let put =
        || stores.put_nar_once("cache", "nar", Compression::Zstd(3), nar.clone(), &attributes);
    std::fs::write(&root, "other").unwrap();
    let error = put().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Permanent, "{error}");
    assert!(error.message.contains("is corrupt"), "{error}");
    std::fs::remove_file(&root).unwrap();
    let error = put().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    assert!(error.message.contains("garbage-collected"), "{error}");
}
