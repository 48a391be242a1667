//! Decides about a finding and sends the mail. The capabilities of the host are two small traits,
//! so that tests need no host.

use hookrun_sdk::mail::{Refusal, Sent};
use hookrun_sdk::{Error, ErrorKind, Failure, Outcome};

use crate::finding::{Finding, package_name};
use crate::history::{self, Decision, Reason, Record};
use crate::report::report;
use crate::settings::Settings;
use crate::{format, html, text};

/// The state that is kept from one run to the next.
pub trait Memory {
    /// Returns the value of `key`.
    ///
    /// # Errors
    /// `denied` without a `state` grant.
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error>;
    /// Sets the value of `key`.
    ///
    /// # Errors
    /// `limit` if the store is full.
    fn set(&self, key: &str, value: &[u8]) -> Result<(), Error>;
    /// Removes `key`.
    ///
    /// # Errors
    /// As [`Memory::get`].
    fn delete(&self, key: &str) -> Result<(), Error>;
    /// Returns the keys that start with `prefix`.
    ///
    /// # Errors
    /// As [`Memory::get`].
    fn keys(&self, prefix: &str) -> Result<Vec<String>, Error>;
}

/// One mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mail {
    /// The subject, on one line.
    pub subject: String,
    /// The plain text part.
    pub text: String,
    /// The HTML part.
    pub html: String,
    /// Additional headers.
    pub headers: Vec<(String, String)>,
    /// A string that is the same for each attempt at the same event.
    pub identity: String,
    /// The identity of the first mail about this package.
    pub in_reply_to: Option<String>,
}

/// A mail transport.
pub trait Mailer {
    /// Sends `mail` to the recipients that do not have it yet.
    ///
    /// # Errors
    /// No recipient has got the mail.
    fn send(&self, transport: &str, to: &[String], mail: &Mail) -> Result<Sent, Error>;
}

/// Sends a mail about `finding`, unless one was sent before.
///
/// # Errors
/// The mail could not be sent, or the state could not be read.
pub fn handle(
    finding: &Finding,
    settings: &Settings,
    memory: &impl Memory,
    post: &impl Mailer,
) -> Result<Outcome, Failure> {
    let key = history::output_key(finding);
    let known = match memory.get(&key) {
        Ok(bytes) => Some(bytes.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok())),
        Err(error) if error.kind == ErrorKind::Denied => None,
        Err(error) => return Err(error.into()),
    };
    let title = finding.title();
    let remembers = known.is_some();
    let reason = match known {
        None => Reason::NoState,
        Some(known) => match history::decide(known.as_ref(), finding, settings.repeat_after) {
            Decision::Mail { reason } => reason,
            Decision::AlreadyMailed => {
                return Ok(Outcome::new(format!(
                    "{title} was already mailed by an earlier attempt"
                ))
                .detail("mailed", 0));
            }
            Decision::Known { record, again_ms } => {
                store(memory, &key, &record, finding, settings)?;
                let again = format::time(again_ms);
                let message = format!(
                    "{title}: the same finding was mailed before, and is not mailed again before {again} (`repeat-after`)"
                );
                return Ok(Outcome::new(message)
                    .detail("mailed", 0)
                    .detail("unmailed", record.unmailed));
            }
        },
    };
    let thread_key = history::thread_key(package_name(&finding.name));
    let first = if remembers {
        memory.get(&thread_key)?.and_then(|bytes| String::from_utf8(bytes).ok())
    } else {
        None
    };
    let mail = compose(finding, settings, &reason, first.as_deref());
    let Sent { message_id, refused } = post.send(&settings.transport, &settings.to, &mail)?;
    let waiting = refused.iter().any(|refusal| refusal.transient);
    let said = recipients(settings.to.len(), &refused, &title);
    if remembers {
        // A full store must not prevent the next mail. A finding that is not recorded is mailed
        // again.
        let record = Record { unfinished: waiting, ..history::mailed(finding) };
        let stored = store(memory, &key, &record, finding, settings).and_then(|()| {
            if first.is_none() { memory.set(&thread_key, mail.identity.as_bytes()) } else { Ok(()) }
        });
        if let Err(error) = stored
            && !waiting
        {
            let message = format!(
                "{said}; the finding could not be recorded and will be mailed again: {}",
                error.message
            );
            return Ok(Outcome::new(message).detail("mailed", 1).detail("message-id", message_id));
        }
    }
    if waiting {
        return Err(Failure::transient(format!(
            "{said}; recipients with a temporary refusal are tried again"
        )));
    }
    let outcome = Outcome::new(said).detail("mailed", 1).detail("message-id", message_id);
    Ok(refused.iter().fold(outcome, |outcome, refusal| {
        outcome.detail("refused", format!("{} ({})", refusal.recipient, refusal.reason))
    }))
}

/// Formats the result, such as `mailed 1 of 2 recipients about x; refused: b@example.org (550 no
/// such user)`.
fn recipients(all: usize, refused: &[Refusal], title: &str) -> String {
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let all_of_them = format::counted(count(all), "recipient", "recipients");
    if refused.is_empty() {
        return format!("mailed {all_of_them} about {title}");
    }
    let mailed = format::number(count(all.saturating_sub(refused.len())));
    let list: Vec<String> = refused
        .iter()
        .map(|Refusal { recipient, reason, .. }| format!("{recipient} ({reason})"))
        .collect();
    format!("mailed {mailed} of {all_of_them} about {title}; refused: {}", list.join(", "))
}

/// Returns the mail about `finding`, as a reply to the mail with the identity `first`.
pub fn compose(
    finding: &Finding,
    settings: &Settings,
    reason: &Reason,
    first: Option<&str>,
) -> Mail {
    let report = report(finding, reason, settings.repeat_after, settings.max_differences);
    let prefix = format::visible(settings.subject_prefix.trim(), 60);
    let gap = if prefix.is_empty() { "" } else { " " };
    // Long enough for a store path; the host allows 499 bytes.
    let header = |value: &str| format::visible(value, 100);
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

/// Stores `record`. If the store is full, removes once the records of findings that would be mailed
/// again anyway.
fn store(
    memory: &impl Memory,
    key: &str,
    record: &Record,
    finding: &Finding,
    settings: &Settings,
) -> Result<(), Error> {
    let bytes = serde_json::to_vec(record).unwrap_or_default();
    match memory.set(key, &bytes) {
        Err(error) if error.kind == ErrorKind::Limit => {
            let window = u64::try_from(settings.repeat_after.as_millis()).unwrap_or(u64::MAX);
            for old in memory.keys("output/")? {
                let known = memory
                    .get(&old)?
                    .and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
                if known
                    .is_none_or(|known| known.mailed_ms.saturating_add(window) <= finding.time_ms)
                {
                    memory.delete(&old)?;
                }
            }
            memory.set(key, &bytes)
        }
        other => other,
    }
}
