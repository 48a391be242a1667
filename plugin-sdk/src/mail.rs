//! Mail through named transports of the configuration (`[mail.NAME]`). Wants `mail`, grant `mail =
//! ["NAME"]`.

use crate::Error;
use crate::bindings::imports::hookrun::host::mail;
use crate::error::host;

/// One message. The host sets From, To, Date, Message-ID and the MIME structure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// One line.
    pub subject: String,
    /// The plain text part.
    pub text: String,
    /// The HTML part.
    pub html: Option<String>,
    /// More headers; only names that start with `X-`.
    pub headers: Vec<(String, String)>,
    /// Identifies this message when it is sent again; empty for a new message.
    pub identity: String,
    /// The identity of the message that this one replies to, for threading.
    pub in_reply_to: Option<String>,
}

pub use mail::{Refusal, Sent};

/// Sends `message` to `recipients`, each of which must be in the configuration: in `[mail.NAME]
/// to` or in this plugin's own `config.to`. Recipients that the transport refuses are in
/// [`Sent::refused`]; the others get the message. If one of these refusals is transient,
/// end the run with a transient [`Failure`](crate::Failure): the next attempt, with the same
/// [`Message::identity`], reaches only those who do not have the message.
///
/// # Errors
/// The call is not granted, a recipient is not in the configuration, or no recipient has got the
/// message.
pub fn send(transport: &str, recipients: &[String], message: Message) -> Result<Sent, Error> {
    let Message { subject, text, html, headers, identity, in_reply_to } = message;
    let message = mail::Message { subject, text, html, headers, identity, in_reply_to };
    host!("mail.send", mail::send(transport, recipients, &message))
}
