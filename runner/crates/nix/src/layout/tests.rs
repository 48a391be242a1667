use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use super::*;

fn dirs(dir: &tempfile::TempDir) -> Dirs {
    Dirs { config: dir.path().join("hookrun.toml"), state: dir.path().join("state") }
}

fn set(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & PERMISSIONS
}

/// Returns the problem of an entry of root's installation with this mode and owner.
#[expect(unsafe_code, reason = "rustix has no other way to create a `Stat`")]
fn seen(entry: Entry, mode: u32, uid: u32) -> String {
    // SAFETY: a `stat` consists of integers, so all zeros are a valid value.
    let mut stat: Stat = unsafe { std::mem::zeroed() };
    stat.st_mode = entry.kind.as_raw_mode() | hookrun_system::stat::mode(mode).as_raw_mode();
    stat.st_uid = uid;
    let path = Path::new("/s").join(entry.name);
    judge(entry, &path, &stat, 0).map(|wrong| wrong.message).unwrap_or_default()
}

#[test]
fn correct_owners_and_modes_are_accepted() {
    for (entry, modes) in [
        (STATE, [0o755, 0o711].as_slice()),
        (SPOOL, &[0o1733]),
        (directory("journal", Access::Nothing), &[0o700]),
        (file("worker.lock"), &[0o600]),
    ] {
        for mode in modes {
            assert_eq!(seen(entry, *mode, 0), "", "{} {mode:o}", entry.name);
        }
    }
}

#[test]
fn wrong_owners_and_modes_are_reported_with_the_fix() {
    let said = [
        seen(STATE, 0o700, 0),
        seen(STATE, 0o777, 0),
        seen(SPOOL, 0o755, 0),
        seen(SPOOL, 0o733, 0),
        seen(SPOOL, 0o1733, 1000),
        seen(SPOOL, 0o777, 1000),
        seen(directory("journal", Access::Nothing), 0o755, 0),
        seen(directory("mail", Access::Pass), 0o700, 0),
        seen(file("worker.lock"), 0o644, 0),
        seen(Entry { kind: FileType::Symlink, ..SPOOL }, 0o777, 0),
        judge(SPOOL, Path::new("/s/spool"), &stat_of_a_file(), 0).unwrap().message,
    ];
    insta::assert_snapshot!(said.join("\n"));
}

fn stat_of_a_file() -> Stat {
    let file = tempfile::NamedTempFile::new().unwrap();
    rustix::fs::stat(file.path()).unwrap()
}

#[test]
fn wrong_modes_are_corrected() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = dirs(&dir);
    assert_eq!(prepare(&dirs).unwrap(), []);
    assert_eq!(examine(&dirs), []);
    let system = rustix::process::geteuid().is_root();
    let open = if system { 0o755 } else { 0o700 };
    make(&dirs.journal(), PRIVATE).unwrap();
    for (path, wrong, right) in [
        (dirs.spool(), 0o755, SPOOL.mode(system)),
        (dirs.journal(), 0o777, 0o700),
        (dirs.state.clone(), 0o757, open),
    ] {
        set(&path, wrong);
        let [repaired] = repair(&dirs).try_into().unwrap();
        let _: &Repaired = &repaired;
        assert!(repaired.done, "{repaired:?}");
        assert_eq!(mode(&path), right, "{}", path.display());
    }
    assert_eq!(repair(&dirs), []);
}

#[test]
fn a_link_in_place_of_the_spool_is_reported_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = dirs(&dir);
    std::fs::create_dir(&dirs.state).unwrap();
    set(&dirs.state, if rustix::process::geteuid().is_root() { 0o755 } else { 0o700 });
    std::fs::create_dir(dir.path().join("elsewhere")).unwrap();
    symlink(dir.path().join("elsewhere"), dirs.spool()).unwrap();
    let [repaired] = repair(&dirs).try_into().unwrap();
    let Repaired { message, done } = repaired;
    assert!(!done && message.contains("is a symbolic link"), "{message}");
}

#[test]
fn new_entries_have_the_mode_of_the_table() {
    let dir = tempfile::tempdir().unwrap();
    make(&dir.path().join("a"), 0o1733).unwrap();
    assert_eq!(mode(&dir.path().join("a")), 0o1733);
    make_all(&dir.path().join("b/c"), 0o755).unwrap();
    assert_eq!((mode(&dir.path().join("b")), mode(&dir.path().join("b/c"))), (0o755, 0o755));
}

#[test]
fn fallback_directories_have_unpredictable_names() {
    let dirs = Dirs { config: "/c".into(), state: "/var/lib/hookrun".into() };
    assert_eq!(
        fallbacks(&dirs),
        [
            PathBuf::from("/var/lib/hookrun-fallback"),
            PathBuf::from("/run/hookrun/fallback/879fe294")
        ]
    );
    assert_eq!(own_fallback(&dirs, 7), Path::new("/var/tmp/hookrun-spool-7-879fe294"));
}
