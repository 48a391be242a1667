//! A message in its stages: as a plugin passes it, composed, and sent or refused.

/// One message, as a plugin passes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// The subject, which is one line.
    pub subject: String,
    pub text: String,
    pub html: Option<String>,
    /// Additional headers; their names start with `X-`.
    pub headers: Vec<(String, String)>,
    /// The identity: messages with the same identity are the same message. Empty for a new identity
    /// each time.
    pub identity: String,
    /// The identity of the message that this one answers.
    pub in_reply_to: Option<String>,
}

/// A message that a capturing [`Mailer`](super::Mailer) recorded instead of sending it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// The transport's name in the configuration.
    pub transport: String,
    pub recipients: Vec<String>,
    pub message_id: String,
    /// The message as RFC 5322 text, with CR LF line ends.
    pub raw: Vec<u8>,
}

/// A composed message with its envelope, ready for any transport.
#[derive(Debug, Clone)]
pub(super) struct Composed {
    pub(super) message_id: String,
    pub(super) from: String,
    pub(super) to: Vec<String>,
    /// RFC 5322 text, CR LF line ends, ASCII only.
    pub(super) raw: Vec<u8>,
}

/// A message that was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sent {
    /// Its Message-ID, with angle brackets.
    pub message_id: String,
    /// The recipients that did not get it.
    pub refused: Vec<Refusal>,
}

/// A recipient that was refused.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Refusal {
    /// The address, or the name of a user of this machine.
    pub recipient: String,
    /// Whether it may be accepted later.
    pub transient: bool,
    /// The transport's reason, on one line.
    pub reason: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.recipient, self.reason)
    }
}

impl Composed {
    /// Returns the text with LF line ends, as programs and maildirs on Unix require.
    pub(super) fn unix_text(&self) -> String {
        String::from_utf8_lossy(&self.raw).replace("\r\n", "\n")
    }
}
