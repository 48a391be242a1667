use std::fs::File;
use std::os::unix::fs::symlink;
use std::time::SystemTime;

use super::reader::ABANDONED;
use super::*;
use crate::tests::post_build;
use crate::trust::Trust;

struct Scene {
    _dir: tempfile::TempDir,
    dirs: Dirs,
    reader: Reader,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dirs =
            Dirs { config: dir.path().join("hookrun.toml"), state: dir.path().join("a/state") };
        let reader = Reader::new(&dirs, Trust::from_env());
        Self { _dir: dir, dirs, reader }
    }

    fn rejected(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dirs.rejected()).unwrap();
        let reasons = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "reason"));
        let mut reasons: Vec<String> =
            reasons.map(|path| std::fs::read_to_string(path).unwrap()).collect();
        reasons.sort();
        reasons
    }
}

#[test]
fn events_are_found_in_order() {
    let mut scene = Scene::new();
    let events: Vec<Event> = ["a", "b", "c"].map(post_build).into();
    for event in events.iter().rev() {
        assert_eq!(put(&scene.dirs, event).unwrap(), SpoolPlace::Spool);
    }
    assert_eq!(depth(&scene.dirs), 3);
    let mut found = scene.reader.scan(2);
    assert_eq!((found.events.len(), scene.reader.has_more()), (2, true));
    found.events.extend(scene.reader.scan(10).events);
    assert_eq!(found.events.into_iter().map(|spooled| spooled.event).collect::<Vec<_>>(), events);
    assert!(found.rejected.is_empty() && !scene.reader.has_more());
}

#[test]
fn files_that_are_not_events_are_rejected_and_delay_no_event() {
    let mut scene = Scene::new();
    let good = post_build("good");
    put(&scene.dirs, &good).unwrap();
    let spool = scene.dirs.spool();
    std::fs::write(spool.join("0-short"), "hookrun-event 1 sha").unwrap();
    std::fs::write(spool.join("0-renamed"), envelope::seal(&good).unwrap()).unwrap();
    std::fs::create_dir(spool.join("0-directory")).unwrap();
    symlink("/etc/passwd", spool.join("0-link")).unwrap();
    std::fs::hard_link(spool.join("0-short"), spool.join("0-hard")).unwrap();
    // macOS has no `mknodat`.
    let fifo = spool.join("0-fifo");
    assert!(std::process::Command::new("mkfifo").arg(fifo).status().unwrap().success());
    File::create(spool.join("0-large")).unwrap().set_len(envelope::MAX_SIZE + 1).unwrap();
    std::fs::write(spool.join("0-odd\n\u{1b}[31m"), "").unwrap();
    std::fs::write(spool.join(".in-the-making"), "").unwrap();
    let abandoned = File::create(spool.join(".abandoned")).unwrap();
    abandoned.set_modified(SystemTime::now() - 2 * ABANDONED).unwrap();

    let scan = scene.reader.scan(100);
    assert_eq!(scan.events.len(), 1);
    assert_eq!(scan.rejected.len(), 9);
    let spool = format!("{}/", spool.display());
    insta::assert_snapshot!(scene.rejected().concat().replace(&spool, ""), @r"
    .abandoned: it was never completed; its hook was killed
    0-directory: it is not a regular file
    0-fifo: it is not a regular file
    0-hard: it has 2 hard links, but an event file must have one
    0-large: it has more than 4 MiB, the limit of an event
    0-link: it is not a regular file
    0-odd\n\u{1b}[31m: it does not begin with `hookrun-event 1 sha256:...`
    0-renamed: its name is not the id of its event
    0-short: it has 2 hard links, but an event file must have one
    ");
    scene.reader.look_again();
    let again = scene.reader.scan(100);
    assert_eq!((again.events.len(), again.rejected.len()), (1, 0));
}

#[test]
fn a_fallback_is_used_if_the_spool_cannot_be_written() {
    let mut scene = Scene::new();
    // A file in place of the state directory is an obstacle for root as well.
    std::fs::create_dir_all(scene.dirs.state.parent().unwrap()).unwrap();
    std::fs::write(&scene.dirs.state, "").unwrap();
    let event = post_build("a");
    let SpoolPlace::Fallback { path, reason } = put(&scene.dirs, &event).unwrap() else {
        panic!("the spool cannot be written")
    };
    assert!(reason.contains("cannot be written (Not a directory"), "{reason}");
    let scan = scene.reader.scan(10);
    assert_eq!((scan.events[0].path(), &scan.events[0].event), (path.clone(), &event));
    assert!(path.starts_with(layout::fallbacks(&scene.dirs)[0].as_path()), "{}", path.display());
}

#[test]
fn a_fallback_of_another_user_is_not_used() {
    if !rustix::process::geteuid().is_root() {
        // Another user's directory can only be created as root; `attack.rs` uses real users.
        return;
    }
    let scene = Scene::new();
    std::fs::create_dir_all(scene.dirs.state.parent().unwrap()).unwrap();
    std::fs::write(&scene.dirs.state, "").unwrap();
    let [beside, memory] = layout::fallbacks(&scene.dirs).try_into().unwrap();
    std::fs::create_dir(&beside).unwrap();
    std::os::unix::fs::chown(&beside, Some(4242), None).unwrap();
    let SpoolPlace::Fallback { path, .. } = put(&scene.dirs, &post_build("a")).unwrap() else {
        panic!("the spool cannot be written")
    };
    assert!(path.starts_with(&memory), "{}", path.display());
    std::fs::remove_dir_all(&memory).unwrap();
}
