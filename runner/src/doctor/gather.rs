//! Gathers the facts of this machine: reads files and asks Nix, and changes nothing.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{ConfiguredHook, Facts, NixFacts, secrets};
use crate::supervise::needs;
use hookrun_builders::slots::reservations;
use hookrun_config::{Config, Start};
use hookrun_host::wall;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{NixDirs, now_ms};
use hookrun_nix::installed::{self, Installed};
use hookrun_nix::{bounded, machines};
use hookrun_queue::journal::Journal;
use hookrun_queue::spawn::{self, SMALL_HOOK};
use hookrun_queue::worker::Running;
use hookrun_queue::{health, lock, spool};

/// The time limit for an answer of systemd.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest nix.conf that is read.
const MAX_CONF: u64 = 1 << 20;

/// Gathers all facts.
pub fn facts(dirs: &Dirs) -> Facts {
    let root = rustix::process::geteuid().is_root();
    let nix_conf = NixDirs::from_env().conf.join("nix.conf");
    let config = Config::in_force(dirs);
    let nix = Installed::find();
    let group = nix
        .as_ref()
        .ok()
        .map(|nix| nix.setting("build-users-group").to_owned())
        .filter(|group| !group.is_empty());
    let sandbox = config.as_ref().map(problems_of_sandbox).unwrap_or_default();
    let start = config.as_ref().map(|config| config.worker.start).unwrap_or_default();
    let worker = Running::find(dirs);
    let mut spool =
        if root { unreachable_for_build_users(dirs, group.as_deref()) } else { unwritable(dirs) };
    // The same check as in `hookrun status`.
    spool.extend(health::check(dirs, worker.is_some()).problems);
    Facts {
        root,
        build_hook_in_file: in_file(&nix_conf, "build-hook"),
        daemon_is_older: daemon_is_older(&nix_conf),
        nix: nix
            .map(|nix| nix_facts(&nix, config.as_ref().ok()))
            .map_err(|error| error.to_string()),
        nix_conf,
        start,
        secrets: config.as_ref().map(exposed_secrets).unwrap_or_default(),
        config_is_embedded: config.as_ref().is_ok_and(|config| config.embedded),
        config_error: config.err().map(|error| error.to_string()),
        config: dirs.config.clone(),
        stalled: if worker.is_some() { None } else { stalled(dirs, start) },
        worker,
        waiter_runs: lock::is_held(&dirs.waiter_lock()),
        service: service(),
        sandbox,
        spool,
        state: dirs.state.clone(),
        links: std::env::current_exe()
            .ok()
            .and_then(|exe| exe.parent().map(Path::to_owned))
            .unwrap_or_default(),
    }
}

fn exposed_secrets(config: &Config) -> Vec<String> {
    let exposed = secrets::exposed(config).into_iter();
    exposed
        .map(|(secret, problem)| {
            let keys: Vec<&str> = secret.keys.iter().map(String::as_str).collect();
            config.error(&keys, problem).to_string()
        })
        .collect()
}

/// Reports events and tasks that no worker takes.
fn stalled(dirs: &Dirs, start: Start) -> Option<String> {
    let now = now_ms();
    let journal = Journal::open_read_only(dirs).ok().flatten();
    let counts = journal.and_then(|journal| journal.counts(now).ok()).unwrap_or_default();
    // A task that was running when the worker ended is due again.
    let due: u64 = counts.iter().map(|plugin| plugin.due + plugin.running).sum();
    let task = counts.iter().filter_map(|plugin| plugin.oldest_ms).min().filter(|_| due > 0);
    let oldest = spool::oldest_ms(dirs).into_iter().chain(task).min()?;
    let age = Duration::from_millis(now.saturating_sub(oldest));
    health::stalled(start, due.saturating_add(spool::depth(dirs) as u64), age)
}

fn problems_of_sandbox(config: &Config) -> Vec<String> {
    let mut problems: Vec<String> = needs::identity(config).err().into_iter().collect();
    problems.extend(wall::missing());
    problems
}

