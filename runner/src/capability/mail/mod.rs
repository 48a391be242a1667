//! Mail: the `mail` interface of the host. A plugin says what, this room sends it: it composes the
//! message, holds the credentials and knows the transports of the configuration (`[mail.NAME]`).
//!
//! Called by the choke point for host calls, which has already checked that the plugin's grant
//! names the transport. What is checked here is the rest: every recipient stands in the
//! configuration, and nothing the plugin hands over can become a header of its own. A guest never
//! sees an address book, a server or a password.

mod compose;
mod error;
mod host;
mod maildir;
mod recipients;
mod sendmail;
mod smtp;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use lettre::Address;
use maildir::Maildir;
use recipients::{allowed_recipients, mailbox};
use sendmail::Sendmail;
use smtp::Smtp;

use super::{CapabilityError, ErrorKind, Reach};
use crate::config::{self, Config, ConfigError, MailTransport};
use crate::dirs::Dirs;

/// One message, as a plugin hands it over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// One line.
    pub subject: String,
    /// The plain text part.
    pub text: String,
    /// The HTML part.
    pub html: Option<String>,
    /// More headers; names start with `X-`.
    pub headers: Vec<(String, String)>,
    /// What makes two messages the same message; empty for a fresh one each time.
    pub identity: String,
    /// The identity of the message that this one answers.
    pub in_reply_to: Option<String>,
}

/// A message that was taken by a capturing [`Mailer`] instead of being sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// The transport's name in the configuration.
    pub transport: String,
    /// Where it would have gone.
    pub recipients: Vec<String>,
    /// Its Message-ID.
    pub message_id: String,
    /// The message as RFC 5322 text, with CR LF line ends.
    pub raw: Vec<u8>,
}

/// A composed message with its envelope, ready for any transport.
#[derive(Debug, Clone)]
struct Composed {
    message_id: String,
    from: Address,
    to: Vec<Address>,
    /// RFC 5322 text, CR LF line ends, ASCII only.
    raw: Vec<u8>,
}

/// Whom a message goes to, and whom a program is told it comes from.
#[derive(Debug, Clone)]
struct Envelope {
    from: Address,
    to: Vec<Address>,
}

/// A composed message as a process that may start the program gets it.
fn for_program(
    plugin: &config::Plugin,
    transport: &str,
    message: &Composed,
) -> Result<ForProgram, CapabilityError> {
    let text = String::from_utf8(message.unix_text()).map_err(|_| {
        CapabilityError::new(ErrorKind::Invalid, "the message is not ASCII, a defect of hookrun")
    })?;
    Ok(ForProgram {
        plugin: plugin.name.clone(),
        transport: transport.to_owned(),
        from: message.from.to_string(),
        to: message.to.iter().map(ToString::to_string).collect(),
        text,
    })
}

impl Composed {
    fn envelope(&self) -> Envelope {
        Envelope { from: self.from.clone(), to: self.to.clone() }
    }

    /// With LF line ends, as programs and maildirs of Unix have it.
    fn unix_text(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(self.raw.len());
        let mut bytes = self.raw.iter().copied().peekable();
        while let Some(byte) = bytes.next() {
            if !(byte == b'\r' && bytes.peek() == Some(&b'\n')) {
                text.push(byte);
            }
        }
        text
    }
}

/// How mail leaves, checked.
#[derive(Debug, Clone)]
enum Transport {
    Maildir(Maildir),
    Smtp(Smtp),
    Sendmail(Sendmail),
}

/// Sends mail through the transports of a configuration.
#[derive(Debug)]
pub struct Mailer {
    transports: BTreeMap<String, config::Mail>,
    /// Where maildirs without a setting are.
    dirs: Dirs,
    /// This machine: the right side of Message-IDs, and of the default sender.
    host: String,
    /// Takes the messages instead of the transports.
    captured: Option<Mutex<Vec<Captured>>>,
    /// Transports with their secrets read.
    held: Mutex<BTreeMap<String, Transport>>,
    /// Starts `sendmail` where this process may not.
    programs: OnceLock<Arc<dyn Programs>>,
}

/// A message for a program with the interface of `sendmail`, which another process starts.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ForProgram {
    /// The plugin that sends; its recipients are checked once more.
    pub plugin: String,
    /// The transport's name in the configuration.
    pub transport: String,
    /// The sender of the envelope.
    pub from: String,
    /// The recipients of the envelope.
    pub to: Vec<String>,
    /// The message with LF line ends.
    pub text: String,
}

/// Whoever may start programs, for a process that may not.
pub trait Programs: std::fmt::Debug + Send + Sync {
    /// Has the transport's program send the message.
    fn sendmail(&self, message: ForProgram) -> BoxFuture<'_, Result<(), CapabilityError>>;
}

