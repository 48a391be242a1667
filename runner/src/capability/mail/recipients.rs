//! Whom a plugin may write to: addresses that stand in the configuration, and no others. Pure.
//!
//! Asked before a message is composed, and once more by the process that starts a program for a
//! walled one, which believes nothing that it is told.

use lettre::Address;
use lettre::message::Mailbox;

use crate::capability::{CapabilityError, ErrorKind};
use crate::config;

/// An address, with or without a display name.
pub(super) fn mailbox(text: &str) -> Result<Mailbox, CapabilityError> {
    let refuse = |why: &str| {
        let shown = text.escape_debug();
        Err(CapabilityError::new(
            ErrorKind::Invalid,
            format!("`{shown}` is no mail address ({why}); write `user@host`"),
        ))
    };
    if text.chars().any(char::is_control) {
        return refuse("it holds control characters");
    }
    match text.parse::<Mailbox>() {
        Ok(mailbox) if AsRef::<str>::as_ref(&mailbox.email).starts_with('-') => {
            refuse("it starts with a dash")
        }
        Ok(mailbox) => Ok(mailbox),
        Err(error) => refuse(&error.to_string().to_lowercase()),
    }
}

/// The plugin's own recipients: the key `to` of its configuration, a string or a list of strings.
fn own_recipients(plugin: &config::Plugin) -> Vec<&str> {
    match plugin.config.get("to") {
        Some(serde_json::Value::String(one)) => vec![one],
        Some(serde_json::Value::Array(many)) => {
            many.iter().filter_map(serde_json::Value::as_str).collect()
        }
        _ => Vec::new(),
    }
}

/// The mailboxes of `wanted`, if each of them stands in the configuration.
pub(super) fn allowed_recipients(
    plugin: &config::Plugin,
    transport: &str,
    settings: &config::Mail,
    wanted: &[String],
) -> Result<Vec<Mailbox>, CapabilityError> {
    let name = &plugin.name;
    if wanted.is_empty() {
        return Err(CapabilityError::new(
            ErrorKind::Invalid,
            format!(
                "the message has no recipients; write `to = [\"user@host\"]` under [plugins.{name}.config]"
            ),
        ));
    }
    let allowed: Vec<Address> = settings
        .to
        .iter()
        .map(String::as_str)
        .chain(own_recipients(plugin))
        .filter_map(|text| mailbox(text).ok())
        .map(|mailbox| mailbox.email)
        .collect();
    let mut mailboxes: Vec<Mailbox> = Vec::with_capacity(wanted.len());
    for text in wanted {
        let mailbox = mailbox(text)?;
        if !allowed.iter().any(|address| same_address(address, &mailbox.email)) {
            let address = &mailbox.email;
            return Err(CapabilityError::new(
                ErrorKind::Denied,
                format!(
                    "plugin `{name}` may not write to `{address}`; to allow it, write `to = [\"{address}\"]` under \
                     [plugins.{name}.config] or [mail.{transport}]"
                ),
            ));
        }
        if !mailboxes.iter().any(|other| same_address(&other.email, &mailbox.email)) {
            mailboxes.push(mailbox);
        }
    }
    Ok(mailboxes)
}

/// RFC 5321 section 2.4: the local part is case-sensitive, the domain is not.
fn same_address(a: &Address, b: &Address) -> bool {
    a.user() == b.user() && a.domain().eq_ignore_ascii_case(b.domain())
}
