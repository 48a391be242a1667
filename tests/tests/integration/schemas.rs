//! Configuration schemas that would take very long or very much memory to check. The worker, the
//! commands and the build hook continue within bounds of memory and processor time, and name what
//! is wrong with the plugin.

use std::path::Path;
use std::process::{Command, Stdio};

use hookrun_tests::hostile::made::{crafted, importing};
use hookrun_tests::lab::{
    ConfigFile, PluginTable, Ran, Scene, Script, answers, build_hook, conversation,
};
use rustix::fs::inotify;
use serde_json::{Value, json};

/// The kernel limits the data and the processor time of each process.
const BOUNDS: &str = "ulimit -d 400000; ulimit -t 10";

/// A schema of 2 KB: each of its 45 levels doubles the time.
fn nested() -> Value {
    (0..45).fold(
        json!({ "type": "object" }),
        |inner, _| json!({ "unevaluatedProperties": false, "anyOf": [true, inner] }),
    )
}

/// A schema with 80 KB of patterns that take 4 GB when compiled.
fn patterns() -> Value {
    let properties: serde_json::Map<String, Value> = (0..4000)
        .map(|number| (number.to_string(), json!({ "pattern": format!("\\pL{{20}}{number}") })))
        .collect();
    json!({ "properties": properties })
}

/// A schema with as many patterns as are allowed, each of almost a megabyte.
fn large_patterns() -> Value {
    let properties: serde_json::Map<String, Value> = (0..100)
        .map(|number| (number.to_string(), json!({ "pattern": format!("\\pL{{20}}{number}") })))
        .collect();
    json!({ "properties": properties })
}

/// Writes a plugin with this schema that serves post-build.
fn plugin(path: &Path, schema: &Value) {
    let metadata = json!({
        "format": 1, "name": "crafted", "version": "0.0.1", "hooks": ["post-build"], "config-schema": schema,
    });
    std::fs::write(path, crafted().metadata(metadata.to_string()).build()).unwrap();
}

/// A scene with the plugin `hostile`, which has this schema, and the plugin `good`.
fn scene(schema: &Value) -> Scene {
    let scene = Scene::new().derivation("alpha", Script::text("hello"));
    plugin(&scene.path("hostile.wasm"), schema);
    std::fs::write(scene.path("good.wasm"), crafted().says("still here").build()).unwrap();
    scene.config(
        &ConfigFile::new()
            .plugin("hostile", PluginTable::file("hostile.wasm"))
            .plugin("good", PluginTable::file("good.wasm")),
    )
}

/// Runs the command within these bounds of a shell.
fn within(bounds: &str, command: &Command) -> Command {
    let mut shell = Command::new("/bin/bash");
    shell.args(["-c", &format!("{bounds}; exec \"$0\" \"$@\"")]).arg(command.get_program());
    shell.args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    shell
}

/// A command of hookrun within [`BOUNDS`].
fn bounded(scene: &Scene, arguments: &[&str]) -> Ran {
    Ran::of(&mut within(BOUNDS, &scene.hookrun_command(arguments)))
}

/// A schema that hookrun refuses, and a part of the message.
struct Refused {
    schema: fn() -> Value,
    why: &'static str,
}

const REFUSED: [Refused; 2] = [
    Refused { schema: nested, why: "`unevaluatedProperties`, which hookrun does not support" },
    Refused { schema: patterns, why: "more than 100 patterns" },
];

