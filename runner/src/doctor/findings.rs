//! Turns [`Facts`] into findings, each with the line to write. Pure.

use serde::Serialize;

use super::{ConfiguredHook, Facts, NixFacts};
use hookrun_config::Start;
use hookrun_nix::installed::Flavour;
use hookrun_nix::versions::{
    EMPTY_OUT_PATHS, IGNORES_BUILD_HOOK, LIX_PROTOCOL, Quirk, WHOLE_SPEED_FACTORS,
};
use hookrun_queue::spawn::SMALL_HOOK;

/// The importance of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It works.
    Good,
    /// It works, but the user may want to change it.
    Note,
    /// It does not work.
    Problem,
}

/// A statement about this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The importance.
    pub level: Level,
    /// The subject, in one or two words.
    pub about: &'static str,
    /// A lower-case sentence without a period, which ends with the fix if there is one.
    pub text: String,
}

/// Returns the findings, in the order in which a build meets them.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut say = Say(Vec::new());
    match &facts.nix {
        Ok(nix) => {
            say.good("Nix", nix.version_output.clone());
            post_build(&mut say, facts, nix);
            diff(&mut say, facts, nix);
            build_hook(&mut say, facts, nix);
            machines(&mut say, nix);
            users(&mut say, facts, nix);
        }
        Err(error) => say.problem("Nix", error.clone()),
    }
    if facts.daemon_is_older {
        say.problem(
            "daemon",
            format!(
                "the running nix-daemon read {} before its last change; run `systemctl restart nix-daemon`",
                facts.nix_conf.display()
            ),
        );
    }
    hookrun(&mut say, facts);
    say.0
}

impl NixFacts {
    fn has(&self, quirk: Quirk) -> bool {
        quirk.applies_to(self.flavour, self.version)
    }
}

struct Say(Vec<Finding>);

impl Say {
    fn add(&mut self, level: Level, about: &'static str, text: String) {
        self.0.push(Finding { level, about, text });
    }

    fn good(&mut self, about: &'static str, text: String) {
        self.add(Level::Good, about, text);
    }

    fn note(&mut self, about: &'static str, text: String) {
        self.add(Level::Note, about, text);
    }

    fn problem(&mut self, about: &'static str, text: String) {
        self.add(Level::Problem, about, text);
    }
}

/// Returns the fix for a setting, such as `write `post-build-hook =
/// /usr/lib/hookrun/hookrun-post-build` in /etc/nix/nix.conf and restart nix-daemon`.
fn write(facts: &Facts, setting: &str, link: &str) -> String {
    format!(
        "write `{setting} = {}` in {} and restart nix-daemon",
        facts.links.join(link).display(),
        facts.nix_conf.display()
    )
}

fn post_build(say: &mut Say, facts: &Facts, nix: &NixFacts) {
    let about = "post-build-hook";
    let fix = || write(facts, about, "hookrun-post-build");
    match &nix.post_build_hook {
        ConfiguredHook::Hookrun(text) => {
            say.good(about, text.clone());
            slow(say, about, nix.faster_post_build_hook.as_ref());
            if nix.has(EMPTY_OUT_PATHS) {
                say.note(
                    about,
                    "Nix 2.8.0 passes no outputs to the hook; hookrun reads them from the derivation, so there is nothing to do"
                        .to_owned(),
                );
            }
        }
        ConfiguredHook::Unset => {
            say.problem(about, format!("it is not set, so plugins receive no builds; {}", fix()));
        }
        ConfiguredHook::Other(text) => {
            say.problem(
                about,
                format!("it is `{text}`, which is not hookrun; to change that, {}", fix()),
            );
        }
        ConfiguredHook::Unusable(text, why) => {
            say.problem(
                about,
                format!("it is `{text}`, but {why}, so every build fails; {}", fix()),
            );
        }
    }
}

/// Recommends [`SMALL_HOOK`] if it is installed and not used.
fn slow(say: &mut Say, about: &'static str, fix: Option<&String>) {
    if let Some(fix) = fix {
        say.note(about, format!("{SMALL_HOOK} is faster as this hook; {fix}"));
    }
}

