//! What is wrong is said in one line that ends in the fix, with the documented exit code; and
//! whatever is wrong, builds go on and their events are kept until it is put right.

use std::fmt::Write as _;
use std::process::Command;

use hookrun_nix::dirs::Dirs;
use hookrun_nix::layout;
use hookrun_tests::lab::{Need, Ran, Scene, Script, require};

/// Nothing is wrong in this one.
const VALID: &str = "[worker]\nstart = \"none\"\n";
/// The header of a core module: `\0asm`, version 1, layer 0 (a component has version 13, layer 1).
const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// Nothing is wrong in this one either, and it has a plugin.
const UPLOAD: &str = "[worker]\nstart = \"none\"\n\
    [plugins.cache]\nsource = \"bundled:s3-upload\"\nhooks = [\"post-build\"]\nconfig = { bucket = \"cache\" }\n\
    grant = { nix-store = \"closure\", object-store = [\"cache\"] }\n[object-stores.cache]\n";

/// What is wrong, and the configuration that has it.
const UNREADABLE: [(&str, &str); 3] = [
    ("unknown key", "[worker]\nstrat = \"none\"\n"),
    ("unknown value", "[worker]\nstart = \"sometimes\"\n"),
    ("no TOML", "[worker\n"),
];

/// What is wrong with a plugin, and the lines for it after those of [`VALID`].
const UNUSABLE: [(&str, &str); 6] = [
    (
        "missing plugin file",
        "[plugins.cache]\nsource = \"plugins/cache.wasm\"\nhooks = [\"post-build\"]\n",
    ),
    ("core module", "[plugins.cache]\nsource = \"core.wasm\"\nhooks = [\"post-build\"]\n"),
    (
        "not WebAssembly at all",
        "[plugins.cache]\nsource = \"hookrun.toml\"\nhooks = [\"post-build\"]\n",
    ),
    (
        "capability without a grant",
        "[plugins.cache]\nsource = \"bundled:s3-upload\"\nconfig = { bucket = \"cache\" }\n[object-stores.cache]\n",
    ),
    (
        "missing key file",
        "[plugins.cache]\nsource = \"bundled:s3-upload\"\nconfig = { bucket = \"cache\" }\n\
         grant = { nix-store = \"closure\", object-store = [\"cache\"], signing = [\"lab-1\"] }\n\
         [object-stores.cache]\n[signing-keys.lab-1]\nfile = \"@scene@/keys/missing.secret\"\n",
    ),
    (
        "key file with something else",
        "[plugins.cache]\nsource = \"bundled:s3-upload\"\nconfig = { bucket = \"cache\" }\n\
         grant = { nix-store = \"closure\", object-store = [\"cache\"], signing = [\"lab-1\"] }\n\
         [object-stores.cache]\n[signing-keys.lab-1]\nfile = \"@scene@/hookrun.toml\"\n",
    ),
];

/// All of them, as whole configurations.
fn wrong() -> Vec<(&'static str, String)> {
    let unreadable = UNREADABLE.iter().map(|(what, config)| (*what, (*config).to_owned()));
    unreadable
        .chain(UNUSABLE.iter().map(|(what, lines)| (*what, format!("{VALID}{lines}"))))
        .collect()
}

/// Text of a scene as a snapshot can hold it.
fn without_places(scene: &Scene, text: &str) -> String {
    text.replace(&scene.dir().display().to_string(), "@scene@")
}

#[test]
fn a_plugin_that_is_a_pipe_does_not_hold_anybody_up() {
    let scene = Scene::new().config("[plugins.x]\nsource = \"pipe\"\n");
    let made = std::process::Command::new("mkfifo").arg(scene.path("pipe")).status().unwrap();
    assert!(made.success());
    scene
        .hookrun(&["check"])
        .expect_exit(3)
        .expect_stderr("is not a regular file; correct `source`");
}

#[test]
fn check_says_what_is_wrong_in_one_line() {
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
        // The worker does not do better, and loses nothing.
        let drained = scene.drain();
        assert!(!drained.status.success(), "{what}: {}", drained.account());
    }
    scene.set_config(UPLOAD);
    scene.drain().expect_success();
    let done: Vec<String> = names.iter().map(|name| format!("{name} cache done")).collect();
    assert_eq!(scene.tasks(), done, "put right, everything is done");
}

#[test]
fn a_plugin_file_that_vanishes_does_not_stop_the_others() {
    let scene = Scene::new()
        .config(&format!(
            "{UPLOAD}[plugins.gone]\nsource = \"gone.wasm\"\nhooks = [\"post-build\"]\n"
        ))
        .derivation("alpha", Script::text("hello"));
    scene.build("alpha").expect_success();
    let _fails_for_one = scene.drain();
    let tasks = scene.tasks();
    assert!(tasks.contains(&"alpha cache done".to_owned()), "{tasks:?}");
    assert!(tasks.contains(&"alpha gone refused".to_owned()), "{tasks:?}");
}

/// The command under a state directory that is on a read-only file system, which not even root can
/// write to.
fn with_read_only_state(scene: &Scene, command: &Command) -> Command {
    std::fs::create_dir_all(scene.state_dir()).unwrap();
    let mut wrapped = scene.private_nix().command("unshare");
    wrapped
        .args(["--mount", "sh", "-c", "mount -t tmpfs -o ro none \"$0\" && exec \"$@\""])
        .arg(scene.state_dir());
    wrapped.arg(command.get_program()).args(command.get_args());
    wrapped
}

/// Events that hooks left outside of the state directory.
fn fallback_events(scene: &Scene) -> Vec<std::path::PathBuf> {
    let dirs = Dirs { config: scene.config_path(), state: scene.state_dir() };
    let fallbacks = layout::fallbacks(&dirs).into_iter();
    let entries = fallbacks.filter_map(|fallback| std::fs::read_dir(fallback).ok()).flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_read_only_state_directory_is_named_and_costs_no_event() {
    if !require(Need::Root) {
        return;
    }
    let scene = Scene::new().config(UPLOAD).derivation("alpha", Script::text("hello"));
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

    // Writable again: the worker finds it.
    scene.drain().expect_success();
    assert_eq!(fallback_events(&scene), Vec::<std::path::PathBuf>::new());
    scene.expect_tasks(&["alpha cache done"]);
}

#[test]
fn usage_errors_have_their_code() {
    let scene = Scene::new().config(VALID);
    for arguments in
        [&["no-such-command"][..], &["log", "--no-such-option"], &["test"], &["inspect"]]
    {
        scene.hookrun(arguments).expect_exit(2);
    }
}
