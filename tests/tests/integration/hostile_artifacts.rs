//! Artifacts that are not what they should be: swapped, cut short, stale, somebody else's. Each
//! plugin runs its own code all the same, or none; whatever does not fit is compiled again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use hookrun_tests::hostile::made::crafted;
use hookrun_tests::lab::{Scene, Script};

/// What is done to the entry of each plugin; the second is the entry of the plugin after it.
type Damage = fn(&Path, &Path);

const DAMAGES: [(&str, Damage); 10] = [
    ("swapped", |own, other| {
        let (mine, theirs) = (std::fs::read(own).unwrap(), std::fs::read(other).unwrap());
        std::fs::write(own, theirs).unwrap();
        std::fs::write(other, mine).unwrap();
    }),
    // Its entry was swapped by the one before.
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
    // Made by another release of the engine: its header holds the length and the text of the major
    // version (`ModuleVersionStrategy::WasmtimeVersion`, crates/wasmtime/src/config.rs in 48.0).
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
    // A pipe: opening it must not wait for somebody to write.
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

/// What each plugin said last.
fn said(scene: &Scene) -> BTreeMap<String, String> {
    scene
        .attempts()
        .into_iter()
        .map(|attempt| (attempt.plugin, format!("{} {}", attempt.class, attempt.message)))
        .collect()
}

/// Everybody's own words.
#[track_caller]
fn expect_own_words(scene: &Scene) {
    for (plugin, said) in said(scene) {
        assert_eq!(said, format!("done I am {plugin}"), "{plugin}");
    }
    assert_eq!(said(scene).len(), DAMAGES.len());
}

#[test]
fn whatever_happens_to_its_artifact_a_plugin_runs_its_own_code() {
    let scene = Scene::new()
        .derivation("alpha", Script::text("hello"))
        .derivation("beta", Script::text("hello again"));
    let mut config = "[worker]\nstart = \"none\"\n".to_owned();
    for (name, _) in DAMAGES {
        let path = scene.path(format!("{name}.wasm"));
        std::fs::write(&path, crafted().says(&format!("I am {name}")).build()).unwrap();
        write!(
            config,
            "[plugins.{name}]\nsource = \"{}\"\nretry = {{ attempts = 1 }}\n",
            path.display()
        )
        .unwrap();
    }
    scene.set_config(&config);
    // One after the other, so that it is known whose entry is whose.
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
    expect_own_words(&scene);

    // The directory itself is open to everybody: nothing in it is believed, and the plugins still
    // run.
    let directory = scene.state_dir().join("artifacts");
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).unwrap();
    scene.build("beta").expect_success();
    scene.drain();
    expect_own_words(&scene);
}
