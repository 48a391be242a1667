//! Symbolic links and directories that other users create where root writes.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::process::Stdio;

use super::*;
use hookrun_tests::lab::{Need, Ran, require};

/// Returns process ids that the next commands may have.
fn next_pids() -> std::ops::Range<u32> {
    let now = std::process::id();
    now..now + 4000
}

#[test]
fn commands_of_root_follow_no_link_in_the_spool() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    give_up_a_task(&scene);
    let victim = scene.path("victim");
    std::fs::write(&victim, "root's own").unwrap();
    let _worker = scene.start_daemon();
    for pid in next_pids() {
        for kind in ["wake", "check"] {
            let link = scene.dirs().spool().join(format!(".{kind}-{pid}"));
            symlink(&victim, &link).unwrap();
            // The worker may have removed it already.
            let _given = std::os::unix::fs::lchown(&link, Some(STRANGER), Some(STRANGER));
        }
    }
    scene.hookrun(&["check"]).expect_success();
    scene.hookrun(&["queue", "retry", "--dead"]).expect_success();
    // A command that replaces a file in a directory of another user does not follow links either.
    let place = scene.path("place");
    std::fs::create_dir(&place).unwrap();
    for pid in next_pids() {
        symlink(&victim, place.join(format!("machines.{pid}"))).unwrap();
    }
    std::os::unix::fs::chown(&place, Some(STRANGER), Some(STRANGER)).unwrap();
    let (all, output) = (scene.path("all"), place.join("machines"));
    std::fs::write(&all, "ssh://one - - 1\n").unwrap();
    let mut render = scene.hookrun_command(&["builders", "render", "--machines"]);
    Ran::of(render.arg(&all).arg("--output").arg(&output)).expect_success();
    let written = output.symlink_metadata().unwrap();
    assert!(written.is_file() && written.mode() & 0o7777 == 0o644, "{written:?}");
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "root's own");
}

#[test]
fn queue_retry_wakes_a_running_worker() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let event = give_up_a_task(&scene);
    let attempts =
        |id: &str| scene.hookrun(&["queue", "show", id]).stdout.matches("attempt ").count();
    let before = attempts(&event.id);
    let _worker = scene.start_daemon();
    // After its first task, the worker sleeps.
    let other = self::event(&scene, "b");
    spool::put(&scene.dirs(), &other).unwrap();
    wait_for("an attempt at the other event", || attempts(&other.id) > 0);
    scene.hookrun(&["queue", "retry", &event.id]).expect_success();
    let waited = time_until("another attempt", || attempts(&event.id) > before);
    assert!(waited < SOON, "the worker retried after {waited:?}");
}

#[test]
fn a_stranger_cannot_make_the_directory_of_a_demo_first() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let place = scene.path("temporary");
    std::fs::create_dir(&place).unwrap();
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o1777)).unwrap();
    let range = next_pids();
    let script = format!(
        "cd {}; seq -f 'hookrun-demo-%.0f' {} {} | xargs mkdir",
        place.display(),
        range.start,
        range.end
    );
    Ran::of(&mut shell(&script, STRANGER)).expect_success();
    let mut demo = scene.hookrun_command(&["demo"]);
    let demo = demo.env("TMPDIR", &place).stdout(Stdio::null()).stderr(Stdio::null());
    // The group contains all processes that it starts.
    let mut demo = demo.process_group(0).spawn().unwrap();
    let used = || {
        let mut entries = std::fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().path());
        entries.find(|path| std::fs::read_dir(path).unwrap().next().is_some())
    };
    wait_for("the demo has begun", || used().is_some());
    let owner = used().unwrap().metadata().unwrap().uid();
    let group = rustix::process::Pid::from_child(&demo);
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
    demo.wait().unwrap();
    assert_eq!(owner, 0, "root works in a directory of another user");
}

#[test]
fn links_made_by_the_plugin_user_are_not_followed() {
    if !require(Need::Root) {
        return;
    }
    let nobody = Ran::of(Command::new("id").args(["-u", "nobody"])).stdout.trim().parse().unwrap();
    require_build_users();
    let scene = scene();
    let configure = |user: &str| scene.set_config(&mailer(without_worker().worker("user", user)));
    configure("nobody");
    spool::put(&scene.dirs(), &diff_event(&scene, "a")).unwrap();
    scene.drain().expect_success();
    let victim = scene.path("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("file"), "root's own").unwrap();
    // In each directory of this user, the files become links to a file of
    // root, with a FIFO beside them.
    let script = format!(
        "set -e; cd {}
         for directory in plugin-state mail-progress; do
           for file in $directory/*; do rm $file; ln -s {1}/file $file; done
           ln -s {1} $directory/directory; mkfifo $directory/0.json
         done
         cd mail/default; mv new old; ln -s {1} new; rm -r tmp; mkfifo tmp",
        scene.state_dir().display(),
        victim.display()
    );
    Ran::of(&mut shell(&script, nobody)).expect_success();
    for user in ["nobody", "nixbld1"] {
        configure(user);
        spool::put(&scene.dirs(), &diff_event(&scene, user)).unwrap();
        for command in ["check", "drain", "status", "doctor"] {
            let mut command = scene.hookrun_command(&[command]);
            let mut running = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            wait_for("the command ends", || running.try_wait().unwrap().is_some());
        }
        let found = victim.join("file").metadata().unwrap();
        assert_eq!((found.uid(), found.mode() & 0o7777), (0, 0o644), "{user}");
        assert_eq!(std::fs::read_to_string(victim.join("file")).unwrap(), "root's own", "{user}");
        assert_eq!(
            (victim.metadata().unwrap().uid(), std::fs::read_dir(&victim).unwrap().count()),
            (0, 1)
        );
    }
}