fn diff(say: &mut Say, facts: &Facts, nix: &NixFacts) {
    let about = "diff-hook";
    let conf = facts.nix_conf.display();
    match (&nix.diff_hook, nix.run_diff_hook) {
        (ConfiguredHook::Hookrun(text), true) => {
            say.good(about, text.clone());
            slow(say, about, nix.faster_diff_hook.as_ref());
        }
        (ConfiguredHook::Hookrun(text), false) => say.problem(
            about,
            format!("it is `{text}`, but Nix calls it only with `run-diff-hook = true`; write that in {conf} and restart nix-daemon"),
        ),
        (ConfiguredHook::Unset, true) => say.problem(
            about,
            format!("`run-diff-hook` is set, but `diff-hook` is not; {}", write(facts, about, "hookrun-diff")),
        ),
        (ConfiguredHook::Unset, false) => say.note(
            about,
            format!(
                "it is not set, so builds that differ are not reported; set `run-diff-hook = true`, and {}",
                write(facts, about, "hookrun-diff")
            ),
        ),
        (ConfiguredHook::Other(text), _) => say.note(
            about,
            format!("it is `{text}`, which is not hookrun; to change that, {}", write(facts, about, "hookrun-diff")),
        ),
        (ConfiguredHook::Unusable(text, why), _) => {
            say.problem(about, format!("it is `{text}`, but {why}; {}", write(facts, about, "hookrun-diff")));
        }
    }
}

fn build_hook(say: &mut Say, facts: &Facts, nix: &NixFacts) {
    let about = "build-hook";
    let link = facts.links.join("hookrun-build-hook");
    let render = "`hookrun builders render` writes a machines file instead";
    let in_file =
        facts.build_hook_in_file.as_deref().is_some_and(|value| value.contains("hookrun"));
    let is_hookrun = matches!(nix.build_hook, ConfiguredHook::Hookrun(_));
    if nix.has(LIX_PROTOCOL) {
        let text = format!(
            "Lix {} has a build hook protocol that hookrun does not support; {render}",
            nix.version
        );
        if is_hookrun || in_file {
            let undo = format!("{text}; remove `build-hook` from {}", facts.nix_conf.display());
            say.problem(about, undo);
        } else {
            say.note(about, text);
        }
        return;
    }
    if nix.has(IGNORES_BUILD_HOOK) && !is_hookrun {
        let text = format!(
            "Nix {} ignores `build-hook` of {} (2.25 to 2.33 do); write `Environment=\"NIX_CONFIG=build-hook = {}\"` under [Service] in \
             /etc/systemd/system/nix-daemon.service.d/hookrun.conf, then `systemctl daemon-reload` and `systemctl restart nix-daemon`; \
             or {render}",
            nix.version,
            facts.nix_conf.display(),
            link.display()
        );
        if in_file {
            say.problem(about, text);
        } else {
            say.note(about, format!("it is not set; {text}"));
        }
        return;
    }
    match &nix.build_hook {
        ConfiguredHook::Hookrun(text) => say.good(about, text.clone()),
        ConfiguredHook::Unset if in_file => say.problem(
            about,
            format!(
                "{} sets it, but another nix.conf or NIX_CONFIG overrides that; remove the setting there",
                facts.nix_conf.display()
            ),
        ),
        ConfiguredHook::Unset => say.note(
            about,
            format!(
                "it is Nix's own, so machines are chosen by Nix's rule; {}",
                write(facts, about, "hookrun-build-hook")
            ),
        ),
        ConfiguredHook::Other(text) => say.note(
            about,
            format!(
                "it is `{text}`, which is not hookrun; to change that, {}",
                write(facts, about, "hookrun-build-hook")
            ),
        ),
        ConfiguredHook::Unusable(text, why) => say.problem(
            about,
            format!(
                "it is `{text}`, but {why}, so all builds stay on this machine; {}",
                write(facts, about, "hookrun-build-hook")
            ),
        ),
    }
}

fn machines(say: &mut Say, nix: &NixFacts) {
    let about = "builders";
    for warning in &nix.machine_warnings {
        say.problem(about, warning.clone());
    }
    let whole = nix.has(WHOLE_SPEED_FACTORS);
    let is_hookrun = matches!(nix.build_hook, ConfiguredHook::Hookrun(_));
    match nix.machines {
        0 if is_hookrun => say.note(
            about,
            "none is listed, so all builds stay on this machine; to add one, write a line such as \
             `ssh-ng://builder x86_64-linux /root/.ssh/id_ed25519 8 2` into /etc/nix/machines"
                .to_owned(),
        ),
        0 => {}
        1 => say.good(about, "1 machine; run `hookrun builders check` to test it".to_owned()),
        count => {
            say.good(about, format!("{count} machines; run `hookrun builders check` to test them"));
        }
    }
    if nix.fractions && whole && !is_hookrun {
        say.problem(
            about,
            format!(
                "a speed factor is a fraction, which {} {} refuses; write whole numbers, or set hookrun as the build hook",
                if nix.flavour == Flavour::Lix { "Lix" } else { "Nix" },
                nix.version
            ),
        );
    }
}

