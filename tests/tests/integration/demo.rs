//! `hookrun demo` shows that all parts work, and removes its files with `--remove`.

use hookrun_tests::lab::{Need, Scene, require};

#[test]
fn every_step_of_the_demo_works() {
    if !require(Need::Root) {
        return;
    }
    // The scene has the environment. The demo makes its own Nix.
    let scene = Scene::new();
    let directory = scene.path("d");
    let ran =
        scene.hookrun(&["demo", "--remove", "--dir", directory.to_str().unwrap()]).expect_success();
    assert_eq!(ran.stdout.matches("=> works:").count(), 4, "{}", ran.account());
    assert!(!ran.stdout.contains('\u{1b}'), "a pipe gets no colours");
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
fn a_demo_without_nix_names_the_command_that_installs_it() {
    let scene = Scene::new();
    let mut command = scene.hookrun_command(&["demo"]);
    command.env("PATH", scene.path("missing"));
    let ran = hookrun_tests::lab::Ran::of(&mut command).expect_exit(4);
    assert!(ran.stderr.contains("apt-get install -y nix-bin"), "{}", ran.account());
}
