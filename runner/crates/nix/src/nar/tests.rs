use super::*;
use std::io::Read as _;

fn tree() -> (tempfile::TempDir, Expected) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("text"), "content\n".repeat(100_000)).unwrap();
    std::os::unix::fs::symlink("text", root.join("link")).unwrap();
    let mut bytes = Vec::new();
    encode::encode(&mut bytes, &root).unwrap();
    let (nar_hash, nar_size) = super::hash(&bytes);
    let path = root.display().to_string();
    (dir, Expected { path, nar_hash, nar_size })
}

#[test]
fn every_compression_gives_the_nar_back() {
    let (_dir, expected) = tree();
    let source = Source::Path(PathBuf::from(&expected.path));
    for (format, level) in [("none", None), ("zstd", None), ("zstd", Some(19)), ("xz", Some(0))] {
        let mut out = Vec::new();
        let written =
            write(&source, &expected, Compression::parse(format, level).unwrap(), &mut out)
                .unwrap();
        assert_eq!((written.file_hash, written.file_size), hash(&out), "{format}");
        let mut nar = Vec::new();
        match format {
            "zstd" => nar = zstd::decode_all(out.as_slice()).unwrap(),
            "xz" => {
                liblzma::read::XzDecoder::new(out.as_slice()).read_to_end(&mut nar).unwrap();
            }
            _ => nar = out,
        }
        assert_eq!(hash(&nar), (expected.nar_hash.clone(), expected.nar_size), "{format}");
        let bytes = Source::Bytes(nar.into());
        assert!(write(&bytes, &expected, Compression::None, io::sink()).is_ok());
    }
}

/// If this fails, the encoder compresses otherwise than before: raise [`ZSTD_ENCODER`] or
/// [`XZ_ENCODER`], so that the new bytes get a new name, and write the new hashes here. The version
/// of zstd is in the name by itself.
#[test]
fn the_same_nar_becomes_the_same_bytes() {
    let line = |number: u64| format!("line {number}: {}\n", number.wrapping_mul(number) % 9973);
    let text: Vec<u8> = (0..60_000).map(line).collect::<String>().into_bytes();
    // Several frames.
    let large = text.repeat((20 << 20) / text.len() + 1);
    let hashes: Vec<String> = [
        ("zstd", 1, &text),
        ("zstd", ZSTD_LEVEL, &text),
        ("zstd", 9, &text),
        ("zstd", 19, &text),
        ("zstd", ZSTD_LEVEL, &large),
        ("zstd", 9, &large),
        ("xz", 0, &text),
        ("xz", 6, &text),
    ]
    .into_iter()
    .map(|(format, level, bytes)| {
        let (nar_hash, nar_size) = hash(bytes);
        let expected = Expected { path: "/s/a".into(), nar_hash, nar_size };
        let compression = Compression::parse(format, Some(level)).unwrap();
        let source = Source::Bytes(bytes.as_slice().into());
        let written = write(&source, &expected, compression, io::sink()).unwrap();
        format!("{format} {level} {} {}", written.file_size, written.file_hash)
    })
    .collect();
    let names: Vec<String> = [Compression::Zstd(3), Compression::Xz(6)]
        .map(|compression| compression.object_name("sha256:HASH"))
        .into();
    insta::assert_snapshot!(format!(
        "names {}\nraise ZSTD_ENCODER or XZ_ENCODER if a hash changes and the name does not\n{}",
        names.join(" "),
        hashes.join("\n")
    ));
}

#[test]
fn an_object_is_named_by_all_that_decides_its_bytes() {
    let name =
        |format, level| Compression::parse(format, level).unwrap().object_name("sha256:1b2m");
    let library = zstd::zstd_safe::version_number();
    assert_eq!(name("none", None), "1b2m.nar");
    assert_eq!(name("zstd", None), format!("1b2m-z3.2.{library}.nar.zst"));
    assert_eq!(name("zstd", Some(19)), format!("1b2m-z19.2.{library}.nar.zst"));
    assert_eq!(name("xz", None), "1b2m-x6.1.nar.xz");
    let mut names: Vec<String> = ZSTD_LEVELS
        .map(|level| name("zstd", Some(level)))
        .chain(XZ_LEVELS.map(|level| name("xz", Some(level))))
        .collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count, "two levels never share a name");
}

#[test]
fn what_is_not_as_the_database_says_is_an_error() {
    let (dir, expected) = tree();
    let source = Source::Path(PathBuf::from(&expected.path));
    let errors: Vec<String> = [
        (&source, Expected { nar_size: expected.nar_size - 1, ..expected.clone() }),
        (&source, Expected { nar_size: expected.nar_size + 1, ..expected.clone() }),
        (&source, Expected { nar_hash: hash(b"").0, ..expected.clone() }),
        (
            &Source::Path(dir.path().join("gone")),
            Expected { path: "/s/gone".into(), ..expected.clone() },
        ),
    ]
    .iter()
    .flat_map(|(source, expected)| {
        ["none", "zstd", "xz"].map(|format| {
            let compression = Compression::parse(format, None).unwrap();
            write(source, expected, compression, io::sink()).unwrap_err().to_string()
        })
    })
    .map(|error| error.replace(&dir.path().display().to_string(), "/s"))
    .collect::<std::collections::BTreeSet<_>>()
    .into_iter()
    .collect();
    insta::assert_snapshot!(errors.join("\n"), @r"
    store path /s/gone is gone; it was garbage-collected after its build
    store path /s/root is corrupt: its NAR has 800472 bytes, but 800473 in Nix's database; run `nix-store --verify-path /s/root`, and `nix-store --repair-path /s/root` as root
    store path /s/root is corrupt: its NAR has more than the 800471 bytes in Nix's database; run `nix-store --verify-path /s/root`, and `nix-store --repair-path /s/root` as root
    store path /s/root is corrupt: its NAR hash is sha256:0i9j8n2nly8384cdrdqc1jyirnwdnxfx44fhyykzcffj5wipva8x, but sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73 in Nix's database; run `nix-store --verify-path /s/root`, and `nix-store --repair-path /s/root` as root
    ");
}

#[test]
fn a_reader_that_goes_away_ends_it() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::other("upload failed"))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (_dir, expected) = tree();
    let source = Source::Path(PathBuf::from(&expected.path));
    for compression in [Compression::None, Compression::Zstd(1), Compression::Xz(0)] {
        let error = write(&source, &expected, compression, Full).unwrap_err();
        assert!(matches!(error, NarError::Write { .. }), "{error}");
    }
}

proptest::proptest! {
    #[test]
    fn any_compression_text(format in "\\PC*", level: Option<i32>) {
        if let Ok(compression) = Compression::parse(&format, level) {
            proptest::prop_assert!(["none", "zstd", "xz"].contains(&format.as_str()));
            let bytes: Arc<[u8]> = vec![0; 8].into();
            let (nar_hash, nar_size) = hash(&bytes);
            // No level on offer is refused by the format's library; the slow ones are the same
            // code.
            if matches!(compression, Compression::None | Compression::Zstd(..=9) | Compression::Xz(..=3)) {
                let expected = Expected { path: "/s/a".into(), nar_hash, nar_size };
                proptest::prop_assert!(write(&Source::Bytes(bytes), &expected, compression, io::sink()).is_ok());
            }
        }
    }
}
