//! [`Scene`]: a private Nix, hookrun's configuration and state, derivations, and the commands that
//! walk through them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use hookrun::demo::private_nix::{self, Daemon, PrivateNix};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use super::machine::{self, shared_directory};
use super::{Attempt, Ran, Script, journal, nix_string};

/// In texts given to a scene this stands for its directory.
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
    /// A single-user Nix whose post-build-hook and diff-hook are hookrun, without a configuration
    /// file and without derivations.
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
        // As an installation without a configuration has it: a named file has to be there.
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

    /// Writes `hookrun.toml`. `@scene@` stands for the scene's directory.
    pub fn config(self, text: &str) -> Self {
        self.set_config(text);
        self
    }

    /// Writes `hookrun.toml` again.
    pub fn set_config(&self, text: &str) {
        std::fs::write(self.config_path(), text.replace(SCENE, &self.dir().display().to_string()))
            .unwrap();
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

    /// Makes a key pair: `keys/NAME.secret` in the scene, and [`Scene::public_key`].
    pub fn signing_key(mut self, name: &str) -> Self {
        let (_, public) = self.nix.generate_key(&self.path("keys"), name).unwrap();
        self.keys.insert(name.to_owned(), public);
        self
    }

    /// The public key of a pair made by [`Scene::signing_key`], as `trusted-public-keys` wants it.
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

    /// Makes a builder's store before anything uses it: Nix 2.8 does not bear that several
    /// processes make one store at the same time (`nix/var/nix/db/schema' is corrupt`).
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

    /// The store of a builder made by [`Scene::builder`].
    pub fn builder_store(&self, name: &str) -> PathBuf {
        self.path("builders").join(name)
    }

    /// Returns whether the path was built on or copied to this builder.
    pub fn on_builder(&self, name: &str, store_path: &Path) -> bool {
        PrivateNix::path_in_store(&self.builder_store(name), store_path).exists()
    }

    /// From here on Nix works through a `nix-daemon` with build users, started now: what the
    /// configuration of Nix and the variables are to be has to be said before. Needs root.
    pub fn through_daemon(mut self) -> Self {
        machine::require_build_users();
        self.nix
            .share_build_users(machine::BUILD_GROUP, &shared_directory().join("userpool"))
            .unwrap();
        self.daemon = Some(self.nix.start_daemon().unwrap());
        self
    }

    /// The scene's directory.
    pub fn dir(&self) -> &Path {
        self.nix.root()
    }

    /// A path in the scene's directory.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.dir().join(relative)
    }

    /// `HOOKRUN_CONFIG`.
    pub fn config_path(&self) -> PathBuf {
        self.path("hookrun.toml")
    }

    /// `HOOKRUN_STATE_DIR`.
    pub fn state_dir(&self) -> PathBuf {
        self.path("state")
    }

    /// The Nix of the scene.
    pub fn private_nix(&self) -> &PrivateNix {
        &self.nix
    }

    /// What the daemon and the hooks' standard error wrote.
    pub fn daemon_log(&self) -> String {
        self.daemon
            .as_ref()
            .map(|daemon| std::fs::read_to_string(&daemon.log).unwrap_or_default())
            .unwrap_or_default()
    }

    fn expression(&self) -> PathBuf {
        self.path("scene.nix")
    }

    /// `nix-build` of one derivation.
    pub fn build(&self, derivation: &str) -> Ran {
        self.build_with(derivation, &[])
    }

    /// `nix-build --check` of one derivation: builds it again and compares.
    pub fn check(&self, derivation: &str) -> Ran {
        self.build_with(derivation, &["--check"])
    }

    /// `nix-build` of one derivation with more arguments.
    #[track_caller]
    pub fn build_with(&self, derivation: &str, arguments: &[&str]) -> Ran {
        Ran::of(&mut self.build_command(derivation, arguments))
    }

    /// The command of [`Scene::build_with`], to change or to run beside something else.
    pub fn build_command(&self, derivation: &str, arguments: &[&str]) -> Command {
        let mut command = self.nix.command("nix-build");
        command
            .arg(self.expression())
            .args(["--no-out-link", "-A", &nix_string(derivation)])
            .args(arguments);
        command
    }

    /// Any program of Nix in this scene.
    #[track_caller]
    pub fn nix(&self, program: &str, arguments: &[&str]) -> Ran {
        Ran::of(self.nix.command(program).args(arguments))
    }

    /// The store path of a derivation's `.drv`.
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

    /// The store path of a derivation's only output, built or not.
    #[track_caller]
    pub fn out_path(&self, derivation: &str) -> PathBuf {
        let drv = self.drv_path(derivation);
        Ran::of(self.nix.command("nix-store").args(["--query", "--outputs"]).arg(drv))
            .expect_success()
            .path()
    }

    /// The store paths of all of a derivation's outputs, built or not.
    #[track_caller]
    pub fn out_paths(&self, derivation: &str) -> Vec<PathBuf> {
        let drv = self.drv_path(derivation);
        Ran::of(self.nix.command("nix-store").args(["--query", "--outputs"]).arg(drv))
            .expect_success()
            .paths()
    }

    /// `hookrun` in the scene's environment.
    #[track_caller]
    pub fn hookrun(&self, arguments: &[&str]) -> Ran {
        Ran::of(&mut self.hookrun_command(arguments))
    }

    /// The command of [`Scene::hookrun`], to change or to run beside something else.
    pub fn hookrun_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.nix.command(&self.hookrun);
        command.args(arguments);
        command
    }

    /// `hookrun drain`: every task that may run has run, by this worker or by one that a hook
    /// started.
    #[track_caller]
    pub fn drain(&self) -> Ran {
        self.hookrun(&["drain"])
    }

    /// What `hookrun log --format json` tells, oldest first.
    #[track_caller]
    pub fn attempts(&self) -> Vec<Attempt> {
        let ran = self.hookrun(&["log", "--all", "--format", "json"]).expect_success();
        match serde_json::from_str(&ran.stdout) {
            Ok(serde_json::Value::Array(values)) => values.iter().map(Attempt::read).collect(),
            _ => panic!("not a JSON array: {}", ran.account()),
        }
    }

    /// The tasks that were tried, as `alpha cache done`: derivation, plugin, class of the last
    /// attempt; sorted.
    #[track_caller]
    pub fn tasks(&self) -> Vec<String> {
        journal::tasks(&self.attempts())
    }

    /// [`Scene::tasks`] are these.
    #[track_caller]
    pub fn expect_tasks(&self, expected: &[&str]) {
        let attempts = self.attempts();
        assert_eq!(journal::tasks(&attempts), expected, "all attempts: {attempts:#?}");
    }

    /// Files of the spool that wait for the worker.
    pub fn spooled(&self) -> Vec<PathBuf> {
        let mut files = files_in(&self.state_dir().join("spool"));
        // A leading dot is a file that a hook has not finished yet.
        files.retain(|path| {
            path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b"."))
        });
        files
    }

    /// The messages of a maildir, by default of the transport `default`.
    pub fn mails(&self) -> Vec<String> {
        self.mails_of("default")
    }

    /// The messages of the maildir of one transport without a directory of its own.
    pub fn mails_of(&self, transport: &str) -> Vec<String> {
        let maildir = self.state_dir().join("mail").join(transport);
        files_in(&maildir.join("new"))
            .iter()
            .map(|path| std::fs::read_to_string(path).unwrap())
            .collect()
    }

    /// An empty second store with the same store paths.
    pub fn second_store(&self) -> SecondStore<'_> {
        let stores = self.path("stores");
        std::fs::create_dir_all(&stores).unwrap();
        let number = std::fs::read_dir(&stores).unwrap().count();
        let directory = stores.join(number.to_string());
        std::fs::create_dir(&directory).unwrap();
        SecondStore { scene: self, directory }
    }

    /// Processes that still run with this scene's state directory in their environment.
    pub fn processes(&self) -> Vec<Pid> {
        let marker = format!("HOOKRUN_STATE_DIR={}", self.state_dir().display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
                .and_then(Pid::from_raw)
            else {
                continue;
            };
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            if environment.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes()) {
                found.push(pid);
            }
        }
        found
    }

    /// What happened, for a test that failed.
    fn account(&self) -> String {
        let mut text = String::new();
        for (title, path) in [
            ("worker's log", self.state_dir().join("worker.log")),
            ("daemon's log", self.path("daemon.log")),
        ] {
            if let Ok(log) = std::fs::read_to_string(&path) {
                writeln!(text, "--- the {title}\n{}", log.trim_end()).unwrap();
            }
        }
        text
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.account());
        }
        self.daemon = None;
        for pid in self.processes() {
            // It may be gone by now; nothing is to be done about that.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        let Some(directory) = self.directory.take() else { return };
        if std::env::var_os("HOOKRUN_LAB_KEEP").is_some() {
            eprintln!("kept: {}", directory.keep().display());
        } else {
            // Stores are read-only; what is left after a failure here, `TempDir` tries once more.
            let _ = private_nix::remove_tree(directory.path());
        }
    }
}

