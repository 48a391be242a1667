//! `hookrun test`: a plugin runs on sample events, with the engine, the limits and the grants of
//! the real thing and with services that keep everything in memory.
//!
//! Nothing leaves the process and nothing is read from the machine's Nix store: what a plugin did
//! is in the [`TestRun`].

mod policy;
mod samples;
mod subject;

use serde::Serialize;

pub use policy::PolicyHere;
pub use subject::{Changes, Files, Origin, Subject, SubjectError};

use crate::supervise::supervisor::serves;
use hookrun_builders::{Action, Candidate, LocalMachine, Machine};
use hookrun_capability::{Services, http};
use hookrun_host::wall::{Identity, Wall};
use hookrun_host::{Host, LinkedPlugin, ReadyPlugin, compiled_cache};
use hookrun_nix::dirs::{self, Dirs};
use hookrun_nix::event::HookKind;
use hookrun_nix::outcome::{Outcome, RunReport};

/// Objects of one store that are listed; a sample upload has a dozen.
const MAX_LISTED: u32 = 1000;
/// Characters of a request's body that are shown; enough to see what it is.
const MAX_SHOWN_BODY: usize = 200;

/// A question for a policy.
#[derive(Debug, Clone)]
pub struct Question {
    /// In words.
    pub what: &'static str,
    /// The derivation to place.
    pub candidate: Candidate,
    /// The machines that can take it.
    pub machines: Vec<Machine>,
    /// This machine.
    pub local: LocalMachine,
}

/// One run on one sample.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct TestRun {
    /// Which hook was called.
    pub hook: HookKind,
    /// The sample, in words.
    pub sample: &'static str,
    /// How it ended, what it used, what it logged.
    pub report: RunReport,
    /// What it did to the services, in words.
    pub effects: Vec<String>,
}

impl TestRun {
    /// Returns whether the run succeeded.
    pub const fn passed(&self) -> bool {
        matches!(self.report.outcome, Outcome::Done { .. })
    }
}

/// Reads, checks and compiles the subject's plugin. What follows is done behind a wall.
///
/// # Errors
/// It does not load: one line with the fix.
pub fn prepare(subject: &Subject, host: &Host) -> Result<ReadyPlugin, String> {
    let ready =
        host.prepare(&subject.plugin, &subject.config).map_err(|error| subject.explain(error))?;
    host.prune(&[] as &[ReadyPlugin], compiled_cache::OF_TESTS);
    Ok(ready)
}

/// The wall of a process that runs a prepared plugin: it reads nothing but native code.
pub fn wall() -> Wall {
    Wall::closed(Identity::Powerless).reading(dirs::test_artifacts())
}

/// Runs every hook that the subject serves on its samples.
///
/// # Errors
/// The plugin does not load: one line with the fix.
pub async fn run(
    subject: &Subject,
    ready: ReadyPlugin,
    dirs: &Dirs,
) -> Result<(LinkedPlugin, Vec<TestRun>), String> {
    let plugin = ready.link(&subject.config).map_err(|error| subject.explain(error))?;
    let mut runs = Vec::new();
    for hook in HookKind::ALL {
        if !serves(&subject.plugin, Some(plugin.hooks()), hook) {
            continue;
        }
        match samples::event(hook) {
            Some(event) => {
                // Services of its own for each run: a sample does not depend on the one before.
                let services = Services::in_memory(&subject.config, dirs);
                let report = plugin.run_event(&services, &event, 1).await;
                let effects = effects(subject, &services).await;
                let sample = if hook == HookKind::Diff {
                    "two results of greet-2.12 differ"
                } else {
                    "greet-2.12 was built"
                };
                runs.push(TestRun { hook, sample, report, effects });
            }
            None => {
                for question in samples::questions() {
                    runs.push(ask(&plugin, subject, dirs, &question).await);
                }
            }
        }
    }
    Ok((plugin, runs))
}

/// A policy's answer as a run: an answer that the build hook would not take is a failure.
async fn ask(
    plugin: &LinkedPlugin,
    subject: &Subject,
    dirs: &Dirs,
    question: &Question,
) -> TestRun {
    let services = Services::in_memory(&subject.config, dirs);
    let Question { what, candidate, machines, local } = question;
    let (decision, mut report) = plugin.select(&services, candidate, machines, local).await;
    let checked = decision
        .and_then(|decision| hookrun_builders::choice::policy::checked(decision, machines, local));
    let mut effects = Vec::new();
    match checked {
        Ok(decision) => effects.push(match decision.action {
            Action::Machines(uris) => {
                format!("chose {} ({})", uris.join(", then "), decision.reason)
            }
            other => format!("chose {} ({})", other.as_str(), decision.reason),
        }),
        Err(error) if matches!(report.outcome, Outcome::Done { .. }) => {
            report.outcome = Outcome::Failed {
                message: error.to_string(),
                transient: false,
                retry_after_ms: None,
            };
        }
        Err(_) => {}
    }
    TestRun { hook: HookKind::BuilderSelection, sample: what, report, effects }
}

/// What is in the services after a run.
async fn effects(subject: &Subject, services: &Services) -> Vec<String> {
    let mut effects = Vec::new();
    for store in &subject.plugin.grant.object_store {
        if let Ok(keys) = services.object_stores().list(store, "", MAX_LISTED, u64::MAX).await {
            effects.extend(keys.iter().map(|key| format!("object store {store}: {key}")));
        }
    }
    for mail in services.mail().captured() {
        effects.push(format!(
            "mail by {} to {}: {}",
            mail.transport,
            mail.recipients.join(", "),
            subject_line(&mail.raw)
        ));
    }
    for http::Requested { method, url, body } in services.http().requested() {
        let shown: String = String::from_utf8_lossy(&body).chars().take(MAX_SHOWN_BODY).collect();
        let body = if body.is_empty() {
            String::new()
        } else {
            format!(" with {} bytes: {shown}", body.len())
        };
        effects.push(format!("http {method} {url}{body}"));
    }
    effects
}

/// The Subject of a composed message, unfolded (RFC 5322 section 2.2.3).
fn subject_line(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let mut lines =
        text.lines().skip_while(|line| !line.to_ascii_lowercase().starts_with("subject:"));
    let mut subject = lines
        .next()
        .and_then(|line| line.split_once(':'))
        .map_or(String::new(), |(_, rest)| rest.trim().to_owned());
    for line in lines.take_while(|line| line.starts_with([' ', '\t'])) {
        subject.push(' ');
        subject.push_str(line.trim());
    }
    subject
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folded_subject_is_one_line() {
        let raw = b"From: a@b\r\nSubject: one\r\n two\r\nTo: c@d\r\n\r\nSubject: body";
        assert_eq!(subject_line(raw), "one two");
        assert_eq!(subject_line(b"From: a@b\r\n\r\n"), "");
    }
}
