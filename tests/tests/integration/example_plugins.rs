//! The plugins of `examples/plugins`, with real builds, as their pages describe it.

use std::path::{Path, PathBuf};

use hookrun_tests::guests::example;
use hookrun_tests::lab::{ConfigFile, PluginTable, Scene, Script, toml};
use serde_json::Value;

/// The key of the statements' signatures.
const KEY: &str = "cache.example.org-1";

/// Returns the files below a directory, sorted.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A configuration of an example that uses the object store `shared`, which is this directory.
fn config(name: &str, store: &Path, table: impl Fn(PluginTable) -> PluginTable) -> ConfigFile {
    let url = format!("file://{}", store.display());
    let plugin = PluginTable::file(example(name).unwrap())
        .config(toml! { store = "shared" })
        .grant("nix-store", "outputs")
        .grant("object-store", ["shared"]);
    ConfigFile::new().plugin(name, table(plugin)).object_store("shared", toml! { url = url })
}

#[test]
fn provenance_has_the_digest_that_nix_has_and_a_signature_that_nix_accepts() {
    let store = tempfile::tempdir().unwrap();
    let scene = Scene::new().derivation("alpha", Script::text("hello")).signing_key(KEY);
    let file = config("provenance", store.path(), |plugin| {
        plugin.config(toml! { builder-id = "https://builds.example.org/" }).grant("signing", [KEY])
    });
    scene.set_config(&file.signing_key(KEY, format!("keys/{KEY}.secret")));
    scene.build("alpha").expect_success();
    scene.drain().expect_success();
    scene.expect_tasks(&["alpha provenance done"]);

    let [path] = files(store.path()).try_into().unwrap();
    let statement = json(&path);
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    let drv_path = scene.drv_path("alpha").display().to_string();
    let definition = &statement["predicate"]["buildDefinition"];
    assert_eq!(definition["externalParameters"]["derivation"], drv_path);
    let subject = &statement["subject"][0];
    let out_path = scene.out_path("alpha").display().to_string();
    assert_eq!(subject["name"], out_path);
    let query = ["--query", "--hash", &out_path];
    let base32 = scene.nix("nix-store", &query).expect_success().stdout;
    let base32 = base32.trim().strip_prefix("sha256:").unwrap().to_owned();
    let hex = scene.nix("nix-hash", &["--type", "sha256", "--to-base16", &base32]);
    assert_eq!(subject["digest"]["sha256"], hex.expect_success().stdout.trim());
    // Nix itself makes the same signature with this key.
    let secret = scene.path(format!("keys/{KEY}.secret")).display().to_string();
    let nix = |arguments: &[&str]| {
        let experimental = ["--extra-experimental-features", "nix-command"];
        scene.nix("nix", &[&experimental, arguments].concat()).expect_success()
    };
    nix(&["store", "sign", "--key-file", &secret, &out_path]);
    let info: Value =
        serde_json::from_str(&nix(&["path-info", "--json", &out_path]).stdout).unwrap();
    assert_eq!(info[0]["signatures"], subject["annotations"]["nixSignatures"]);
}

#[test]
fn the_ledger_names_a_machine_that_got_another_result() {
    let store = tempfile::tempdir().unwrap();
    // The result depends on a file outside of Nix.
    let outside = tempfile::tempdir().unwrap();
    let answer = outside.path().join("answer");
    std::fs::write(&answer, "one\n").unwrap();
    let script = Script::new(format!("read x < {}; echo $x > $out", answer.display()));
    let scene = Scene::new().derivation("stamp", script);
    scene.set_config(&config("build-ledger", store.path(), |plugin| plugin));
    scene.build("stamp").expect_success();
    scene.drain().expect_success();
    scene.expect_tasks(&["stamp build-ledger done"]);
    // The entry becomes that of another machine.
    let [entry] = files(store.path()).try_into().unwrap();
    std::fs::rename(&entry, entry.with_file_name("other-machine.json")).unwrap();

    std::fs::write(&answer, "two\n").unwrap();
    let out_path = scene.out_path("stamp").display().to_string();
    scene.nix("nix-store", &["--delete", &out_path]).expect_success();
    scene.build("stamp").expect_success();
    let _ = scene.drain();
    let attempts = scene.attempts();
    let message = &attempts.last().unwrap().message;
    assert!(message.starts_with("stamp: the results of `out` differ: sha256:"), "{message}");
    assert!(message.contains(" on other-machine"), "{message}");
    assert_eq!(files(store.path()).len(), 2);
}
