use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

/// The smallest component.
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
        let code = cache.code(&self.engine, wasm, compile).unwrap();
        code.map(&self.engine).unwrap();
        code.origin
    }

    fn entry(&self) -> PathBuf {
        self.cache.directory.join(key(&self.engine, EMPTY))
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
fn another_engine_is_a_miss() {
    let mut scene = Scene::new();
    scene.get();
    let mut settings = wasmtime::Config::new();
    settings.epoch_interruption(true);
    scene.engine = Engine::new(&settings).unwrap();
    assert_eq!(scene.get(), Origin::Compiled);
}

#[test]
fn damage_is_a_miss_and_heals() {
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
    let name = scene.cache.directory.join(key(&scene.engine, &other));
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
fn what_others_can_write_is_not_trusted() {
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
        return; // Only root can give files away; the rule is the same for all.
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
