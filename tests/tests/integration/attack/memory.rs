//! Builds whose outputs or derivations would take a hook's memory.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use super::*;
use hookrun_queue::envelope;
use hookrun_tests::lab::{Need, Ran, require};

/// Creates two outputs with `count` names below a path as long as the system allows.
fn deep_trees(scene: &Scene, count: usize) -> [PathBuf; 2] {
    const LEVELS: usize = 14;
    const MOST_LINKS: usize = 10_000;
    let output = scene.private_nix().store_dir().join(format!("{HASH}-deep"));
    let check = PathBuf::from(format!("{}.check", output.display()));
    std::fs::create_dir_all(scene.private_nix().store_dir()).unwrap();
    for root in [&output, &check] {
        std::fs::create_dir(root).unwrap();
        let mut directory = open(root);
        for _ in 0..LEVELS {
            let name = "d".repeat(250);
            rustix::fs::mkdirat(&directory, &name, rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
            let flags = rustix::fs::OFlags::DIRECTORY;
            directory =
                rustix::fs::openat(&directory, &name, flags, rustix::fs::Mode::empty()).unwrap();
        }
        let file = rustix::fs::openat(
            &directory,
            "0",
            rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY,
            rustix::fs::Mode::from_raw_mode(0o644),
        )
        .unwrap();
        rustix::io::write(&file, root.to_str().unwrap().as_bytes()).unwrap();
        for number in 1..count {
            // Links need no inodes, but a file system limits their number for one file.
            let (at, first) = (directory.as_fd(), (number / MOST_LINKS * MOST_LINKS).to_string());
            if number % MOST_LINKS == 0 {
                let mode = rustix::fs::Mode::from_raw_mode(0o644);
                let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
                rustix::fs::openat(at, &first, flags, mode).unwrap();
                continue;
            }
            let flags = rustix::fs::AtFlags::empty();
            rustix::fs::linkat(at, &first, at, number.to_string(), flags).unwrap();
        }
    }
    [output, check]
}

fn open(path: &Path) -> OwnedFd {
    let flags = rustix::fs::OFlags::DIRECTORY;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap()
}

/// Returns a hook that may have this many bytes of data; the caller adds its name.
fn hook_within(scene: &Scene, bytes: u64) -> Command {
    let mut command = scene.private_nix().command("prlimit");
    command.arg(format!("--data={bytes}")).arg(scene.path("bin/hookrun")).arg("hook");
    command
}

/// Removes the only event from the spool, and returns it.
fn only_event(scene: &Scene, ran: &Ran) -> Event {
    let spooled = scene.spooled();
    let [file] = spooled.as_slice() else { panic!("one event: {}", ran.account()) };
    let event = envelope::open(&std::fs::read(file).unwrap()).unwrap();
    std::fs::remove_file(file).unwrap();
    event
}

/// Runs the diff hook on two trees with a limit on its memory for data. Returns its event.
fn diff_within(scene: &Scene, [output, check]: &[PathBuf; 2], bytes: u64) -> (Ran, Event) {
    let begun = Instant::now();
    let mut command = hook_within(scene, bytes);
    command.arg("diff").args([output, check]).arg(format!("{}.drv", output.display())).arg("/tmp");
    let ran = Ran::of(&mut command).expect_success();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(3), "the hook took {took:?}: {}", ran.account());
    let event = only_event(scene, &ran);
    (ran, event)
}

#[test]
fn a_tree_with_many_names_under_a_long_path_takes_little_memory() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let trees = deep_trees(&scene, 100_000);
    // The paths of 100,000 files of each side would take 700 MiB.
    let (ran, event) = diff_within(&scene, &trees, 64 << 20);
    let HookEvent::Diff(diff) = event.hook else { panic!("{}", ran.account()) };
    assert!(diff.evidence.compared_files > 100, "{}", ran.account());
}

#[test]
fn a_large_derivation_costs_a_hook_neither_memory_nor_its_event() {
    /// Each variable takes 16 bytes of the file and about 200 bytes of memory.
    const VARIABLES: usize = 1_500_000;
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let nix = scene.private_nix();
    let path = format!("{}/{HASH}-big", nix.store_dir().display());
    let drv = format!("{path}.drv");
    let mut text = format!(
        r#"Derive([("out","{path}","","")],[],[],"x86_64-linux","/bin/sh",[],[("name","big")"#
    );
    text.extend((0..VARIABLES).map(|number| format!(r#",("v{number}","")"#)));
    text.push_str("])");
    std::fs::create_dir_all(nix.store_dir()).unwrap();
    std::fs::write(&drv, text).unwrap();
    let mut command = hook_within(&scene, 64 << 20);
    let command = command.arg("post-build").env("DRV_PATH", &drv).env("OUT_PATHS", "");
    let ran = Ran::of(command).expect_success();
    assert_eq!(only_event(&scene, &ran).drv_path(), drv);
}

#[test]
fn an_interrupted_comparison_leaves_an_incomplete_event() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let trees = deep_trees(&scene, 100_000);
    // The limit is less than the names need.
    let (ran, event) = diff_within(&scene, &trees, 6 << 20);
    let HookEvent::Diff(diff) = event.hook else { panic!("{}", ran.account()) };
    let incomplete = diff.evidence.incomplete.unwrap_or_default();
    assert!(incomplete.contains("did not end"), "{incomplete}: {}", ran.account());
    ran.expect_stderr("ended early");
}
