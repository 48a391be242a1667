//! The commands of an operator: `check`, `doctor`, `status` and `log` report what is wrong and how
//! to fix it.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use hookrun_tests::lab::s3::{S3Server, SECRET_ACCESS_KEY};
use hookrun_tests::lab::{
    ConfigFile, Need, PluginTable, Ran, Scene, Script, is_root, require, toml,
};
use hookrun_tests::smtp::{MailServer, PASSWORD};
use toml::Table;

/// The user id of `nobody`.
const NOBODY: u32 = 65534;

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The configuration of an uploader to this store.
fn uploader(store: Table) -> ConfigFile {
    ConfigFile::new()
        .plugin("cache", PluginTable::uploader("lab-1"))
        .signing_key("lab-1", "keys/lab-1.secret")
        .object_store("cache", store)
}

/// A scene with a signing key that only its owner can read.
fn scene() -> Scene {
    let scene = Scene::new().nix_conf("post-build-hook", "").signing_key("lab-1");
    set_mode(&scene.path("keys/lab-1.secret"), 0o600);
    scene
}

#[test]
fn a_store_that_is_missing_or_that_plugins_cannot_write_is_an_error_of_check() {
    let scene = scene();
    let store = scene.path("cache");
    let file = uploader(toml! { url = "file://@scene@/cache" });
    scene.set_config(&file);
    let text = file.to_string();
    let line = 1 + text.lines().position(|line| line.starts_with("url = ")).unwrap();
    scene
        .hookrun(&["check"])
        .expect_exit(3)
        .expect_stderr(&format!("hookrun.toml:{line}: object store `cache`: the directory"))
        .expect_stderr(&format!("does not exist; run `install -d {}`", store.display()));
    assert!(!store.exists(), "a check does not create the directory");
    std::fs::create_dir(&store).unwrap();
    scene.hookrun(&["check"]).expect_success().expect_stdout("ok  object store cache: file://");
    if !require(Need::Root) {
        return;
    }
    // Plugins run as another user now.
    scene.set_config(&file.worker("user", "nobody"));
    set_mode(&store, 0o755);
    scene
        .hookrun(&["check"])
        .expect_exit(3)
        .expect_stderr(&format!("{} cannot be written by uid {NOBODY}", store.display()))
        .expect_stderr(&format!("`chown -R {NOBODY} {}`", store.display()));
    std::os::unix::fs::chown(&store, Some(NOBODY), None).unwrap();
    scene.hookrun(&["check"]).expect_success();
}

#[test]
fn directories_below_the_state_directory_are_given_to_the_user_that_runs_plugins() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    scene.set_config(&uploader(Table::new()).worker("user", "nobody"));
    for _ in 0..2 {
        scene
            .hookrun(&["check", "--live"])
            .expect_success()
            .expect_stdout("an object was written, read and removed");
    }
}

#[test]
fn a_bucket_outside_of_the_grant_is_an_error_of_check() {
    let scene = scene();
    scene.set_config(&uploader(Table::new()).and(toml! { plugins.cache.config.bucket = "cahce" }));
    scene.hookrun(&["check"]).expect_exit(3).expect_stderr(
        "`bucket` names `cahce`, which the grant `object-store` of plugin `cache` does not",
    );
}

#[test]
fn secrets_that_others_can_read_or_replace_are_errors_of_check_and_doctor() {
    let scene = scene();
    let key = scene.path("keys/lab-1.secret");
    scene.set_config(&uploader(Table::new()));
    scene.hookrun(&["check"]).expect_success();
    set_mode(&key, 0o644);
    let problem =
        format!("can be read by other users (mode 0644); run `chmod 600 {}`", key.display());
    scene.hookrun(&["check"]).expect_exit(3).expect_stderr(&problem);
    scene.hookrun(&["doctor"]).expect_exit(1).expect_stdout(&problem);
    if is_root() {
        set_mode(&key, 0o600);
        std::os::unix::fs::chown(&key, Some(NOBODY), None).unwrap();
        scene
            .hookrun(&["check"])
            .expect_exit(3)
            .expect_stderr(&format!("can be read and replaced by its owner, uid {NOBODY}"));
    }
}

#[test]
fn check_live_writes_to_stores_and_reports_what_a_server_refuses() {
    let scene = scene();
    let server = S3Server::start(&scene.path("s3"), &["bucket"]);
    let configure = |secret: &str| {
        let store = server.object_store("s3://bucket/prefix", scene.dir(), secret);
        scene.set_config(&uploader(store));
    };
    configure(SECRET_ACCESS_KEY);
    scene
        .hookrun(&["check", "--live"])
        .expect_success()
        .expect_stdout("ok  object store cache: an object was written, read and removed");
    let left = std::fs::read_dir(server.bucket("bucket").join("prefix")).unwrap().count();
    assert_eq!(left, 0, "the object is removed");
    configure("wrong");
    scene.hookrun(&["check"]).expect_success();
    scene.hookrun(&["check", "--live"]).expect_exit(3).expect_stderr("object store `cache`");
}

