//! Wrong configurations: `hookrun check` prints one line that ends in the fix and exits with the
//! documented code, builds succeed, and their events are kept until the configuration is valid.

use std::fmt::Write as _;
use std::process::Command;

use hookrun_nix::layout;
use hookrun_tests::lab::{ConfigFile, Need, PluginTable, Ran, Scene, Script, require};

/// The header of a core module: `\0asm`, version 1, layer 0 (a component has version 13, layer 1).
const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// A valid configuration.
const VALID: &str = r#"
[worker]
start = "none"
"#;

/// The lines of a valid plugin.
const UPLOAD: &str = r#"
[plugins.cache]
source = "bundled:s3-upload"
hooks = ["post-build"]
config = { bucket = "cache", allow-unsigned = true }
grant = { nix-store = "closure", object-store = ["cache"] }
[object-stores.cache]
"#;

/// Lines that make the configuration invalid, and what is wrong with them.
const UNREADABLE: [(&str, &str); 3] = [
    ("unknown key", "[worker]\nstrat = 'none'\n"),
    ("unknown value", "[worker]\nstart = 'sometimes'\n"),
    ("not TOML", "[worker\n"),
];

/// The lines of plugins that do not load, and what is wrong with them.
const UNUSABLE: [(&str, &str); 6] = [
    (
        "missing plugin file",
        r#"
[plugins.cache]
source = "plugins/cache.wasm"
hooks = ["post-build"]
"#,
    ),
    (
        "core module",
        r#"
[plugins.cache]
source = "core.wasm"
hooks = ["post-build"]
"#,
    ),
    (
        "not WebAssembly at all",
        r#"
[plugins.cache]
source = "hookrun.toml"
hooks = ["post-build"]
"#,
    ),
    (
        "capability without a grant",
        r#"
[plugins.cache]
source = "bundled:s3-upload"
config = { bucket = "cache" }
[object-stores.cache]
"#,
    ),
    (
        "missing key file",
        r#"
[plugins.cache]
source = "bundled:s3-upload"
config = { bucket = "cache" }
grant = { nix-store = "closure", object-store = ["cache"], signing = ["lab-1"] }
[object-stores.cache]
[signing-keys.lab-1]
file = "keys/missing.secret"
"#,
    ),
    (
        "key file without a key",
        r#"
[plugins.cache]
source = "bundled:s3-upload"
config = { bucket = "cache" }
grant = { nix-store = "closure", object-store = ["cache"], signing = ["lab-1"] }
[object-stores.cache]
[signing-keys.lab-1]
file = "hookrun.toml"
"#,
    ),
];

/// Returns whole configurations, and what is wrong with each of them.
fn wrong() -> Vec<(&'static str, String)> {
    let unreadable = UNREADABLE.iter().map(|(what, text)| (*what, (*text).to_owned()));
    let unusable = UNUSABLE.iter().map(|(what, lines)| (*what, with(lines)));
    unreadable.chain(unusable).collect()
}

/// Returns the valid configuration with more lines.
fn with(lines: &str) -> String {
    format!("{}{}", VALID.trim_start(), lines.trim_start())
}

/// Returns `text` with the directory of the scene replaced.
fn without_places(scene: &Scene, text: &str) -> String {
    text.replace(&scene.dir().display().to_string(), "@scene@")
}

#[test]
fn a_plugin_file_that_is_a_pipe_is_refused() {
    let scene = Scene::new().config(&ConfigFile::from(PluginTable::file("pipe")));
    let made = std::process::Command::new("mkfifo").arg(scene.path("pipe")).status().unwrap();
    assert!(made.success());
    scene
        .hookrun(&["check"])
        .expect_exit(3)
        .expect_stderr("is not a regular file; correct `source`");
}

#[test]
fn check_reports_a_wrong_configuration_in_one_line() {
    let scene = Scene::new().config(VALID);
    scene.hookrun(&["check"]).expect_success();
    std::fs::write(scene.path("core.wasm"), CORE_MODULE).unwrap();
    let mut report = String::new();
    for (what, config) in wrong() {
        scene.set_config(&config);
        let ran = scene.hookrun(&["check"]).expect_exit(3);
        assert_eq!(ran.stderr.lines().count(), 1, "{what}: one line\n{}", ran.account());
        assert!(ran.stderr.starts_with("error: "), "{what}: {}", ran.account());
        writeln!(report, "{what}\n  {}", without_places(&scene, ran.stderr.trim_end())).unwrap();
    }
    insta::assert_snapshot!(report);
}