impl Mailer {
    /// A mailer for the transports of `config`. Opens nothing yet.
    pub fn new(config: &Config, dirs: &Dirs) -> Self {
        let host = compose::host_name(&rustix::system::uname().nodename().to_string_lossy());
        Self {
            transports: config.mail.clone(),
            dirs: dirs.clone(),
            host,
            captured: None,
            held: Mutex::default(),
            programs: OnceLock::new(),
        }
    }

    /// A mailer that checks and composes like any other and keeps the messages in memory, for
    /// `hookrun test`.
    pub fn capturing(config: &Config, dirs: &Dirs) -> Self {
        Self { captured: Some(Mutex::default()), ..Self::new(config, dirs) }
    }

    /// What a capturing mailer has taken so far, in order.
    pub fn captured(&self) -> Vec<Captured> {
        self.captured.as_ref().map_or_else(Vec::new, |taken| {
            taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
        })
    }

    /// Sends `message` of `plugin` to `recipients` through `transport` and returns its Message-ID,
    /// with angle brackets.
    ///
    /// The message counts as sent when the transport has taken responsibility for it: the server's
    /// 250 after the data, an exit code of 0, or a file durable in the maildir.
    ///
    /// # Errors
    /// `denied` for a recipient that is not in the configuration, `invalid` for what cannot be a
    /// message, `not-found` for an unknown transport, `transient` or `permanent` from the
    /// transport.
    pub async fn send(
        &self,
        plugin: &config::Plugin,
        transport: &str,
        recipients: &[String],
        message: &Message,
    ) -> Result<String, CapabilityError> {
        let Some(settings) = self.transports.get(transport) else {
            let hint = config::suggestion(transport, self.transports.keys().map(String::as_str));
            return Err(CapabilityError::new(
                ErrorKind::NotFound,
                format!(
                    "there is no mail transport `{transport}`; {hint}, or add a table [mail.{transport}]"
                ),
            ));
        };
        let recipients = allowed_recipients(plugin, transport, settings, recipients)?;
        let from = compose::sender(transport, settings, &self.host)?;
        let composed = compose::compose(
            &plugin.name,
            &self.host,
            from,
            &recipients,
            message,
            SystemTime::now(),
        )?;
        if let Some(captured) = &self.captured {
            captured.lock().unwrap_or_else(PoisonError::into_inner).push(Captured {
                transport: transport.to_owned(),
                recipients: composed.to.iter().map(ToString::to_string).collect(),
                message_id: composed.message_id.clone(),
                raw: composed.raw,
            });
            return Ok(composed.message_id);
        }
        match self.checked(transport, settings)? {
            Transport::Maildir(maildir) => maildir.deliver(&composed, &self.host).await?,
            Transport::Smtp(smtp) => smtp.send(&composed).await?,
            Transport::Sendmail(sendmail) => match self.programs.get() {
                None => sendmail.send(&composed.envelope(), &composed.unix_text()).await?,
                Some(programs) => {
                    programs.sendmail(for_program(plugin, transport, &composed)?).await?;
                }
            },
        }
        Ok(composed.message_id)
    }

    fn checked(&self, name: &str, settings: &config::Mail) -> Result<Transport, CapabilityError> {
        if let Some(held) = self.held.lock().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Ok(held.clone());
        }
        checked_transport(name, settings, &self.dirs)
            .map_err(|(_, message)| CapabilityError::new(ErrorKind::Permanent, message))
    }

    /// Reads the secrets of a transport now and keeps them. What cannot be read is told when the
    /// transport is used.
    pub fn hold(&self, name: &str) {
        let Some(settings) = self.transports.get(name) else { return };
        if let Ok(Transport::Smtp(smtp)) = checked_transport(name, settings, &self.dirs)
            && let Ok(smtp) = smtp.hold()
        {
            self.held
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(name.to_owned(), Transport::Smtp(smtp));
        }
    }

    /// Connects to the server of a transport and logs in, without sending anything. Other
    /// transports have no server.
    ///
    /// # Errors
    /// As [`Mailer::send`].
    pub async fn log_in(&self, name: &str) -> Result<(), CapabilityError> {
        let Some(settings) = self.transports.get(name) else { return Ok(()) };
        match self.checked(name, settings)? {
            Transport::Smtp(smtp) => smtp.log_in().await,
            Transport::Maildir(_) | Transport::Sendmail(_) => Ok(()),
        }
    }

    /// From now on programs are started by somebody else.
    pub fn delegate(&self, programs: Arc<dyn Programs>) {
        // Set once, when a runner starts.
        let _first = self.programs.set(programs);
    }

    /// What a transport needs of the operating system. A program is not among it: a walled process
    /// starts none.
    pub fn reach(&self, name: &str) -> Reach {
        let settings = self.transports.get(name).filter(|_| self.captured.is_none());
        match settings.map(|settings| checked_transport(name, settings, &self.dirs)) {
            Some(Ok(Transport::Maildir(maildir))) => Reach::directory(&maildir.directory),
            Some(Ok(Transport::Smtp(smtp))) => Reach::ports([smtp.port()]),
            Some(Ok(Transport::Sendmail(_)) | Err(_)) | None => Reach::default(),
        }
    }

    /// Sends a message that a walled process composed through the program of its transport. Nothing
    /// it says is believed: the program is the configuration's, and so are the recipients.
    ///
    /// # Errors
    /// `denied` for other recipients, `not-found` for a transport that is no program, or what the
    /// program says.
    pub async fn send_for(
        &self,
        plugin: &config::Plugin,
        message: &ForProgram,
    ) -> Result<(), CapabilityError> {
        let ForProgram { plugin: _, transport, from, to, text } = message;
        let granted = plugin.grant.mail.iter().any(|granted| granted == transport);
        let settings = self.transports.get(transport).filter(|_| granted);
        let Some((settings, Ok(Transport::Sendmail(sendmail)))) =
            settings.map(|settings| (settings, self.checked(transport, settings)))
        else {
            let shown = transport.escape_debug();
            return Err(CapabilityError::not_found(format!(
                "there is no mail transport `{shown}` that starts a program"
            )));
        };
        let recipients = allowed_recipients(plugin, transport, settings, to)?;
        let from = mailbox(from)?.email;
        let to = recipients.into_iter().map(|mailbox| mailbox.email).collect();
        sendmail.send(&Envelope { from, to }, text.as_bytes()).await
    }
}

