//! From a finding to a mail or to none. What the host offers comes in as two small traits, so that this is tested without one.

use crate::finding::{Finding, package_name};
use crate::history::{self, Decision, Reason, Record};
use crate::report::report;
use crate::settings::Settings;
use crate::{html, shown, text};

/// Why the host did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// A word of `hookrun:host/types.error`.
    pub kind: String,
    /// A sentence.
    pub message: String,
    /// When to come again.
    pub retry_after_ms: Option<u64>,
}

/// What is kept from one run to the next.
pub trait Memory {
    /// The value under `key`.
    ///
    /// # Errors
    /// `denied` without a `state` grant.
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Refusal>;
    /// Puts `value` under `key`.
    ///
    /// # Errors
    /// `limit` when the store is full.
    fn set(&self, key: &str, value: &[u8]) -> Result<(), Refusal>;
    /// Removes `key`.
    ///
    /// # Errors
    /// As [`Memory::get`].
    fn delete(&self, key: &str) -> Result<(), Refusal>;
    /// The keys that start with `prefix`.
    ///
    /// # Errors
    /// As [`Memory::get`].
    fn keys(&self, prefix: &str) -> Result<Vec<String>, Refusal>;
}

/// One mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mail {
    /// One line.
    pub subject: String,
    /// The plain text part.
    pub text: String,
    /// The HTML part.
    pub html: String,
    /// More headers.
    pub headers: Vec<(String, String)>,
    /// The same for each attempt at the same event.
    pub identity: String,
    /// The first mail about this package.
    pub in_reply_to: Option<String>,
}

/// What takes the mail.
pub trait Post {
    /// Sends it and returns its Message-ID.
    ///
    /// # Errors
    /// What the host says.
    fn send(&self, transport: &str, to: &[String], mail: &Mail) -> Result<String, Refusal>;
}

/// How it ended: a sentence and figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// One sentence.
    pub message: String,
    /// Figures.
    pub details: Vec<(String, String)>,
}

/// Mails about `finding`, unless it has been said before.
///
/// # Errors
/// When the mail could not be sent, or the state could not be read.
pub fn react(finding: &Finding, settings: &Settings, memory: &impl Memory, post: &impl Post) -> Result<Done, Refusal> {
    let key = history::output_key(finding);
    let known = match memory.get(&key) {
        Ok(bytes) => Some(bytes.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok())),
        Err(refusal) if refusal.kind == "denied" => None,
        Err(refusal) => return Err(refusal),
    };
    let title = finding.title();
    let remembers = known.is_some();
    let reason = match known {
        None => Reason::Forgetful,
        Some(known) => match history::decide(known.as_ref(), finding, settings.repeat_after) {
            Decision::Mail { reason } => reason,
            Decision::AlreadyMailed => {
                return Ok(done(format!("{title} was already mailed by an earlier attempt"), &[("mailed", "0")]));
            }
            Decision::Known { record, again_ms } => {
                store(memory, &key, &record, finding, settings)?;
                let again = shown::time(again_ms);
                let message = format!("{title} differs as before; not mailed again before {again} (`repeat-after`)");
                return Ok(done(message, &[("mailed", "0"), ("unmailed", &record.unmailed.to_string())]));
            }
        },
    };
    let thread_key = history::thread_key(package_name(&finding.name));
    let first = if remembers { memory.get(&thread_key)?.and_then(|bytes| String::from_utf8(bytes).ok()) } else { None };
    let mail = compose(finding, settings, &reason, first.as_deref());
    let message_id = post.send(&settings.transport, &settings.to, &mail)?;
    if remembers {
        // A full store must not keep the next mail back: what cannot be remembered is mailed again.
        let stored = store(memory, &key, &history::mailed(finding), finding, settings)
            .and_then(|()| if first.is_none() { memory.set(&thread_key, mail.identity.as_bytes()) } else { Ok(()) });
        if let Err(refusal) = stored {
            let message = format!("mailed about {title}, and could not remember it: {}", refusal.message);
            return Ok(done(message, &[("mailed", "1"), ("message-id", &message_id)]));
        }
    }
    let recipients = shown::counted(u64::try_from(settings.to.len()).unwrap_or(u64::MAX), "recipient", "recipients");
    Ok(done(format!("mailed {recipients} about {title}"), &[("mailed", "1"), ("message-id", &message_id)]))
}

fn done(message: String, details: &[(&str, &str)]) -> Done {
    Done { message, details: details.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect() }
}

/// The mail about `finding`, as an answer to the mail with the identity `first`.
pub fn compose(finding: &Finding, settings: &Settings, reason: &Reason, first: Option<&str>) -> Mail {
    let report = report(finding, reason, settings.repeat_after, settings.max_differences);
    let prefix = shown::visible(settings.subject_prefix.trim(), 60);
    let gap = if prefix.is_empty() { "" } else { " " };
    // Long enough for a store path; the host allows 499 bytes.
    let header = |value: &str| shown::visible(value, 100);
    Mail {
        subject: format!("{prefix}{gap}{}", report.subject),
        text: text::render(&report),
        html: html::render(&report),
        headers: vec![
            ("X-Hookrun-Event".to_owned(), header(&finding.id)),
            ("X-Hookrun-Name".to_owned(), header(&finding.name)),
            ("X-Hookrun-Output".to_owned(), header(&finding.output)),
            ("X-Hookrun-Host".to_owned(), header(&finding.host)),
        ],
        identity: finding.id.clone(),
        in_reply_to: first.map(str::to_owned),
    }
}

/// Keeps `record`; makes room once if the store is full, by forgetting what would be mailed again anyway.
fn store(memory: &impl Memory, key: &str, record: &Record, finding: &Finding, settings: &Settings) -> Result<(), Refusal> {
    let bytes = serde_json::to_vec(record).unwrap_or_default();
    match memory.set(key, &bytes) {
        Err(refusal) if refusal.kind == "limit" => {
            let window = u64::try_from(settings.repeat_after.as_millis()).unwrap_or(u64::MAX);
            for old in memory.keys("output/")? {
                let known = memory.get(&old)?.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
                if known.is_none_or(|known| known.mailed_ms.saturating_add(window) <= finding.time_ms) {
                    memory.delete(&old)?;
                }
            }
            memory.set(key, &bytes)
        }
        other => other,
    }
}
