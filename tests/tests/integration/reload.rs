//! What changes on disk while `hookrun daemon` runs: taken up for the next run, or left where it is
//! with a word in `hookrun status`.

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use hookrun_tests::guests;
use hookrun_tests::lab::{Scene, Script};

/// `hookrun daemon`, until the test ends.
struct Daemon(Child);

impl Daemon {
    fn start(scene: &Scene) -> Self {
        Self(scene.hookrun_command(&["daemon"]).spawn().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _asked = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ended = self.0.wait();
    }
}

/// Waits for what has to come; a machine under load may take its time.
fn eventually<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    for _ in 0..1200 {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("a minute passed without {what}");
}

/// The message of the plugin's only attempt on the derivation.
fn message(scene: &Scene, derivation: &str) -> String {
    eventually(derivation, || {
        scene
            .attempts()
            .into_iter()
            .find(|attempt| attempt.name == derivation)
            .map(|attempt| attempt.message)
    })
}

fn problems(scene: &Scene) -> Vec<String> {
    let status: serde_json::Value = serde_json::from_str(
        &scene.hookrun(&["status", "--format", "json"]).expect_success().stdout,
    )
    .unwrap();
    let problems = status.get("problems").and_then(serde_json::Value::as_array).unwrap().iter();
    problems
        .map(|problem| problem.as_str().unwrap().to_owned())
        .filter(|problem| problem.starts_with("worker: "))
        .collect()
}

fn refreshed(scene: &Scene) -> Option<u64> {
    let status: serde_json::Value = serde_json::from_str(
        &scene.hookrun(&["status", "--format", "json"]).expect_success().stdout,
    )
    .unwrap();
    status.get("refreshed-ms").and_then(serde_json::Value::as_u64)
}

/// Waits until a change has been taken up.
fn taken_up(scene: &Scene, change: impl FnOnce()) {
    let before = refreshed(scene);
    // Times are milliseconds.
    std::thread::sleep(Duration::from_millis(2));
    change();
    eventually("a change that is taken up", || (refreshed(scene) > before).then_some(()));
}

fn config(plugin: &Path, greeting: &str) -> String {
    format!(
        "[worker]\nstart = \"service\"\n[plugins.keeper]\nsource = \"{}\"\nhooks = [\"post-build\"]\nconfig = {{ greeting = \"{greeting}\" }}\n\
         grant = {{ state = true }}\n",
        plugin.display()
    )
}

#[test]
fn a_configuration_is_taken_up_and_a_broken_one_is_not() {
    let good = guests::guest("good").unwrap();
    let scene = Scene::new().config(&config(&good, "hello"));
    let scene = ["alpha", "beta", "gamma"]
        .iter()
        .fold(scene, |scene, name| scene.derivation(name, Script::text(name)));
    let _daemon = Daemon::start(&scene);
    scene.build("alpha").expect_success();
    assert_eq!(message(&scene, "alpha"), "hello alpha");
    taken_up(&scene, || scene.set_config(&config(&good, "bye")));
    scene.build("beta").expect_success();
    assert_eq!(message(&scene, "beta"), "bye beta");
    scene.set_config("[plugins.keeper\n");
    let problem = eventually("a word about it", || problems(&scene).pop());
    assert!(
        problem.contains(":1: ")
            && problem.ends_with("; the worker goes on with the configuration of before"),
        "{problem}"
    );
    scene.build("gamma").expect_success();
    assert_eq!(message(&scene, "gamma"), "bye gamma");
    // What the runner is to start with is refused behind the wall, not when it is read: that is no
    // reason to stop, either.
    scene.set_config(&config(&good, "bye").replace("state = true", "state = false"));
    let problem = eventually("another word", || {
        problems(&scene).into_iter().find(|problem| problem.contains("state"))
    });
    assert!(problem.ends_with("; the previous state stays in use"), "{problem}");
    taken_up(&scene, || scene.set_config(&config(&good, "again")));
    assert_eq!(problems(&scene), Vec::<String>::new());
}

#[test]
fn a_plugin_is_taken_up_and_a_broken_one_is_not() {
    let good = std::fs::read(guests::guest("good").unwrap()).unwrap();
    let scene = Scene::new();
    let plugin = scene.path("plugin.wasm");
    std::fs::write(&plugin, &good).unwrap();
    let failing = config(&plugin, "x").replace("greeting = \"x\"", "fail = \"permanent\"");
    let scene = scene.config(&failing);
    let scene = ["alpha", "beta", "gamma"]
        .iter()
        .fold(scene, |scene, name| scene.derivation(name, Script::text(name)));
    let _daemon = Daemon::start(&scene);
    scene.build("alpha").expect_success();
    assert_eq!(message(&scene, "alpha"), "told to fail");
    // As an installation does it: a new file in the place of the old one.
    let install = |bytes: &[u8]| {
        std::fs::write(scene.path("plugin.new"), bytes).unwrap();
        std::fs::rename(scene.path("plugin.new"), &plugin).unwrap();
    };
    let other = replaced(&good, b"told to fail", b"sold to fail");
    taken_up(&scene, || install(&other));
    scene.build("beta").expect_success();
    assert_eq!(message(&scene, "beta"), "sold to fail");
    install(b"\0asm but not for long");
    let problem = eventually("a word about it", || problems(&scene).pop());
    assert!(
        problem.contains("plugin.wasm") && problem.ends_with("; the previous state stays in use"),
        "{problem}"
    );
    scene.build("gamma").expect_success();
    assert_eq!(message(&scene, "gamma"), "sold to fail", "the one before the broken one");
    taken_up(&scene, || install(&good));
    assert_eq!(problems(&scene), Vec::<String>::new());
}

#[test]
fn a_task_that_was_refused_runs_when_its_secret_is_there() {
    let scene =
        Scene::new().signing_key("cache.example.org-1").derivation("alpha", Script::text("hello"));
    let key = scene.path("key-to-come");
    let scene = scene.config(&format!(
        "[worker]\nstart = \"service\"\n[plugins.cache]\nsource = \"bundled:s3-upload\"\nhooks = [\"post-build\"]\n\
         config = {{ bucket = \"cache\" }}\ngrant = {{ nix-store = \"closure\", object-store = [\"cache\"], signing = [\"cache.example.org-1\"] }}\n\
         [object-stores.cache]\n[signing-keys.\"cache.example.org-1\"]\nfile = \"{}\"\n",
        key.display()
    ));
    let _daemon = Daemon::start(&scene);
    scene.build("alpha").expect_success();
    let refusal = message(&scene, "alpha");
    assert!(refusal.contains("key-to-come"), "{refusal}");
    std::fs::copy(scene.path("keys/cache.example.org-1.secret"), &key).unwrap();
    eventually("the upload", || {
        scene.tasks().contains(&"alpha cache done".to_owned()).then_some(())
    });
}

#[test]
fn a_configuration_that_is_away_for_a_while_costs_no_event() {
    let good = guests::guest("good").unwrap();
    let scene = Scene::new().config(&config(&good, "hello"));
    let scene = ["alpha", "beta", "gamma"]
        .iter()
        .fold(scene, |scene, name| scene.derivation(name, Script::text(name)));
    let _daemon = Daemon::start(&scene);
    scene.build("alpha").expect_success();
    assert_eq!(message(&scene, "alpha"), "hello alpha");
    let away = scene.path("away.toml");
    std::fs::rename(scene.config_path(), &away).unwrap();
    scene.build("beta").expect_success();
    // A named file has to be there, so that the commands are told where it is now.
    let look = |arguments: &[&str]| {
        let mut all = vec!["--config", away.to_str().unwrap()];
        all.extend(arguments);
        scene.hookrun(&all).expect_success().stdout
    };
    eventually("beta, with the configuration of before", || {
        look(&["log"]).contains("hello beta").then_some(())
    });
    eventually("a word about it", || look(&["status"]).contains("is not there").then_some(()));
    std::fs::rename(&away, scene.config_path()).unwrap();
    scene.build("gamma").expect_success();
    assert_eq!(message(&scene, "gamma"), "hello gamma");
    eventually("the end of the problem", || problems(&scene).is_empty().then_some(()));
}

/// `bytes` with `from` replaced by `to`, which is as long, wherever it stands.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes.to_vec();
    let places: Vec<usize> = memchr::memmem::find_iter(&bytes, from).collect();
    assert!(!places.is_empty());
    for place in places {
        bytes.get_mut(place..place + to.len()).unwrap().copy_from_slice(to);
    }
    bytes
}