/// Checks every `[mail.NAME]` as far as that goes without opening a file or a socket.
///
/// # Errors
/// The first transport that cannot work as it is written.
pub fn check(config: &Config, dirs: &Dirs) -> Result<(), ConfigError> {
    let host = compose::host_name("");
    for (name, settings) in &config.mail {
        checked_transport(name, settings, dirs)
            .map_err(|(key, message)| config.error(&["mail", name, key], message))?;
        compose::sender(name, settings, &host)
            .map_err(|error| config.error(&["mail", name, "from"], error.message))?;
        for recipient in &settings.to {
            mailbox(recipient)
                .map_err(|error| config.error(&["mail", name, "to"], error.message))?;
        }
    }
    Ok(())
}

/// The transports whose password goes over the network without encryption, which is accepted for a
/// server on this machine only: the name, and a warning.
pub fn clear_text_passwords(config: &Config) -> Vec<(String, String)> {
    let clear = |(name, settings): (&String, &config::Mail)| {
        let smtp = Smtp::new(name, settings).ok()?;
        let warning = smtp.sends_password_in_clear().then(|| {
            format!(
                "mail transport `{name}` sends its password without encryption, to this machine \
                 only; write `smtps://` or `?tls=required` if its server can do that"
            )
        })?;
        Some((name.clone(), warning))
    };
    let smtp = config.mail.iter().filter(|(_, mail)| mail.transport == MailTransport::Smtp);
    smtp.filter_map(clear).collect()
}

/// Turns settings into a transport. The error is the key to blame and a sentence.
fn checked_transport(
    name: &str,
    settings: &config::Mail,
    dirs: &Dirs,
) -> Result<Transport, (&'static str, String)> {
    let config::Mail {
        transport,
        url,
        from: _,
        to: _,
        username,
        password_file,
        ca_file,
        directory,
        program,
    } = settings;
    let unused = |used_by: &str, keys: &[(&'static str, bool)]| {
        keys.iter().find(|(_, set)| *set).map_or(Ok(()), |(key, _)| {
            Err((
                *key,
                format!("`{key}` of [mail.{name}] is for `transport = \"{used_by}\"` only; write that, or remove `{key}`"),
            ))
        })
    };
    let smtp_keys = [
        ("url", url.is_some()),
        ("username", username.is_some()),
        ("password-file", password_file.is_some()),
        ("ca-file", ca_file.is_some()),
    ];
    match transport {
        MailTransport::Maildir => {
            unused("smtp", &smtp_keys)?;
            unused("sendmail", &[("program", program.is_some())])?;
            Ok(Transport::Maildir(Maildir {
                name: name.to_owned(),
                directory: directory.clone().unwrap_or_else(|| dirs.maildir(name)),
            }))
        }
        MailTransport::Smtp => {
            unused("maildir", &[("directory", directory.is_some())])?;
            unused("sendmail", &[("program", program.is_some())])?;
            Smtp::new(name, settings).map(Transport::Smtp)
        }
        MailTransport::Sendmail => {
            unused("smtp", &smtp_keys)?;
            unused("maildir", &[("directory", directory.is_some())])?;
            Ok(Transport::Sendmail(Sendmail {
                name: name.to_owned(),
                program: program
                    .clone()
                    .unwrap_or_else(|| PathBuf::from(sendmail::DEFAULT_PROGRAM)),
            }))
        }
    }
}

#[cfg(test)]
mod tests;