fn users(say: &mut Say, facts: &Facts, nix: &NixFacts) {
    let about = "build users";
    match &nix.build_users {
        Some((group, Some(0))) => say.problem(
            about,
            format!(
                "the group `{group}` has no members; add some: `useradd --system --groups {group} --gid {group} nixbld1`"
            ),
        ),
        Some((group, Some(count))) => say.good(about, format!("{count} members of the group `{group}`")),
        Some((group, None)) => say.problem(
            about,
            format!(
                "there is no group `{group}`; run `groupadd --system {group}`, or correct `build-users-group` in {}",
                facts.nix_conf.display()
            ),
        ),
        None if matches!(nix.diff_hook, ConfiguredHook::Hookrun(_)) && !facts.root => say.note(
            about,
            "there are none, so Nix runs the diff hook only as root; build through nix-daemon, or set `build-users-group`".to_owned(),
        ),
        None => {}
    }
}

fn hookrun(say: &mut Say, facts: &Facts) {
    match &facts.config_error {
        Some(error) => {
            say.problem(
                "configuration",
                format!("{error} (builds continue and events are kept, but no plugin runs)"),
            );
        }
        None if facts.config_is_embedded => say.note(
            "configuration",
            format!(
                "there is no {}, so the built-in configuration is used, which writes mails about builds that differ into a maildir and uploads nothing; docs/configuration.md describes the file",
                facts.config.display()
            ),
        ),
        None => say.good(
            "configuration",
            format!("{}; run `hookrun check` to validate it", facts.config.display()),
        ),
    }
    for problem in &facts.secrets {
        say.problem("secrets", problem.clone());
    }
    if facts.spool.is_empty() {
        say.good("state", facts.state.display().to_string());
    }
    for problem in &facts.spool {
        say.problem("state", problem.clone());
    }
    for problem in &facts.sandbox {
        say.problem("sandbox", problem.clone());
    }
    let about = "worker";
    match (facts.start, &facts.worker) {
        (start, Some(running)) if running.is_replaced => {
            let fix = if start == Start::Service {
                "run `systemctl restart hookrun`"
            } else {
                "the new version replaces it when no task runs"
            };
            say.note(about, format!("{running}; {fix}"));
        }
        (_, Some(running)) => say.good(about, running.to_string()),
        (Start::Spawn | Start::None, None) if facts.stalled.is_some() => {
            say.problem(about, facts.stalled.clone().unwrap_or_default());
        }
        (Start::Spawn, None) => {
            say.good(about, "a hook starts it when there is work".to_owned());
            let diff = facts.nix.as_ref().is_ok_and(|nix| {
                nix.run_diff_hook && matches!(nix.diff_hook, ConfiguredHook::Hookrun(_))
            });
            if diff && facts.root && !facts.waiter_runs {
                say.note(
                    about,
                    "the diff hook runs as a build user and cannot start it, so after a reboot its events wait for the first post-build hook; if that is too late, install hookrun.service and hookrun.path (docs/install.md) and run `systemctl enable --now hookrun.path`"
                        .to_owned(),
                );
            }
        }
        (Start::Service, None) => {
            let state = facts
                .service
                .as_deref()
                .map(|state| format!(" (systemd reports `{state}`)"))
                .unwrap_or_default();
            say.problem(
                about,
                format!("`start = \"service\"`, but no worker runs{state}, so events wait; install hookrun.service (docs/install.md) if it is missing, and run `systemctl enable --now hookrun`"),
            );
        }
        (Start::None, None) => {
            say.note(
                about,
                "`start = \"none\"`, so events wait until you run `hookrun drain`".to_owned(),
            );
        }
    }
    if !facts.root {
        say.note(
            "this user",
            "is not root, so these are its own settings of Nix; run `sudo hookrun doctor` for those of the daemon".to_owned(),
        );
    }
}

#[cfg(test)]
mod tests;
