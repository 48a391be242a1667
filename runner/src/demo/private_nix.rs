//! A private Nix, with store, state, log and configuration in one directory. It changes nothing
//! below `/nix` and nothing of the user's.
//!
//! `hookrun demo` and the end-to-end tests use it. It is the installed Nix program with
//! `NIX_STORE_DIR` and related variables set. There is no nixpkgs and no network, and derivations
//! use only `/bin/sh` and its built-in commands. It must never use a substituter, a user's
//! configuration or the machine's daemon.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hookrun_system::process::describe_end;

use hookrun_queue::spawn::{PROGRAM, SMALL_HOOK};

/// The time for a daemon to start listening. It takes milliseconds, or more on a busy machine.
const DAEMON_START: Duration = Duration::from_secs(30);
/// The time between two attempts to connect to a starting daemon.
const DAEMON_POLL: Duration = Duration::from_millis(20);
/// The parts of the host that a chroot build needs for `/bin/sh`: the shell, its loader and its
/// libraries (`/usr/lib` if `/lib` is a link to it).
const SHELL_AND_LIBRARIES: [&str; 6] =
    ["/bin", "/usr/bin", "/lib", "/lib64", "/usr/lib", "/usr/lib64"];
/// The variable with lines of nix.conf for one process, known since Nix 2.4.
const NIX_CONFIG: &str = "NIX_CONFIG";
/// The directory with the locks on build users of the machine's own Nix; see
/// [`PrivateNix::share_build_users`].
const SYSTEM_USER_POOL: &str = "/nix/var/nix/userpool";

