//! Files that other users put into the spool.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use super::*;
use hookrun_nix::event::NixDirs;
use hookrun_queue::envelope;
use hookrun_tests::lab::{Need, Ran, require};

/// Files of a flood.
const FILES: usize = 5000;

#[test]
fn a_flood_of_a_strangers_files_holds_up_no_event_of_root() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let dirs = scene.dirs();
    let _worker = scene.start_daemon();
    // Names that sort before those of events, and hidden names of incomplete files.
    let script = format!(
        "cd {}; n=0; while [ $n -lt {FILES} ]; do : > \"!$n\"; : > \".$n\"; n=$((n + 1)); done",
        dirs.spool().display()
    );
    let mut flood = shell(&script, STRANGER).spawn().unwrap();
    wait_for("some files exist", || dirs.spool().join("!500").exists());
    for name in ["a", "b", "c"] {
        let event = event(&scene, name);
        spool::put(&dirs, &event).unwrap();
        let file = dirs.spool().join(&event.id);
        let waited = time_until("root's event is taken", || !file.exists());
        assert!(waited < SOON, "root's event waited for {waited:?}");
    }
    assert!(flood.wait().unwrap().success());
    wait_for("files that are not events are removed", || spool::depth(&dirs) == 0);
    let kept = spool::count_rejected(&dirs.rejected());
    assert!(kept <= 1000, "{kept} files are kept");
    scene.hookrun(&["status"]).expect_success();
}

#[test]
fn a_stranger_with_many_user_ids_has_one_turn() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let spool = scene.dirs().spool();
    // More users than the reader remembers. subuid(5) gives 65,536 to a plain user.
    for uid in 100_000..100_300 {
        for number in 0..5 {
            let file = spool.join(format!("!{uid}-{number}"));
            std::fs::write(&file, "").unwrap();
            std::os::unix::fs::chown(&file, Some(uid), Some(uid)).unwrap();
        }
    }
    let mut event = diff_event(&scene, "honest");
    let HookEvent::Diff(diff) = &mut event.hook else { panic!("a diff event") };
    // The reader below accepts events of build users only for the Nix of this process.
    event.nix = NixDirs::from_env();
    let store = event.nix.store.display().to_string();
    let old = scene.private_nix().store_dir().display().to_string();
    for path in [&mut diff.drv_path, &mut diff.output.path, &mut diff.previous, &mut diff.current] {
        *path = path.replace(&old, &store);
    }
    std::fs::write(spool.join(&event.id), envelope::seal(&event).unwrap()).unwrap();
    std::os::unix::fs::chown(spool.join(&event.id), Some(BUILD_USER), Some(BUILD_USER)).unwrap();
    let mut reader = spool::Reader::new(&scene.dirs(), hookrun_queue::trust::Trust::from_env());
    let scan = reader.scan(2);
    assert_eq!((scan.events.len(), scan.rejected.len()), (1, 1), "{scan:?}");
}

#[test]
fn directories_beyond_those_that_are_kept_are_removed_with_what_is_in_them() {
    /// More directories than are kept.
    const DIRECTORIES: usize = 1300;
    /// More levels than a recursive function, or one that keeps each level open, can remove.
    const LEVELS: usize = 2000;
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let spool = scene.dirs().spool();
    let script = format!(
        "cd {}; for i in $(seq {DIRECTORIES}); do echo d$i d$i/x; done | xargs mkdir; \
         seq -f d999/%g 1000 | xargs touch; mkfifo d998/x/fifo; ln -s /etc d998/x/link; \
         cd d997/x; for i in $(seq {LEVELS}); do mkdir d; cd -P d; done",
        spool.display()
    );
    Ran::of(&mut shell(&script, STRANGER)).expect_success();
    let event = event(&scene, "a");
    spool::put(&scene.dirs(), &event).unwrap();
    scene.drain().expect_success();
    assert_eq!(std::fs::read_dir(&spool).unwrap().count(), 0);
    let kept = spool::count_rejected(&scene.dirs().rejected());
    assert_eq!(kept, 1000);
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn entries_other_than_regular_files_in_the_spool_delay_no_event() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let spool = scene.dirs().spool();
    let script = format!(
        "cd {}; mkfifo fifo .fifo; ln -s /etc/shadow link; mkdir directory; mkdir full; : > full/x",
        spool.display()
    );
    Ran::of(&mut shell(&script, STRANGER)).expect_success();
    let event = event(&scene, "a");
    spool::put(&scene.dirs(), &event).unwrap();
    scene.drain().expect_success();
    assert_eq!(std::fs::read_dir(&spool).unwrap().count(), 0);
    assert!(std::fs::read_to_string("/etc/shadow").is_ok());
}

