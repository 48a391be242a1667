use std::collections::BTreeMap;
use std::sync::Mutex;

use super::*;
use crate::binary_cache::{Group, Settings};
use crate::nix_store::{Budget, DirectoryEntry, TakeInfo};
use hookrun_config::Config;
use hookrun_nix::derivation::Derivation;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::nar::{Source, hash};

const STORE_DIR: &str = "/nix/store";

/// A store of made-up paths, each of which is one file.
#[derive(Debug, Default)]
struct MadeUp(BTreeMap<String, (PathInfo, Vec<u8>)>);

/// Returns a full store path whose name is a number.
fn path(number: usize) -> String {
    let digits = format!("{number:032}");
    format!("{STORE_DIR}/{digits}-p{number}")
}

impl MadeUp {
    /// Adds the path `number` with references to other numbers.
    fn with(mut self, number: usize, size: usize, references: &[usize]) -> Self {
        let mut nar = Vec::new();
        let contents = format!("{number} ").repeat(size / 4 + 1);
        let mut encoder = nix_archive::nar::Encoder::new(&mut nar).unwrap();
        encoder.regular(None, false, contents.as_bytes()).unwrap();
        encoder.finish().unwrap();
        let (nar_hash, nar_size) = hash(&nar);
        let info = PathInfo {
            path: path(number),
            nar_hash,
            nar_size,
            references: references.iter().map(|number| path(*number)).collect(),
            deriver: None,
            signatures: vec![],
            ca: None,
            ultimate: true,
            registration_time: 0,
        };
        self.0.insert(path(number), (info, nar));
        self
    }
}

impl Backend for MadeUp {
    fn each_info(&self, paths: &[String], take: &mut TakeInfo<'_>) -> Result<(), CapabilityError> {
        paths.iter().try_for_each(|path| take(self.0.get(path).map(|(info, _)| info.clone())))
    }

    fn closure(&self, _: &[String]) -> Result<Vec<String>, CapabilityError> {
        Err(CapabilityError::invalid("not needed"))
    }

    fn derivation(&self, _: &str, _: &mut Budget) -> Result<Derivation, CapabilityError> {
        Err(CapabilityError::invalid("not needed"))
    }

    fn list_directory(
        &self,
        _: &str,
        _: &str,
        _: &mut Budget,
    ) -> Result<Vec<DirectoryEntry>, CapabilityError> {
        Err(CapabilityError::invalid("not needed"))
    }

    fn read_file(&self, _: &str, _: &str, _: u64, _: u64) -> Result<Vec<u8>, CapabilityError> {
        Err(CapabilityError::invalid("not needed"))
    }

    fn nar_source(&self, path: &str) -> Source {
        Source::Bytes(self.0.get(path).map_or_else(Vec::new, |(_, nar)| nar.clone()).into())
    }
}

/// Services in memory, with a cache and two keys.
fn services() -> Services {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("hookrun.toml");
    std::fs::write(
        &file,
        "[object-stores.cache]\nurl = \"memory:///\"\n[signing-keys.\"k-1\"]\nfile = \"k\"\n\
         [signing-keys.\"k-2\"]\nfile = \"k\"\n",
    )
    .unwrap();
    let dirs = Dirs { config: file.clone(), state: dir.path().to_owned() };
    Services::in_memory(&Config::load(&file).unwrap(), &dirs)
}

fn push_of(numbers: impl IntoIterator<Item = usize>, keys: &[&str]) -> Push {
    let form = Form::compressed(Compression::Zstd(3));
    Push {
        store: "cache".to_owned(),
        groups: vec![Group { paths: numbers.into_iter().map(path).collect(), form }],
        elsewhere: Vec::new(),
        settings: Settings {
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            unsigned_fix: "FIX".to_owned(),
            ..Settings::default()
        },
    }
}

async fn run(services: &Services, store: MadeUp, push: Push) -> Result<Report, CapabilityError> {
    let dirs = NixDirs::new(STORE_DIR, "/nix/var", "/etc/nix");
    services.binary_caches().push(services, Arc::new(store), &dirs, push, &|_| {}).await
}

