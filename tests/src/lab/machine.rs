//! What the lab needs of the machine: Nix, build users, the program under test. What is missing is
//! installed where that can be done (Debian, root), once for all tests that run at the same time;
//! else the test fails and names the command.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use hookrun::demo::private_nix;
use hookrun_queue::spawn::{PROGRAM, THIN_PROGRAM};

/// Nix's usual name for the group of build users.
pub const BUILD_GROUP: &str = "nixbld";
/// Build users made where there are none. Each serves one build at a time, on the whole machine.
const BUILD_USERS: u32 = 4;
/// What the tests need, a Debian package first in each line; the same list that `cargo xtask` and
/// CI install.
const DEBIAN_PACKAGES: &str = include_str!("../../../xtask/debian-packages.txt");

/// Returns whether this process runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A directory that all tests of this machine share, for locks.
pub fn shared_directory() -> PathBuf {
    let directory =
        std::env::temp_dir().join(format!("hookrun-lab-{}", rustix::process::geteuid().as_raw()));
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

/// Runs `action` while no other test process is in one.
pub(super) fn locked<T>(action: impl FnOnce() -> T) -> T {
    let lock = File::create(shared_directory().join("install.lock")).unwrap();
    lock.lock().unwrap();
    action()
}

/// Nix is there, or gets installed, or the test fails.
pub fn require_nix() {
    static NIX: LazyLock<Result<String, String>> = LazyLock::new(|| {
        private_nix::nix_version().or_else(|_| {
            locked(|| {
                // Another test may have installed it while this one waited.
                private_nix::nix_version().or_else(|missing| {
                    if is_root() && Path::new("/etc/debian_version").exists() {
                        install_packages();
                    } else {
                        return Err(missing);
                    }
                    private_nix::nix_version()
                })
            })
            .map_err(|error| format!("these tests need Nix: {error:#}"))
        })
    });
    if let Err(message) = &*NIX {
        panic!("{message}");
    }
}

/// The 8 of 2.8.0: which of Nix's ways a test has to expect.
///
/// # Panics
/// If there is no Nix, or not of version 2.
pub fn minor_version() -> u32 {
    require_nix();
    let text = private_nix::nix_version().unwrap();
    let minor = text.rsplit_once(' ').and_then(|(_, version)| version.strip_prefix("2."));
    minor
        .and_then(|minor| minor.split('.').next()?.parse().ok())
        .unwrap_or_else(|| panic!("{text} is no Nix 2"))
}

/// The program is there, or gets installed with the other packages, or the test fails.
pub(super) fn require_program(program: &Path) {
    locked(|| {
        if !program.exists() && is_root() && Path::new("/etc/debian_version").exists() {
            install_packages();
        }
    });
    assert!(program.exists(), "this test needs {}: install it", program.display());
}

fn install_packages() {
    let names = DEBIAN_PACKAGES.lines().filter_map(|line| line.split_whitespace().next());
    let packages = names.filter(|name| !name.starts_with('#'));
    run(Command::new("apt-get").args(["update", "-qq"]));
    run(Command::new("apt-get")
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(packages));
}

/// The group of build users with members, made where it is missing. Needs root.
pub fn require_build_users() {
    assert!(is_root(), "this test needs root: build users and a daemon that becomes them");
    locked(|| {
        let group = Command::new("getent").args(["group", BUILD_GROUP]).output().unwrap();
        let line = String::from_utf8_lossy(&group.stdout).trim().to_owned();
        if group.status.success() && !line.ends_with(':') {
            return;
        }
        if !group.status.success() {
            run(Command::new("groupadd").args(["--system", BUILD_GROUP]));
        }
        for number in 1..=BUILD_USERS {
            run(Command::new("useradd")
                .args([
                    "--system",
                    "--gid",
                    BUILD_GROUP,
                    "--groups",
                    BUILD_GROUP,
                    "--no-create-home",
                ])
                .args(["--home-dir", "/var/empty", "--shell", "/usr/sbin/nologin"])
                .arg(format!("{BUILD_GROUP}{number}")));
        }
    });
}

#[track_caller]
fn run(command: &mut Command) {
    super::Ran::of(command.env("DEBIAN_FRONTEND", "noninteractive")).expect_success();
}

/// The program under test: `HOOKRUN_BIN`, or the one beside this test in the target directory.
///
/// # Panics
/// If it is not there, or is older than the library in this test: cargo builds the program for no
/// test of another package.
pub fn hookrun_program() -> PathBuf {
    if let Some(program) = std::env::var_os("HOOKRUN_BIN") {
        return PathBuf::from(program);
    }
    // target/debug/deps/upload-0123456789abcdef
    let test = std::env::current_exe().unwrap();
    let dependencies = test.parent().unwrap();
    let libraries = std::fs::read_dir(dependencies).unwrap().flatten().filter(|entry| {
        let name = PathBuf::from(entry.file_name());
        name.extension().is_some_and(|extension| extension == "rlib")
            && name.to_string_lossy().starts_with("libhookrun-")
    });
    let library = libraries.filter_map(|entry| entry.metadata().ok()?.modified().ok()).max();
    let program = dependencies.parent().unwrap().join(PROGRAM);
    for program in [&program, &program.with_file_name(THIN_PROGRAM)] {
        assert!(
            program.is_file(),
            "there is no {}: run `cargo build --workspace` first, or set HOOKRUN_BIN",
            program.display()
        );
        let linked = program.metadata().unwrap().modified().unwrap();
        assert!(
            library.is_none_or(|compiled| compiled <= linked),
            "{} is older than the library it is made of: run `cargo build --workspace` first",
            program.display()
        );
    }
    program
}
