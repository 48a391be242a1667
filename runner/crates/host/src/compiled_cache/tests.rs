use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

/// The smallest valid component.
const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";

fn engine() -> Engine {
    Engine::default()
}

struct Scene {
    _directory: tempfile::TempDir,
    cache: Cache,
    engine: Engine,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        Self {
            cache: Cache::new(root.join("state/artifacts")),
            _directory: directory,
            engine: engine(),
        }
    }

    fn get(&self) -> Origin {
        self.origin_of(&self.cache, EMPTY)
    }

    fn origin_of(&self, cache: &Cache, wasm: &[u8]) -> Origin {
        let compile = || Ok::<_, std::io::Error>(self.engine.precompile_component(wasm).unwrap());
        let code =
            cache.code(&self.engine, &digest(wasm), Duration::from_mins(1), compile).unwrap();
        code.map(&self.engine).unwrap();
        code.origin
    }

    fn entry(&self) -> PathBuf {
        self.cache.directory.join(key(&self.engine, &digest(EMPTY)))
    }
}

#[test]
fn the_second_time_is_a_hit() {
    let scene = Scene::new();
    assert_eq!(scene.get(), Origin::Compiled);
    assert_eq!(scene.get(), Origin::Mapped);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&scene.cache.directory), mode(&scene.entry())), (0o700, 0o644));
    assert_eq!(
        std::fs::read_dir(&scene.cache.directory).unwrap().count(),
        1,
        "no temporary file is left"
    );
}

#[test]
fn an_entry_for_another_engine_is_a_miss() {
    let mut scene = Scene::new();
    scene.get();
    let mut settings = wasmtime::Config::new();
    settings.epoch_interruption(true);
    scene.engine = Engine::new(&settings).unwrap();
    assert_eq!(scene.get(), Origin::Compiled);
}

#[test]
fn a_damaged_entry_is_a_miss_and_is_replaced() {
    let scene = Scene::new();
    scene.get();
    let whole = std::fs::read(scene.entry()).unwrap();
    let code = whole.len() - TRAILER_LENGTH;
    let mut no_elf = whole.clone();
    no_elf[0] ^= 1;
    let mut one_bit = whole.clone();
    one_bit[code / 2] ^= 1;
    let mut other_key = whole.clone();
    other_key[code] ^= 1;
    let mut shorter = whole.clone();
    shorter.drain(100..200);
    for damaged in [
        Vec::new(),
        whole[..code].to_vec(),
        whole[1..].to_vec(),
        shorter,
        no_elf,
        one_bit,
        other_key,
    ] {
        std::fs::write(scene.entry(), damaged).unwrap();
        assert_eq!(scene.get(), Origin::Compiled);
        assert_eq!(scene.get(), Origin::Mapped);
    }
}

#[test]
fn an_entry_for_another_component_is_a_miss() {
    let scene = Scene::new();
    scene.get();
    let other = [EMPTY, b"\0\x02\x01x"].concat();
    let name = scene.cache.directory.join(key(&scene.engine, &digest(&other)));
    std::fs::copy(scene.entry(), name).unwrap();
    assert_eq!(
        scene.origin_of(&scene.cache, &other),
        Origin::Compiled,
        "the key in the entry is another"
    );
}

#[test]
fn a_link_in_place_of_an_entry_is_a_miss() {
    let scene = Scene::new();
    scene.get();
    let elsewhere = scene.cache.directory.join("elsewhere");
    std::fs::rename(scene.entry(), &elsewhere).unwrap();
    symlink(&elsewhere, scene.entry()).unwrap();
    assert_eq!(scene.get(), Origin::Compiled);
}

#[test]
fn a_directory_that_others_can_write_is_not_trusted() {
    let scene = Scene::new();
    scene.get();
    let chmod = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let Origin::NotKept(reason) = ({
        chmod(&scene.cache.directory, 0o755);
        scene.get()
    }) else {
        panic!("a directory that others can read was used")
    };
    assert!(reason.contains("chmod 700"), "{reason}");
    chmod(&scene.cache.directory, 0o700);
    let parent = scene.cache.directory.parent().unwrap().to_owned();
    chmod(&parent, 0o777);
    assert!(matches!(scene.get(), Origin::NotKept(reason) if reason.contains("other users")));
    chmod(&parent, 0o755);
    chmod(&scene.entry(), 0o666);
    assert_eq!(scene.get(), Origin::Compiled, "an entry that others can write is a miss");
}

