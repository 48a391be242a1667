use serde_json::json;

use super::*;
use hookrun_host::Compiler;
use hookrun_nix::dirs::Dirs;

/// A working directory with the bundled plugin `s3-upload` as `upload.wasm`.
struct Directory(tempfile::TempDir);

impl Directory {
    fn new(configuration: Option<&str>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let component = bundled::component("s3-upload").unwrap();
        std::fs::write(directory.path().join("upload.wasm"), component).unwrap();
        if let Some(text) = configuration {
            std::fs::write(directory.path().join(HERE), text).unwrap();
        }
        Self(directory)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn find(
        &self,
        name: &str,
        chosen: Option<&str>,
        changes: &Changes<'_>,
    ) -> Result<Subject, String> {
        let config = self.path(chosen.unwrap_or("system.toml"));
        let files = Files {
            config: Path::new(&config),
            chosen: chosen.is_some(),
            directory: self.0.path(),
        };
        let state = self.0.path().join("state");
        let dirs = Dirs { config: config.clone().into(), state };
        let host = Host::new(&dirs, Compiler::InProcess);
        Subject::find(name, &files, &host, changes).map_err(|error| self.shown(&error.to_string()))
    }

    fn shown(&self, text: &str) -> String {
        text.replace(&self.0.path().display().to_string(), "DIR")
    }
}

const ONE: &str = "[plugins.cache]\nsource = \"upload.wasm\"\nconfig = { bucket = \"mine\" }\nlimits = { memory = \"32MiB\" }\n";
const OTHER: &str = "[plugins.policy]\nsource = \"bundled:speed-factor\"\n";
const NOTHING: Changes<'_> = Changes { set: &[], deny: &[], limits: &[] };

#[test]
fn a_file_has_the_configuration_that_names_it() {
    let directory = Directory::new(Some(ONE));
    let subject = directory.find(&directory.path("upload.wasm"), None, &NOTHING).unwrap();
    assert_eq!(subject.origin, Origin::Configured);
    assert_eq!(directory.shown(&subject.configuration()), "DIR/hookrun.toml:1");
    assert_eq!(subject.plugin.config, json!({ "bucket": "mine" }));
    assert_eq!(subject.plugin.limits.get(Limit::Memory), 32 << 20);
    assert_eq!(subject.plugin.grant, Grant::default());

    // If a file was chosen, no other is read.
    std::fs::write(directory.path("chosen.toml"), ONE.replace("mine", "chosen")).unwrap();
    let subject =
        directory.find(&directory.path("upload.wasm"), Some("chosen.toml"), &NOTHING).unwrap();
    assert_eq!(directory.shown(&subject.configuration()), "DIR/chosen.toml:1");
    assert_eq!(subject.plugin.config, json!({ "bucket": "chosen" }));
}

#[test]
fn a_configuration_without_the_file_is_named_as_not_used() {
    let directory = Directory::new(Some(OTHER));
    let subject = directory.find(&directory.path("upload.wasm"), None, &NOTHING).unwrap();
    insta::assert_snapshot!(directory.shown(&subject.notes.join("\n")), @"DIR/hookrun.toml is not used: no plugin in it has the source `DIR/upload.wasm`");
    insta::assert_snapshot!(subject.configuration(), @"sample configuration, with all grants it wants and `config` from the first example of its schema");
    assert_eq!(subject.plugin.grant.object_store, ["cache"]);
}

#[test]
fn without_a_configuration_samples_are_used_and_no_file_is_named() {
    let directory = Directory::new(None);
    // This file was not chosen, so it is not read.
    std::fs::write(directory.path("system.toml"), "[pluggins]\n").unwrap();
    let subject = directory.find(&directory.path("upload.wasm"), None, &NOTHING).unwrap();
    assert_eq!(subject.notes, [""; 0]);
    assert_eq!(subject.origin, Origin::Samples(SampleConfig::Example));
    let error = ConfigError {
        path: subject.config.path.clone(),
        line: None,
        message: "plugin `x`: config: the required key \"to\" is missing; add it (known keys: to)"
            .into(),
    };
    insta::assert_snapshot!(subject.explain(PluginError::Table(error.clone())), @r#"plugin `x`: config: the required key "to" is missing; add it (known keys: to); set a key with `--set 'KEY = VALUE'`, add an example to the schema, or write a [plugins.NAME] table with this `source` in hookrun.toml"#);
    insta::assert_snapshot!(subject.explain(PluginError::Config(error)), @r#"plugin `x`: config: the required key "to" is missing; add it (known keys: to)"#);
}

#[test]
fn a_name_is_looked_up_in_the_working_directory_first() {
    let directory = Directory::new(Some(ONE));
    std::fs::write(directory.path("system.toml"), OTHER).unwrap();
    let subject = directory.find("cache", None, &NOTHING).unwrap();
    assert_eq!(directory.shown(&subject.configuration()), "DIR/hookrun.toml:1");
    let subject = directory.find("policy", None, &NOTHING).unwrap();
    assert_eq!(directory.shown(&subject.configuration()), "DIR/system.toml:1");
}

#[test]
fn a_subject_that_cannot_be_tested_is_refused_with_the_reason() {
    let directory = Directory::new(Some(&format!("{ONE}{}", ONE.replace("cache", "second"))));
    let refused = |name: &str, chosen: Option<&str>, changes: &Changes<'_>| {
        directory.find(name, chosen, changes).unwrap_err()
    };
    let file = directory.path("upload.wasm");
    insta::assert_snapshot!(refused(&file, None, &NOTHING), @"DIR/upload.wasm is the `source` of several plugins in DIR/hookrun.toml; write the name of one of them, such as `cache` or `second`");
    insta::assert_snapshot!(refused("./none.wasm", None, &NOTHING), @r#"there is no file `./none.wasm`; build it with `cargo build --release --target wasm32-wasip2`, from a crate with `crate-type = ["cdylib"]`"#);
    insta::assert_snapshot!(refused("none", None, &NOTHING), @"there is no file `none`, no [plugins.none] in DIR/hookrun.toml, no configuration DIR/system.toml; write a path, `bundled:NAME` (email-on-nondeterminism, s3-upload, speed-factor, webhook) or the name of a configured plugin");
    insta::assert_snapshot!(refused("bundled:none", None, &NOTHING), @"plugin bundled:none is not bundled; known: email-on-nondeterminism, s3-upload, speed-factor, webhook");
    insta::assert_snapshot!(refused("cache", Some("none.toml"), &NOTHING), @"DIR/none.toml: there is no such file; correct `--config` or HOOKRUN_CONFIG");
    insta::assert_snapshot!(refused(&file, Some("none.toml"), &NOTHING), @"DIR/none.toml: there is no such file; correct `--config` or HOOKRUN_CONFIG");
    let with = |set: &[&str], deny: &[&str], limits: &[&str]| {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let (set, deny, limits) = (owned(set), owned(deny), owned(limits));
        let changes = Changes { set: &set, deny: &deny, limits: &limits };
        refused("bundled:s3-upload", None, &changes)
    };
    insta::assert_snapshot!(with(&["bucket = cache"], &[], &[]), @"--set `bucket = cache` is not `key = value` as in TOML (string values must be quoted, expected literal string); put quotes around strings");
    insta::assert_snapshot!(with(&[], &["mail"], &[]), @"`--deny mail` changes nothing: plugin `s3-upload` does not want `mail`; remove the option");
    insta::assert_snapshot!(with(&[], &["object-store", "nix-store"], &[]), @"plugin `s3-upload` does not load without `object-store`, `nix-store`, as its metadata says (`Want::Required`); deny only optional capabilities, or make it optional in the plugin");
    insta::assert_snapshot!(with(&[], &[], &["memory"]), @"--limit `memory` is not `LIMIT=VALUE`; write for example `wall-time=2s`");
    insta::assert_snapshot!(with(&[], &[], &["memroy=2MiB"]), @"--limit: there is no limit `memroy`; did you mean `memory`?");
    insta::assert_snapshot!(with(&[], &[], &["memory=much"]), @r#"--limit: `memory` must be a size such as "128MiB", and is "much""#);
}

#[test]
fn keys_of_one_table_are_set_one_by_one() {
    let directory = Directory::new(None);
    let set = ["a.b = 1", "a.c = [2]", "a.b = 3"].map(ToOwned::to_owned);
    let limits = ["wall-time=2s", "host-calls = 7"].map(ToOwned::to_owned);
    let changes = Changes { set: &set, deny: &[], limits: &limits };
    let subject = directory.find("bundled:speed-factor", None, &changes).unwrap();
    assert_eq!(subject.plugin.config["a"], json!({ "b": 3, "c": [2] }));
    assert_eq!(subject.plugin.limits.get(Limit::WallTime), 2000);
    assert_eq!(subject.config.plugins["speed-factor"].limits.get(Limit::HostCalls), 7);
}