async fn narinfo(services: &Services, number: usize) -> Option<String> {
    let key = hookrun_nix::narinfo::key_of(&path(number));
    let text = services.object_stores().get("cache", &key, 1 << 20).await.unwrap()?;
    Some(String::from_utf8(text).unwrap())
}

fn three() -> MadeUp {
    MadeUp::default().with(0, 10, &[]).with(1, 20, &[0, 1]).with(2, 5 << 20, &[1])
}

#[tokio::test]
async fn paths_are_uploaded_once_and_signed() {
    let services = services();
    let report = run(&services, three(), push_of(0..3, &["k-1"])).await.unwrap();
    assert_eq!((report.paths, report.uploaded, report.present), (3, 3, 0));
    assert!(report.failures.is_empty() && report.not_uploaded() == 0, "{report:?}");
    let text = narinfo(&services, 2).await.unwrap();
    assert!(text.contains("\nSig: k-1:") && text.contains("URL: nar/"), "{text}");
    let again = run(&services, three(), push_of(0..3, &["k-1"])).await.unwrap();
    assert_eq!((again.uploaded, again.present, again.signed), (0, 3, 0));
}

#[tokio::test]
async fn another_key_adds_its_signature_and_unknown_lines_stay() {
    let services = services();
    run(&services, three(), push_of(0..1, &["k-1"])).await.unwrap();
    let key = hookrun_nix::narinfo::key_of(&path(0));
    let text = format!("{}Provenance: build\n", narinfo(&services, 0).await.unwrap());
    let stores = services.object_stores();
    stores.put("cache", &key, "text/plain", text.clone().into_bytes()).await.unwrap();
    let report = run(&services, three(), push_of(0..1, &["k-2"])).await.unwrap();
    assert_eq!((report.uploaded, report.present, report.signed), (0, 1, 1));
    let merged = narinfo(&services, 0).await.unwrap();
    assert!(merged.contains("Sig: k-1:") && merged.contains("Sig: k-2:"), "{merged}");
    assert!(merged.contains("Provenance: build\n"), "{merged}");
    let mut third = push_of(0..1, &["k-2", "k-1"]);
    third.settings.trust_presence = false;
    let report = run(&services, three(), third).await.unwrap();
    assert_eq!((report.present, report.signed), (1, 0), "nothing changes");
}

#[tokio::test]
async fn an_unsigned_path_is_refused_with_the_fix() {
    let services = services();
    let error = run(&services, three(), push_of(0..3, &[])).await.unwrap_err();
    assert_eq!(error.kind, crate::ErrorKind::Refused);
    let expected = format!("{} has no signature, and no key signs it; FIX", path(0));
    assert_eq!(error.message, expected);
    let mut allowed = push_of(0..3, &[]);
    allowed.settings.allow_unsigned = true;
    let report = run(&services, three(), allowed).await.unwrap();
    assert_eq!((report.uploaded, report.unsigned), (3, 3));
}

#[tokio::test]
async fn a_content_address_or_a_signature_of_another_key_is_enough() {
    let mut store = three();
    let (info, _) = store.0.get_mut(&path(0)).unwrap();
    let digest = format!("1{}", "0".repeat(51));
    info.ca = Some(format!("fixed:r:sha256:{digest}"));
    let (info, _) = store.0.get_mut(&path(1)).unwrap();
    info.signatures = vec![format!("other-1:{}==", "A".repeat(86))];
    let services = services();
    let report = run(&services, store, push_of(0..2, &[])).await.unwrap();
    assert_eq!((report.uploaded, report.unsigned), (2, 0), "{report:?}");
    assert!(narinfo(&services, 0).await.unwrap().contains("\nCA: fixed:r:sha256:"));
    assert!(narinfo(&services, 1).await.unwrap().contains("\nSig: other-1:"));
}