#[test]
fn foreign_owners_are_not_trusted() {
    let scene = Scene::new();
    scene.get();
    let nobody = Some(65_534);
    if std::os::unix::fs::chown(scene.entry(), nobody, nobody).is_err() {
        return; // Only root can change the owner of files. The rule is the same for all users.
    }
    assert_eq!(scene.get(), Origin::Compiled, "an entry of another user is a miss");
    std::os::unix::fs::chown(&scene.cache.directory, nobody, nobody).unwrap();
    assert!(
        matches!(scene.get(), Origin::NotKept(reason) if reason.contains("belongs to uid 65534"))
    );
}

#[test]
fn a_link_along_the_path_is_not_followed() {
    let scene = Scene::new();
    scene.get();
    let real = scene.cache.directory.parent().unwrap();
    let link = real.parent().unwrap().join("link");
    symlink(real, &link).unwrap();
    let cache = Cache::new(link.join("artifacts"));
    assert!(matches!(scene.origin_of(&cache, EMPTY), Origin::NotKept(_)));
}

impl Scene {
    /// Writes an entry that was not used for `days`. `number` makes it unique.
    fn put(&self, number: u32, days: u64) -> String {
        // A custom section with an empty name and these bytes makes the component unique.
        let wasm = [EMPTY, b"\0\x05\0".as_slice(), &number.to_le_bytes()].concat();
        self.origin_of(&self.cache, &wasm);
        let name = key(&self.engine, &digest(&wasm));
        self.age(&name, days);
        name
    }

    fn age(&self, name: &str, days: u64) {
        let file = File::options().write(true).open(self.cache.directory.join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(24 * days)).unwrap();
    }

    fn entries(&self) -> BTreeSet<String> {
        let listed = std::fs::read_dir(&self.cache.directory).unwrap();
        listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

#[test]
fn entries_of_configured_plugins_are_never_removed() {
    let scene = Scene::new();
    let configured: BTreeSet<String> = (0..3).map(|number| scene.put(number, 400)).collect();
    for number in 3..100 {
        scene.put(number, 2);
    }
    for number in 100..103 {
        scene.put(number, 31);
    }
    let young = scene.put(103, 0);
    assert_eq!(scene.entries().len(), 104, "nothing is removed by adding");
    scene.cache.prune(&configured, OF_CONFIGURATION);
    let left = scene.entries();
    assert!(configured.is_subset(&left) && left.contains(&young));
    assert_eq!(left.len(), configured.len() + OF_CONFIGURATION.most);
    scene.cache.prune(&BTreeSet::new(), OF_CONFIGURATION);
    assert_eq!(scene.entries().len(), OF_CONFIGURATION.most);
}

#[test]
fn many_changes_in_a_day_remove_nothing() {
    let scene = Scene::new();
    for number in 0..100 {
        scene.put(number, 0);
    }
    scene.cache.prune(&BTreeSet::new(), OF_CONFIGURATION);
    assert_eq!(scene.entries().len(), 100);
    scene.cache.prune(&BTreeSet::new(), OF_TESTS);
    assert_eq!(scene.entries().len(), OF_TESTS.most);
}

#[test]
fn use_renews_the_age_of_an_entry() {
    let scene = Scene::new();
    scene.get();
    scene.age(&key(&scene.engine, &digest(EMPTY)), 40);
    scene.put(1, 40);
    assert_eq!(scene.get(), Origin::Mapped);
    scene.cache.prune(&BTreeSet::new(), OF_CONFIGURATION);
    assert_eq!(scene.entries(), BTreeSet::from([key(&scene.engine, &digest(EMPTY))]));
}

#[test]
fn one_of_several_processes_compiles() {
    let scene = Scene::new();
    let compiled = AtomicU64::new(0);
    let run = || {
        let compile = || {
            compiled.fetch_add(1, Ordering::Relaxed);
            Ok::<_, std::io::Error>(scene.engine.precompile_component(EMPTY).unwrap())
        };
        scene.cache.code(&scene.engine, &digest(EMPTY), Duration::from_mins(1), compile).unwrap();
    };
    std::thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(run);
        }
    });
    assert_eq!(compiled.load(Ordering::Relaxed), 1);
    assert_eq!(scene.entries().len(), 1, "the lock is gone");
}

#[test]
fn the_wait_for_another_process_is_limited() {
    let scene = Scene::new();
    scene.get();
    let directory = open_directory(&scene.cache.directory).unwrap();
    let name = key(&scene.engine, &digest(EMPTY));
    let _other = Compiling::begin(&directory, &name, Duration::from_millis(1)).unwrap();
    assert!(Compiling::begin(&directory, &name, Duration::from_millis(30)).is_none());
}