#[test]
fn check_live_logs_in_to_mail_servers() {
    let scene = scene();
    let Some(server) = MailServer::start() else { return };
    let configure = |password: &str| {
        let file = server.password_file(password);
        set_mode(&file, 0o600);
        scene.set_config(&ConfigFile::new().mail("default", server.transport(&file)));
    };
    configure(PASSWORD);
    scene
        .hookrun(&["check", "--live"])
        .expect_success()
        .expect_stdout("ok  mail default: the server accepts this login");
    assert!(server.delivered_now().is_empty(), "nothing is sent");
    configure("wrong");
    scene.hookrun(&["check"]).expect_success();
    scene
        .hookrun(&["check", "--live"])
        .expect_exit(3)
        .expect_stderr("refused the login of `hookrun`");
}

#[test]
fn a_user_of_the_configuration_that_does_not_exist_is_one_error() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    scene.set_config(&uploader(Table::new()).worker("user", "no-such-user-here"));
    let ran = scene.hookrun(&["check"]).expect_exit(3);
    assert_eq!(ran.stderr.matches("no-such-user-here").count(), 2, "{}", ran.account());
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.account());
    assert!(!ran.stdout.contains("guests run as"), "{}", ran.account());
}

/// A scene with a queued event and without a worker.
fn with_waiting_events(start: &str) -> Scene {
    let scene = Scene::new()
        .config(&ConfigFile::new().worker("start", start))
        .derivation("alpha", Script::text("a"));
    scene.build("alpha").expect_success();
    assert_eq!(scene.spooled().len(), 1);
    scene
}

#[test]
fn status_and_doctor_report_events_without_a_worker() {
    for (start, fix) in
        [("service", "systemctl enable --now hookrun"), ("none", "run `hookrun drain`")]
    {
        let scene = with_waiting_events(start);
        let status = scene.hookrun(&["status"]).expect_success();
        assert!(status.stdout.contains("problems"), "{}", status.account());
        let json = scene.hookrun(&["status", "--format", "json"]).expect_success();
        let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
        let problems: Vec<&str> =
            json["problems"].as_array().unwrap().iter().filter_map(|text| text.as_str()).collect();
        assert!(
            problems.iter().any(|text| text.contains("no worker runs") && text.contains(fix)),
            "{problems:?}"
        );
        scene.hookrun(&["doctor"]).expect_exit(1).expect_stdout(fix);
        scene.drain().expect_success();
        let json = scene.hookrun(&["status", "--format", "json"]).expect_success();
        assert!(!json.stdout.contains("no worker runs"), "{}", json.account());
    }
}

#[test]
fn status_and_doctor_agree_about_the_spool() {
    if !require(Need::Root) {
        return;
    }
    let scene = with_waiting_events("none");
    let spool = scene.state_dir().join("spool");
    let agree = |problem: &str| {
        scene.hookrun(&["status"]).expect_success().expect_stdout(problem);
        scene.hookrun(&["doctor"]).expect_exit(1).expect_stdout(problem);
    };
    set_mode(&spool, 0o777);
    agree("has mode 0777, so every user may remove events of others");
    set_mode(&spool, 0o1733);
    std::os::unix::fs::chown(&spool, Some(NOBODY), None).unwrap();
    agree(&format!("belongs to uid {NOBODY}"));
    std::os::unix::fs::chown(&spool, Some(0), None).unwrap();
    let moved = scene.path("moved");
    std::fs::rename(&spool, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &spool).unwrap();
    agree("is a symbolic link");
}

#[test]
fn an_interval_that_is_too_short_is_refused() {
    let scene = Scene::new();
    for interval in ["0s", "1ms"] {
        scene
            .hookrun(&["status", "--watch", "--interval", interval])
            .expect_exit(2)
            .expect_stderr("the shortest interval is 100ms");
    }
}

#[test]
fn the_log_shows_the_differences_that_a_diff_hook_found() {
    if !require(Need::Root) {
        return;
    }
    let scene = Scene::new()
        .nix_conf("post-build-hook", "")
        .config(
            &ConfigFile::new()
                .plugin("mail", PluginTable::mailer("default", "a@example.org"))
                .mail("default", Table::new()),
        )
        .derivation(
            "chance",
            Script::new(
                "/bin/mkdir $out; read x < /proc/sys/kernel/random/uuid; echo $x > $out/tool",
            ),
        );
    scene.build("chance").expect_success();
    scene.check("chance").expect_failure();
    scene.drain().expect_success();
    for command in [&["log"][..], &["log", "--verbose"]] {
        scene
            .hookrun(command)
            .expect_success()
            .expect_stdout("differs: tool, content in line 1")
            .expect_stdout("; current \"");
    }
    let rows = scene.hookrun(&["log", "--format", "json"]).expect_success();
    let rows: serde_json::Value = serde_json::from_str(&rows.stdout).unwrap();
    let row = &rows[0];
    assert_eq!(row["evidence"]["differences"][0]["path"], "tool", "{row}");
    assert!(row["usage"]["wall-ms"].is_u64(), "{row}");
    let event = row["event"].as_str().unwrap();
    scene
        .hookrun(&["queue", "show", event])
        .expect_success()
        .expect_stdout("differs: tool, content in line 1");
}

