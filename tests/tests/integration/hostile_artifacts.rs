//! Artifacts that are swapped, cut short, stale or replaced. Each plugin runs its own code, and an
//! artifact that does not fit is compiled again.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use hookrun_tests::hostile::made::crafted;
use hookrun_tests::lab::{ConfigFile, PluginTable, Scene, Script};

/// Changes the artifact of a plugin. The second path is that of the next plugin.
type Damage = fn(&Path, &Path);

const DAMAGES: [(&str, Damage); 10] = [
    ("swapped", |own, other| {
        let (mine, theirs) = (std::fs::read(own).unwrap(), std::fs::read(other).unwrap());
        std::fs::write(own, theirs).unwrap();
        std::fs::write(other, mine).unwrap();
    }),
    // The plugin before has swapped its artifact.
    ("swapped-too", |_, _| {}),
    ("cut-short", |own, _| {
        let content = std::fs::read(own).unwrap();
        std::fs::write(own, content.get(..content.len() / 2).unwrap()).unwrap();
    }),
    ("emptied", |own, _| std::fs::write(own, "").unwrap()),
    ("lengthened", |own, _| {
        let content = std::fs::read(own).unwrap();
        std::fs::write(own, [content.as_slice(), b"more"].concat()).unwrap();
    }),
    // An artifact of another release of the engine: its header holds the length and the text of the
    // major version (`ModuleVersionStrategy::WasmtimeVersion`, crates/wasmtime/src/config.rs in
    // 48.0).
    ("stale", |own, _| {
        let mut content = std::fs::read(own).unwrap();
        let version = content.windows(3).position(|window| window == b"\x0248").unwrap();
        content.splice(version..version + 3, *b"\x0247");
        std::fs::write(own, content).unwrap();
    }),
    ("linked", |own, other| {
        std::fs::remove_file(own).unwrap();
        std::os::unix::fs::symlink(other, own).unwrap();
    }),
    ("open-to-all", |own, other| {
        let theirs = std::fs::read(other).unwrap();
        std::fs::write(own, theirs).unwrap();
        std::fs::set_permissions(own, std::fs::Permissions::from_mode(0o666)).unwrap();
    }),
    ("directory", |own, _| {
        std::fs::remove_file(own).unwrap();
        std::fs::create_dir(own).unwrap();
    }),
    // A pipe, which must not block the reader.
    ("pipe", |own, _| {
        std::fs::remove_file(own).unwrap();
        let path = own.to_str().unwrap();
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    }),
];

fn entries(scene: &Scene) -> Vec<PathBuf> {
    let directory = scene.state_dir().join("artifacts");
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.'))
        .collect()
}

/// Returns the class and the message of the last attempt of each plugin.
fn said(scene: &Scene) -> BTreeMap<String, String> {
    scene
        .attempts()
        .into_iter()
        .map(|attempt| (attempt.plugin, format!("{} {}", attempt.class, attempt.message)))
        .collect()
}

/// Fails unless each plugin has run its own code.
#[track_caller]
fn expect_own_code(scene: &Scene) {
    for (plugin, said) in said(scene) {
        assert_eq!(said, format!("done I am {plugin}"), "{plugin}");
    }
    assert_eq!(said(scene).len(), DAMAGES.len());
}

#[test]
fn a_plugin_with_a_damaged_artifact_runs_its_own_code() {
    let scene = Scene::new()
        .derivation("alpha", Script::text("hello"))
        .derivation("beta", Script::text("hello again"));
    let mut file = ConfigFile::new();
    for (name, _) in DAMAGES {
        let path = scene.path(format!("{name}.wasm"));
        std::fs::write(&path, crafted().says(&format!("I am {name}")).build()).unwrap();
        file = file.plugin(name, PluginTable::file(&path).retry("attempts", 1));
    }
    scene.set_config(&file);
    // One after the other, which shows the artifact of each plugin.
    let mut own: Vec<PathBuf> = Vec::new();
    for (name, _) in DAMAGES {
        scene.hookrun(&["compile", name]).expect_success();
        let new: Vec<PathBuf> =
            entries(&scene).into_iter().filter(|entry| !own.contains(entry)).collect();
        let [entry] = new.as_slice() else { panic!("{name} made {new:?}") };
        own.push(entry.clone());
    }
    for ((_, damage), (entry, other)) in
        DAMAGES.iter().zip(own.iter().zip(own.iter().cycle().skip(1)))
    {
        damage(entry, other);
    }
    scene.build("alpha").expect_success();
    scene.drain();
    expect_own_code(&scene);

    // A directory that all users can write is not used, and the plugins still run.
    let directory = scene.state_dir().join("artifacts");
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).unwrap();
    scene.build("beta").expect_success();
    scene.drain();
    expect_own_code(&scene);
}
