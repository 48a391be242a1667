//! Machines behind a real sshd: shared connections, also those that hang, die or are full.

use std::path::PathBuf;
use std::time::Duration;

use hookrun_tests::lab::{ConfigFile, Need, Ran, Scene, Script, Sshd, require, wait_for};
use rustix::process::{Pid, Signal, kill_process};

/// A scene with one machine behind sshd whose builds share connections. `sshd` are lines of
/// `sshd_config`, and `options` is a part of `NIX_SSHOPTS`.
fn scene(sshd: &str, options: &str, slots: u32) -> (Scene, Sshd) {
    let file = ConfigFile::new().builders("share-connections", true);
    scene_with(&file, sshd, options, slots)
}

/// A scene like that of [`scene`], with this configuration.
fn scene_with(file: &ConfigFile, sshd: &str, options: &str, slots: u32) -> (Scene, Sshd) {
    let scene = Scene::new().nix_conf("post-build-hook", "").config(file);
    let server = Sshd::start(&scene, sshd);
    let options = options.replace("@scene@", &scene.dir().display().to_string());
    let scene = scene.variable("NIX_SSHOPTS", &format!("{options} {}", server.options()));
    let line = server.machine(&scene, "remote", slots, 1);
    (scene.machine(&line), server)
}

/// Adds `count` derivations that take this long, and `all`, which depends on them.
fn many(scene: Scene, count: usize, seconds: f32) -> Scene {
    let names: Vec<String> = (0..count).map(|number| format!("part-{number}")).collect();
    let part = |name: &str| {
        Script::new(format!("echo log of {name}; /bin/sleep {seconds}; echo {name} > $out"))
    };
    let scene = scene.derivations(&names, part);
    scene.derivation("all", Script::naming(names.iter().map(String::as_str)))
}

fn build(scene: &Scene, derivation: &str) -> Ran {
    scene.build_with(derivation, &["--max-jobs", "0"])
}

/// Returns the ssh processes that hold shared connections.
fn masters(scene: &Scene) -> Vec<Pid> {
    let is_master = |pid: &Pid| {
        let line =
            std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        line.starts_with(b"ssh\0-f\0-N\0-oControlMaster=yes\0")
    };
    scene.processes().into_iter().filter(is_master).collect()
}

fn sockets(scene: &Scene) -> Vec<PathBuf> {
    let machines =
        std::fs::read_dir(scene.state_dir().join("run/ssh")).into_iter().flatten().flatten();
    let files = machines
        .flat_map(|machine| std::fs::read_dir(machine.path()).into_iter().flatten().flatten());
    files
        .map(|file| file.path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().contains('-'))
        .collect()
}

#[test]
fn builds_share_a_connection_that_has_no_descriptors_of_theirs() {
    if !require(Need::Root) {
        return;
    }
    let (scene, server) = scene("", "", 3);
    let scene = many(scene, 9, 0.1);
    let ran = build(&scene, "all").expect_success();
    assert!(!ran.account().contains("is lost"), "{}", ran.account());
    assert!(scene.on_builder("remote", &ran.path()));
    assert_eq!(server.logins(), 1, "{}", server.log());
    let part = scene.out_path("part-3").display().to_string();
    scene.nix("nix-store", &["--read-log", &part]).expect_success().expect_stdout("log of part-3");
    // The master still runs. It has no descriptors of Nix, of the hook or of a session of hookrun.
    let masters = masters(&scene);
    assert_eq!((masters.len(), sockets(&scene).len()), (1, 1));
    for entry in std::fs::read_dir(format!("/proc/{}/fd", masters[0].as_raw_nonzero())).unwrap() {
        let what = std::fs::read_link(entry.unwrap().path()).unwrap().display().to_string();
        assert!(
            what == "/dev/null" || what.starts_with("socket:") || what.starts_with("anon_inode:"),
            "the master holds {what}"
        );
    }
}

#[test]
fn connections_are_not_shared_by_default() {
    if !require(Need::Root) {
        return;
    }
    let (scene, server) = scene_with(&ConfigFile::new(), "", "", 3);
    let scene = many(scene, 3, 0.1);
    build(&scene, "all").expect_success();
    assert_eq!(server.logins(), 4);
    assert!(masters(&scene).is_empty() && !scene.state_dir().join("run").exists());
}

#[test]
fn a_build_succeeds_after_a_connection_or_its_master_hangs_or_dies() {
    if !require(Need::Root) {
        return;
    }
    let (scene, server) = scene("", "", 2);
    let scene = (0..4).fold(scene, |scene, number| {
        scene.derivation(&format!("n{number}"), Script::text(&number.to_string()))
    });
    build(&scene, "n0").expect_success();
    assert_eq!(server.logins(), 1);
    // The process of the connection on the machine does not answer any more.
    for connection in server.connections() {
        kill_process(connection, Signal::STOP).unwrap();
    }
    let ran = build(&scene, "n1").expect_success();
    assert!(!ran.account().contains("is lost"), "{}", ran.account());
    assert_eq!(server.logins(), 2);
    // The masters do not answer any more.
    for master in masters(&scene) {
        kill_process(master, Signal::STOP).unwrap();
    }
    let ran = build(&scene, "n2").expect_success();
    assert!(!ran.account().contains("is lost"), "{}", ran.account());
    assert_eq!(server.logins(), 3);
    // The masters are killed, and leave a socket behind.
    for master in masters(&scene) {
        kill_process(master, Signal::KILL).unwrap();
    }
    assert_eq!(sockets(&scene).len(), 1);
    build(&scene, "n3").expect_success();
    assert_eq!((server.logins(), sockets(&scene).len()), (4, 1));
}

