//! Fallback directories that other users create or replace.

use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;
use hookrun_tests::lab::{Need, Ran, require};

#[test]
fn a_stranger_who_makes_a_fallback_first_takes_no_event() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let dirs = scene.dirs();
    let [beside, memory] = layout::fallbacks(&dirs).try_into().unwrap();
    // Root's fallback is in a directory of root. Another directory has a name that was used
    // earlier.
    let common = layout::own_fallback(&dirs, 0);
    Ran::of(&mut shell(&format!("mkdir {}", beside.display()), STRANGER)).expect_failure();
    std::fs::create_dir(&common).unwrap();
    std::os::unix::fs::chown(&common, Some(STRANGER), Some(STRANGER)).unwrap();
    // The spool cannot be written.
    std::fs::remove_dir(dirs.spool()).unwrap();
    std::fs::write(dirs.spool(), "").unwrap();
    let spool::SpoolPlace::Fallback { path, .. } = spool::put(&dirs, &event(&scene, "a")).unwrap()
    else {
        panic!("the spool cannot be written")
    };
    assert_eq!(path.parent(), Some(beside.as_path()));
    std::fs::remove_dir(&common).unwrap();
    let _ = std::fs::remove_dir_all(memory);
}

#[test]
fn a_fallback_that_a_build_user_replaces_by_a_link_is_not_followed() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    // The directories of build users are read.
    require_build_users();
    let trust = hookrun_queue::trust::Trust::from_env();
    let uid = trust.uids().find(|uid| *uid != 0).expect("a build user");
    let fallback = layout::own_fallback(&scene.dirs(), uid);
    let victim = scene.path("victim");
    std::fs::create_dir(&victim).unwrap();
    for path in [&fallback, &fallback.join("")] {
        let _ = std::fs::create_dir(path);
    }
    let own = |path: &Path| std::os::unix::fs::lchown(path, Some(uid), Some(uid)).unwrap();
    own(&fallback);
    for number in 0..50 {
        for directory in [&fallback, &victim] {
            std::fs::write(directory.join(format!("{number:03}")), "junk").unwrap();
        }
        own(&fallback.join(format!("{number:03}")));
    }
    let mut reader = spool::Reader::new(&scene.dirs(), trust);
    assert_eq!(reader.scan(1).rejected.len(), 1);
    let away = fallback.with_added_extension("away");
    std::fs::rename(&fallback, &away).unwrap();
    symlink(&victim, &fallback).unwrap();
    let mut rejected = 1;
    while reader.has_more() {
        rejected += reader.scan(10).rejected.len();
    }
    assert_eq!((rejected, std::fs::read_dir(&away).unwrap().count()), (50, 0));
    // The link is not followed either when the directories are listed again.
    reader.look_again();
    assert_eq!(reader.scan(100).rejected.len(), 0);
    assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 50);
    std::fs::remove_file(&fallback).unwrap();
    std::fs::remove_dir(&away).unwrap();
}

#[test]
fn files_of_another_user_at_the_path_of_a_fallback_are_not_touched() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let directory = layout::own_fallback(&scene.dirs(), 0);
    let victim = scene.path("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("precious"), "root's own").unwrap();
    let place = directory.display();
    let script =
        format!("mkdir {place} && cd {place} && : > 0-first && : > precious && mkfifo fifo");
    Ran::of(&mut shell(&script, STRANGER)).expect_success();
    scene.drain().expect_success();
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 3, "no file is taken from there");
    let script = format!("rm -r {place} && ln -s {} {place}", victim.display());
    Ran::of(&mut shell(&script, STRANGER)).expect_success();
    scene.drain().expect_success();
    assert_eq!(std::fs::read_to_string(victim.join("precious")).unwrap(), "root's own");
    assert_eq!(std::fs::read_dir(scene.dirs().rejected()).map_or(0, Iterator::count), 0);
    std::fs::remove_file(&directory).unwrap();
}
