//! Mail through the transports of the configuration (`[mail.NAME]`). Wants `mail`, grant `mail =
//! ["NAME"]`.

use crate::Error;
use crate::bindings::imports::hookrun::host::mail;
use crate::error::host;

/// A message. The host sets From, To, Date, Message-ID and the MIME structure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// The subject, on one line.
    pub subject: String,
    /// The plain text part.
    pub text: String,
    /// The HTML part.
    pub html: Option<String>,
    /// Additional headers, whose names must start with `X-`.
    pub headers: Vec<(String, String)>,
    /// A string that identifies the message when it is sent again. If it is empty, each message is
    /// a new one.
    pub identity: String,
    /// The identity of the message that this one replies to, for threading.
    pub in_reply_to: Option<String>,
}

pub use mail::{Refusal, Sent};

/// Sends `message` to `recipients`. Each recipient must be listed in the configuration: in
/// `[mail.NAME] to` or in the plugin's own `config.to`. Recipients that the transport refuses are
/// returned in [`Sent::refused`]; the others get the message. If a refusal is transient, end the
/// run with a transient [`Failure`](crate::Failure): the next attempt, with the same
/// [`Message::identity`], sends the message only to recipients that do not have it.
///
/// # Errors
/// The call is not granted, a recipient is not in the configuration, or no recipient has got the
/// message.
pub fn send(transport: &str, recipients: &[String], message: Message) -> Result<Sent, Error> {
    let native = message.clone();
    let Message { subject, text, html, headers, identity, in_reply_to } = message;
    let message = mail::Message { subject, text, html, headers, identity, in_reply_to };
    host!("mail.send", mail::send(transport, recipients, &message), |host| {
        Ok(host.send_mail(transport, recipients, native))
    })
}