#[test]
fn builds_beyond_the_sessions_of_a_connection_open_more_connections() {
    if !require(Need::Root) {
        return;
    }
    let (scene, server) = scene("MaxSessions 2", "", 6);
    let scene = many(scene, 12, 1.0);
    let ran = build(&scene, "all").expect_success();
    assert!(!ran.account().contains("is lost"), "{}", ran.account());
    assert!((3..=6).contains(&server.logins()), "{}", server.log());
}

#[test]
fn a_build_whose_connection_dies_is_tried_once_more() {
    if !require(Need::Root) {
        return;
    }
    let (scene, server) = scene("", "", 1);
    let scene = scene.derivation("long", Script::new("/bin/sleep 3; echo done > $out"));
    let ran = std::thread::scope(|scope| {
        let build = scope.spawn(|| build(&scene, "long"));
        wait_for("a login", || server.logins() > 0);
        std::thread::sleep(Duration::from_secs(1));
        for master in masters(&scene) {
            kill_process(master, Signal::KILL).unwrap();
        }
        build.join().unwrap()
    });
    let ran = ran.expect_success();
    ran.expect_stderr("is lost (");
    assert_eq!(server.logins(), 2);
}

#[test]
fn connection_sharing_of_the_user_is_not_replaced() {
    if !require(Need::Root) {
        return;
    }
    let own = "-oControlMaster=auto -oControlPath=@scene@/own-%C -oControlPersist=30";
    let (scene, server) = scene("", own, 1);
    let scene = many(scene, 2, 0.1);
    build(&scene, "all").expect_success();
    assert_eq!(server.logins(), 1);
    assert_eq!(sockets(&scene), Vec::<PathBuf>::new());
    let own = std::fs::read_dir(scene.dir()).unwrap().flatten();
    assert_eq!(
        own.filter(|entry| entry.file_name().to_string_lossy().starts_with("own-")).count(),
        1
    );
}

#[test]
fn the_error_of_a_machine_that_refuses_the_key_is_shown_once() {
    if !require(Need::Root) {
        return;
    }
    let (scene, server) = scene("", "", 1);
    std::fs::write(scene.path("sshd/user.pub"), "").unwrap();
    let scene = scene.derivation("alpha", Script::text("a"));
    let ran =
        build(&scene, "alpha").expect_failure().expect_stderr("no machine is left to build it");
    assert_eq!(
        ran.account().matches("Permission denied (publickey").count(),
        1,
        "{}",
        ran.account()
    );
    assert_eq!((server.logins(), sockets(&scene).len()), (0, 0));
}

#[test]
fn a_killed_command_leaves_no_session_behind() {
    if !require(Need::Root) {
        return;
    }
    let (scene, server) = scene("", "", 1);
    let scene = scene
        .derivation("long", Script::new("/bin/sleep 600"))
        .derivation("short", Script::text("s"));
    let mut long = scene
        .build_command("long", &["--max-jobs", "0"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let sessions =
        hookrun_builders::slots::sessions::directory(&scene.state_dir().join("builders"));
    wait_for("a session with a login", || {
        !hookrun_builders::slots::sessions::live(&sessions).is_empty() && server.logins() > 0
    });
    long.kill().unwrap();
    long.wait().unwrap();
    // The slot and the connection are free.
    build(&scene, "short").expect_success();
    assert_eq!(server.logins(), 1);
}

/// Starts a server that sends these bytes instead of the ssh protocol. Returns its port.
fn no_sshd(words: &'static [u8]) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for mut stream in listener.incoming().flatten() {
            // The client may have closed the connection.
            let _ = std::io::Write::write_all(&mut stream, words);
            open.push(stream);
        }
    });
    port
}

#[test]
fn servers_without_ssh_are_tried_once() {
    if !require(Need::Root) {
        return;
    }
    for words in [
        &b""[..],
        b"220 mail.example ESMTP\r\n",
        b"SSH-2.0-garbage\r\n\x00\x00\x00\x05garbage and more of it",
    ] {
        let port = no_sshd(words);
        let scene = Scene::new()
            .nix_conf("post-build-hook", "")
            .config(&ConfigFile::new().builders("connect-timeout", "3s"))
            .variable(
                "NIX_SSHOPTS",
                &format!("-F /dev/null -p {port} -oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null"),
            )
            .machine("ssh://root@127.0.0.1 - - 4 9")
            .builder("good", 2, 1.0);
        let scene = many(scene, 4, 0.1);
        let ran = build(&scene, "all").expect_success();
        assert!(scene.on_builder("good", &ran.path()));
        let machines = scene.builder_record().machines().unwrap();
        let bad = machines.iter().find(|(uri, _)| uri.contains("127.0.0.1")).unwrap().1;
        assert_eq!(bad.failures, 1, "{bad:?}");
    }
}

#[test]
fn the_error_of_an_ssh_that_does_not_connect_is_shown() {
    if !require(Need::Root) {
        return;
    }
    let (scene, server) = scene("", "", 2);
    let known = scene.path("sshd/known_hosts");
    std::fs::write(&known, "").unwrap();
    let strict = format!("{} -oStrictHostKeyChecking=yes -oBatchMode=yes", server.options());
    let remote = server.machine(&scene, "unknown", 1, 9).replacen("ssh://", "ssh-ng://", 1);
    let scene = scene
        .nix_conf("builders", &remote)
        .variable("NIX_SSHOPTS", &strict)
        .derivation("alpha", Script::text("a"));
    let ran = build(&scene, "alpha").expect_failure();
    let ran = ran.expect_stderr("no machine is left to build it");
    assert!(ran.account().contains("Host key verification failed."), "{}", ran.account());
}