#[tokio::test]
async fn a_corrupt_path_stops_its_referrers_and_no_others() {
    let mut store = three().with(3, 10, &[]);
    store.0.get_mut(&path(1)).unwrap().1.truncate(50);
    let services = services();
    let report = run(&services, store, push_of(0..4, &["k-1"])).await.unwrap();
    assert_eq!((report.uploaded, report.not_uploaded()), (2, 2), "{report:?}");
    assert_eq!(report.failures[0].path, path(1));
    assert!(report.failures[0].error.message.contains("is corrupt"), "{report:?}");
    let mut found = Vec::new();
    for number in 0..4 {
        found.push(narinfo(&services, number).await.is_some());
    }
    assert_eq!(found, [true, false, false, true]);
}

#[tokio::test]
async fn a_reference_that_no_cache_has_is_named() {
    let services = services();
    let report = run(&services, three(), push_of(1..3, &["k-1"])).await.unwrap();
    assert_eq!(report.uploaded, 0);
    let message = &report.failures[0].error.message;
    assert!(message.starts_with(&format!("its reference {} is neither", path(0))), "{message}");
    let mut elsewhere = push_of(1..2, &["k-1"]);
    elsewhere.elsewhere = vec![path(0)];
    assert_eq!(run(&services, three(), elsewhere).await.unwrap().uploaded, 1);
    let mut optional = push_of(2..3, &["k-1"]);
    optional.settings.missing_references = true;
    assert_eq!(run(&services, three(), optional).await.unwrap().uploaded, 1);
}

#[tokio::test]
async fn a_narinfo_with_other_contents_is_left_alone() {
    let services = services();
    run(&services, three(), push_of(0..1, &["k-1"])).await.unwrap();
    let before = narinfo(&services, 0).await;
    let other = MadeUp::default().with(0, 4000, &[]);
    let mut push = push_of(0..1, &["k-1"]);
    push.settings.trust_presence = false;
    let report = run(&services, other, push).await.unwrap();
    assert_eq!((report.present, report.different), (1, 1));
    assert_eq!(narinfo(&services, 0).await, before);
}

#[tokio::test]
async fn an_unusable_narinfo_is_replaced() {
    let services = services();
    let key = hookrun_nix::narinfo::key_of(&path(0));
    let stores = services.object_stores();
    stores.put("cache", &key, "text/plain", b"StorePath: nonsense".to_vec()).await.unwrap();
    let report = run(&services, three(), push_of(0..1, &["k-1"])).await.unwrap();
    assert_eq!(report.uploaded, 1);
    assert!(narinfo(&services, 0).await.unwrap().contains("NarHash: "));
}

#[tokio::test]
async fn two_pushes_at_once_write_each_path_once() {
    let services = services();
    let (first, second) = tokio::join!(
        run(&services, three(), push_of(0..3, &["k-1"])),
        run(&services, three(), push_of(0..3, &["k-1"])),
    );
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.uploaded + second.uploaded, 3, "{first:?} {second:?}");
    assert_eq!(first.present + second.present, 3);
}

#[tokio::test]
async fn a_path_that_is_gone_is_named_and_the_others_are_uploaded() {
    let services = services();
    let report = run(&services, three(), push_of([0, 7], &["k-1"])).await.unwrap();
    assert_eq!((report.paths, report.uploaded, report.not_uploaded()), (2, 1, 1));
    assert_eq!(report.failures[0].path, path(7));
}

#[tokio::test]
async fn progress_tells_of_each_path() {
    let services = services();
    let seen = Mutex::new(Vec::new());
    let note = |progress: &Progress<'_>| {
        seen.lock().unwrap().push(format!("{progress:?}"));
    };
    let dirs = NixDirs::new(STORE_DIR, "/nix/var", "/etc/nix");
    let store = Arc::new(MadeUp::default().with(0, 10, &[]));
    let push = push_of(0..1, &["k-1"]);
    services.binary_caches().push(&services, store, &dirs, push, &note).await.unwrap();
    let seen = seen.into_inner().unwrap();
    let kinds: Vec<&str> = seen.iter().map(|text| text.split(' ').next().unwrap()).collect();
    assert_eq!(kinds, ["Begun", "Stored", "Published"]);
}