/// Returns the version of the Nix in `PATH`, such as `nix-build (Nix) 2.8.0`.
///
/// # Errors
/// Nix is not installed; the error names the program and the command that installs it.
pub fn nix_version() -> Result<String> {
    let output = match Command::new("nix-build").arg("--version").output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
            "there is no `nix-build` in PATH; on Debian or Ubuntu run `apt-get install -y nix-bin` as root, elsewhere follow https://nixos.org/download"
        ),
        Err(error) => {
            return Err(error)
                .context("`nix-build --version` cannot be started; check the Nix in PATH");
        }
    };
    if !output.status.success() {
        bail!(
            "`nix-build --version` {}; install Nix again",
            describe_end(output.status, &String::from_utf8_lossy(&output.stderr))
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A private Nix in one directory.
#[derive(Debug)]
pub struct PrivateNix {
    root: PathBuf,
    settings: Vec<(String, String)>,
    variables: Vec<(OsString, OsString)>,
}

impl PrivateNix {
    /// Creates the directories in `root` and a first `nix.conf`: single-user, without substituters
    /// and sandbox.
    ///
    /// `root` should be short (a Unix socket below it must stay under 108 bytes) and reachable for
    /// build users.
    ///
    /// # Errors
    /// A directory or the file cannot be created.
    pub fn create(root: &Path) -> Result<Self> {
        let nix = Self { root: root.to_owned(), settings: Vec::new(), variables: Vec::new() };
        for directory in ["store", "var", "log", "etc", "home", "tmp"] {
            let directory = root.join(directory);
            std::fs::create_dir_all(&directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        // Build users create their build directories here.
        set_mode(&root.join("tmp"), 0o1777)?;
        let mut nix = nix;
        for (name, value) in [
            ("sandbox", "false"),
            ("substituters", ""),
            ("build-users-group", ""),
            ("experimental-features", "nix-command"),
            // The store is removed at the end of the demo or test, so durability is not needed.
            ("fsync-metadata", "false"),
            // Derivations here take milliseconds, so the default interval of 5 s would dominate the
            // time.
            ("build-poll-interval", "1"),
        ] {
            nix.set_line(name, value);
        }
        // A chroot builder (`remote-store=DIR`) builds in a sandbox even with `sandbox = false`.
        nix.set_line("sandbox-paths", &sandbox_paths().join(" "));
        nix.write_settings()?;
        Ok(nix)
    }

    /// Returns the root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the value of `NIX_STORE_DIR`.
    pub fn store_dir(&self) -> PathBuf {
        self.root.join("store")
    }

    /// Returns the value of `NIX_STATE_DIR`.
    pub fn state_dir(&self) -> PathBuf {
        self.root.join("var")
    }

    /// Returns the value of `NIX_CONF_DIR`.
    pub fn conf_dir(&self) -> PathBuf {
        self.root.join("etc")
    }

    /// Sets one line of `nix.conf`. A daemon that is already running does not read it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        self.set_line(name, value);
        self.write_settings()
    }

    fn set_line(&mut self, name: &str, value: &str) {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    fn write_settings(&self) -> Result<()> {
        let lines: Vec<String> =
            self.settings.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        let text = lines.join("\n") + "\n";
        let path = self.conf_dir().join("nix.conf");
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Sets an environment variable for Nix and its child processes.
    pub fn set_variable(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.into(), value.as_ref().to_owned()));
    }

    /// Returns the variables that make a Nix program use this Nix, and those of
    /// [`PrivateNix::set_variable`].
    pub fn variables(&self) -> Vec<(OsString, OsString)> {
        let mut variables: Vec<(OsString, OsString)> = [
            ("NIX_STORE_DIR", self.store_dir()),
            ("NIX_STATE_DIR", self.state_dir()),
            ("NIX_LOG_DIR", self.root.join("log")),
            ("NIX_CONF_DIR", self.conf_dir()),
            ("NIX_USER_CONF_FILES", PathBuf::from("/dev/null")),
            ("HOME", self.root.join("home")),
            ("TMPDIR", self.root.join("tmp")),
        ]
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
        variables.extend(self.variables.iter().filter(|(name, _)| name != NIX_CONFIG).cloned());
        let given = self
            .variables
            .iter()
            .find(|(name, _)| name == NIX_CONFIG)
            .map(|(_, value)| value.clone());
        // Nix 2.25 to 2.33 ignore the line in nix.conf (`nix/main.cc` sets the default after it has
        // read the file; NixOS/nix#15083).
        let build_hook =
            self.settings.iter().find(|(name, value)| name == "build-hook" && !value.is_empty());
        let build_hook =
            build_hook.map(|(name, value)| OsString::from(format!("{name} = {value}")));
        let lines: Vec<OsString> = given.into_iter().chain(build_hook).collect();
        if !lines.is_empty() {
            variables.push((NIX_CONFIG.into(), lines.join(OsStr::new("\n"))));
        }
        variables
    }

    /// Returns a command that uses this Nix. The caller's environment is cleared except for `PATH`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear();
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command.envs(self.variables()).current_dir(&self.root).stdin(Stdio::null());
        command
    }

    /// Returns a command that uses a second store in `directory`. It has the same store paths at
    /// another place on the disk, and is created on first use.
    pub fn command_on_store(&self, directory: &Path, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.command(program);
        command.env("NIX_REMOTE", directory);
        command
    }

    /// Returns the place of a path of this store in the second store `directory`.
    pub fn path_in_store(directory: &Path, store_path: &Path) -> PathBuf {
        // Nix stores the objects of a store with a root in `nix/store` below the root, whatever the
        // store directory is (local-fs-store.hh, `realStoreDir`).
        directory.join("nix/store").join(store_path.file_name().unwrap_or_default())
    }

    /// Generates a key pair with `nix-store --generate-binary-cache-key`, as `NAME.secret` and
    /// `NAME.public` in `directory`. Returns the file of the secret key and the text of the public
    /// key.
    ///
    /// # Errors
    /// Nix fails, or the files cannot be written.
    pub fn generate_key(&self, directory: &Path, name: &str) -> Result<(PathBuf, String)> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let (secret, public) =
            (directory.join(format!("{name}.secret")), directory.join(format!("{name}.public")));
        let output = self
            .command("nix-store")
            .args(["--generate-binary-cache-key", name])
            .args([&secret, &public])
            .output()
            .context("`nix-store` cannot be started")?;
        if !output.status.success() {
            bail!(
                "`nix-store --generate-binary-cache-key` {}",
                describe_end(output.status, &String::from_utf8_lossy(&output.stderr))
            );
        }
        set_mode(&secret, 0o600)?;
        let public = std::fs::read_to_string(&public)
            .with_context(|| format!("cannot read {}", public.display()))?;
        Ok((secret, public.trim().to_owned()))
    }

    /// Returns a line of a machines file for a second store on this host. It needs no ssh, because
    /// Nix runs the host `localhost` with `bash -c`; the rest is the same as for a real `ssh://`
    /// builder. It needs root and mount namespaces.
    pub fn local_machine(directory: &Path, max_jobs: u32, speed_factor: f32) -> String {
        format!(
            "ssh://localhost?remote-store={} {} - {max_jobs} {speed_factor}",
            directory.display(),
            nix_system()
        )
    }

    /// Makes builds run as members of `group`. Needs root.
    ///
    /// Every Nix on the machine that uses the group shares its users, and Nix kills all processes
    /// of a user before it uses it. So the locks on the users must be shared too: with the
    /// machine's Nix if there is one, else with other private ones, in `pool`.
    ///
    /// # Errors
    /// The group does not exist, or a directory cannot be changed.
    pub fn share_build_users(&mut self, group: &str, pool: &Path) -> Result<()> {
        let system = Path::new(SYSTEM_USER_POOL);
        let pool = if system.is_dir() { system } else { pool };
        std::fs::create_dir_all(pool)
            .with_context(|| format!("cannot create {}", pool.display()))?;
        let link = self.state_dir().join("userpool");
        match std::os::unix::fs::symlink(pool, &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("cannot create {}", link.display()));
            }
            _ => {}
        }
        let changed = Command::new("chgrp")
            .arg(group)
            .arg(self.store_dir())
            .output()
            .context("`chgrp` cannot be started")?;
        if !changed.status.success() {
            bail!(
                "`chgrp {group}` {}",
                describe_end(changed.status, &String::from_utf8_lossy(&changed.stderr))
            );
        }
        set_mode(&self.store_dir(), 0o1775)?;
        self.set("build-users-group", group)
    }

    /// Starts a `nix-daemon`, waits until it listens, and makes later commands use it.
    ///
    /// # Errors
    /// The daemon cannot be started, or it exits; the error contains its output.
    pub fn start_daemon(&mut self) -> Result<Daemon> {
        let log_path = self.root.join("daemon.log");
        let log = std::fs::File::create(&log_path)
            .with_context(|| format!("cannot create {}", log_path.display()))?;
        let mut child =
            self.command("nix-daemon").stdout(log.try_clone()?).stderr(log).spawn().context(
                "`nix-daemon` cannot be started; on Debian it is in the package nix-bin",
            )?;
        let socket = self.state_dir().join("daemon-socket/socket");
        let deadline = Instant::now() + DAEMON_START;
        while UnixStream::connect(&socket).is_err() {
            let ended = child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let said = std::fs::read_to_string(&log_path).unwrap_or_default();
                let _ = child.kill();
                let _ = child.wait();
                let why = ended.map_or_else(
                    || format!("was killed after {DAEMON_START:?}: {}", said.trim()),
                    |status| describe_end(status, &said),
                );
                bail!("`nix-daemon` does not listen on {}: it {why}", socket.display());
            }
            std::thread::sleep(DAEMON_POLL);
        }
        self.set_variable("NIX_REMOTE", "daemon");
        Ok(Daemon { child, log: log_path })
    }
}

