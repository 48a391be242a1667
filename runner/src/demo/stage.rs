//! The environment of the demo's steps: the private Nix, with hookrun's configuration and state,
//! and functions that print commands before they run them.

use std::fmt::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context as _, Result, bail};

use super::private_nix::{PrivateNix, install_hookrun, set_mode};
use super::show::Show;

const KEY: &str = "hookrun-demo-1";
/// The derivations that the demo builds.
const EXPRESSION: &str = include_str!("demo.nix");

/// The private Nix with hookrun, and the way to print.
pub(super) struct Stage {
    pub(super) nix: PrivateNix,
    pub(super) show: Show,
    /// The public signing key, in the form of `trusted-public-keys`.
    pub(super) public_key: String,
    /// The path that an earlier step built and uploaded, for the step that substitutes it.
    pub(super) uploaded: Option<PathBuf>,
}

/// The output of a command.
pub(super) struct CommandOutput {
    pub(super) status: ExitStatus,
    /// Standard output, without the last line break.
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Stage {
    /// Creates the private Nix, the key and hookrun's configuration.
    pub(super) fn make(directory: &Path, show: Show) -> Result<Self> {
        // Build users must be able to reach the files in it.
        set_mode(directory, 0o755)?;
        let mut nix = PrivateNix::create(directory)?;
        let program = std::env::current_exe().context("cannot find the path of this program")?;
        let hooks = directory.join("bin");
        install_hookrun(&program, &hooks)?;
        nix.set_variable("HOOKRUN_CONFIG", directory.join("hookrun.toml"));
        nix.set_variable("HOOKRUN_STATE_DIR", directory.join("state"));
        nix.set("post-build-hook", &hooks.join("hookrun-post-build").display().to_string())?;
        nix.set("run-diff-hook", "true")?;
        nix.set("diff-hook", &hooks.join("hookrun-diff").display().to_string())?;
        nix.set("build-hook", &hooks.join("hookrun-build-hook").display().to_string())?;
        let (secret, public_key) = nix.generate_key(&directory.join("keys"), KEY)?;
        write(&directory.join("demo.nix"), EXPRESSION)?;
        write(&directory.join("hookrun.toml"), &configuration(directory, &secret))?;
        let stage = Self { nix, show, public_key, uploaded: None };
        write(&directory.join("env"), &stage.environment_file())?;
        Ok(stage)
    }

    /// Returns a path in the demo's directory.
    pub(super) fn path(&self, relative: &str) -> PathBuf {
        self.nix.root().join(relative)
    }

    /// Returns the directory of the binary cache.
    pub(super) fn cache(&self) -> PathBuf {
        self.path("cache")
    }

    /// Prints the command line and runs it.
    pub(super) fn run(&self, command: &mut Command) -> Result<CommandOutput> {
        let remote =
            command.get_envs().find(|(name, _)| *name == "NIX_REMOTE").and_then(|(_, value)| value);
        let remote = remote
            .map(|value| format!("NIX_REMOTE={} ", value.to_string_lossy()))
            .unwrap_or_default();
        self.show.command(&format!("{remote}{}", line(command)));
        Self::quietly(command)
    }

    fn quietly(command: &mut Command) -> Result<CommandOutput> {
        let output =
            command.output().with_context(|| format!("`{}` cannot be started", line(command)))?;
        Ok(CommandOutput {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).trim_end().to_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs `nix-build` for an attribute of demo.nix, and prints its output.
    pub(super) fn build(&self, attribute: &str, arguments: &[&str]) -> Result<CommandOutput> {
        let mut command = self.nix.command("nix-build");
        command.args(["demo.nix", "--no-out-link", "-A", attribute]).args(arguments);
        let said = self.run(&mut command)?;
        self.show.nix(&said.stderr);
        self.show.nix(&said.stdout);
        Ok(said)
    }

    /// Runs `hookrun` in the demo's environment, and prints its output.
    pub(super) fn hookrun(&self, arguments: &[&str]) -> Result<CommandOutput> {
        let said = self.run(self.nix.command(self.path("bin/hookrun")).args(arguments))?;
        self.show.hookrun(&said.stderr);
        self.show.hookrun(&said.stdout);
        Ok(said)
    }

    /// Waits until every task has ended. The output is printed only if a task did not succeed.
    pub(super) fn drain(&self) -> Result<()> {
        let said = Self::quietly(self.nix.command(self.path("bin/hookrun")).arg("drain"))?;
        if !said.status.success() {
            self.show.command("hookrun drain");
            self.show.hookrun(&said.stderr);
            self.show.hookrun(&said.stdout);
            bail!(
                "`hookrun drain` {}; for the reason, run `hookrun log` in {}",
                ended(said.status),
                self.nix.root().display()
            );
        }
        Ok(())
    }

    /// Waits until no worker uses the state directory, so that it can be removed.
    pub(super) fn wait_for_worker(&self) {
        let lock = self.path("state/worker.lock");
        for _ in 0..WORKER_POLLS {
            if !hookrun_queue::lock::is_held(&lock) {
                return;
            }
            std::thread::sleep(WORKER_POLL);
        }
    }

    /// Returns the variables of the demo as a shell script.
    fn environment_file(&self) -> String {
        let mut text = "# Run `. ./env` to use the demo's Nix and hookrun in a shell.\n".to_owned();
        for (name, value) in self.nix.variables() {
            let _ = writeln!(
                text,
                "export {}={}",
                name.to_string_lossy(),
                quoted(&value.to_string_lossy())
            );
        }
        let _ = writeln!(
            text,
            "export PATH={}:\"$PATH\"",
            quoted(&self.path("bin").display().to_string())
        );
        text
    }

    /// Prints which files to look at.
    pub(super) fn where_to_look(&self) {
        let show = self.show;
        println!();
        show.title("Look around");
        for (what, place) in [
            ("configuration", "hookrun.toml, etc/nix.conf, demo.nix"),
            ("binary cache", "cache"),
            ("mail", "state/mail/default/new"),
            ("the worker's log", "state/worker.log"),
        ] {
            let places = place
                .split(", ")
                .map(|place| self.path(place).display().to_string())
                .collect::<Vec<_>>();
            show.plain(&format!("   {what}: {}", places.join(", ")));
        }
        show.plain("   To continue in another shell:");
        show.command(&format!("cd {} && . ./env", quoted(&self.nix.root().display().to_string())));
        for line in ["hookrun status", "hookrun log", "nix-build demo.nix -A dice --check"] {
            show.command(line);
        }
        show.plain("   To remove the directory, which contains read-only stores:");
        let root = quoted(&self.nix.root().display().to_string());
        show.command(&format!("chmod -R u+w {root} && rm -rf {root}"));
    }
}

/// The number of checks whether the worker has exited, and the time between them. Together they are
/// one minute; a worker exits one second after its last task.
const WORKER_POLLS: u32 = 1200;
const WORKER_POLL: std::time::Duration = std::time::Duration::from_millis(50);

/// Returns hookrun's configuration in the demo.
fn configuration(directory: &Path, secret: &Path) -> String {
    format!(
        r#"# The configuration of `hookrun demo`.

[worker]
start = "spawn"        # the hook starts a worker when none runs; no service needed
idle-exit = "1s"

[plugins.cache]
source = "bundled:s3-upload"
hooks = ["post-build"]
config = {{ bucket = "cache", key = "{KEY}" }}
grant = {{ nix-store = "closure", object-store = ["cache"], signing = ["{KEY}"] }}

[object-stores.cache]
url = "file://{cache}"

[signing-keys.{KEY}]
file = "{secret}"

[plugins.nondeterminism]
source = "bundled:email-on-nondeterminism"
hooks = ["diff"]
config = {{ to = ["builds@example.org"] }}
grant = {{ mail = ["default"], state = true }}

[mail.default]
transport = "maildir"

[plugins.policy]
source = "bundled:speed-factor"
hooks = ["builder-selection"]
"#,
        cache = directory.join("cache").display(),
        secret = secret.display(),
    )
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Describes how a process ended.
pub(super) fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// Returns the command line as a user would type it.
fn line(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let words = command.get_args().map(|word| quoted(&word.to_string_lossy()));
    std::iter::once(program).chain(words).collect::<Vec<_>>().join(" ")
}

/// Quotes a word for a shell, for display.
fn quoted(word: &str) -> String {
    shlex::try_quote(word).unwrap_or(word.into()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_quoted_for_a_shell() {
        assert_eq!(quoted("/a/b-c.nix"), "/a/b-c.nix");
        assert_eq!(
            quoted("ssh://localhost?remote-store=/x - 1"),
            "'ssh://localhost?remote-store=/x - 1'"
        );
        assert_eq!(quoted("it's"), "\"it's\"");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn the_configuration_is_valid() {
        let text = configuration(Path::new("/demo"), Path::new("/demo/keys/key.secret"));
        hookrun_config::Config::parse(Path::new("/demo/hookrun.toml"), &text).unwrap();
    }
}
