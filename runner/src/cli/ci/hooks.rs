//! The hooks of one command: three small scripts, and the lines of `NIX_CONFIG` that name them.
//!
//! Scripts are needed because a hook has no arguments and a daemon's hooks inherit the daemon's
//! environment, so the hook itself must name the queue. A daemon runs it as root. To hand over to
//! the queue of another user, it becomes that user first, so that it writes nothing as root into
//! that user's directories.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::daemon_access::DaemonAccess;
use super::own_hooks::OwnHooks;
use crate::cli::CliError;
use hookrun_config::is_missing;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::exit_code::Exit;
use hookrun_nix::layout;

/// A mode that lets build users and root's daemon reach the files below, but not list them.
const REACHABLE: u32 = 0o711;
/// The mode of a spool for build users, as in a system installation; see [`hookrun_queue::spool`].
const SHARED_SPOOL: u32 = 0o1733;

/// The hidden command that the script of a hook runs.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct HookArgs {
    /// Become this user, if running as root
    #[arg(long, value_name = "UID:GID")]
    owner: String,
    /// post-build, diff or build-hook
    hook: String,
    /// The arguments that Nix passes
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Runs a hook with the directories of `dirs`. It never fails a build itself.
pub(in crate::cli) fn hook(dirs: &Dirs, args: &HookArgs) -> Exit {
    let mut command = hookrun_system::process::this_program();
    command.args(["hook", &args.hook]).args(&args.arguments);
    command.env("HOOKRUN_STATE_DIR", &dirs.state);
    // Without a file, the default applies there too.
    if !is_missing(&dirs.config) {
        command.env("HOOKRUN_CONFIG", &dirs.config);
    }
    // A build hook works for Nix itself, with Nix's slot files and root's keys.
    let ready =
        if args.hook == "build-hook" { Ok(()) } else { become_owner(&mut command, &args.owner) };
    let error = match ready {
        // Returns only if it fails.
        Ok(()) => anyhow::Error::from(command.exec()).context("the hook cannot be started"),
        Err(error) => error,
    };
    super::say(&format!(
        "{error:#}; the event of this build is lost, run `hookrun sync` to queue it"
    ));
    if args.hook == "build-hook" {
        // Without a reply, Nix would fail the build. If Nix has exited, it needs no reply.
        let _answered = writeln!(std::io::stderr(), "# decline-permanently");
    }
    Exit::Done
}

/// Changes from root to `owner` (`uid:gid`), and sets that user's name and home in the environment
/// of `command`.
fn become_owner(command: &mut Command, owner: &str) -> Result<()> {
    let ids = owner
        .split_once(':')
        .and_then(|(uid, gid)| Some((uid.parse::<u32>().ok()?, gid.parse::<u32>().ok()?)));
    let Some((uid, gid)) = ids else { bail!("`{owner}` is not a uid and a gid") };
    if uid == 0 || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    if let Some(user) = uzers::get_user_by_uid(uid) {
        use uzers::os::unix::UserExt as _;
        command.env("USER", user.name()).env("LOGNAME", user.name()).env("HOME", user.home_dir());
    }
    hookrun_system::process::become_user(uid, gid)
        .with_context(|| format!("cannot become uid {uid}"))
}

/// The working directory of one `hookrun ci`.
#[derive(Debug)]
pub(super) struct WorkDirectory {
    path: PathBuf,
}

/// Hooks that were installed for a command.
#[derive(Debug)]
pub(super) struct Installed {
    /// The value of `NIX_CONFIG` for the command.
    pub(super) nix_config: OsString,
}

/// Other places for the directory, in this order, if `TMPDIR` cannot be used.
const OTHER_PLACES: [&str; 2] = ["/tmp", "/var/tmp"];