/// A running `nix-daemon`, which is ended when this value is dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    /// The file with its output, and with the standard error of hooks.
    pub log: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns Nix's system type of this machine, such as `x86_64-linux`.
pub fn nix_system() -> String {
    // Nix writes 32-bit x86 as `i686`, Rust as `x86`; all other names are the same.
    let machine = if std::env::consts::ARCH == "x86" { "i686" } else { std::env::consts::ARCH };
    format!("{machine}-linux")
}

/// Returns the directories of [`SHELL_AND_LIBRARIES`] that exist; the system's store if it contains
/// `/bin/sh` (NixOS).
fn sandbox_paths() -> Vec<String> {
    let shell_in_store =
        std::fs::canonicalize("/bin/sh").is_ok_and(|shell| shell.starts_with("/nix/store"));
    let paths: &[&str] =
        if shell_in_store { &["/bin", "/nix/store"] } else { &SHELL_AND_LIBRARIES };
    paths.iter().filter(|path| Path::new(path).exists()).map(|path| (*path).to_owned()).collect()
}

/// Installs the program `hookrun`, and `hookrun-hook` if it is in the same directory, into
/// `directory`, which build users can reach (unlike a target directory below /root), with a link
/// for each hook. Returns the path of the installed `hookrun`.
///
/// # Errors
/// A program cannot be linked or copied, or a link cannot be created.
pub fn install_hookrun(program: &Path, directory: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let installed = directory.join(PROGRAM);
    link_or_copy(program, &installed)?;
    let small_hook = program.with_file_name(SMALL_HOOK);
    let small_hook = if small_hook.is_file() {
        link_or_copy(&small_hook, &directory.join(SMALL_HOOK))?;
        SMALL_HOOK
    } else {
        PROGRAM
    };
    let links = [
        ("hookrun-post-build", small_hook),
        ("hookrun-diff", small_hook),
        ("hookrun-build-hook", PROGRAM),
    ];
    for (role, target) in links {
        let link = directory.join(role);
        std::os::unix::fs::symlink(target, &link)
            .with_context(|| format!("cannot create {}", link.display()))?;
    }
    Ok(installed)
}

