//! Builder selection with real Nix: machines that are stores of the scene, which Nix reaches
//! without ssh (`ssh://localhost?remote-store=...`), and conversations with the hook that end early
//! or are garbled.

use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use hookrun_tests::lab::{
    self, ConfigFile, Need, Ran, Scene, Script, build_hook, conversation, require, toml, wait_until,
};

/// A machine that refuses: the port is reserved (RFC 6335: tcpmux) and nothing listens on it.
const REFUSES: &str = "ssh://127.0.0.1 - - 4 100";

/// A scene without a post-build-hook, which would slow the tests down.
fn scene() -> Scene {
    Scene::new()
        .nix_conf("post-build-hook", "")
        .variable("NIX_SSHOPTS", "-p 1")
        .config(&ConfigFile::new())
}

/// Returns the machines of the remote builds that Nix announces.
fn announced(ran: &Ran) -> Vec<String> {
    let account = ran.account();
    let machines = account
        .lines()
        .filter(|line| line.starts_with("building '"))
        .filter_map(|line| line.split_once("' on '"));
    machines.map(|(_, machine)| machine.trim_end_matches("'...").to_owned()).collect()
}

#[test]
fn the_faster_machine_builds_and_nix_announces_it() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene()
        .builder("slow", 2, 1.0)
        .builder("fast", 2, 4.0)
        .derivation("alpha", Script::new("echo heard; echo a > $out"));
    let ran = scene.build_with("alpha", &["--max-jobs", "0"]).expect_success();
    assert!(announced(&ran).concat().ends_with("/builders/fast"), "{}", ran.account());
    let path = ran.path();
    assert!(scene.on_builder("fast", &path));
    assert!(!scene.on_builder("slow", &path));
    scene
        .nix("nix-store", &["--read-log", path.to_str().unwrap()])
        .expect_success()
        .expect_stdout("heard");
}

#[test]
fn fractional_speed_factors_work_with_every_nix() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene()
        .builder("half", 1, 0.5)
        .builder("most", 1, 0.9)
        .derivation("alpha", Script::text("a"));
    let ran = scene.build_with("alpha", &["--max-jobs", "0"]).expect_success();
    // Nix 2.19 and older divide whole numbers: to them both factors are 1, and the first machine
    // wins.
    assert_eq!(announced(&ran).len(), 1, "{}", ran.account());
}

#[test]
fn a_machine_that_refuses_is_skipped_with_one_line() {
    if !require(Need::Root) {
        return;
    }
    let scene =
        scene().machine(REFUSES).builder("good", 2, 1.0).derivation("alpha", Script::text("a"));
    let ran = scene.build_with("alpha", &["--max-jobs", "0"]).expect_success();
    assert!(scene.on_builder("good", &ran.path()), "{}", ran.account());
    let account = ran.account();
    assert_eq!(account.matches("machine ssh://127.0.0.1 is lost").count(), 1, "{account}");
    assert!(!account.contains("cannot build on"), "the message of Nix is shown twice: {account}");
}

#[test]
fn without_a_reachable_machine_nix_fails_or_builds_locally() {
    let scene = scene().machine(REFUSES).derivation("alpha", Script::text("a"));
    // Without local builds hookrun accepts before it tries the machine. The next build knows that
    // the machine is unreachable.
    scene
        .build_with("alpha", &["--max-jobs", "0"])
        .expect_failure()
        .expect_stderr("no machine is left to build it: ssh://127.0.0.1: ");
    let ran = scene.build_with("alpha", &["--max-jobs", "0"]).expect_failure();
    // The messages of Nix up to 2.33 and from 2.34 on.
    let own = ["nable to start any build", "local builds are disabled"];
    assert!(own.iter().any(|words| ran.stderr.contains(words)), "{}", ran.account());
    ran.expect_stderr("hookrun: machine ssh://127.0.0.1 skipped: ");
    let ran = scene.build_with("alpha", &["--max-jobs", "1"]).expect_success();
    assert_eq!(announced(&ran), [""; 0]);
}

