//! The lab itself: a scene without hookrun is a working Nix, alone and through a daemon, with a
//! second store and a builder. Tests are skipped only by [`require`], and counted.

use std::path::{Path, PathBuf};
use std::process::Command;

use hookrun_tests::document::repository;
use hookrun_tests::guests::guest;
use hookrun_tests::lab::{BUILD_GROUP, MAY_SKIP, Need, Ran, SKIPPED, Scene, Script, require};

/// A scene whose Nix calls no hook.
fn bare() -> Scene {
    Scene::new().nix_conf("post-build-hook", "").nix_conf("run-diff-hook", "false")
}

#[test]
fn a_scene_builds_with_a_private_nix() {
    let scene = bare()
        .derivation("alpha", Script::text("it's \"quoted\" and ${this} \\ too"))
        .derivation("beta-2.0", Script::naming(["alpha"]).uses("gamma"))
        .derivation(
            "gamma",
            Script::new("echo out > $out; echo dev > $dev").outputs(&["out", "dev"]),
        );
    let beta = scene.build("beta-2.0").expect_success().path();
    assert!(beta.starts_with(scene.dir()));
    let alpha = scene.out_path("alpha");
    assert_eq!(std::fs::read_to_string(&alpha).unwrap(), "it's \"quoted\" and ${this} \\ too\n");
    assert!(std::fs::read_to_string(&beta).unwrap().starts_with(alpha.to_str().unwrap()));
    scene.check("alpha").expect_success();
}

#[test]
fn random_builds_differ_and_large_ones_do_not() {
    let scene =
        bare().derivation("random", Script::random()).derivation("large", Script::large(100_000));
    scene.build("random").expect_success();
    scene.check("random").expect_exit(104).expect_stderr("may not be deterministic");
    let large = scene.build("large").expect_success().path();
    assert!(large.metadata().unwrap().len() >= 100_000);
    scene.check("large").expect_success();
}

#[test]
fn builds_through_a_daemon_run_as_build_users() {
    if !require(Need::Root) {
        return;
    }
    let uid = "while read key value; do case $key in Uid:) echo \"$value\";; esac; done < /proc/self/status > $out";
    let scene = bare().derivation("who", Script::new(uid)).through_daemon();
    let who = std::fs::read_to_string(scene.build("who").expect_success().path()).unwrap();
    let uid = who.split_whitespace().next().unwrap().to_owned();
    let user = Ran::of(Command::new("id").args(["-nu", &uid])).expect_success();
    assert!(user.stdout.starts_with(BUILD_GROUP), "built as {}", user.stdout);
    let store = Ran::of(Command::new("stat").args(["-c", "%G %a"]).arg(scene.path("store")))
        .expect_success();
    assert_eq!(store.stdout.trim(), "nixbld 1775");
    assert!(scene.daemon_log().contains("accepted connection"), "{}", scene.daemon_log());
}

#[test]
fn a_second_store_only_takes_signed_paths() {
    let scene = bare()
        .signing_key("lab-1")
        .signing_key("other-1")
        .derivation("alpha", Script::text("hello"));
    let alpha = scene.build("alpha").expect_success().path();
    let cache = format!("file://{}", scene.path("cache").display());
    let secret = scene.path("keys/lab-1.secret").display().to_string();
    scene
        .nix(
            "nix",
            &["copy", "--to", &format!("{cache}?secret-key={secret}"), alpha.to_str().unwrap()],
        )
        .expect_success();
    let second = scene.second_store();
    second.substitute(&alpha, &cache, &[scene.public_key("other-1")]).expect_failure();
    assert!(!second.has(&alpha));
    second.substitute(&alpha, &cache, &[scene.public_key("lab-1")]).expect_success();
    assert_eq!(std::fs::read_to_string(second.locate(&alpha)).unwrap(), "hello\n");
    let third = scene.second_store();
    third.copy_from(&alpha, &cache, &[scene.public_key("other-1")]).expect_failure();
    third.copy_from(&alpha, &cache, &[scene.public_key("lab-1")]).expect_success();
    assert!(third.has(&alpha) && !scene.second_store().has(&alpha));
}

