//! Attacks by other users of the machine, and by builds, on files that they share with hookrun.
//! SECURITY.md lists these files.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{Event, HookEvent, NixDirs, Output, PostBuild};
use hookrun_nix::layout;
use hookrun_queue::{envelope, spool};
use hookrun_tests::lab::{
    Need, Ran, Scene, answers, build_hook, conversation, require, require_build_users,
};

/// A plain user.
const STRANGER: u32 = 4242;
/// A build user of `auto-allocate-uids`, who needs no entry in /etc/passwd.
const BUILD_USER: u32 = 0x3400_0001;
/// Time limit for each wait.
const PATIENCE: Duration = Duration::from_mins(2);
/// An event of root may wait this long behind other users' files.
const SOON: Duration = Duration::from_secs(10);
/// Files of a flood.
const FILES: usize = 5000;
const HASH: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";
/// A configuration in which hooks start no worker.
const CONFIG: &str = "[worker]\nstart = \"none\"\npriority = \"normal\"\n";

fn scene() -> Scene {
    let scene = Scene::new().config(CONFIG);
    layout::prepare(&dirs(&scene)).unwrap();
    scene
}

fn dirs(scene: &Scene) -> Dirs {
    Dirs { config: scene.config_path(), state: scene.state_dir() }
}

/// `program` as another user, without root's groups.
fn as_user(command: &mut Command, uid: u32) -> &mut Command {
    // Numbers other than root's: the groups go with them.
    command.uid(uid).gid(uid)
}

fn shell(script: &str, uid: u32) -> Command {
    let mut command = Command::new("/bin/sh");
    as_user(command.args(["-c", script]), uid).current_dir("/");
    command
}

/// A build user with an entry in /etc/passwd.
fn member_of_the_build_group() -> u32 {
    require_build_users();
    let trust = hookrun_queue::trust::Trust::from_env();
    trust.uids().find(|uid| *uid != 0).expect("a build user")
}

/// An event of root's post-build hook.
fn event(scene: &Scene, name: &str) -> Event {
    let nix = scene.private_nix();
    let path = format!("{}/{HASH}-{name}", nix.store_dir().display());
    let output = Output { name: "out".into(), path: path.clone() };
    let build = PostBuild { drv_path: format!("{path}.drv"), outputs: vec![output] };
    let nix = NixDirs::new(nix.store_dir(), nix.state_dir(), nix.conf_dir());
    Event { nix, ..Event::now(HookEvent::PostBuild(build)) }
}

struct Worker(Child);

impl Worker {
    fn start(scene: &Scene) -> Self {
        let mut command = scene.hookrun_command(&["daemon"]);
        let worker = Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let lock = scene.state_dir().join("worker.lock");
        wait_for("the worker takes its lock", || hookrun_queue::lock::is_held(&lock));
        worker
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[track_caller]
fn wait_for(what: &str, mut is: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    begun.elapsed()
}

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
    // As an earlier release left it.
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
    scene.set_config(
        "[worker]\nstart = \"spawn\"\nidle-exit = \"1s\"\n[plugins.p]\n\
         source = \"bundled:email-on-nondeterminism\"\nhooks = [\"diff\"]\n\
         config = { to = [\"a@example.org\"] }\n\
         grant = { mail = [\"default\"], state = true }\n[mail.default]\ntransport = \"maildir\"\n",
    );
    let lock = scene.state_dir().join("waiter.lock");
    // As an earlier release may have left it.
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
fn a_stranger_who_makes_a_fallback_first_takes_no_event() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let dirs = dirs(&scene);
    let [beside, memory] = layout::fallbacks(&dirs).try_into().unwrap();
    // Root's is where nobody else makes anything; another one has the name that it once had.
    let common = layout::own_fallback(&dirs, 0);
    Ran::of(&mut shell(&format!("mkdir {}", beside.display()), STRANGER)).expect_failure();
    std::fs::create_dir(&common).unwrap();
    std::os::unix::fs::chown(&common, Some(STRANGER), Some(STRANGER)).unwrap();
    // A spool that cannot be written.
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
    // A member of the group, whose directory is read.
    require_build_users();
    let trust = hookrun_queue::trust::Trust::from_env();
    let uid = trust.uids().find(|uid| *uid != 0).expect("a build user");
    let fallback = layout::own_fallback(&dirs(&scene), uid);
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
    let mut reader = spool::Reader::new(&dirs(&scene), trust);
    assert_eq!(reader.scan(1).rejected.len(), 1);
    let away = fallback.with_added_extension("away");
    std::fs::rename(&fallback, &away).unwrap();
    symlink(&victim, &fallback).unwrap();
    let mut rejected = 1;
    while reader.has_more() {
        rejected += reader.scan(10).rejected.len();
    }
    assert_eq!((rejected, std::fs::read_dir(&away).unwrap().count()), (50, 0));
    // Nor is the link followed when the directories are listed again.
    reader.look_again();
    assert_eq!(reader.scan(100).rejected.len(), 0);
    assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 50);
    std::fs::remove_file(&fallback).unwrap();
    std::fs::remove_dir(&away).unwrap();
}