#[test]
fn builds_go_to_machines_with_the_required_features() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene().builder("plain", 1, 9.0).builder("special", 1, 1.0);
    // Supported and mandatory features for the second machine. Its Nix is the local one, so they
    // have to be features that Nix has by default.
    let lines = format!(
        "ssh://localhost?remote-store={plain} - - 1 9 ; ssh://localhost?remote-store={special} - - 1 1 big-parallel benchmark",
        plain = scene.builder_store("plain").display(),
        special = scene.builder_store("special").display()
    );
    let scene = scene
        .nix_conf("builders", &lines)
        .derivation("plain", Script::text("p"))
        .derivation("bench", Script::text("b").requires(&["benchmark"]))
        .derivation("none", Script::text("n").requires(&["quantum"]));
    let ran = scene.build_with("plain", &["--max-jobs", "0"]).expect_success();
    assert!(announced(&ran).concat().ends_with("/plain"), "{}", ran.account());
    let ran = scene.build_with("bench", &["--max-jobs", "0"]).expect_success();
    assert!(announced(&ran).concat().ends_with("/special"), "{}", ran.account());
    scene
        .build_with("none", &["--max-jobs", "0"])
        .expect_failure()
        .expect_stderr("no machine can take none");
}

#[test]
fn a_build_that_fails_is_tried_once() {
    if !require(Need::Root) {
        return;
    }
    let scene =
        scene().builder("one", 1, 2.0).builder("two", 1, 1.0).derivation("bad", Script::failing());
    let ran = scene.build_with("bad", &["--max-jobs", "0"]).expect_failure();
    assert_eq!(announced(&ran).len(), 1, "{}", ran.account());
    let account = ran.account();
    assert_eq!(account.matches("build of '").count(), 1, "{account}");
}

#[test]
fn a_broken_configuration_does_not_stop_a_build() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene()
        .config(&toml! { [pluggins] })
        .builder("one", 1, 1.0)
        .derivation("alpha", Script::text("a"));
    let ran = scene.build_with("alpha", &["--max-jobs", "0"]).expect_success();
    assert_eq!(announced(&ran).len(), 1, "{}", ran.account());
}

#[test]
fn nine_builds_are_distributed_over_two_machines_and_skip_an_unreachable_one() {
    if !require(Need::Root) {
        return;
    }
    let names: Vec<String> = (0..8).map(|number| format!("part-{number}")).collect();
    let scene = scene()
        .nix_conf("build-poll-interval", "1")
        .builder("one", 2, 1.0)
        .builder("two", 2, 2.0)
        .machine(REFUSES)
        .derivations(&names, Script::text);
    let scene = scene.derivation("all", Script::naming(names.iter().map(String::as_str)));
    let ran = scene.build_with("all", &["--max-jobs", "0"]).expect_success();
    assert_eq!(announced(&ran).len(), 9, "{}", ran.account());
}

/// Returns the hook with a `nix` in its PATH that is this shell script.
fn hook(stock_hook: &str) -> (tempfile::TempDir, Command) {
    let directory = tempfile::tempdir().unwrap();
    let command = build_hook(directory.path(), stock_hook);
    // Without `early-accept` each answer depends on the stock hook.
    let file = ConfigFile::default().builders("early-accept", false).to_string();
    std::fs::write(directory.path().join("hookrun.toml"), file).unwrap();
    (directory, command)
}

/// Returns the directives of the hook to these bytes, and its exit code.
fn answers(command: &mut Command, bytes: &[u8]) -> (Vec<String>, Option<i32>) {
    let answered = lab::answers(command, bytes);
    (answered.directives, answered.code)
}

#[test]
fn the_hook_answers_each_question_of_a_conversation_that_ends_at_any_byte() {
    let (_directory, mut command) = hook("exit 1");
    let (bytes, ends) = conversation("ssh://m - - 1", 3);
    // Every byte inside the last two questions, and every fifth before.
    let cuts = (0..ends[1]).step_by(5).chain(ends[1]..=bytes.len());
    for cut in cuts {
        let (answers, code) = answers(&mut command, &bytes[..cut]);
        let asked = ends.iter().filter(|end| **end <= cut).count().saturating_sub(1);
        let begun = usize::from(cut > 0 && !ends.contains(&cut));
        assert_eq!(answers.len(), asked + begun, "cut at {cut}: {answers:?}");
        assert_eq!(code, Some(0), "cut at {cut}");
    }
}

