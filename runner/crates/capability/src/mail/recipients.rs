//! The recipients that a plugin may write to: the addresses in the configuration. This module is
//! pure.
//!
//! They are checked before a message is composed, and again by the process that starts a program
//! for a sandboxed process, because it does not trust the latter.

use lettre::Address;
use lettre::message::Mailbox;

use crate::{CapabilityError, ErrorKind};
use hookrun_config::{self as config, MailTransport};

/// RFC 5321 section 4.5.3.1: a path has at most 256 bytes with its brackets, its local part 64.
const MAX_ADDRESS: usize = 254;
const MAX_LOCAL: usize = 64;

/// A recipient of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recipient {
    /// The form in the header.
    pub(super) mailbox: Mailbox,
    /// The form for the transport: an address, or the name of a user of this machine.
    pub(super) envelope: String,
}

fn refuse<T>(text: &str, why: &str, fix: &str) -> Result<T, CapabilityError> {
    let shown = text.escape_debug();
    Err(CapabilityError::new(
        ErrorKind::Invalid,
        format!("`{shown}` is not a mail address ({why}); {fix}"),
    ))
}

/// Parses an address with or without a display name. A domain that is not ASCII is encoded.
pub(super) fn mailbox(text: &str) -> Result<Mailbox, CapabilityError> {
    let refuse = |why: &str| refuse(text, why, "write `user@host`");
    if text.chars().any(char::is_control) {
        return refuse("it holds control characters");
    }
    let mailbox = match text.parse::<Mailbox>() {
        Ok(mailbox) => mailbox,
        Err(error) => return refuse(&error.to_string().to_lowercase()),
    };
    let (user, domain) = (mailbox.email.user(), mailbox.email.domain());
    if user.starts_with('-') {
        return refuse("it starts with a dash");
    }
    if !user.is_ascii() {
        return refuse("the part before the `@` is not ASCII, which most mail servers refuse");
    }
    let domain = if domain.is_ascii() {
        domain.to_owned()
    } else {
        match url::Host::parse(domain) {
            Ok(url::Host::Domain(domain)) => domain,
            _ => return refuse("its domain is not valid"),
        }
    };
    if user.len() > MAX_LOCAL || user.len() + 1 + domain.len() > MAX_ADDRESS {
        return refuse("it is too long");
    }
    match Address::new(user, domain) {
        Ok(email) => Ok(Mailbox::new(mailbox.name, email)),
        Err(error) => refuse(&error.to_string().to_lowercase()),
    }
}

/// Parses a recipient of a message that is sent through a transport of this kind. If mail is
/// delivered on `host` itself, the name of a user is enough.
pub(super) fn recipient(
    text: &str,
    transport: MailTransport,
    host: &str,
) -> Result<Recipient, CapabilityError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-');
    let is_user = !text.starts_with('-')
        && !text.is_empty()
        && text.len() <= MAX_LOCAL
        && text.chars().all(fits);
    match transport {
        MailTransport::Smtp if is_user => refuse(
            text,
            "it has no host, and a mail server on another machine does not know the users of this machine",
            "write `user@host`, or `transport = \"sendmail\"` for mail on this machine",
        ),
        MailTransport::Sendmail | MailTransport::Maildir if is_user => {
            let mailbox = mailbox(&format!("{text}@{host}"))?;
            Ok(Recipient { mailbox, envelope: text.to_owned() })
        }
        _ => {
            let mailbox = mailbox(text)?;
            Ok(Recipient { envelope: mailbox.email.to_string(), mailbox })
        }
    }
}

/// Returns the plugin's own recipients: the key `to` of its configuration, a string or a list of
/// strings.
pub(super) fn own_recipients(plugin: &config::Plugin) -> Vec<&str> {
    match plugin.config.get("to") {
        Some(serde_json::Value::String(one)) => vec![one],
        Some(serde_json::Value::Array(many)) => {
            many.iter().filter_map(serde_json::Value::as_str).collect()
        }
        _ => Vec::new(),
    }
}

/// Returns the mailboxes of `wanted`, if each of them is in the configuration.
pub(super) fn allowed_recipients(
    plugin: &config::Plugin,
    transport: &str,
    settings: &config::Mail,
    wanted: &[String],
    host: &str,
) -> Result<Vec<Recipient>, CapabilityError> {
    let name = &plugin.name;
    let recipient = |text: &str| recipient(text, settings.transport, host);
    if wanted.is_empty() {
        return Err(CapabilityError::new(
            ErrorKind::Invalid,
            format!(
                "the message has no recipients; write `to = [\"user@host\"]` under [plugins.{name}.config]"
            ),
        ));
    }
    let allowed: Vec<Recipient> = settings
        .to
        .iter()
        .map(String::as_str)
        .chain(own_recipients(plugin))
        .filter_map(|text| recipient(text).ok())
        .collect();
    let mut recipients: Vec<Recipient> = Vec::with_capacity(wanted.len());
    for text in wanted {
        let recipient = recipient(text)?;
        if !allowed.iter().any(|allowed| same(allowed, &recipient)) {
            let address = &recipient.envelope;
            return Err(CapabilityError::new(
                ErrorKind::Denied,
                format!(
                    "plugin `{name}` may not write to `{address}`; to allow it, write `to = [\"{address}\"]` under \
                     [plugins.{name}.config] or [mail.{transport}]"
                ),
            ));
        }
        if !recipients.iter().any(|other| same(other, &recipient)) {
            recipients.push(recipient);
        }
    }
    Ok(recipients)
}

/// Returns whether two recipients are the same. RFC 5321 section 2.4: the local part is
/// case-sensitive, the domain is not.
fn same(a: &Recipient, b: &Recipient) -> bool {
    let (one, other) = (&a.mailbox.email, &b.mailbox.email);
    one.user() == other.user() && one.domain().eq_ignore_ascii_case(other.domain())
}
