//! `cargo xtask newer-nix`: runs `hookrun demo` and the end-to-end tests with the Nix of a later
//! Debian, in a separate root directory.
//!
//! Programs and tests are built here and run there, because a later Debian runs programs that an
//! earlier one has linked. The workspace and the target directory have the same paths in both. The
//! root directory is created once and kept.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::machine::{self, Need};
use crate::process::{self, CommandExt as _, cargo, repository, target_directory};

/// Options of `cargo xtask newer-nix`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The Debian release whose Nix is used: `trixie` has 2.26, `sid` has the newest in Debian.
    #[arg(long, default_value = "trixie")]
    suite: String,
    /// The directory of the roots, one per suite: by default `hookrun/roots` in the cache
    /// directory. Remove a root to create it again.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Arguments of the test program, such as parts of test names. By default the tests that depend
    /// on Nix run.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Modules of the end-to-end tests that do not depend on Nix, or need a compiler.
const WITHOUT_NIX: [&str; 5] =
    ["crash::", "documents::", "fuzz_corpus::", "hostile::", "hostile_artifacts::"];
/// The test that builds the guests, which need a compiler that the root does not have.
const GUESTS: &str = "lab::every_guest_is_built_as_a_component";
/// Packages that the tests of mail install if they are missing. Later, the package lists of the
/// root may be too old for that.
const MAIL_SERVER: [&str; 2] = ["exim4-daemon-light", "openssl"];
/// The directories of programs in Debian.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Makes a directory the root of a mount namespace.
const ENTER: &str = "xtask/src/newer_nix/enter.sh";
/// Prevents packages from starting services: exit code 101 means "forbidden" (invoke-rc.d(8)).
const NO_SERVICES: &str = "#!/bin/sh\nexit 101\n";

/// Creates the root if it is missing, builds, and runs everything there.
pub(crate) fn run(options: &Options) -> Result<()> {
    machine::prepare(Need::Nix)?;
    if !machine::is_root()? {
        bail!("a separate root directory needs root; run `sudo -E cargo xtask newer-nix`");
    }
    let root = Root {
        directory: options
            .directory
            .clone()
            .map_or_else(default_directory, Ok)?
            .join(&options.suite),
    };
    root.make(&options.suite)?;
    process::build_workspace()?;
    let tests = test_program()?;
    Command::new(&tests).args(["--exact", GUESTS]).current_dir(package_of_tests()).run()?;

    let program = target_directory()?.join("debug/hookrun");
    let version = root.command("nix-build").arg("--version").read()?;
    let version = version.trim();
    println!("{version}, in {}", root.directory.display());
    root.command(program).arg("demo").run()?;
    let mut tests = root.command(tests);
    if options.arguments.is_empty() {
        tests.args(WITHOUT_NIX.iter().flat_map(|module| ["--skip", module]));
    } else {
        tests.args(&options.arguments);
    }
    if let Err(error) = tests.run() {
        bail!("with {version} these tests fail ({error})");
    }
    println!("{version}: hookrun demo works, and these tests pass");
    Ok(())
}

/// `$XDG_CACHE_HOME/hookrun/roots`.
fn default_directory() -> Result<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute())
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    Ok(cache.context("there is no HOME; name a place with --directory")?.join("hookrun/roots"))
}

/// Builds the end-to-end tests and returns their program.
fn test_program() -> Result<PathBuf> {
    let build = ["test", "--workspace", "--test", "integration", "--no-run"];
    cargo().args(build).run()?;
    let messages = cargo().args(build).args(["--message-format", "json"]).read()?;
    // One JSON object per line.
    let executable = messages.lines().find_map(|line| {
        let (_, path) = line.split_once("\"executable\":\"")?;
        let (path, _) = path.split_once('"')?;
        path.contains("/integration-").then(|| PathBuf::from(path))
    });
    executable.context("cargo did not say where the end-to-end tests are")
}

/// Returns the directory in which cargo runs the end-to-end tests.
fn package_of_tests() -> PathBuf {
    repository().join("tests")
}

/// A Debian in a directory.
struct Root {
    directory: PathBuf,
}

impl Root {
    /// Creates it, or installs the packages that an existing root lacks.
    fn make(&self, suite: &str) -> Result<()> {
        if self.directory.is_dir() {
            let missing = machine::missing_below(&self.directory);
            if missing.is_empty() {
                return Ok(());
            }
            Command::new("chroot").arg(&self.directory).args(["apt-get", "update", "-qq"]).run()?;
            return install(&self.directory, &missing);
        }
        for program in ["debootstrap", "unshare"] {
            if machine::find_program(program).is_none() {
                bail!(
                    "there is no {program} in PATH; on Debian run `apt-get install -y debootstrap util-linux`"
                );
            }
        }
        // It has another name until it is complete.
        let part = self.directory.with_extension("part");
        if part.exists() {
            std::fs::remove_dir_all(&part)
                .with_context(|| format!("cannot remove {}", part.display()))?;
        }
        std::fs::create_dir_all(&part)
            .with_context(|| format!("cannot make {}", part.display()))?;
        Command::new("debootstrap")
            .args(["--variant=minbase", "--include=ca-certificates,e2fsprogs", suite])
            .arg(&part)
            .run()?;
        executable(&part.join("usr/sbin/policy-rc.d"), NO_SERVICES.as_bytes())?;
        let packages: Vec<&str> = machine::debian_packages().chain(MAIL_SERVER).collect();
        install(&part, &packages)?;
        std::fs::rename(&part, &self.directory)
            .with_context(|| format!("cannot make {}", self.directory.display()))
    }

    /// Returns a command that runs in it, in the package of the tests, with an environment of its
    /// own.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let target = target_directory().unwrap_or_default();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "/bin/sh"])
            .arg(repository().join(ENTER))
            .arg(&self.directory);
        command
            .arg(repository())
            .arg(&target)
            .args(["--", "env", "-C"])
            .arg(package_of_tests())
            .arg(program);
        command
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .env("HOOKRUN_GUESTS", target.join(GUESTS_IN_TARGET));
        // From Nix 2.30 on nothing above the directory of builds may be open to all (`build-dir`),
        // as /tmp is.
        command.env("TMPDIR", "/srv");
        // It was just built, even if other files were compiled later.
        command.env("HOOKRUN_BIN", target.join("debug/hookrun"));
        // Snapshots are compared, never written.
        command
            .env("INSTA_UPDATE", "no")
            .env("INSTA_WORKSPACE_ROOT", repository())
            .env("TERM", "dumb");
        command
    }
}

/// Where `hookrun_tests::guests` puts the guests.
const GUESTS_IN_TARGET: &str = "guests/wasm32-wasip2/release";

/// Installs packages in a root.
fn install(root: &Path, packages: &[&str]) -> Result<()> {
    Command::new("chroot")
        .arg(root)
        .args(["apt-get", "install", "-y", "-qq", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .run()
}

fn executable(path: &Path, bytes: &[u8]) -> Result<()> {
    // A running program cannot be written, so a new file replaces it.
    let _gone = std::fs::remove_file(path);
    let written = std::fs::write(path, bytes);
    written
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", path.display()))
}
