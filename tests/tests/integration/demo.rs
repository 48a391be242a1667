//! `hookrun demo` shows all of it working, and leaves nothing behind when told so.

use hookrun_tests::lab::{Need, Scene, require};

#[test]
fn every_step_works() {
    if !require(Need::Root) {
        return;
    }
    // Only for its environment: the demo makes a Nix of its own.
    let scene = Scene::new();
    let directory = scene.path("d");
    let ran =
        scene.hookrun(&["demo", "--remove", "--dir", directory.to_str().unwrap()]).expect_success();
    assert_eq!(ran.stdout.matches("=> works:").count(), 4, "{}", ran.account());
    assert!(!ran.stdout.contains('\u{1b}'), "no colours into a pipe");
    assert!(!directory.exists());
}

#[test]
fn a_directory_in_use_is_refused() {
    let scene = Scene::new();
    scene
        .hookrun(&["demo", "--dir", scene.dir().to_str().unwrap()])
        .expect_exit(4)
        .expect_stderr("is not empty; name a new directory with --dir");
}

#[test]
fn without_nix_the_command_that_installs_it_is_named() {
    let scene = Scene::new();
    let mut command = scene.hookrun_command(&["demo"]);
    command.env("PATH", scene.path("missing"));
    let ran = hookrun_tests::lab::Ran::of(&mut command).expect_exit(4);
    assert!(ran.stderr.contains("apt-get install -y nix-bin"), "{}", ran.account());
}