impl WorkDirectory {
    /// Creates the directory in `TMPDIR`, or in another temporary directory if Nix could not start
    /// a hook there.
    pub(super) fn create() -> Result<Self> {
        let preferred = std::path::absolute(std::env::temp_dir())?;
        let places = std::iter::once(preferred.clone())
            .chain(OTHER_PLACES.map(PathBuf::from))
            .filter(|place| can_hold_hooks(place));
        let mut failed = None;
        for place in places {
            let path = place.join(format!("hookrun-ci-{}", uuid::Uuid::now_v7().simple()));
            match make(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) => failed = failed.or(Some((path, error))),
            }
        }
        match failed {
            Some((path, error)) => Err(error).with_context(|| {
                format!(
                    "cannot create {}; set TMPDIR to a directory that you may write to",
                    path.display()
                )
            }),
            None => bail!(
                "Nix cannot start a hook in {} (its name has blanks or `#`, or its file system is \
                 mounted noexec); set TMPDIR to another directory",
                preferred.display()
            ),
        }
    }

    /// Creates a private state directory in it.
    pub(super) fn private_state(&self) -> Result<PathBuf> {
        let state = self.path.join("state");
        make(&state).with_context(|| format!("cannot create {}", state.display()))?;
        Ok(state)
    }

    /// Writes the hooks.
    pub(super) fn install(
        &self,
        dirs: &Dirs,
        reach: DaemonAccess,
        diff: bool,
        build_hook: bool,
        private: bool,
        own: &OwnHooks,
    ) -> Result<Installed, CliError> {
        let root = rustix::process::geteuid().is_root();
        let daemon = matches!(reach, DaemonAccess::Daemon { .. });
        if build_hook && daemon && !root {
            return Err(CliError::usage(
                "--build-hook needs root with a Nix daemon, because the hook would run as root with this configuration; set `build-hook` in /etc/nix/nix.conf instead",
            ));
        }
        if diff && daemon && !root && !private {
            return Err(CliError::usage(
                "--diff-hook needs --private with a Nix daemon, because build users cannot reach this user's state directory",
            ));
        }
        if diff && daemon && !root {
            let spool = dirs.spool();
            let made = layout::make_spool(&spool).and_then(|()| {
                std::fs::set_permissions(&spool, std::fs::Permissions::from_mode(SHARED_SPOOL))
            });
            made.with_context(|| format!("cannot create {}", spool.display()))
                .map_err(CliError::environment)?;
        }
        let mut lines = String::new();
        let mut hook = |name: &str, setting: &str, own: Option<&str>| -> Result<(), CliError> {
            let path = self.script(dirs, name, own).map_err(CliError::environment)?;
            let _ = writeln!(lines, "{setting} = {}", path.display());
            Ok(())
        };
        hook("post-build", "post-build-hook", own.post_build.as_deref())?;
        if diff {
            hook("diff", "diff-hook", own.diff.as_deref())?;
        }
        if build_hook {
            hook("build-hook", "build-hook", None)?;
        }
        if diff {
            lines.push_str("run-diff-hook = true\n");
        }
        // Later lines win.
        let mut nix_config = std::env::var_os("NIX_CONFIG").unwrap_or_default();
        if !nix_config.is_empty() {
            nix_config.push("\n");
        }
        nix_config.push(lines);
        Ok(Installed { nix_config })
    }

    fn script(&self, dirs: &Dirs, hook: &str, own: Option<&str>) -> Result<PathBuf> {
        let program =
            std::env::current_exe().context("cannot find the path of this program; mount /proc")?;
        let path = self.path.join(hook);
        let owner = format!(
            "{}:{}",
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw()
        );
        let text = script(&program, dirs, &owner, hook, own)?;
        std::fs::write(&path, text)
            .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Removes the directory.
    pub(super) fn remove(&self) {
        // Remains in a temporary directory are removed by the system.
        let _gone = std::fs::remove_dir_all(&self.path);
    }
}

/// Returns whether Nix can start a hook in this directory. In Nix's settings `#` begins a comment
/// and blanks separate words, and there is no quoting.
fn can_hold_hooks(directory: &Path) -> bool {
    let is_one_word =
        |text: &str| !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#');
    directory.to_str().is_some_and(is_one_word)
        && hookrun_system::directory::allows_programs(directory)
}

fn make(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().mode(0o700).create(path)?;
    // `set_permissions` is not subject to the umask.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(REACHABLE))
}

/// Returns the script of a hook. `own` is a hook of the user's configuration, which is called after
/// hookrun's, as Nix would call it. If the daemon cannot see the program (another mount namespace),
/// the build does not fail.
fn script(
    program: &Path,
    dirs: &Dirs,
    owner: &str,
    hook: &str,
    own: Option<&str>,
) -> Result<String> {
    let (program, config, state) = (quoted(program)?, quoted(&dirs.config)?, quoted(&dirs.state)?);
    let ours = format!(
        "{program} --config {config} --state-dir {state} ci-hook --owner {owner} {hook} \"$@\""
    );
    let answer = if hook == "build-hook" { "echo '# decline-permanently' >&2\n" } else { "" };
    // If no other hook is called, hookrun replaces the shell, so that it receives Nix's signals.
    let (call, last) = match own {
        Some(own) => {
            (format!("{ours} || exit"), format!("exec {} \"$@\"", quoted(Path::new(own))?))
        }
        None => (format!("exec {ours}"), "exit 0".to_owned()),
    };
    Ok(format!(
        "#!/bin/sh\nif [ -x {program} ]; then\n  {call}\nelse\n  \
         echo \"hookrun: \"{program}\" cannot be run by the Nix that builds; this build is not reported\" >&2\n\
         fi\n{answer}{last}\n"
    ))
}

/// Quotes `path` as one word of a POSIX shell.
fn quoted(path: &Path) -> Result<String> {
    let Some(text) = path.to_str() else {
        bail!("{} is not UTF-8; use a directory with another name", path.display())
    };
    Ok(shlex::try_quote(text)?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hook_script_starts_hookrun_with_its_settings() {
        let dirs = Dirs { config: "/h/it's.toml".into(), state: "/h/state".into() };
        insta::assert_snapshot!(
            script(Path::new("/p/hookrun"), &dirs, "1000:100", "post-build", Some("/own")).unwrap()
        );
        insta::assert_snapshot!(
            script(Path::new("/p/hookrun"), &dirs, "0:0", "build-hook", None).unwrap()
        );
    }

    #[test]
    fn hooks_are_put_where_nix_can_start_them() {
        let parent = tempfile::Builder::new().prefix("hookrun").tempdir_in("/tmp").unwrap();
        let holds = |name: &str| {
            let directory = parent.path().join(name);
            std::fs::create_dir(&directory).unwrap();
            can_hold_hooks(&directory)
        };
        assert!(["plain", "a's", "a=b", "ü"].map(holds).iter().all(|holds| *holds));
        assert!(["a b", "a#b", "a  b", "a\tb", "a\nb"].map(holds).iter().all(|holds| !*holds));
        assert!(!can_hold_hooks(&parent.path().join("missing")));
    }

    #[test]
    fn paths_are_quoted_as_one_shell_word() {
        use proptest::prelude::*;
        proptest!(|(text in "[^\0]{1,40}")| {
            let word = quoted(Path::new(&text)).unwrap();
            let output = Command::new("/bin/sh").args(["-c", &format!("printf %s {word}")]).output().unwrap();
            prop_assert_eq!(output.stdout, text.as_bytes());
        });
    }
}