#[test]
fn a_build_under_a_broken_configuration_succeeds_and_its_event_is_kept() {
    let wrong = wrong();
    let names: Vec<String> = (0..wrong.len()).map(|number| format!("alpha-{number}")).collect();
    let scene = names
        .iter()
        .fold(Scene::new(), |scene, name| scene.derivation(name, Script::text("hello")));
    std::fs::write(scene.path("core.wasm"), CORE_MODULE).unwrap();
    for (name, (what, config)) in names.iter().zip(&wrong) {
        scene.set_config(config);
        let ran = scene.build(name);
        assert!(ran.status.success(), "{what}: {}", ran.account());
        // The worker fails too, and loses no event.
        let drained = scene.drain();
        assert!(!drained.status.success(), "{what}: {}", drained.account());
    }
    scene.set_config(&with(UPLOAD));
    scene.drain().expect_success();
    let done: Vec<String> = names.iter().map(|name| format!("{name} cache done")).collect();
    assert_eq!(scene.tasks(), done, "all events are done with a valid configuration");
}

#[test]
fn a_plugin_file_that_vanishes_does_not_stop_the_others() {
    let scene = Scene::new()
        .config(&format!(
            "{}[plugins.gone]\nsource = 'gone.wasm'\nhooks = ['post-build']\n",
            with(UPLOAD)
        ))
        .derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    scene.drain().expect_exit(1);
    let tasks = scene.tasks();
    assert!(tasks.contains(&"alpha cache done".to_owned()), "{tasks:?}");
    assert!(tasks.contains(&"alpha gone refused".to_owned()), "{tasks:?}");
}

/// Wraps the command so that the state directory is on a read-only file system, which even root
/// cannot write.
fn with_read_only_state(scene: &Scene, command: &Command) -> Command {
    std::fs::create_dir_all(scene.state_dir()).unwrap();
    let mut wrapped = scene.private_nix().command("unshare");
    wrapped
        .args(["--mount", "sh", "-c", "mount -t tmpfs -o ro none \"$0\" && exec \"$@\""])
        .arg(scene.state_dir());
    wrapped.arg(command.get_program()).args(command.get_args());
    wrapped
}

/// Returns the events that hooks wrote to fallback directories.
fn fallback_events(scene: &Scene) -> Vec<std::path::PathBuf> {
    let fallbacks = layout::fallbacks(&scene.dirs()).into_iter();
    let entries = fallbacks.filter_map(|fallback| std::fs::read_dir(fallback).ok()).flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_read_only_state_directory_is_named_and_loses_no_event() {
    if !require(Need::Root) {
        return;
    }
    let scene = Scene::new().config(&with(UPLOAD)).derivation("alpha", Script::text("hello"));
    let check = Ran::of(&mut with_read_only_state(&scene, &scene.hookrun_command(&["check"])))
        .expect_exit(4);
    assert_eq!(check.stderr.lines().count(), 1, "{}", check.account());
    let drain = Ran::of(&mut with_read_only_state(&scene, &scene.hookrun_command(&["drain"])))
        .expect_exit(4);
    let build = Ran::of(&mut with_read_only_state(&scene, &scene.build_command("alpha", &[])))
        .expect_success();
    let said = build
        .stderr
        .lines()
        .find(|line| line.contains("hookrun: "))
        .unwrap_or_else(|| panic!("{}", build.account()));
    let kept = fallback_events(&scene);
    assert_eq!(kept.len(), 1, "{}", build.account());
    assert!(said.contains(kept[0].to_str().unwrap()), "{said}");
    let said = said.replace(kept[0].to_str().unwrap(), "@event@");
    insta::assert_snapshot!(without_places(
        &scene,
        &format!("{}{}{said}", check.stderr, drain.stderr)
    ));

    // The state directory is writable again, and the worker finds the event.
    scene.drain().expect_success();
    assert_eq!(fallback_events(&scene), Vec::<std::path::PathBuf>::new());
    scene.expect_tasks(&["alpha cache done"]);
}

#[test]
fn usage_errors_exit_with_2() {
    let scene = Scene::new().config(VALID);
    for arguments in
        [&["no-such-command"][..], &["log", "--no-such-option"], &["test"], &["inspect"]]
    {
        scene.hookrun(arguments).expect_exit(2);
    }
}
