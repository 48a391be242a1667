//! Files that other users must not be able to open.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::*;
use hookrun_tests::lab::{Need, Ran, answers, build_hook, conversation, require};

#[test]
fn no_other_user_can_open_what_is_locked() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    scene.drain().expect_success();
    for name in ["worker.lock", "worker.json"] {
        let path = scene.state_dir().join(name);
        let found = path.metadata().unwrap();
        assert_eq!((found.mode() & 0o7777, found.uid()), (0o600, 0), "{name}");
        let read = format!("exec 3<{}", path.display());
        Ran::of(&mut shell(&read, STRANGER)).expect_failure().expect_stderr("ermission denied");
    }
    // The mode that an earlier release used.
    let lock = scene.state_dir().join("worker.lock");
    std::fs::set_permissions(&lock, std::fs::Permissions::from_mode(0o644)).unwrap();
    scene.drain().expect_success();
    assert_eq!(lock.metadata().unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn the_lock_of_the_process_that_waits_for_build_users_is_closed_to_others() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    scene.set_config(&mailer(ConfigFile::new().worker("idle-exit", "1s").worker("start", "spawn")));
    let lock = scene.state_dir().join("waiter.lock");
    // The mode that an earlier release may have used.
    std::fs::write(&lock, "").unwrap();
    let path = format!("{}/{HASH}-a", scene.private_nix().store_dir().display());
    let mut hook = scene.hookrun_command(&["hook", "post-build"]);
    let hook = hook.env("DRV_PATH", format!("{path}.drv")).env("OUT_PATHS", &path);
    Ran::of(hook).expect_success();
    wait_for("a process waits for build users", || hookrun_queue::lock::is_held(&lock));
    let found = lock.metadata().unwrap();
    let read = Ran::of(&mut shell(&format!("exec 3<{}", lock.display()), STRANGER));
    scene.hookrun(&["stop"]).expect_success();
    assert_eq!((found.mode() & 0o7777, found.uid()), (0o600, 0));
    read.expect_failure().expect_stderr("ermission denied");
}

#[test]
fn a_stranger_can_neither_read_nor_lock_anything_of_builder_selection() {
    if !require(Need::Root) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut hook = build_hook(directory.path(), "echo '# decline' >&2");
    let (bytes, _) = conversation("ssh://m - - 1", 1);
    assert_eq!(answers(&mut hook, &bytes).directives.len(), 1);
    let builders = directory.path().join("state/builders");
    assert!(builders.join("queue.lock").exists());
    let script = format!("ls {0} || exec 3<{0}/queue.lock", builders.display());
    Ran::of(&mut shell(&script, STRANGER)).expect_failure().expect_stderr("ermission denied");
}

/// Returns a scene in which all capabilities and the policy have run, with a rejected file.
fn scene_with_all_files() -> Scene {
    let scene = scene();
    let uploader = PluginTable::bundled("s3-upload")
        .hooks(["post-build"])
        .config(toml! { bucket = "cache" })
        .grant("nix-store", "closure")
        .grant("object-store", ["cache"]);
    scene.set_config(
        &mailer(without_worker())
            .plugin("cache", uploader)
            .object_store("cache", toml::Table::new())
            .plugin("balanced", PluginTable::speed_factor()),
    );
    spool::put(&scene.dirs(), &diff_event(&scene, "d")).unwrap();
    spool::put(&scene.dirs(), &event(&scene, "a")).unwrap();
    std::fs::write(scene.dirs().spool().join("junk"), "").unwrap();
    scene.drain();
    drop(scene.start_daemon());
    assert_eq!(scene.mails().len(), 1);
    scene
}

#[test]
fn the_table_of_files_has_everything_in_the_state_directory() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene_with_all_files();
    let security = Path::new(env!("CARGO_MANIFEST_DIR")).join("../SECURITY.md");
    let security = std::fs::read_to_string(security).unwrap();
    let names = || {
        let entries = std::fs::read_dir(scene.state_dir()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    for name in names() {
        let is_there =
            [format!("`{name}`"), format!("`{name}/`")].iter().any(|n| security.contains(n));
        assert!(is_there, "{name} is not in SECURITY.md's table of files");
        let path = scene.state_dir().join(&name);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    for command in ["status", "doctor"] {
        let said = scene.hookrun(&[command]).account();
        for name in names() {
            let path = scene.state_dir().join(&name);
            let is_named = said.lines().any(|line| {
                line.contains("chmod") && line.trim_end().ends_with(&format!("{}`", path.display()))
            });
            assert!(is_named, "`hookrun {command}` names the wrong mode of {name}: {said}");
        }
    }
    scene.hookrun(&["check"]);
    for name in names().into_iter().filter(|name| name != "spool") {
        let mode = scene.state_dir().join(&name).metadata().unwrap().mode() & 0o7777;
        assert_eq!(mode & 0o022, 0, "`hookrun check` leaves {name} with mode {mode:o}");
    }
}

#[test]
fn no_other_user_can_open_a_file_below_the_state_directory() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene_with_all_files();
    let _worker = scene.start_daemon();
    let state = scene.state_dir().display().to_string();
    let find = &mut Command::new("find");
    let paths = Ran::of(find.args([state.clone(), format!("{state}-fallback")])).expect_success();
    let paths = paths.stdout;
    assert!(paths.lines().count() > 20, "{paths}");
    let list = scene.path("paths");
    std::fs::write(&list, &paths).unwrap();
    let script = format!(
        "while read -r path; do
           [ -d \"$path\" ] || ! (exec 3< \"$path\") || echo read \"$path\"
           [ ! -w \"$path\" ] || echo write \"$path\"
         done < {} 2> /dev/null",
        list.display()
    );
    let member = member_of_the_build_group();
    for uid in [STRANGER, BUILD_USER, member] {
        let opened = Ran::of(&mut shell(&script, uid)).expect_success().stdout;
        let expected = format!("write {state}/spool\nwrite {state}-fallback\n");
        assert_eq!(opened, expected, "uid {uid}");
    }
}

#[test]
fn roots_and_their_directory_are_closed_to_others_whatever_the_umask() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let nix = scene.private_nix();
    std::fs::create_dir_all(nix.state_dir().join("gcroots")).unwrap();
    let path = format!("{}/{HASH}-a", nix.store_dir().display());
    let hook = format!(
        "umask 0; DRV_PATH={path}.drv OUT_PATHS={path} exec {} hook post-build",
        scene.path("bin/hookrun").display()
    );
    Ran::of(nix.command("/bin/sh").args(["-c", &hook])).expect_success();
    let roots = nix.state_dir().join("gcroots/hookrun");
    assert_eq!(std::fs::read_dir(&roots).unwrap().count(), 1);
    assert_eq!(roots.metadata().unwrap().mode() & 0o7777, 0o755);
    let script = format!("cd {} && ln -s /etc other; rm -f *; ls", roots.display());
    let left = Ran::of(&mut shell(&script, STRANGER)).stdout;
    assert_eq!(left.lines().count(), 1, "{left}");
    // Other files of this hook are not open to others either.
    let state = scene.state_dir().metadata().unwrap().mode() & 0o7777;
    let spool = scene.dirs().spool().metadata().unwrap().mode() & 0o7777;
    let files: Vec<u32> =
        scene.spooled().iter().map(|file| file.metadata().unwrap().mode() & 0o7777).collect();
    assert_eq!((state, spool, files), (0o755, 0o1733, vec![0o644]));
}