/// Runs `hookrun ARGUMENTS` as a plain user.
fn as_nobody(scene: &Scene, arguments: &[&str]) -> Ran {
    let mut command: Command = scene.hookrun_command(arguments);
    command.uid(NOBODY).gid(NOBODY).current_dir("/");
    Ran::of(&mut command)
}

#[test]
fn the_queue_of_another_user_is_not_shown_as_empty() {
    if !require(Need::Root) {
        return;
    }
    let scene = with_waiting_events("none");
    scene.drain().expect_success();
    for command in [&["log"][..], &["queue", "list"], &["log", "--format", "json"]] {
        as_nobody(&scene, command)
            .expect_exit(4)
            .expect_stderr("permission denied")
            .expect_stderr("sudo");
    }
    as_nobody(&scene, &["status"]).expect_success().expect_stdout("permission denied");
}

#[test]
fn unknown_plugins_and_missing_state_directories_are_errors() {
    let scene = with_waiting_events("none");
    for command in [
        &["log", "--plugin", "nosuch"][..],
        &["queue", "list", "--plugin", "nosuch"],
        &["queue", "retry", "--plugin", "nosuch"],
    ] {
        scene.hookrun(command).expect_exit(2).expect_stderr("no plugin `nosuch`");
    }
    let missing = scene.path("missing").display().to_string();
    for command in [&["log"][..], &["queue", "list"], &["queue", "retry", "--dead"]] {
        scene
            .hookrun(&[&["--state-dir", missing.as_str()], command].concat())
            .expect_exit(4)
            .expect_stderr("there is no state directory");
    }
    scene.hookrun(&["log"]).expect_success().expect_stderr("no matching attempt is recorded");
    let empty = scene.hookrun(&["log", "--format", "json"]).expect_success();
    assert_eq!(empty.stdout, "[]\n");
}

#[test]
fn json_contains_no_control_characters() {
    let scene = Scene::new();
    let name = "a\u{202e}\u{9b}31m\u{7f}";
    scene.set_config(&ConfigFile::new().plugin(name, PluginTable::file("x")));
    for command in ["status", "check", "doctor"] {
        let ran = scene.hookrun(&[command, "--format", "json"]);
        let escaped = ["\\u202e", "\\u009b", "\\u007f"];
        assert!(escaped.iter().all(|escape| ran.stdout.contains(escape)), "{}", ran.account());
        assert!(
            !ran.stdout.contains(|c: char| c != '\n' && hookrun_nix::terminal::obeyed(c)),
            "{}",
            ran.account()
        );
        serde_json::from_str::<serde_json::Value>(&ran.stdout).unwrap();
    }
}

#[test]
fn paths_in_the_configuration_are_relative_to_it() {
    let scene = scene();
    scene.set_config(&uploader(Table::new()));
    let mut command = scene.hookrun_command(&["check"]);
    Ran::of(command.current_dir("/")).expect_success().expect_stdout("ok  signing key lab-1:");
}

#[test]
fn the_log_of_a_worker_has_times_and_is_bounded_while_it_runs() {
    const TOO_LONG: usize = 2 << 20;
    let scene = Scene::new().signing_key("lab-1").derivation("alpha", Script::text("a"));
    set_mode(&scene.path("keys/lab-1.secret"), 0o600);
    scene.set_config(&uploader(Table::new()).worker("idle-exit", "100ms"));
    scene.build("alpha").expect_success();
    let log = scene.state_dir().join("worker.log");
    std::fs::write(&log, "x".repeat(TOO_LONG)).unwrap();
    // A hook starts a worker like this.
    let mut command = scene.hookrun_command(&["worker", "--spawned"]);
    command.env(hookrun_nix::terminal::STAMPED, "1");
    command.stderr(std::fs::OpenOptions::new().append(true).open(&log).unwrap());
    assert!(command.status().unwrap().success());
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.len() < TOO_LONG / 2, "{} bytes", text.len());
    assert!(text.contains("hookrun: cache on alpha: attempt 1 done"), "{text}");
    for line in text.lines() {
        // 2026-11-27 16:31:44+00:00
        let time = line.split(" hookrun: ").next().unwrap();
        let digits = time.chars().filter(char::is_ascii_digit).count();
        assert_eq!((time.len(), digits), (25, 18), "no time: {line}");
    }
    let old = std::fs::read(log.with_added_extension("1")).unwrap();
    assert!(old.len() >= TOO_LONG, "the old log is kept");
}