#[test]
fn garbage_is_answered_once() {
    let (_directory, mut command) = hook("exit 1");
    let (bytes, ends) = conversation("ssh://m - - 1", 1);
    for index in (0..ends[1]).step_by(3) {
        let mut garbled = bytes.clone();
        garbled[index] ^= 0xff;
        let (answers, code) = answers(&mut command, &garbled);
        assert_eq!(answers.len(), 1, "garbage at {index}: {answers:?}");
        assert_eq!(code, Some(0), "garbage at {index}");
    }
}

#[test]
fn each_fault_of_a_stock_hook_is_one_answer() {
    let (bytes, _) = conversation("ssh://m - - 1", 1);
    for (stock_hook, expected) in [
        ("exit 0", "# decline"),
        ("kill -9 $$", "# decline"),
        ("echo '# postpone' >&2; cat > /dev/null", "# postpone"),
        ("echo '# acce' >&2", "# decline"),
        ("echo '# accept' >&2", "# decline"),
        ("head -c 100000 /dev/zero >&2", "# decline"),
        ("echo '# decline-permanently' >&2", "# decline"),
        ("exec 2>&-; cat > /dev/null", "# decline"),
    ] {
        let (_directory, mut command) = hook(stock_hook);
        assert_eq!(
            answers(&mut command, &bytes),
            (vec![expected.to_owned()], Some(0)),
            "{stock_hook}"
        );
    }
}

#[test]
fn the_standard_output_of_a_stock_hook_is_not_an_answer() {
    let (_directory, mut command) = hook(
        "echo '# accept'; echo ssh://m; echo '# decline' >&2; echo '# accept'; cat > /dev/null",
    );
    let (bytes, _) = conversation("ssh://m - - 1", 1);
    assert_eq!(answers(&mut command, &bytes), (vec!["# postpone".to_owned()], Some(0)));
}

#[test]
fn a_held_lock_does_not_block_an_answer() {
    let (directory, mut command) = hook("echo '# postpone' >&2; cat > /dev/null");
    let (bytes, _) = conversation("ssh://m - - 1", 1);
    let expected = (vec!["# postpone".to_owned()], Some(0));
    assert_eq!(answers(&mut command, &bytes), expected);
    let builders = directory.path().join("state/builders");
    let lock = std::fs::File::open(builders.join("queue.lock")).unwrap();
    lock.lock().unwrap();
    let began = Instant::now();
    assert_eq!(answers(&mut command, &bytes), expected);
    // Long enough for a busy machine, and shorter than a hang.
    assert!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
    drop(lock);
}

#[test]
fn other_users_cannot_read_the_state_of_machines() {
    use std::os::unix::fs::PermissionsExt as _;
    let (directory, mut command) = hook("exit 1");
    let builders = directory.path().join("state/builders");
    // The mode that an earlier release used.
    std::fs::create_dir_all(&builders).unwrap();
    std::fs::set_permissions(&builders, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (bytes, _) = conversation("ssh://m - - 1", 1);
    answers(&mut command, &bytes);
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&builders), 0o700);
    assert_eq!(mode(&builders.join("queue.lock")), 0o600);
    assert_eq!(
        mode(&directory.path().join("state")),
        0o755,
        "other users read other parts of the state directory"
    );
}

#[test]
fn a_state_directory_of_another_user_is_not_used() {
    if !require(Need::Root) {
        return;
    }
    let (directory, mut command) = hook("exit 1");
    let builders = directory.path().join("state/builders");
    std::fs::create_dir_all(&builders).unwrap();
    std::os::unix::fs::chown(&builders, Some(4242), Some(4242)).unwrap();
    let (bytes, _) = conversation("ssh://m - - 1", 1);
    assert_eq!(answers(&mut command, &bytes), (vec!["# decline".to_owned()], Some(0)));
    assert_eq!(std::fs::read_dir(&builders).unwrap().count(), 0, "nothing is written there");
}

#[test]
fn the_stock_hook_dies_with_the_hook() {
    let (directory, mut command) = hook("echo $$ > \"${0%/nix}/pid\"; exec sleep 1000");
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&conversation("ssh://m - - 1", 1).0).unwrap();
    let pid = wait_until("the stock hook has started", || {
        std::fs::read_to_string(directory.path().join("pid"))
            .ok()
            .filter(|text| text.ends_with('\n'))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let stat = format!("/proc/{}/stat", pid.trim());
    wait_until("the stock hook ends", || {
        std::fs::read_to_string(&stat).map_or(true, |text| text.contains(") Z ")).then_some(())
    });
}