#[test]
fn commands_and_worker_name_a_hostile_schema_within_bounds() {
    for Refused { schema, why } in REFUSED {
        let scene = scene(&schema());
        bounded(&scene, &["inspect", "hostile"])
            .expect_exit(3)
            .expect_stdout("crafted 0.0.1")
            .expect_stdout(why);
        bounded(&scene, &["check"]).expect_exit(3).expect_stderr(why);
        bounded(&scene, &["test", scene.path("hostile.wasm").to_str().unwrap()])
            .expect_exit(1)
            .expect_stderr(why);
        scene.build("alpha").expect_success();
        bounded(&scene, &["drain"]);
        let said: Vec<String> = scene
            .attempts()
            .into_iter()
            .map(|attempt| format!("{} {} {}", attempt.plugin, attempt.class, attempt.message))
            .collect();
        assert!(said.iter().any(|said| said == "good done still here"), "{said:#?}");
        assert!(
            said.iter().any(|said| said.starts_with("hostile") && said.contains(why)),
            "{said:#?}"
        );
    }
}

#[test]
fn a_schema_with_the_most_patterns_that_are_allowed_is_checked_within_bounds() {
    let scene = scene(&large_patterns());
    bounded(&scene, &["check"]).expect_success().expect_stdout("plugin hostile: crafted");
    // Less memory than the schema takes.
    let less = BOUNDS.replace("400000", "25000");
    let mut check = within(&less, &scene.hookrun_command(&["inspect", "hostile"]));
    check.env("XDG_CACHE_HOME", scene.path("another-cache"));
    Ran::of(&mut check).expect_exit(3).expect_stderr("takes more than 256 MiB of memory to check");
}

#[test]
fn a_component_with_too_much_metadata_is_refused() {
    let scene = scene(&json!({}));
    let component = std::fs::read(scene.path("good.wasm")).unwrap();
    std::fs::write(scene.path("hostile.wasm"), importing(30_000, &component)).unwrap();
    bounded(&scene, &["check"]).expect_exit(3).expect_stderr("hostile.wasm has metadata");
}

#[test]
fn the_build_hook_answers_with_a_hostile_schema_in_the_configuration() {
    for Refused { schema, why } in REFUSED {
        let hostile = PluginTable::file("hostile.wasm");
        for table in [
            hostile.clone(),
            hostile.clone().hooks(["post-build"]),
            hostile.hooks(["builder-selection"]),
        ] {
            let file = ConfigFile::default().plugin("hostile", table).to_string();
            let directory = tempfile::tempdir().unwrap();
            plugin(&directory.path().join("hostile.wasm"), &schema());
            std::fs::write(directory.path().join("hookrun.toml"), &file).unwrap();
            let hook = build_hook(directory.path(), "echo '# decline' >&2");
            let mut shell = within(BOUNDS, &hook);
            shell.env_remove("HOME").stdout(Stdio::null());
            let (bytes, _) = conversation("ssh://m", 1);
            let begun = std::time::Instant::now();
            let answered = answers(&mut shell, &bytes);
            assert_eq!(answered.directives.len(), 1, "{why} {file}: {answered:?}");
            assert!(begun.elapsed().as_secs() < 30, "{why} {file}: {:?}", begun.elapsed());
        }
    }
}

#[test]
fn the_build_hook_does_not_open_a_known_plugin_again() {
    let directory = tempfile::tempdir().unwrap();
    let component = directory.path().join("good.wasm");
    std::fs::write(&component, crafted().build()).unwrap();
    let file = ConfigFile::default().plugin("good", PluginTable::file("good.wasm"));
    std::fs::write(directory.path().join("hookrun.toml"), file.to_string()).unwrap();
    let (bytes, _) = conversation("ssh://m", 1);
    let opened = || -> bool {
        let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
        let watch = inotify::init(flags).unwrap();
        inotify::add_watch(&watch, &component, inotify::WatchFlags::OPEN).unwrap();
        let mut hook = build_hook(directory.path(), "echo '# decline' >&2");
        assert_eq!(answers(&mut hook, &bytes).directives.len(), 1);
        rustix::io::read(&watch, &mut [0_u8; 4096]).is_ok_and(|length| length > 0)
    };
    assert!(opened(), "the plugin is not known yet");
    assert!(!opened(), "the plugin is known");
    std::fs::write(&component, crafted().says("changed").build()).unwrap();
    assert!(opened(), "the file has changed");
}
