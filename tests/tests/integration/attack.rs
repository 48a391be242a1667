//! Attacks by other users of the machine, and by builds, on files that they share with hookrun.
//! SECURITY.md lists these files.

mod access;
mod fallback;
mod links;
mod memory;
mod spool_files;

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use hookrun_nix::event::{Diff, Event, HookEvent, Output, PostBuild};
use hookrun_nix::evidence::Evidence;
use hookrun_nix::layout;
use hookrun_queue::spool;
use hookrun_tests::lab::{ConfigFile, PluginTable, Scene, require_build_users, toml, wait_for};

/// A plain user.
const STRANGER: u32 = 4242;
/// A build user of `auto-allocate-uids`, who needs no entry in /etc/passwd.
const BUILD_USER: u32 = 0x3400_0001;
/// An event of root may wait this long behind other users' files.
const SOON: Duration = Duration::from_secs(10);
const HASH: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";

/// Returns a configuration in which hooks start no worker.
fn without_worker() -> ConfigFile {
    ConfigFile::new().worker("start", "none").worker("priority", "normal")
}

/// Adds a plugin that mails differences to a maildir.
fn mailer(file: ConfigFile) -> ConfigFile {
    file.plugin("p", PluginTable::mailer("default", "a@example.org"))
        .mail("default", toml! { transport = "maildir" })
}

fn scene() -> Scene {
    let scene = Scene::new().config(&without_worker());
    layout::prepare(&scene.dirs()).unwrap();
    scene
}

/// Returns a shell that runs `script` as another user, without root's groups.
fn shell(script: &str, uid: u32) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).uid(uid).gid(uid).current_dir("/");
    command
}

/// Returns a build user with an entry in /etc/passwd.
fn member_of_the_build_group() -> u32 {
    require_build_users();
    let trust = hookrun_queue::trust::Trust::from_env();
    trust.uids().find(|uid| *uid != 0).expect("a build user")
}

/// Returns an event of root's post-build hook.
fn event(scene: &Scene, name: &str) -> Event {
    let nix = scene.nix_dirs();
    let path = format!("{}/{HASH}-{name}", nix.store.display());
    let output = Output { name: "out".into(), path: path.clone() };
    let build = PostBuild { drv_path: format!("{path}.drv"), outputs: vec![output] };
    Event { nix, ..Event::now(HookEvent::PostBuild(build)) }
}

fn diff_event(scene: &Scene, name: &str) -> Event {
    let event = event(scene, name);
    let HookEvent::PostBuild(PostBuild { drv_path, outputs }) = event.hook else { unreachable!() };
    let output = outputs.into_iter().next().unwrap();
    let (previous, current) = (output.path.clone(), format!("{}.check", output.path));
    let evidence = Evidence::default();
    Event { hook: HookEvent::Diff(Diff { drv_path, output, previous, current, evidence }), ..event }
}

/// Creates a dead letter, and returns its event.
fn give_up_a_task(scene: &Scene) -> Event {
    let keeper = PluginTable::guest("good")
        .hooks(["post-build"])
        .config(toml! { fail = "permanent" })
        .grant("state", true);
    scene.set_config(&without_worker().plugin("keeper", keeper));
    let event = event(scene, "a");
    spool::put(&scene.dirs(), &event).unwrap();
    scene.drain().expect_exit(1);
    event
}

/// Waits until the condition holds, and returns how long that took.
#[track_caller]
fn time_until(what: &str, holds: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    wait_for(what, holds);
    begun.elapsed()
}