#[test]
fn a_flood_of_a_strangers_files_holds_up_no_event_of_root() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let dirs = dirs(&scene);
    let _worker = Worker::start(&scene);
    // Names that sort before any event's, and hidden ones that are not finished.
    let script = format!(
        "cd {}; n=0; while [ $n -lt {FILES} ]; do : > \"!$n\"; : > \".$n\"; n=$((n + 1)); done",
        dirs.spool().display()
    );
    let mut flood = shell(&script, STRANGER).spawn().unwrap();
    wait_for("some files are there", || dirs.spool().join("!500").exists());
    for name in ["a", "b", "c"] {
        let event = event(&scene, name);
        spool::put(&dirs, &event).unwrap();
        let file = dirs.spool().join(&event.id);
        let waited = wait_for("root's event is taken", || !file.exists());
        assert!(waited < SOON, "root's event waited for {waited:?}");
    }
    assert!(flood.wait().unwrap().success());
    wait_for("what is no event is out of the way", || spool::depth(&dirs) == 0);
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
    let spool = dirs(&scene).spool();
    // As many as are remembered, and more: subuid(5) gives 65,536 to a plain user.
    for uid in 100_000..100_300 {
        for number in 0..5 {
            let file = spool.join(format!("!{uid}-{number}"));
            std::fs::write(&file, "").unwrap();
            std::os::unix::fs::chown(&file, Some(uid), Some(uid)).unwrap();
        }
    }
    let mut event = diff_event(&scene, "honest");
    let HookEvent::Diff(diff) = &mut event.hook else { panic!("a diff event") };
    // The reader below believes a build user about this process's Nix only.
    event.nix = NixDirs::from_env();
    let store = event.nix.store.display().to_string();
    let old = scene.private_nix().store_dir().display().to_string();
    for path in [&mut diff.drv_path, &mut diff.output.path, &mut diff.previous, &mut diff.current] {
        *path = path.replace(&old, &store);
    }
    std::fs::write(spool.join(&event.id), envelope::seal(&event).unwrap()).unwrap();
    std::os::unix::fs::chown(spool.join(&event.id), Some(BUILD_USER), Some(BUILD_USER)).unwrap();
    let mut reader = spool::Reader::new(&dirs(&scene), hookrun_queue::trust::Trust::from_env());
    let scan = reader.scan(2);
    assert_eq!((scan.events.len(), scan.rejected.len()), (1, 1), "{scan:?}");
}