fn nix_facts(nix: &Installed, config: Option<&Config>) -> NixFacts {
    let mut found =
        machines::parse_as(nix.setting("builders").as_bytes(), nix.setting("system"), || {
            Some((nix.flavour, nix.version))
        });
    let useless = config
        .map(|config| reservations::useless(&config.builders.resources, &found.machines))
        .unwrap_or_default();
    found.warnings.extend(useless.into_iter().map(|(machine, text)| match machine {
        Some(machine) => format!("{machine}: {text}"),
        None => text,
    }));
    let group = nix.setting("build-users-group");
    let build_users = (!group.is_empty())
        .then(|| (group.to_owned(), uzers::get_group_by_name(group).map(|group| members(&group))));
    NixFacts {
        version_output: nix.version_output.clone(),
        flavour: nix.flavour,
        version: nix.version,
        post_build_hook: hook(nix, "post-build-hook"),
        faster_post_build_hook: faster(nix, "post-build-hook"),
        diff_hook: hook(nix, "diff-hook"),
        faster_diff_hook: faster(nix, "diff-hook"),
        run_diff_hook: nix.setting("run-diff-hook") == "true",
        build_hook: hook(nix, "build-hook"),
        machines: found.machines.len(),
        fractions: found.machines.iter().any(|machine| machine.speed_factor.fract() != 0.0),
        machine_warnings: found.warnings,
        build_users,
    }
}

fn members(group: &uzers::Group) -> usize {
    use uzers::os::unix::GroupExt as _;
    group.members().len()
}

/// Finds out which program the setting of a hook names.
pub(crate) fn hook(nix: &Installed, name: &str) -> ConfiguredHook {
    let setting = nix.settings.get(name).cloned().unwrap_or_default();
    let text = setting.value.trim();
    // The default of `build-hook` is Nix itself.
    if text.is_empty() || text == setting.default.trim() {
        return ConfiguredHook::Unset;
    }
    // `build-hook` takes arguments; the values of other hooks are the name of a program, including
    // blanks.
    let words = text.split_ascii_whitespace().next().filter(|_| name == "build-hook");
    let program = Path::new(words.unwrap_or(text));
    // Nix looks up a name without slashes in its PATH.
    let in_path = if text.contains('/') { None } else { installed::in_path(text) };
    let program = in_path.as_deref().unwrap_or(program);
    let found = match std::fs::metadata(program) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return ConfiguredHook::Unusable(text.to_owned(), "there is no such file".to_owned());
        }
        Err(error) => {
            return ConfiguredHook::Unusable(
                text.to_owned(),
                format!("it cannot be examined ({error})"),
            );
        }
    };
    if !found.is_file() {
        return ConfiguredHook::Unusable(text.to_owned(), "it is not a regular file".to_owned());
    }
    if found.mode() & 0o111 == 0 {
        return ConfiguredHook::Unusable(
            text.to_owned(),
            format!("it cannot be executed; run `chmod 755 {}`", program.display()),
        );
    }
    if !is_hookrun(program) {
        return ConfiguredHook::Other(text.to_owned());
    }
    match std::fs::canonicalize(program).ok().and_then(|target| spawn::beside(&target)) {
        Some(hookrun) if !hookrun.is_file() => ConfiguredHook::Unusable(
            text.to_owned(),
            format!("it needs {}, which does not exist; install it there", hookrun.display()),
        ),
        _ => ConfiguredHook::Hookrun(text.to_owned()),
    }
}

/// Returns how to set `hookrun-hook` as the hook, if it is installed beside the current hook.
fn faster(nix: &Installed, name: &str) -> Option<String> {
    let ConfiguredHook::Hookrun(text) = hook(nix, name) else { return None };
    let target = std::fs::canonicalize(&text).ok()?;
    let small_hook = target.with_file_name(SMALL_HOOK);
    if target == small_hook || !small_hook.is_file() {
        return None;
    }
    if Path::new(&text).is_symlink() {
        Some(format!("run `ln -sfn {} {text}`", small_hook.display()))
    } else {
        let file = NixDirs::from_env().conf.join("nix.conf");
        Some(format!(
            "write `{name} = {}` in {} and restart nix-daemon",
            small_hook.display(),
            file.display()
        ))
    }
}

/// Returns whether the program is a link to this program, or a file with its name, such as another
/// release or a link to one.
fn is_hookrun(program: &Path) -> bool {
    let named = |path: &Path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("hookrun"))
    };
    let target = std::fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
    let own = std::env::current_exe().ok().and_then(|exe| std::fs::canonicalize(exe).ok());
    own.as_deref() == Some(&target) || named(program) || named(&target)
}

