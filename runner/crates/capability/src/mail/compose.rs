//! Composes RFC 5322 text from a plugin's message. This module is pure: it uses no clock, file or
//! network.
//!
//! lettre encodes the headers; this module decides which text they may contain. Text of a plugin
//! that contains a control character never gets into a header, because CR or LF could start another
//! header.

use std::time::SystemTime;

use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart, SinglePart};
use sha2::{Digest, Sha256};

use super::recipients::Recipient;
use super::{Composed, Message, mailbox};
use crate::{CapabilityError, ErrorKind};
use hookrun_config as config;

/// Maximum length of a header in bytes. RFC 5322 section 2.1.1 allows lines of 998 characters;
/// plugins get half, because encoding may lengthen a header.
const MAX_HEADER_LENGTH: usize = 499;
/// Maximum number of headers that a plugin may set.
const MAX_HEADERS: usize = 32;
/// Number of hexadecimal digits of the hash in a Message-ID. 128 bits do not collide by chance.
const MESSAGE_ID_DIGITS: usize = 32;

/// RFC 3834 section 5: prevents automatic replies.
const AUTO_SUBMITTED: HeaderName = HeaderName::new_from_ascii_str("Auto-Submitted");
/// The name of the plugin that sent the message. The host sets it and overrides the plugin's value.
const PLUGIN: HeaderName = HeaderName::new_from_ascii_str("X-Hookrun-Plugin");

fn invalid(message: impl Into<String>) -> CapabilityError {
    CapabilityError::new(ErrorKind::Invalid, message)
}

/// Returns `name` if it is valid as the domain of an address, and `localhost` otherwise.
pub(super) fn host_name(name: &str) -> String {
    let fits = !name.is_empty()
        && name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        });
    if fits { name.to_owned() } else { "localhost".to_owned() }
}

/// Returns whether it is a host name with a domain, which other machines can resolve.
pub(super) fn is_full_host_name(name: &str) -> bool {
    name.contains('.')
        && !name.split('.').next_back().is_some_and(|last| {
            matches!(last, "local" | "localdomain" | "lan" | "internal")
                || last.chars().all(|c| c.is_ascii_digit())
        })
}

/// Returns the sender of transport `name`: its `from`, or `hookrun@` and the host name.
pub(super) fn sender(
    name: &str,
    settings: &config::Mail,
    host: &str,
) -> Result<Mailbox, CapabilityError> {
    match &settings.from {
        None => mailbox(&format!("hookrun@{host}")),
        Some(from) => mailbox(from).map_err(|error| {
            CapabilityError::new(
                ErrorKind::Permanent,
                format!("`from` of [mail.{name}]: {}", error.message),
            )
        }),
    }
}

/// Returns the Message-ID of `identity`, which is the same for the same plugin, identity and host.
/// An empty identity gets a new one each time.
pub(super) fn message_id(plugin: &str, identity: &str, host: &str) -> String {
    let left = if identity.is_empty() {
        uuid::Uuid::now_v7().simple().to_string()
    } else {
        let digest =
            Sha256::new_with_prefix(plugin).chain_update([0]).chain_update(identity).finalize();
        format!("{digest:.MESSAGE_ID_DIGITS$x}")
    };
    format!("<{left}.hookrun@{host}>")
}

/// Composes the message of `plugin`, sent at `date`.
pub(super) fn compose(
    plugin: &str,
    host: &str,
    from: Mailbox,
    recipients: &[Recipient],
    message: &Message,
    date: SystemTime,
) -> Result<Composed, CapabilityError> {
    let Message { subject, text, html, headers, identity, in_reply_to } = message;
    header_text("the subject", subject)?;
    if subject.trim().is_empty() {
        return Err(invalid("the subject is empty; write a subject of one line"));
    }
    if headers.len() > MAX_HEADERS {
        return Err(invalid(format!(
            "the message has {} headers of its own, and {MAX_HEADERS} are allowed",
            headers.len()
        )));
    }
    let message_id = message_id(plugin, identity, host);
    let sender = from.email.clone();
    let mut builder = lettre::Message::builder()
        .from(from)
        .date(date)
        .subject(subject)
        .message_id(Some(message_id.clone()));
    for recipient in recipients {
        builder = builder.to(recipient.mailbox.clone());
    }
    if let Some(answered) = in_reply_to.as_deref().filter(|identity| !identity.is_empty()) {
        let answered = self::message_id(plugin, answered, host);
        builder = builder.in_reply_to(answered.clone()).references(answered);
    }
    for (name, value) in headers {
        builder = builder
            .raw_header(HeaderValue::new(header_name(name)?, header_text(name, value)?.to_owned()));
    }
    let built = builder
        .raw_header(HeaderValue::new(AUTO_SUBMITTED, "auto-generated".to_owned()))
        .raw_header(HeaderValue::new(PLUGIN, plugin.to_owned()));
    let text = body(text);
    let built = match html {
        Some(html) => built.multipart(MultiPart::alternative_plain_html(text, body(html))),
        None => built.singlepart(SinglePart::plain(text)),
    };
    let built =
        built.map_err(|error| invalid(format!("the message cannot be composed ({error})")))?;
    Ok(Composed {
        message_id,
        from: sender.to_string(),
        to: recipients.iter().map(|recipient| recipient.envelope.clone()).collect(),
        raw: built.formatted(),
    })
}

/// Returns text of a plugin in the form of a message body: every line ends with CR LF, and NUL is
/// removed. Some servers take a single CR or LF for a line end (RFC 5321 section 2.3.8), so the
/// text after it could be taken for another message.
fn body(text: &str) -> String {
    let mut body = String::with_capacity(text.len() + text.len() / 32);
    let mut chars = text.chars().filter(|c| *c != '\0').peekable();
    while let Some(c) = chars.next() {
        match c {
            '\r' => {
                let _joined = chars.next_if_eq(&'\n');
                body.push_str("\r\n");
            }
            '\n' => body.push_str("\r\n"),
            other => body.push(other),
        }
    }
    body
}

/// Returns the name of a header that a plugin may set.
fn header_name(name: &str) -> Result<HeaderName, CapabilityError> {
    let refused = || {
        invalid(format!(
            "`{}` is not a header that a plugin may set; names start with `X-` and have letters, digits and `-` only",
            name.escape_debug()
        ))
    };
    let extension =
        name.len() > 2 && name.get(..2).is_some_and(|prefix| prefix.eq_ignore_ascii_case("x-"));
    if !extension || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        return Err(refused());
    }
    HeaderName::new_from_ascii(name.to_owned()).map_err(|_| refused())
}

/// Returns `value` if it is allowed in a header.
fn header_text<'a>(what: &str, value: &'a str) -> Result<&'a str, CapabilityError> {
    // U+2028 and U+2029 are refused like CR and LF, because some mail readers break lines at them.
    if let Some(bad) =
        value.chars().find(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'))
    {
        return Err(invalid(format!(
            "{what} holds the character `{}`; a header is one line of plain text",
            bad.escape_debug()
        )));
    }
    if value.len() > MAX_HEADER_LENGTH {
        return Err(invalid(format!(
            "{what} has {} bytes, and {MAX_HEADER_LENGTH} are allowed; shorten it",
            value.len()
        )));
    }
    Ok(value)
}
