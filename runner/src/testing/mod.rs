//! `hookrun test`: runs a plugin on sample events or on [`scenario`]s, with the real engine, limits
//! and grants, and with services that keep everything in memory.
//!
//! Nothing is sent, and nothing is read from the machine's Nix store. The effects of a plugin are
//! in the [`TestRun`].

mod expect;
mod fault;
mod fuzz;
pub mod play;
mod policy;
mod samples;
mod scenario;
mod subject;
mod update;
mod wave;

use serde::Serialize;

pub use fault::{Variant, capability_of};
pub use policy::PolicyHere;
pub use scenario::ScenarioFile;
pub use subject::{Changes, Files, Origin, Subject, SubjectError};
pub use update::updated;

use crate::supervise::supervisor::serves;
use hookrun_builders::{Action, Candidate, LocalMachine, Machine};
use hookrun_capability::{Services, http};
use hookrun_host::wall::{Identity, Wall};
use hookrun_host::{Host, LinkedPlugin, ReadyPlugin, compiled_cache};
use hookrun_nix::dirs::{self, Dirs};
use hookrun_nix::event::HookKind;
use hookrun_nix::outcome::{Outcome, RunReport};

/// The maximum number of listed objects of one store; a sample upload has about a dozen.
const MAX_LISTED: u32 = 1000;
/// The largest object whose content is shown.
const MAX_SHOWN_OBJECT: u64 = 64 << 10;
/// The number of characters of the body of a request or an object that are shown.
const MAX_SHOWN_BODY: usize = 200;

/// A question for a policy.
#[derive(Debug, Clone)]
pub struct Question {
    /// A description of the situation.
    pub what: &'static str,
    /// The derivation to build.
    pub candidate: Candidate,
    /// The machines that can build it.
    pub machines: Vec<Machine>,
    /// This machine.
    pub local: LocalMachine,
}

/// The result of running a plugin on one sample.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct TestRun {
    /// The hook that was called.
    pub hook: HookKind,
    /// A description of the sample.
    pub sample: &'static str,
    /// The outcome, the used resources, and the log.
    pub report: RunReport,
    /// The effects on the services, as text.
    pub effects: Vec<String>,
}

impl TestRun {
    /// Returns whether the run succeeded.
    pub const fn passed(&self) -> bool {
        matches!(self.report.outcome, Outcome::Done { .. })
    }
}

/// Reads, checks and compiles the subject's plugin. The following steps are done inside the
/// sandbox.
///
/// # Errors
/// The plugin does not load; the error is one line with the fix.
pub fn prepare(subject: &Subject, host: &Host) -> Result<ReadyPlugin, String> {
    let ready =
        host.prepare(&subject.plugin, &subject.config).map_err(|error| subject.explain(error))?;
    host.prune(&[] as &[ReadyPlugin], compiled_cache::OF_TESTS);
    Ok(ready)
}

/// Returns the sandbox of a process that runs a prepared plugin: it can read only native code.
pub fn wall() -> Wall {
    Wall::closed(Identity::Powerless).reading(dirs::test_artifacts())
}

/// Runs all hooks that the subject serves on their samples.
///
/// # Errors
/// The plugin does not load; the error is one line with the fix.
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
                // Each run has its own services, so that samples do not depend on each other.
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

/// Asks a policy and returns the result as a run. A decision that the build hook would refuse is a
/// failure.
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

/// Returns the contents of the services after a run.
async fn effects(subject: &Subject, services: &Services) -> Vec<String> {
    let mut effects = Vec::new();
    for store in &subject.plugin.grant.object_store {
        if let Ok(keys) = services.object_stores().list(store, "", MAX_LISTED, u64::MAX).await {
            for key in keys {
                let body = services.object_stores().get(store, &key, MAX_SHOWN_OBJECT).await;
                let body = body.ok().flatten().filter(|body| std::str::from_utf8(body).is_ok());
                let body = body.map(|body| contents(&body)).unwrap_or_default();
                effects.push(format!("object store {store}: {key}{body}"));
            }
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
    for http::Requested { method, url, headers: _, credential, body } in services.http().requested()
    {
        let credential = credential.map(|name| format!(" (credential {name})")).unwrap_or_default();
        effects.push(format!("http {method} {url}{}{credential}", contents(&body)));
    }
    effects
}

/// Returns the size and the beginning of a body.
fn contents(body: &[u8]) -> String {
    if body.is_empty() {
        return String::new();
    }
    let shown: String = String::from_utf8_lossy(body).chars().take(MAX_SHOWN_BODY).collect();
    format!(" with {} bytes: {shown}", body.len())
}

/// Returns the subject of a composed message, unfolded (RFC 5322 section 2.2.3).
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
