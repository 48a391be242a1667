//! The escape drill: a guest asks the host process itself to break out of its sandbox. Everything
//! fails that is not granted, as root without capabilities and as another user.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use hookrun_tests::lab::{ConfigFile, Need, PluginTable, Scene, Script, require, toml};

/// The guest of the drill with these attempts.
fn escape(attempts: &[String]) -> PluginTable {
    PluginTable::guest("escape").config(toml! { attempts = (attempts.to_vec()) })
}

/// Runs the drill with a changed configuration. Returns each attempt with its result.
fn drill(scene: &Scene, file: &ConfigFile, attempts: &[String]) -> Vec<(String, String)> {
    let plugin = escape(attempts)
        .hooks(["post-build"])
        .retry("attempts", 1)
        .grant("state", true)
        .grant("object-store", ["mine"]);
    scene.set_config(
        &file.clone().plugin("escape", plugin).object_store("mine", toml::Table::new()),
    );
    scene.build("alpha").expect_success();
    scene.drain().expect_success();
    let attempts = scene.attempts();
    let log = &attempts.last().unwrap().log;
    log.iter()
        .filter_map(|line| line.split_once(" => "))
        .map(|(what, result)| (what.to_owned(), result.to_owned()))
        .collect()
}

/// Returns the attempts that have to fail.
fn forbidden(scene: &Scene, port: u16, socket: &str) -> Vec<String> {
    let state = scene.state_dir();
    let in_state = |kind: &str, name: &str| format!("{kind}:{}", state.join(name).display());
    let mut attempts: Vec<String> = [
        "read:/etc/shadow",
        "read:/root/.profile",
        "read:/proc/1/environ",
        "list:/root",
        "list:/",
        "write:/tmp/hookrun-escaped",
        "write:/etc/hookrun-escaped",
        "exec:/bin/sh",
        "exec:/proc/self/exe",
        "listen:127.0.0.1:0",
        "udp-listen:127.0.0.1:0",
        "parent-memory",
        "parent-environment",
        "ptrace-parent",
        "signal-parent",
        "fork",
        "mount",
        "unshare",
        "bpf",
        "keys",
        "io-uring",
        "netlink",
        "packets",
        "chroot",
        "open-by-handle",
        "debuggable",
        "become-root",
    ]
    .map(str::to_owned)
    .to_vec();
    attempts.push(in_state("read", "journal/journal.sqlite"));
    attempts.push(in_state("write", "journal/journal.sqlite"));
    attempts.push(in_state("write", "spool/forged"));
    attempts.push(in_state("list", "spool"));
    attempts.push(in_state("write", "artifacts/forged"));
    attempts.push(in_state("remove", "worker.lock"));
    attempts.push(format!("write:{}", scene.config_path().display()));
    attempts.push(format!("read:{}", scene.config_path().display()));
    // `nix-store` is not granted.
    attempts.push(format!("list:{}", scene.path("store").display()));
    attempts.push(format!("connect:127.0.0.1:{port}"));
    attempts.push(format!("unix:{socket}"));
    attempts
}

fn expect_no_escape(scene: &Scene, file: &ConfigFile) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = scene.path("listening");
    let _listening = UnixListener::bind(&socket).unwrap();
    let attempts =
        forbidden(scene, listener.local_addr().unwrap().port(), socket.to_str().unwrap());
    // A granted attempt works, which shows that the drill works.
    let mine = scene.state_dir().join("object-stores/mine/written");
    let granted = format!("write:{}", mine.display());
    let all: Vec<String> = attempts.iter().chain([&granted]).cloned().collect();
    let results = drill(scene, file, &all);
    assert_eq!(results.len(), all.len(), "{results:#?}");
    let (escaped, refused): (Vec<_>, Vec<_>) =
        results.into_iter().partition(|(_, result)| result == "done");
    assert_eq!(escaped, [(granted, "done".to_owned())], "refused: {refused:#?}");
    assert_eq!(std::fs::read(&mine).unwrap(), b"x");
    assert!(refused.iter().all(|(_, result)| result.starts_with("failed: ")), "{refused:#?}");
}

#[test]
fn the_sandbox_holds_without_capabilities() {
    let scene = Scene::new().derivation("alpha", Script::text("hello"));
    expect_no_escape(&scene, &ConfigFile::new());
}

#[test]
fn the_sandbox_holds_as_another_user() {
    if !require(Need::Root) {
        return;
    }
    let scene = Scene::new().derivation("alpha", Script::text("hello"));
    std::fs::set_permissions(scene.dir(), std::fs::Permissions::from_mode(0o755)).unwrap();
    expect_no_escape(&scene, &ConfigFile::new().worker("user", "nobody"));
    let owner = std::os::unix::fs::MetadataExt::uid(
        &std::fs::metadata(scene.state_dir().join("object-stores/mine")).unwrap(),
    );
    assert_eq!(owner, 65_534, "the user owns its directories");
}

#[test]
fn a_policy_has_no_files_and_no_network() {
    if !require(Need::Root) {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let scene = Scene::new()
        .nix_conf("post-build-hook", "")
        .builder("near", 1, 1.0)
        .derivation("alpha", Script::text("a"));
    let attempts = [
        format!("connect:{}", listener.local_addr().unwrap()),
        format!("list:{}", scene.path("store").display()),
        format!("write:{}", scene.state_dir().join("policy-state/x").display()),
        "read:/etc/hosts".to_owned(),
        "exec:/bin/sh".to_owned(),
        "fork".to_owned(),
        "signal-parent".to_owned(),
    ];
    let policy = escape(&attempts).hooks(["builder-selection"]);
    scene.set_config(&ConfigFile::new().plugin("escape", policy));
    scene.hookrun(&["compile"]).expect_success();
    let account = scene.build_with("alpha", &["--max-jobs", "0"]).expect_success().account();
    for attempt in &attempts {
        assert!(account.contains(&format!("{attempt} => failed: ")), "{attempt}: {account}");
    }
}

#[test]
fn a_gate_and_a_test_run_in_the_sandbox() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let scene = Scene::new().derivation("alpha", Script::text("hello"));
    let (outside, mine) = (scene.path("outside"), scene.state_dir().join("object-stores/mine/a"));
    let attempts = [
        format!("write:{}", outside.display()),
        format!("connect:{}", listener.local_addr().unwrap()),
        "read:/etc/shadow".to_owned(),
        "exec:/bin/sh".to_owned(),
        format!("write:{}", mine.display()),
    ];
    let gate = escape(&attempts)
        .hooks(["post-build"])
        .set("gate", true)
        .grant("state", true)
        .grant("object-store", ["mine"]);
    let file = ConfigFile::new().plugin("escape", gate);
    scene.set_config(&file.object_store("mine", toml::Table::new()));
    scene.hookrun(&["compile"]).expect_success();
    let closed = || {
        assert!(!outside.exists());
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    };
    // The first gate makes the store, so this comes before it.
    let tested = scene.hookrun(&["test", "escape"]).account();
    for attempt in &attempts {
        assert!(tested.contains(&format!("{attempt} => failed: ")), "{attempt}: {tested}");
    }
    closed();
    scene.build("alpha").expect_success();
    assert!(mine.exists(), "the grants allow this to the gate");
    closed();
}

#[test]
fn the_drill_is_not_a_default_feature() {
    for manifest in [
        include_str!("../../../runner/Cargo.toml"),
        include_str!("../../../runner/crates/host/Cargo.toml"),
    ] {
        assert!(
            manifest.contains("escape-drill = [") && !manifest.contains("default = ["),
            "it is never on by default"
        );
    }
}