#[test]
fn a_builder_is_a_store_in_the_scene() {
    if !require(Need::Root) {
        return;
    }
    // The build hook is that of Nix.
    let scene = bare().derivation("alpha", Script::text("hello"));
    let builders =
        hookrun::demo::private_nix::PrivateNix::local_machine(&scene.builder_store("only"), 1, 1.0);
    let built =
        scene.build_with("alpha", &["--max-jobs", "0", "--builders", &builders]).expect_success();
    assert!(scene.on_builder("only", &built.path()), "{}", built.account());
}

/// `cargo xtask newer-nix` runs this test before all others, where there is a compiler.
#[test]
fn every_guest_is_built_as_a_component() {
    for name in ["good", "faulty", "greedy", "web", "escape", "hostile"] {
        let component = std::fs::read(guest(name).unwrap()).unwrap();
        // Version 13 and layer 1 of the binary format: a component, not a core module.
        assert!(component.starts_with(b"\0asm\x0d\0\x01\0"), "{name}");
    }
}

/// Runs one test of this program in another process, without programs in `PATH`.
fn without_programs(test: &str, variables: &[(&str, &Path)]) -> Ran {
    let nothing = tempfile::tempdir().unwrap();
    Ran::of(
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test])
            .env("PATH", nothing.path())
            .env_remove(MAY_SKIP)
            .env_remove(SKIPPED)
            .envs(variables.iter().copied()),
    )
}

#[test]
fn a_test_that_cannot_run_fails_unless_it_may_be_skipped_and_is_counted() {
    let test = "examples::the_units_are_valid_for_systemd";
    without_programs(test, &[]).expect_failure().expect_stdout(
        "this test needs `systemd-analyze` in PATH; `cargo xtask test` installs it on Debian as \
         root, or set HOOKRUN_TESTS_MAY_SKIP=1 to skip it",
    );
    let directory = tempfile::tempdir().unwrap();
    let skipped = directory.path().join("skipped");
    let variables = [(MAY_SKIP, "1".as_ref()), (SKIPPED, skipped.as_path())];
    without_programs(test, &variables).expect_success().expect_stdout("1 passed");
    assert_eq!(
        std::fs::read_to_string(skipped).unwrap(),
        format!(
            "{test}: needs `systemd-analyze` in PATH; `cargo xtask test` installs it on Debian as \
             root\n"
        )
    );
}

/// Returns the files of the repository below these directories.
fn files_of(directories: &[&str]) -> Vec<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let mut files = Vec::new();
    let mut directories: Vec<PathBuf> =
        directories.iter().map(|name| repository().join(name)).collect();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if !path.is_dir() {
                files.push(path);
            } else if !path.ends_with("target") && Some(&path) != target.as_ref() {
                directories.push(path);
            }
        }
    }
    files
}

const WITH_TESTS: [&str; 6] = ["tests", "runner", "plugin-sdk", "plugins", "fuzz", "xtask"];

#[test]
fn only_the_lab_skips_tests() {
    // In two parts, since this file is searched too.
    let prints_skipped = ["!(\"", "skipped"].concat();
    let mut offenders = files_of(&WITH_TESTS);
    offenders.retain(|path| {
        path.extension().is_some_and(|extension| extension == "rs")
            && !path.ends_with("lab/need.rs")
            && std::fs::read_to_string(path).unwrap().contains(&prints_skipped)
    });
    assert!(offenders.is_empty(), "use `lab::require` in {offenders:?}");
}

#[test]
fn names_of_snapshots_have_no_blanks_or_colons() {
    let mut snapshots = files_of(&WITH_TESTS);
    snapshots.retain(|path| path.extension().is_some_and(|extension| extension == "snap"));
    assert!(snapshots.len() > 10, "{snapshots:?}");
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.@".contains(c);
    snapshots.retain(|path| !path.file_name().unwrap().to_str().unwrap().chars().all(is_plain));
    assert!(snapshots.is_empty(), "rename the tests or snapshots of {snapshots:?}");
}
