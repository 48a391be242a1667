//! Hooks that real Nix calls at the same time: as many `nix-build` as hooks are wanted, each with
//! one build that waits for a sign, so that all builds end, and all hooks begin, together. A line
//! of shell around the hook takes the time; `sh -c true` in its place is the yardstick.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::table::{Figures, Of, Table};

/// Commands at once, each with one build.
const AT_ONCE: usize = 100;
/// Time limit for all builds to begin.
const PATIENCE: Duration = Duration::from_mins(5);

const BUILDS: &str = r#"{ run, number, place }: derivation {
  name = "bench-${run}-${number}"; system = builtins.currentSystem; builder = "/bin/sh";
  args = [ "-c" "echo > ${place}/begun-${run}-${number}; while [ ! -e ${place}/go-${run} ]; do /bin/sleep 0.1; done; echo ${run} ${number} > $out" ];
}
"#;

/// A row about many hooks of real Nix at once; everything is made in a directory below `parent`.
pub(super) fn many_hooks(table: &mut Table, hook: &Path, parent: &Path) -> Result<()> {
    let nix = Nix::make(parent, "nix")?;
    let shell = nix.times("shell", "sh -c true")?;
    let hooks = nix.times("hook", &format!("{} hook post-build", hook.display()))?;
    let name = format!("thin hook, {AT_ONCE} at once from real Nix");
    table.add(Of::P99, (&name, &hooks), ("sh -c true", &shell), None);
    let spooled = std::fs::read_dir(nix.directory.join("state/spool")).map_or(0, Iterator::count);
    if spooled < AT_ONCE {
        bail!(
            "{AT_ONCE} hooks ran and {spooled} events are in the spool; the measurement is not valid"
        );
    }
    Ok(())
}

/// A private Nix.
pub(super) struct Nix {
    pub(super) directory: PathBuf,
}

impl Drop for Nix {
    fn drop(&mut self) {
        // Store paths are read-only.
        let _writable = Command::new("chmod").args(["-R", "u+w"]).arg(&self.directory).status();
        let _gone = std::fs::remove_dir_all(&self.directory);
    }
}

impl Nix {
    pub(super) fn make(parent: &Path, name: &str) -> Result<Self> {
        let directory = parent.join(format!("hookrun-bench-{}-{name}", std::process::id()));
        let nix = Self { directory };
        for name in ["store", "var", "log", "etc", "home", "times"] {
            std::fs::create_dir_all(nix.directory.join(name))?;
        }
        std::fs::write(
            nix.directory.join("etc/nix.conf"),
            "sandbox = false\nsubstituters =\nbuild-users-group =\n",
        )?;
        std::fs::write(nix.directory.join("hookrun.toml"), super::THIN)?;
        std::fs::write(nix.directory.join("builds.nix"), BUILDS)?;
        let init = nix
            .command("nix-store")
            .arg("--init")
            .output()
            .context("`nix-store` does not start")?;
        if !init.status.success() {
            bail!("nix-store --init fails: {}", String::from_utf8_lossy(&init.stderr));
        }
        Ok(nix)
    }

    pub(super) fn command(&self, program: &str) -> Command {
        let path = |name: &str| self.directory.join(name);
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("NIX_STORE_DIR", path("store"))
            .env("NIX_STATE_DIR", path("var"))
            .env("NIX_LOG_DIR", path("log"))
            .env("NIX_CONF_DIR", path("etc"))
            .env("NIX_USER_CONF_FILES", "/dev/null")
            .env("HOME", path("home"))
            .env("HOOKRUN_CONFIG", path("hookrun.toml"))
            .env("HOOKRUN_STATE_DIR", path("state"));
        command
    }

    /// Makes a hook of a line of shell, and returns its path.
    pub(super) fn script(&self, name: &str, line: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        write_program(&path, &format!("#!/bin/sh\n{line}\n"))?;
        Ok(path)
    }

    /// Makes a link to a program, and returns its path.
    pub(super) fn link(&self, program: &Path, name: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        std::os::unix::fs::symlink(program, &path)?;
        Ok(path)
    }

    /// Returns the run times of `hook` in the builds, as measured by the shell that starts it.
    fn times(&self, run: &str, hook: &str) -> Result<Figures> {
        let (script, times) = (self.directory.join(run), self.directory.join("times").join(run));
        std::fs::create_dir_all(&times)?;
        let text = format!(
            "#!/usr/bin/env bash\nbegin=$EPOCHREALTIME\n{hook}\ncode=$?\nend=$EPOCHREALTIME\n\
             echo $((${{end/[.,]/}} - ${{begin/[.,]/}})) > {}/$$\nexit $code\n",
            times.display()
        );
        write_program(&script, &text)?;
        let mut builds = (0..AT_ONCE)
            .map(|number| self.build(run, number, &script))
            .collect::<Result<Vec<Child>>>()?;
        let begun = |number: &usize| self.directory.join(format!("begun-{run}-{number}")).exists();
        let begin = Instant::now();
        while !(0..AT_ONCE).all(|number| begun(&number)) {
            if begin.elapsed() > PATIENCE {
                bail!("{AT_ONCE} builds do not begin within {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        std::fs::write(self.directory.join(format!("go-{run}")), "")?;
        for build in &mut builds {
            let status = build.wait()?;
            if !status.success() {
                bail!("a nix-build failed ({status})");
            }
        }
        let read = |path: PathBuf| -> Result<Duration> {
            let text = std::fs::read_to_string(&path)?;
            Ok(Duration::from_micros(
                text.trim().parse().with_context(|| format!("{text:?} is not a time"))?,
            ))
        };
        let taken: Vec<Duration> = std::fs::read_dir(&times)?
            .flatten()
            .map(|entry| read(entry.path()))
            .collect::<Result<_>>()?;
        if taken.len() != AT_ONCE {
            bail!("{AT_ONCE} builds ran {} hooks", taken.len());
        }
        Ok(Figures::of(taken))
    }

    fn build(&self, run: &str, number: usize, hook: &Path) -> Result<Child> {
        let mut command = self.command("nix-build");
        command
            .arg(self.directory.join("builds.nix"))
            .args(["--no-out-link", "--option", "post-build-hook"])
            .arg(hook);
        command.args([
            "--argstr",
            "run",
            run,
            "--argstr",
            "number",
            &number.to_string(),
            "--argstr",
            "place",
        ]);
        command
            .arg(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.spawn().context("`nix-build` does not start")
    }
}

fn write_program(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}
