//! A bundled plugin that sends a mail when two builds of an output have different results.
//!
//! The host calls it for each event of the diff hook, which is converted into a [`mod@finding`].
//! [`history`] decides whether to send a mail. [`groups`] groups files by the kind of their
//! differences ([`cause`]), [`report`] writes the contents, and [`text`] and [`html`] lay them out.
//! [`handle`] connects these steps. Only this file uses the SDK, so everything else is tested
//! without a host.

pub mod cause;
pub mod finding;
pub mod format;
pub mod groups;
pub mod handle;
pub mod history;
pub mod html;
pub mod report;
pub mod settings;
pub mod text;
pub mod value;

use hookrun_sdk::{Diff, Error, Failure, Outcome, Want, Wants, diff, mail, state};

use finding::{Difference, Finding};
use handle::{Mail, Mailer, Memory};
use settings::Settings;

struct EmailOnNondeterminism;

impl Diff for EmailOnNondeterminism {
    fn handle(event: diff::Event) -> Result<Outcome, Failure> {
        let settings = Settings::parse(&hookrun_sdk::config_json()).map_err(Failure::permanent)?;
        handle::handle(&finding(event), &settings, &Host, &Host)
    }
}

hookrun_sdk::plugin! {
    plugin: EmailOnNondeterminism,
    hooks: [Diff],
    wants: Wants { mail: Want::Required, state: Want::Optional, ..Wants::NOTHING },
    config_schema: settings::SCHEMA,
}

struct Host;

impl Memory for Host {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        state::get(key)
    }
    fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        state::set(key, value)
    }
    fn delete(&self, key: &str) -> Result<(), Error> {
        state::delete(key)
    }
    fn keys(&self, prefix: &str) -> Result<Vec<String>, Error> {
        state::keys(prefix)
    }
}

impl Mailer for Host {
    fn send(&self, transport: &str, to: &[String], mail: &Mail) -> Result<mail::Sent, Error> {
        let Mail { subject, text, html, headers, identity, in_reply_to } = mail.clone();
        mail::send(
            transport,
            to,
            mail::Message { subject, text, html: Some(html), headers, identity, in_reply_to },
        )
    }
}

/// Converts the host's event.
fn finding(event: diff::Event) -> Finding {
    let detail = |name: &str| {
        event.details.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    };
    let incomplete = detail("incomplete");
    let (user, command, nix) = (detail("user"), detail("command"), detail("nix-version"));
    let unknown = || "the comparison was not completed".to_owned();
    Finding {
        id: event.id,
        time_ms: event.time_ms,
        host: event.host,
        drv_path: event.drv_path,
        name: event.name,
        output: event.output_name,
        previous_path: event.previous_path,
        current_path: event.current_path,
        differences: event
            .differences
            .into_iter()
            .map(|diff::Difference { path, kind, previous, current, offset, details }| Difference {
                path,
                kind,
                previous,
                current,
                offset,
                details: details.into_iter().collect(),
            })
            .collect(),
        user,
        command,
        nix,
        incomplete: (!event.complete).then(|| incomplete.unwrap_or_else(unknown)),
        compared_files: event.compared_files,
        compared_bytes: event.compared_bytes,
    }
}

#[cfg(test)]
mod tests;