/// Returns the last value of a setting in a nix.conf. `include`s are not followed.
fn in_file(path: &Path, name: &str) -> Option<String> {
    let length = std::fs::metadata(path).ok()?.len();
    let text = (length <= MAX_CONF).then(|| std::fs::read_to_string(path).ok()).flatten()?;
    setting_of(&text, name)
}

/// Returns the last value of a setting in the text of a nix.conf.
fn setting_of(text: &str, name: &str) -> Option<String> {
    let value = |line: &str| {
        let line = line.split_once('#').map_or(line, |(before, _)| before);
        let (key, value) = line.split_once('=')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    };
    text.lines().filter_map(value).next_back()
}

/// Returns whether the file was changed after a running nix-daemon had started. A daemon reads it
/// once.
fn daemon_is_older(nix_conf: &Path) -> bool {
    let Ok(changed) = std::fs::metadata(nix_conf).and_then(|found| found.modified()) else {
        return false;
    };
    let started = |entry: std::fs::DirEntry| {
        let directory: PathBuf = entry.path();
        let comm = std::fs::read_to_string(directory.join("comm")).ok()?;
        // A child for a client has its parent's settings, but started later.
        (comm.trim_end() == "nix-daemon")
            .then(|| std::fs::metadata(&directory).and_then(|found| found.modified()).ok())
            .flatten()
    };
    let oldest =
        std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(started).min();
    oldest.is_some_and(|started| started < changed)
}

/// Asks systemd for the state of the service, if there is a systemd.
fn service() -> Option<String> {
    if !Path::new("/run/systemd/system").exists() {
        return None;
    }
    let mut command = Command::new("systemctl");
    let said = bounded::run(command.args(["is-active", "hookrun"]), PATIENCE).ok()?;
    let state = said.stdout.trim().to_owned();
    (!state.is_empty()).then_some(state)
}

/// Returns why a plain user cannot write to the spool, with the fix.
fn unwritable(dirs: &Dirs) -> Vec<String> {
    let spool = dirs.spool();
    let nearest = spool.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let can =
        rustix::fs::access(nearest, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
    can.err()
        .map(|error| {
            format!(
                "{} cannot be written by this user ({error}); set HOOKRUN_STATE_DIR to a directory of this user, or run as its owner",
                nearest.display()
            )
        })
        .into_iter()
        .collect()
}

/// Returns which directories above root's spool build users cannot pass. Their diff hooks write
/// into the spool.
fn unreachable_for_build_users(dirs: &Dirs, group: Option<&str>) -> Vec<String> {
    let gid = group.and_then(uzers::get_group_by_name).map(|group| group.gid());
    let mut problems = Vec::new();
    for path in dirs.state.ancestors().skip(1) {
        let Ok(found) = std::fs::metadata(path) else { continue };
        let mode = found.mode() & 0o7777;
        let shift = if Some(found.gid()) == gid { 3 } else { 0 };
        if (mode >> shift) & 0o1 == 0 {
            problems.push(format!(
                "{0} has mode {mode:04o}, so build users cannot reach the spool, and diff hooks write to a fallback directory; run \
                 `chmod {1:04o} {0}`",
                path.display(),
                mode | 0o111
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_setting_counts() {
        let text = "# build-hook = /no\nbuild-hook = /one\nx=1\n build-hook= /two # why\nbuild-hook-x = /three\n";
        assert_eq!(setting_of(text, "build-hook").as_deref(), Some("/two"));
        assert_eq!(setting_of(text, "diff-hook"), None);
    }

    #[test]
    fn a_hook_that_build_users_cannot_reach_is_reported() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let above = directory.path().join("above");
        let state = above.join("state");
        std::fs::create_dir_all(&state).unwrap();
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let dirs = Dirs { config: PathBuf::new(), state: state.clone() };
        let own = |problems: Vec<String>| -> Vec<String> {
            problems
                .into_iter()
                .filter(|problem| problem.starts_with(&above.display().to_string()))
                .collect()
        };
        set(&above, 0o755);
        assert_eq!(own(unreachable_for_build_users(&dirs, None)), [""; 0]);
        set(&above, 0o700);
        let problems = own(unreachable_for_build_users(&dirs, None))
            .join("\n")
            .replace(&above.display().to_string(), "ABOVE");
        insta::assert_snapshot!(problems);
    }
}
