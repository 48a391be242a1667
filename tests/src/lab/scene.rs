//! [`Scene`]: a private Nix with hookrun as its hooks, a configuration and derivations, and the
//! commands that a test runs in it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::Command;

use hookrun::demo::private_nix::{self, Daemon, PrivateNix};
use rustix::process::Signal;
use tempfile::TempDir;

use super::machine::{self, shared_directory};
use super::{Ran, Script, nix_string};

/// The placeholder for the directory of the scene in texts of a test.
const SCENE: &str = "@scene@";

/// A private Nix with hookrun as its hooks. See the [module](super).
pub struct Scene {
    nix: PrivateNix,
    hookrun: PathBuf,
    derivations: BTreeMap<String, Script>,
    keys: BTreeMap<String, String>,
    machines: Vec<String>,
    daemon: Option<Daemon>,
    directory: Option<TempDir>,
}

impl Default for Scene {
    fn default() -> Self {
        Self::new()
    }
}

impl Scene {
    /// Makes a single-user Nix whose post-build-hook and diff-hook are hookrun. It has the embedded
    /// configuration and no derivations.
    pub fn new() -> Self {
        machine::require_nix();
        // Short, and reachable for build users.
        let directory = tempfile::Builder::new().prefix("hookrun-").tempdir().unwrap();
        private_nix::set_mode(directory.path(), 0o755).unwrap();
        let mut nix = PrivateNix::create(directory.path()).unwrap();
        let hookrun = private_nix::install_hookrun(
            &machine::hookrun_program(),
            &directory.path().join("bin"),
        )
        .unwrap();
        let link = |role: &str| directory.path().join("bin").join(role).display().to_string();
        nix.set("post-build-hook", &link("hookrun-post-build")).unwrap();
        nix.set("run-diff-hook", "true").unwrap();
        nix.set("diff-hook", &link("hookrun-diff")).unwrap();
        nix.set_variable("HOOKRUN_CONFIG", directory.path().join("hookrun.toml"));
        nix.set_variable("HOOKRUN_STATE_DIR", directory.path().join("state"));
        nix.set_variable("XDG_CACHE_HOME", directory.path().join("cache"));
        // `HOOKRUN_CONFIG` has to name a file that exists.
        std::fs::write(directory.path().join("hookrun.toml"), hookrun_config::EMBEDDED).unwrap();
        Self {
            nix,
            hookrun,
            derivations: BTreeMap::new(),
            keys: BTreeMap::new(),
            machines: Vec::new(),
            daemon: None,
            directory: Some(directory),
        }
    }

    /// Writes `hookrun.toml`: a [`ConfigFile`](super::ConfigFile), or a text where the test is
    /// about the text. `@scene@` stands for the scene's directory.
    pub fn config(self, file: &(impl Display + ?Sized)) -> Self {
        self.set_config(file);
        self
    }

    /// Replaces `hookrun.toml`.
    pub fn set_config(&self, file: &(impl Display + ?Sized)) {
        let text = file.to_string().replace(SCENE, &self.dir().display().to_string());
        std::fs::write(self.config_path(), text).unwrap();
    }

    /// Sets a line of `nix.conf`; an empty value removes a hook. `@scene@` stands for the scene's
    /// directory.
    pub fn nix_conf(mut self, name: &str, value: &str) -> Self {
        let value = value.replace(SCENE, &self.dir().display().to_string());
        self.nix.set(name, &value).unwrap();
        self
    }