#[test]
fn directories_beyond_those_that_are_kept_are_removed_with_what_is_in_them() {
    /// More than are kept.
    const DIRECTORIES: usize = 1300;
    /// More than can be removed by a function that calls itself, or holds each level open.
    const LEVELS: usize = 2000;
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let spool = dirs(&scene).spool();
    let script = format!(
        "cd {}; for i in $(seq {DIRECTORIES}); do echo d$i d$i/x; done | xargs mkdir; \
         seq -f d999/%g 1000 | xargs touch; mkfifo d998/x/fifo; ln -s /etc d998/x/link; \
         cd d997/x; for i in $(seq {LEVELS}); do mkdir d; cd -P d; done",
        spool.display()
    );
    Ran::of(&mut shell(&script, STRANGER)).expect_success();
    let event = event(&scene, "a");
    spool::put(&dirs(&scene), &event).unwrap();
    scene.drain().expect_success();
    assert_eq!(std::fs::read_dir(&spool).unwrap().count(), 0);
    let kept = spool::count_rejected(&dirs(&scene).rejected());
    assert_eq!(kept, 1000);
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn entries_other_than_regular_files_in_the_spool_delay_no_event() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let spool = dirs(&scene).spool();
    let script = format!(
        "cd {}; mkfifo fifo .fifo; ln -s /etc/shadow link; mkdir directory; mkdir full; : > full/x",
        spool.display()
    );
    Ran::of(&mut shell(&script, STRANGER)).expect_success();
    let event = event(&scene, "a");
    spool::put(&dirs(&scene), &event).unwrap();
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
    scene.set_config(
        "[worker]\nstart = \"none\"\nmax-events-per-user = 3\n[plugins.p]\nsource = \"bundled:email-on-nondeterminism\"\n\
         hooks = [\"diff\"]\nconfig = { to = [\"a@example.org\"] }\ngrant = { mail = [\"default\"], state = true }\n\
         [mail.default]\ntransport = \"maildir\"\n",
    );
    for number in 0..10 {
        let event = diff_event(&scene, &format!("d{number}"));
        let file = dirs(&scene).spool().join(&event.id);
        std::fs::write(&file, envelope::seal(&event).unwrap()).unwrap();
        std::os::unix::fs::chown(&file, Some(BUILD_USER), Some(BUILD_USER)).unwrap();
    }
    // Three at a time.
    scene.drain().expect_success().expect_stderr("wait in the spool until some have ended");
    assert_eq!(scene.mails().len(), 10);
    assert_eq!(scene.spooled(), Vec::<PathBuf>::new());
    assert_eq!(spool::count_rejected(&dirs(&scene).rejected()), 0);
}

fn diff_event(scene: &Scene, name: &str) -> Event {
    use hookrun_nix::event::Diff;
    use hookrun_nix::evidence::Evidence;
    let event = event(scene, name);
    let HookEvent::PostBuild(PostBuild { drv_path, outputs }) = event.hook else { unreachable!() };
    let output = outputs.into_iter().next().unwrap();
    let (previous, current) = (output.path.clone(), format!("{}.check", output.path));
    let evidence = Evidence::default();
    Event { hook: HookEvent::Diff(Diff { drv_path, output, previous, current, evidence }), ..event }
}

/// Two outputs of `count` names below a path as long as the system allows.
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
            // Links cost no inode; a file system allows only so many to one file.
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

/// Runs the diff hook on two trees with so much memory for data; returns its event.
fn diff_within(scene: &Scene, [output, check]: &[PathBuf; 2], bytes: u64) -> (Ran, Event) {
    let begun = Instant::now();
    let mut command = scene.private_nix().command("prlimit");
    command
        .arg(format!("--data={bytes}"))
        .arg(scene.path("bin/hookrun"))
        .args(["hook", "diff"])
        .args([output, check])
        .arg(format!("{}.drv", output.display()))
        .arg("/tmp");
    let ran = Ran::of(&mut command).expect_success();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(3), "the hook took {took:?}: {}", ran.account());
    let spooled = scene.spooled();
    let [file] = spooled.as_slice() else { panic!("one event: {}", ran.account()) };
    let event = envelope::open(&std::fs::read(file).unwrap()).unwrap();
    std::fs::remove_file(file).unwrap();
    (ran, event)
}

#[test]
fn a_tree_with_many_names_under_a_long_path_takes_little_memory() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let trees = deep_trees(&scene, 100_000);
    // 100,000 whole paths of each side would be 700 MiB.
    let (ran, event) = diff_within(&scene, &trees, 64 << 20);
    let HookEvent::Diff(diff) = event.hook else { panic!("{}", ran.account()) };
    assert!(diff.evidence.compared_files > 100, "{}", ran.account());
}