/// An empty second store with the same store paths, to take things back into.
pub struct SecondStore<'a> {
    scene: &'a Scene,
    directory: PathBuf,
}

impl SecondStore<'_> {
    /// Substitutes `path` from the cache `url`, trusting these keys only, signatures required.
    #[track_caller]
    pub fn substitute(&self, path: &Path, url: &str, trusted_keys: &[&str]) -> Ran {
        let mut command = self.scene.nix.command_on_store(&self.directory, "nix-store");
        Ran::of(command.arg("--realise").arg(path).args(Self::trust(trusted_keys)).args([
            "--option",
            "substituters",
            url,
        ]))
    }

    /// `nix copy --from` the cache `url`, trusting these keys only, signatures required.
    #[track_caller]
    pub fn copy_from(&self, path: &Path, url: &str, trusted_keys: &[&str]) -> Ran {
        let mut command = self.scene.nix.command_on_store(&self.directory, "nix");
        Ran::of(command.args(["copy", "--from", url]).arg(path).args(Self::trust(trusted_keys)))
    }

    fn trust(keys: &[&str]) -> Vec<String> {
        ["--option", "require-sigs", "true", "--option", "trusted-public-keys"]
            .into_iter()
            .map(str::to_owned)
            .chain([keys.join(" ")])
            .collect()
    }

    /// Returns whether the path exists.
    pub fn has(&self, path: &Path) -> bool {
        self.locate(path).exists()
    }

    /// Where the path lies on the disk.
    pub fn locate(&self, path: &Path) -> PathBuf {
        PrivateNix::path_in_store(&self.directory, path)
    }
}

/// The files directly in a directory, sorted; none where it is not there.
fn files_in(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}