#[test]
fn a_build_user_beyond_its_share_waits_and_loses_nothing() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    scene.set_config(&mailer(without_worker().worker("max-events-per-user", 3)));
    for number in 0..10 {
        let event = diff_event(&scene, &format!("d{number}"));
        let file = scene.dirs().spool().join(&event.id);
        std::fs::write(&file, envelope::seal(&event).unwrap()).unwrap();
        std::os::unix::fs::chown(&file, Some(BUILD_USER), Some(BUILD_USER)).unwrap();
    }
    // Three events are taken at a time.
    scene.drain().expect_success().expect_stderr("wait in the spool until some have ended");
    assert_eq!(scene.mails().len(), 10);
    assert_eq!(scene.spooled(), Vec::<PathBuf>::new());
    assert_eq!(spool::count_rejected(&scene.dirs().rejected()), 0);
}

#[test]
fn files_that_are_set_aside_at_the_same_time_are_all_kept() {
    const SAME: u32 = 200;
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let dirs = scene.dirs();
    for number in 0..SAME {
        // Characters that are replaced, so that all files would get the same name.
        let name = format!("x{}", char::from_u32(0x100 + number).unwrap());
        std::fs::write(dirs.spool().join(name), number.to_string()).unwrap();
    }
    scene.drain().expect_success();
    let kept = std::fs::read_dir(dirs.rejected()).unwrap().map(|entry| entry.unwrap().path());
    let kept = kept.filter(|path| path.extension().is_none_or(|extension| extension != "reason"));
    let mut kept: Vec<u32> =
        kept.filter_map(|path| std::fs::read_to_string(path).unwrap().parse().ok()).collect();
    kept.sort_unstable();
    assert_eq!(kept, (0..SAME).collect::<Vec<_>>());
}

#[test]
fn a_file_of_root_that_no_hook_wrote_is_rejected() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let event = event(&scene, "a");
    let sealed = envelope::seal(&event).unwrap();
    let spool = scene.dirs().spool();
    // Like a file in the Nix store, it belongs to root and is not writable, but a user chose its
    // contents.
    std::fs::write(spool.join(&event.id), &sealed).unwrap();
    let read_only = std::fs::Permissions::from_mode(0o444);
    std::fs::set_permissions(spool.join(&event.id), read_only).unwrap();
    // A hard link, and a copy under the name of another event.
    let other = self::event(&scene, "b");
    std::fs::write(scene.path("outside"), envelope::seal(&other).unwrap()).unwrap();
    std::fs::hard_link(scene.path("outside"), spool.join(&other.id)).unwrap();
    std::fs::write(spool.join(self::event(&scene, "c").id), &sealed).unwrap();
    let ran = scene.drain().expect_success();
    assert_eq!(spool::count_rejected(&scene.dirs().rejected()), 3, "{}", ran.account());
    assert_eq!(scene.tasks(), Vec::<String>::new());
    // An event that was taken before is not taken again.
    give_up_a_task(&scene);
    let known = self::event(&scene, "d");
    for _ in 0..2 {
        std::fs::write(spool.join(&known.id), envelope::seal(&known).unwrap()).unwrap();
        scene.drain();
    }
    assert_eq!(scene.tasks().len(), 2);
}

#[test]
fn tricks_of_other_users_with_their_own_files_hold_up_no_event_of_root() {
    const TRICKS: usize = 300;
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let dirs = scene.dirs();
    let _worker = scene.start_daemon();
    let member = member_of_the_build_group();
    let script = format!(
        "cd {}; n=0
         while [ $n -lt {TRICKS} ]; do
           name=$(cat /proc/sys/kernel/random/uuid)
           case $((n % 6)) in
             0) : > $name; flock -x $name sleep 5 & ;;
             1) mkfifo $name; exec 8<> $name ;;
             2) : > $name; rm $name; ln -s /etc/shadow $name ;;
             3) mkdir $name; : > $name/x ;;
             4) : > $name; chmod 0 $name ;;
             5) : > $name; mv $name .$name; mv .$name $name; truncate -s 1T $name ;;
           esac
           n=$((n + 1))
         done; wait",
        dirs.spool().display()
    );
    let mut tricks: Vec<Child> = [STRANGER, BUILD_USER, member]
        .map(|uid| shell(&script, uid).stderr(Stdio::null()).spawn().unwrap())
        .into();
    for number in 0..20 {
        let event = event(&scene, &format!("e{number}"));
        spool::put(&dirs, &event).unwrap();
        let file = dirs.spool().join(&event.id);
        let waited = time_until("root's event is taken", || !file.exists());
        assert!(waited < SOON, "root's event waited for {waited:?}");
    }
    for child in &mut tricks {
        assert!(child.wait().unwrap().success());
    }
    wait_for("files that are not events are removed", || spool::depth(&dirs) == 0);
    assert!(std::fs::read_to_string("/etc/shadow").is_ok());
}