    /// Adds a variable to the environment of Nix and its hooks.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.nix.set_variable(name, value);
        self
    }

    /// Adds a derivation.
    pub fn derivation(mut self, name: &str, script: Script) -> Self {
        self.derivations.insert(name.to_owned(), script);
        let mut text = "let self = {\n".to_owned();
        for (name, script) in &self.derivations {
            text.push_str(&script.to_nix(name));
        }
        text.push_str("}; in self\n");
        std::fs::write(self.expression(), text).unwrap();
        self
    }

    /// Adds a derivation for each name.
    pub fn derivations(self, names: &[impl AsRef<str>], script: impl Fn(&str) -> Script) -> Self {
        names
            .iter()
            .map(AsRef::as_ref)
            .fold(self, |scene, name| scene.derivation(name, script(name)))
    }

    /// Makes a key pair: the file `keys/NAME.secret`, and [`Scene::public_key`].
    pub fn signing_key(mut self, name: &str) -> Self {
        let (_, public) = self.nix.generate_key(&self.path("keys"), name).unwrap();
        self.keys.insert(name.to_owned(), public);
        self
    }

    /// Returns the public key of a pair made by [`Scene::signing_key`], in the form that
    /// `trusted-public-keys` takes.
    #[track_caller]
    pub fn public_key(&self, name: &str) -> &str {
        self.keys.get(name).expect("make the key with signing_key first")
    }

    /// Adds a builder that is a store in the scene, `builders/NAME`, and makes hookrun the
    /// build-hook. Needs root and mount namespaces.
    pub fn builder(self, name: &str, max_jobs: u32, speed_factor: f32) -> Self {
        let line = PrivateNix::local_machine(&self.builder_store(name), max_jobs, speed_factor);
        self.make_builder_store(name);
        self.machine(&line)
    }

    /// Makes a builder's store before anything uses it. Nix 2.8 fails if several processes make one
    /// store at the same time (`nix/var/nix/db/schema' is corrupt`).
    pub fn make_builder_store(&self, name: &str) {
        std::fs::create_dir_all(self.path("builders")).unwrap();
        let mut init = self.private_nix().command_on_store(&self.builder_store(name), "nix-store");
        Ran::of(init.arg("--init")).expect_success();
    }

    /// Adds a line of any kind to `builders`, and makes hookrun the build-hook. `@scene@` stands
    /// for the scene's directory.
    pub fn machine(mut self, line: &str) -> Self {
        self.machines.push(line.replace(SCENE, &self.dir().display().to_string()));
        std::fs::create_dir_all(self.path("builders")).unwrap();
        let builders = self.machines.join(" ; ");
        let hook = self.path("bin/hookrun-build-hook").display().to_string();
        self.nix.set("builders", &builders).unwrap();
        self.nix.set("build-hook", &hook).unwrap();
        self
    }

    /// Returns the store of a builder made by [`Scene::builder`].
    pub fn builder_store(&self, name: &str) -> PathBuf {
        self.path("builders").join(name)
    }

    /// Returns whether the path was built on or copied to this builder.
    pub fn on_builder(&self, name: &str, store_path: &Path) -> bool {
        PrivateNix::path_in_store(&self.builder_store(name), store_path).exists()
    }

    /// Starts a `nix-daemon` with build users, through which Nix works from now on. The daemon does
    /// not see later changes to the configuration of Nix and to variables. Needs root.
    pub fn through_daemon(mut self) -> Self {
        machine::require_build_users();
        self.nix
            .share_build_users(machine::BUILD_GROUP, &shared_directory().join("userpool"))
            .unwrap();
        self.daemon = Some(self.nix.start_daemon().unwrap());
        self
    }

    /// Returns the scene's directory.
    pub fn dir(&self) -> &Path {
        self.nix.root()
    }

    /// Returns a path in the scene's directory.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.dir().join(relative)
    }

    /// Returns the path of `hookrun.toml`.
    pub fn config_path(&self) -> PathBuf {
        self.path("hookrun.toml")
    }

    /// Returns the state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.path("state")
    }

    /// Returns the Nix of the scene.
    pub fn private_nix(&self) -> &PrivateNix {
        &self.nix
    }

    /// Returns what the daemon logged, with the standard error of the hooks.
    pub fn daemon_log(&self) -> String {
        self.daemon
            .as_ref()
            .map(|daemon| std::fs::read_to_string(&daemon.log).unwrap_or_default())
            .unwrap_or_default()
    }

    fn expression(&self) -> PathBuf {
        self.path("scene.nix")
    }

    /// Runs `nix-build` for one derivation.
    pub fn build(&self, derivation: &str) -> Ran {
        self.build_with(derivation, &[])
    }

    /// Runs `nix-build --check` for one derivation, which builds it again and compares.
    pub fn check(&self, derivation: &str) -> Ran {
        self.build_with(derivation, &["--check"])
    }

    /// Runs `nix-build` for one derivation with more arguments.
    #[track_caller]
    pub fn build_with(&self, derivation: &str, arguments: &[&str]) -> Ran {
        Ran::of(&mut self.build_command(derivation, arguments))
    }

    /// Returns the command of [`Scene::build_with`].
    pub fn build_command(&self, derivation: &str, arguments: &[&str]) -> Command {
        let mut command = self.nix.command("nix-build");
        command
            .arg(self.expression())
            .args(["--no-out-link", "-A", &nix_string(derivation)])
            .args(arguments);
        command
    }

    /// Runs a program of Nix.
    #[track_caller]
    pub fn nix(&self, program: &str, arguments: &[&str]) -> Ran {
        Ran::of(self.nix.command(program).args(arguments))
    }

    /// Returns the store path of a derivation's `.drv`.
    #[track_caller]
    pub fn drv_path(&self, derivation: &str) -> PathBuf {
        Ran::of(
            self.nix
                .command("nix-instantiate")
                .arg(self.expression())
                .args(["-A", &nix_string(derivation)]),
        )
        .expect_success()
        .path()
    }

    /// Returns the store path of a derivation's only output, whether it is built or not.
    #[track_caller]
    pub fn out_path(&self, derivation: &str) -> PathBuf {
        let drv = self.drv_path(derivation);
        Ran::of(self.nix.command("nix-store").args(["--query", "--outputs"]).arg(drv))
            .expect_success()
            .path()
    }

    /// Returns the store paths of all outputs of a derivation, whether they are built or not.
    #[track_caller]
    pub fn out_paths(&self, derivation: &str) -> Vec<PathBuf> {
        let drv = self.drv_path(derivation);
        Ran::of(self.nix.command("nix-store").args(["--query", "--outputs"]).arg(drv))
            .expect_success()
            .paths()
    }

    /// Runs `hookrun` in the scene's environment.
    #[track_caller]
    pub fn hookrun(&self, arguments: &[&str]) -> Ran {
        Ran::of(&mut self.hookrun_command(arguments))
    }

    /// Returns the command of [`Scene::hookrun`].
    pub fn hookrun_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.nix.command(&self.hookrun);
        command.args(arguments);
        command
    }

    /// Runs `hookrun drain`, which returns when all due tasks have run, in this worker or in one
    /// that a hook started.
    #[track_caller]
    pub fn drain(&self) -> Ran {
        self.hookrun(&["drain"])
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.account());
        }
        self.daemon = None;
        for pid in self.processes() {
            // The process may have ended already, so errors are ignored.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        let Some(directory) = self.directory.take() else { return };
        if std::env::var_os("HOOKRUN_LAB_KEEP").is_some() {
            eprintln!("kept: {}", directory.keep().display());
        } else {
            // Stores are read-only. `TempDir` tries again to remove files that are left after a
            // failure here.
            let _ = private_nix::remove_tree(directory.path());
        }
    }
}
