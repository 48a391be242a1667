//! The escape drill: a guest has the host itself try to break out, behind the wall that is round
//! it. Everything fails that the grants do not name, as root's number without capabilities and as
//! another user.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use hookrun_tests::guests;
use hookrun_tests::lab::{Need, Scene, Script, require};

/// What one run of the drill found: each attempt with its result.
fn drill(scene: &Scene, worker: &str, attempts: &[String]) -> Vec<(String, String)> {
    let guest = guests::guest("escape").unwrap();
    let listed: Vec<String> = attempts.iter().map(|attempt| format!("{attempt:?}")).collect();
    scene.set_config(&format!(
        "[worker]\nstart = \"none\"\n{worker}\n[plugins.escape]\nsource = \"{}\"\nhooks = [\"post-build\"]\nretry = {{ attempts = 1 }}\n\
         config = {{ attempts = [{}] }}\ngrant = {{ state = true, object-store = [\"mine\"] }}\n[object-stores.mine]\n",
        guest.display(),
        listed.join(", ")
    ));
    scene.build("alpha").expect_success();
    scene.drain().expect_success();
    let attempts = scene.attempts();
    let log = &attempts.last().unwrap().log;
    log.iter()
        .filter_map(|line| line.split_once(" => "))
        .map(|(what, result)| (what.to_owned(), result.to_owned()))
        .collect()
}

/// Everything that has to fail.
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
    // Not granted: `nix-store`.
    attempts.push(format!("list:{}", scene.path("store").display()));
    attempts.push(format!("connect:127.0.0.1:{port}"));
    attempts.push(format!("unix:{socket}"));
    attempts
}

fn stands(scene: &Scene, worker: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = scene.path("listening");
    let _listening = UnixListener::bind(&socket).unwrap();
    let attempts =
        forbidden(scene, listener.local_addr().unwrap().port(), socket.to_str().unwrap());
    // What the grants name works: the drill does what it says.
    let mine = scene.state_dir().join("object-stores/mine/written");
    let granted = format!("write:{}", mine.display());
    let all: Vec<String> = attempts.iter().chain([&granted]).cloned().collect();
    let results = drill(scene, worker, &all);
    assert_eq!(results.len(), all.len(), "{results:#?}");
    let (escaped, refused): (Vec<_>, Vec<_>) =
        results.into_iter().partition(|(_, result)| result == "done");
    assert_eq!(escaped, [(granted, "done".to_owned())], "refused: {refused:#?}");
    assert_eq!(std::fs::read(&mine).unwrap(), b"x");
    assert!(refused.iter().all(|(_, result)| result.starts_with("failed: ")), "{refused:#?}");
}

#[test]
fn nobody_breaks_out_without_capabilities() {
    let scene = Scene::new().derivation("alpha", Script::text("hello"));
    stands(&scene, "");
}

#[test]
fn nobody_breaks_out_as_another_user() {
    if !require(Need::Root) {
        return;
    }
    let scene = Scene::new().derivation("alpha", Script::text("hello"));
    std::fs::set_permissions(scene.dir(), std::fs::Permissions::from_mode(0o755)).unwrap();
    stands(&scene, "user = \"nobody\"");
    let owner = std::os::unix::fs::MetadataExt::uid(
        &std::fs::metadata(scene.state_dir().join("object-stores/mine")).unwrap(),
    );
    assert_eq!(owner, 65_534, "its directories are its own");
}

#[test]
fn a_policy_has_no_file_and_no_network_at_all() {
    if !require(Need::Root) {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let scene = Scene::new()
        .nix_conf("post-build-hook", "")
        .builder("near", 1, 1.0)
        .derivation("alpha", Script::text("a"));
    let guest = guests::guest("escape").unwrap();
    let attempts = [
        format!("connect:{}", listener.local_addr().unwrap()),
        format!("list:{}", scene.path("store").display()),
        format!("write:{}", scene.state_dir().join("policy-state/x").display()),
        "read:/etc/hosts".to_owned(),
        "exec:/bin/sh".to_owned(),
        "fork".to_owned(),
        "signal-parent".to_owned(),
    ];
    scene.set_config(&format!(
        "[worker]\nstart = \"none\"\n[plugins.escape]\nsource = \"{}\"\nhooks = [\"builder-selection\"]\n\
         config = {{ attempts = {attempts:?} }}\n",
        guest.display()
    ));
    scene.hookrun(&["compile"]).expect_success();
    let account = scene.build_with("alpha", &["--max-jobs", "0"]).expect_success().account();
    for attempt in &attempts {
        assert!(account.contains(&format!("{attempt} => failed: ")), "{attempt}: {account}");
    }
}

#[test]
fn a_gate_and_a_test_run_behind_a_wall() {
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
    scene.set_config(&format!(
        "[worker]\nstart = \"none\"\n[plugins.escape]\nsource = \"{}\"\nhooks = [\"post-build\"]\n\
         gate = true\nconfig = {{ attempts = {attempts:?} }}\n\
         grant = {{ state = true, object-store = [\"mine\"] }}\n[object-stores.mine]\n",
        guests::guest("escape").unwrap().display()
    ));
    scene.hookrun(&["compile"]).expect_success();
    let closed = || {
        assert!(!outside.exists());
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    };
    // Before the first gate has made the store, for which a test has no use.
    let tested = scene.hookrun(&["test", "escape"]).account();
    for attempt in &attempts {
        assert!(tested.contains(&format!("{attempt} => failed: ")), "{attempt}: {tested}");
    }
    closed();
    scene.build("alpha").expect_success();
    assert!(mine.exists(), "the gate does what its grants allow");
    closed();
}

#[test]
fn the_drill_is_in_no_program_that_is_used() {
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