/// A hard link, which costs nothing; a copy across file systems.
fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    if std::fs::hard_link(from, to).is_err() {
        std::fs::copy(from, to)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    Ok(())
}

/// Sets the mode of a file or directory.
///
/// # Errors
/// As chmod(2), with the path.
pub fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

/// Removes a directory tree that contains read-only directories, as Nix's stores do.
///
/// # Errors
/// The error of the first entry that cannot be removed.
pub fn remove_tree(root: &Path) -> io::Result<()> {
    make_writable(root)?;
    std::fs::remove_dir_all(root)
}

fn make_writable(directory: &Path) -> io::Result<()> {
    let mode = std::fs::symlink_metadata(directory)?.permissions().mode();
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(mode | 0o700))?;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        // `file_type` does not follow links, so their targets are kept.
        if entry.file_type()?.is_dir() {
            make_writable(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_only_trees_can_be_removed() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("tree");
        std::fs::create_dir_all(root.join("store/object/bin")).unwrap();
        std::fs::write(root.join("store/object/bin/file"), "x").unwrap();
        for path in ["store/object/bin/file", "store/object/bin", "store/object"] {
            set_mode(&root.join(path), 0o555).unwrap();
        }
        std::os::unix::fs::symlink("/etc", root.join("store/link")).unwrap();
        remove_tree(&root).unwrap();
        assert!(!root.exists());
    }

    #[test]
    fn a_second_store_has_the_same_names() {
        let path =
            PrivateNix::path_in_store(Path::new("/second"), Path::new("/lab/store/abc-name"));
        assert_eq!(path, Path::new("/second/nix/store/abc-name"));
    }

    #[test]
    fn the_build_hook_is_also_set_in_the_environment() {
        let directory = tempfile::tempdir().unwrap();
        let mut nix = PrivateNix::create(directory.path()).unwrap();
        let variable = |nix: &PrivateNix| {
            let found = nix
                .variables()
                .into_iter()
                .filter(|(name, _)| name == NIX_CONFIG)
                .map(|(_, value)| value);
            found.collect::<Vec<_>>()
        };
        assert_eq!(variable(&nix), [""; 0]);
        nix.set("build-hook", "/hook").unwrap();
        assert_eq!(variable(&nix), ["build-hook = /hook"]);
        nix.set_variable(NIX_CONFIG, "cores = 1");
        assert_eq!(variable(&nix), ["cores = 1\nbuild-hook = /hook"]);
    }

    #[test]
    fn a_setting_is_written_once() {
        let directory = tempfile::tempdir().unwrap();
        let mut nix = PrivateNix::create(directory.path()).unwrap();
        nix.set("sandbox", "relaxed").unwrap();
        let text = std::fs::read_to_string(nix.conf_dir().join("nix.conf")).unwrap();
        assert_eq!(
            text.lines().filter(|line| line.starts_with("sandbox =")).collect::<Vec<_>>(),
            ["sandbox = relaxed"]
        );
    }
}
