//! Requirements of the lab: Nix, build users, and the program under test. As root on Debian,
//! missing programs are installed once for all tests that run at the same time. Elsewhere the test
//! fails and names the command.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use hookrun::demo::private_nix;
use hookrun_queue::spawn::{PROGRAM, SMALL_HOOK};

/// The usual name of the group of build users.
pub const BUILD_GROUP: &str = "nixbld";
/// The number of build users to make if there are none. Each runs one build at a time, on the whole
/// machine.
const BUILD_USERS: u32 = 4;
/// The list of Debian packages that `cargo xtask` and CI install. Each line starts with a package.
const DEBIAN_PACKAGES: &str = include_str!("../../../xtask/debian-packages.txt");

/// Returns whether this process runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns a directory for locks that all tests of this machine share.
pub fn shared_directory() -> PathBuf {
    let directory =
        std::env::temp_dir().join(format!("hookrun-lab-{}", rustix::process::geteuid().as_raw()));
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

/// Runs `action` while no other test process does so.
pub(super) fn locked<T>(action: impl FnOnce() -> T) -> T {
    let lock = File::create(shared_directory().join("install.lock")).unwrap();
    lock.lock().unwrap();
    action()
}

/// Installs Nix if it is missing. The test fails if that is not possible.
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

/// Returns the minor version of Nix, such as 8 for 2.8.0.
///
/// # Panics
/// If there is no Nix of version 2.
pub fn minor_version() -> u32 {
    require_nix();
    let text = private_nix::nix_version().unwrap();
    let minor = text.rsplit_once(' ').and_then(|(_, version)| version.strip_prefix("2."));
    minor
        .and_then(|minor| minor.split('.').next()?.parse().ok())
        .unwrap_or_else(|| panic!("`{text}` is not version 2 of Nix"))
}

/// Installs the packages of the tests if the program is missing. The test fails if that is not
/// possible.
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

/// Makes the group of build users and its members if they are missing. Needs root.
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

/// Returns the program under test: `HOOKRUN_BIN`, or `hookrun` in the target directory of this
/// test.
///
/// # Panics
/// If it is missing or older than the library of this test, since cargo does not build the program
/// for the tests of another package.
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
    for program in [&program, &program.with_file_name(SMALL_HOOK)] {
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