#[test]
fn a_large_derivation_costs_a_hook_neither_memory_nor_its_event() {
    /// Each takes sixteen bytes of the file and some two hundred of memory.
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
    let mut command = nix.command("prlimit");
    command
        .arg(format!("--data={}", 64 << 20))
        .arg(scene.path("bin/hookrun"))
        .args(["hook", "post-build"])
        .env("DRV_PATH", &drv)
        .env("OUT_PATHS", "");
    let ran = Ran::of(&mut command).expect_success();
    let spooled = scene.spooled();
    let [file] = spooled.as_slice() else { panic!("one event: {}", ran.account()) };
    let event = envelope::open(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(event.drv_path(), drv);
}

#[test]
fn an_interrupted_comparison_leaves_an_incomplete_event() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let trees = deep_trees(&scene, 100_000);
    // Less than the names take.
    let (ran, event) = diff_within(&scene, &trees, 6 << 20);
    let HookEvent::Diff(diff) = event.hook else { panic!("{}", ran.account()) };
    let incomplete = diff.evidence.incomplete.unwrap_or_default();
    assert!(incomplete.contains("did not end"), "{incomplete}: {}", ran.account());
    ran.expect_stderr("ended early");
}

#[test]
fn files_that_are_set_aside_at_the_same_time_are_all_kept() {
    const SAME: u32 = 200;
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let dirs = dirs(&scene);
    for number in 0..SAME {
        // No plain form: where such characters are replaced, all have the same name.
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
fn files_of_another_user_at_the_path_of_a_fallback_are_not_touched() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let directory = layout::own_fallback(&dirs(&scene), 0);
    let victim = scene.path("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("precious"), "root's own").unwrap();
    let place = directory.display();
    let script =
        format!("mkdir {place} && cd {place} && : > 0-first && : > precious && mkfifo fifo");
    Ran::of(&mut shell(&script, STRANGER)).expect_success();
    scene.drain().expect_success();
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 3, "nothing is taken from there");
    let script = format!("rm -r {place} && ln -s {} {place}", victim.display());
    Ran::of(&mut shell(&script, STRANGER)).expect_success();
    scene.drain().expect_success();
    assert_eq!(std::fs::read_to_string(victim.join("precious")).unwrap(), "root's own");
    assert_eq!(std::fs::read_dir(dirs(&scene).rejected()).map_or(0, Iterator::count), 0);
    std::fs::remove_file(&directory).unwrap();
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

/// Leaves a dead letter; returns its event.
fn give_up_a_task(scene: &Scene) -> Event {
    let keeper = hookrun_tests::guests::guest("good").unwrap();
    scene.set_config(&format!(
        "{CONFIG}[plugins.keeper]\nsource = \"{}\"\nhooks = [\"post-build\"]\n\
         config = {{ fail = \"permanent\" }}\ngrant = {{ state = true }}\n",
        keeper.display()
    ));
    let event = event(scene, "a");
    spool::put(&dirs(scene), &event).unwrap();
    scene.drain().expect_exit(1);
    event
}

/// Process numbers that the next commands may have.
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
    let _worker = Worker::start(&scene);
    for pid in next_pids() {
        for kind in ["wake", "check"] {
            let link = dirs(&scene).spool().join(format!(".{kind}-{pid}"));
            symlink(&victim, &link).unwrap();
            // The worker may have removed it by now.
            let _given = std::os::unix::fs::lchown(&link, Some(STRANGER), Some(STRANGER));
        }
    }
    scene.hookrun(&["check"]).expect_success();
    scene.hookrun(&["queue", "retry", "--dead"]).expect_success();
    // Nor does a command that replaces a file, in a directory of another user.
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
    let _worker = Worker::start(&scene);
    // Once it has done something, it sleeps.
    let other = self::event(&scene, "b");
    spool::put(&dirs(&scene), &other).unwrap();
    wait_for("an attempt at the other event", || attempts(&other.id) > 0);
    scene.hookrun(&["queue", "retry", &event.id]).expect_success();
    let waited = wait_for("another attempt", || attempts(&event.id) > before);
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
    // With all that it starts.
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

/// A scene in which everything has run once: all capabilities, the policy, a rejected file.
fn scene_with_all_files() -> Scene {
    let scene = scene();
    scene.set_config(
        "[worker]\nstart = \"none\"\n[plugins.p]\nsource = \"bundled:email-on-nondeterminism\"\n\
         hooks = [\"diff\"]\nconfig = { to = [\"a@example.org\"] }\n\
         grant = { mail = [\"default\"], state = true }\n[mail.default]\ntransport = \"maildir\"\n\
         [plugins.cache]\nsource = \"bundled:s3-upload\"\nhooks = [\"post-build\"]\n\
         config = { bucket = \"cache\" }\n\
         grant = { nix-store = \"closure\", object-store = [\"cache\"] }\n[object-stores.cache]\n\
         [plugins.balanced]\nsource = \"bundled:speed-factor\"\n",
    );
    spool::put(&dirs(&scene), &diff_event(&scene, "d")).unwrap();
    spool::put(&dirs(&scene), &event(&scene, "a")).unwrap();
    std::fs::write(dirs(&scene).spool().join("junk"), "").unwrap();
    scene.drain();
    drop(Worker::start(&scene));
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
    let _worker = Worker::start(&scene);
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
fn links_made_by_the_plugin_user_are_not_followed() {
    if !require(Need::Root) {
        return;
    }
    let nobody = Ran::of(Command::new("id").args(["-u", "nobody"])).stdout.trim().parse().unwrap();
    require_build_users();
    let scene = scene();
    let configure = |user: &str| {
        scene.set_config(&format!(
            "[worker]\nstart = \"none\"\nuser = \"{user}\"\n[plugins.p]\n\
             source = \"bundled:email-on-nondeterminism\"\nhooks = [\"diff\"]\n\
             config = {{ to = [\"a@example.org\"] }}\n\
             grant = {{ mail = [\"default\"], state = true }}\n\
             [mail.default]\ntransport = \"maildir\"\n"
        ));
    };
    configure("nobody");
    spool::put(&dirs(&scene), &diff_event(&scene, "a")).unwrap();
    scene.drain().expect_success();
    let victim = scene.path("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("file"), "root's own").unwrap();
    // In each of the directories that are this user's, what is there becomes a link to a file of
    // root's, and a FIFO is beside it.
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
        spool::put(&dirs(&scene), &diff_event(&scene, user)).unwrap();
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
    // Nor is anything that this hook has made open to others.
    let state = scene.state_dir().metadata().unwrap().mode() & 0o7777;
    let spool = dirs(&scene).spool().metadata().unwrap().mode() & 0o7777;
    let files: Vec<u32> =
        scene.spooled().iter().map(|file| file.metadata().unwrap().mode() & 0o7777).collect();
    assert_eq!((state, spool, files), (0o755, 0o1733, vec![0o644]));
}

#[test]
fn a_file_of_root_that_no_hook_wrote_is_rejected() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene();
    let event = event(&scene, "a");
    let sealed = envelope::seal(&event).unwrap();
    let spool = dirs(&scene).spool();
    // As in the Nix store: root's, with contents of a user's choice, and not writable.
    std::fs::write(spool.join(&event.id), &sealed).unwrap();
    let read_only = std::fs::Permissions::from_mode(0o444);
    std::fs::set_permissions(spool.join(&event.id), read_only).unwrap();
    // With another name beside it, or under the name of another event.
    let other = self::event(&scene, "b");
    std::fs::write(scene.path("outside"), envelope::seal(&other).unwrap()).unwrap();
    std::fs::hard_link(scene.path("outside"), spool.join(&other.id)).unwrap();
    std::fs::write(spool.join(self::event(&scene, "c").id), &sealed).unwrap();
    let ran = scene.drain().expect_success();
    assert_eq!(spool::count_rejected(&dirs(&scene).rejected()), 3, "{}", ran.account());
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
    let dirs = dirs(&scene);
    let _worker = Worker::start(&scene);
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
        let waited = wait_for("root's event is taken", || !file.exists());
        assert!(waited < SOON, "root's event waited for {waited:?}");
    }
    for child in &mut tricks {
        assert!(child.wait().unwrap().success());
    }
    wait_for("what is no event is out of the way", || spool::depth(&dirs) == 0);
    assert!(std::fs::read_to_string("/etc/shadow").is_ok());
}
