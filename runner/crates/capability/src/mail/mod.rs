//! Mail, for the `mail` interface. Composes and sends a plugin's message, holds the credentials and
//! knows the transports of the configuration (`[mail.NAME]`).
//!
//! Called by the choke point for host calls, which has already checked that the plugin's grant
//! names the transport. This module checks that every recipient is in the
//! configuration, and that no text of the plugin can become a header of its own. A guest never
//! sees an address book, a server or a password.

mod compose;
mod error;
mod maildir;
mod progress;
mod recipients;
mod sendmail;
pub mod smtp;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use maildir::Maildir;
use progress::Progress;
use recipients::{allowed_recipients, mailbox, own_recipients, recipient};
use sendmail::Sendmail;
use smtp::Smtp;

use super::{CapabilityError, ErrorKind, Finding, SandboxNeeds, Service};
use error::quoted;
use hookrun_config::{self as config, Config, Grant, KeyError, MailTransport};
use hookrun_nix::dirs::Dirs;

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
    from: String,
    to: Vec<String>,
    /// RFC 5322 text, CR LF line ends, ASCII only.
    raw: Vec<u8>,
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
    /// What the transport says, on one line.
    pub reason: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.recipient, self.reason)
    }
}

/// The recipients of a message, and the sender that a program gets.
#[derive(Debug, Clone)]
struct Envelope {
    from: String,
    to: Vec<String>,
}

/// A composed message as a process that may start the program gets it.
fn for_program(
    plugin: &config::Plugin,
    transport: &str,
    message: &Composed,
    recipient: &str,
) -> Result<ForProgram, CapabilityError> {
    let text = String::from_utf8(message.unix_text()).map_err(|_| {
        CapabilityError::new(ErrorKind::Invalid, "the message is not ASCII, a defect of hookrun")
    })?;
    Ok(ForProgram {
        plugin: plugin.name.clone(),
        transport: transport.to_owned(),
        from: message.from.clone(),
        to: vec![recipient.to_owned()],
        text,
    })
}

impl Composed {
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

/// A checked transport.
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

/// Starts programs for a process that may not start any.
pub trait Programs: std::fmt::Debug + Send + Sync {
    /// Has the transport's program send the message.
    fn sendmail(&self, message: ForProgram) -> BoxFuture<'_, Result<(), CapabilityError>>;
}

impl Service for Mailer {
    fn configure(config: &Config, dirs: &Dirs) -> Self {
        Self::new(config, dirs)
    }

    fn in_memory(config: &Config, dirs: &Dirs) -> Self {
        Self::capturing(config, dirs)
    }

    fn check(&self, config: &Config, dirs: &Dirs) -> Vec<Finding> {
        let mut findings = Vec::new();
        findings.extend(check(config, dirs).err().map(Finding::Problem));
        findings.extend(clear_text_passwords(config).into_iter().map(Finding::Warning));
        for (name, mail) in &config.mail {
            for (key, file) in [("password-file", &mail.password_file), ("ca-file", &mail.ca_file)]
            {
                // Opened and not read: a check does not need the secret.
                let Some(file) = file else { continue };
                findings.push(Finding::of(match std::fs::File::open(file) {
                    Ok(_) => Ok(format!("mail {name}: {key} is readable")),
                    Err(error) => Err(KeyError::new(
                        &["mail", name, key],
                        format!(
                            "the {key} {} cannot be read ({error}); make it readable for the user \
                             that runs the worker",
                            file.display()
                        ),
                    )),
                }));
            }
        }
        findings
    }

    fn sandbox_needs(&self, grant: &Grant, _dirs: &Dirs) -> SandboxNeeds {
        let needs = grant.mail.iter().map(|name| self.needs_of(name));
        needs.fold(SandboxNeeds::default(), SandboxNeeds::and)
    }

    fn hold_secrets(&self, _plugin: &str, grant: &Grant) -> Result<(), KeyError> {
        for name in &grant.mail {
            self.hold(name);
        }
        Ok(())
    }
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

    /// Sends `message` of `plugin` to `recipients` through `transport`, for the task `task` (an
    /// event's id). Recipients that got the same message (by its identity) of the same task before
    /// do not get it again.
    ///
    /// The message counts as sent when the transport has taken responsibility for it: the server's
    /// 250 after the data, an exit code of 0, or a file durable in the maildir.
    ///
    /// # Errors
    /// `denied` for a recipient that is not in the configuration, `invalid` for what cannot be a
    /// message, `not-found` for an unknown transport, `transient`, `refused` or `permanent` from
    /// the transport, or if it accepts none of the recipients that are left.
    pub async fn send(
        &self,
        plugin: &config::Plugin,
        transport: &str,
        recipients: &[String],
        message: &Message,
        task: &str,
    ) -> Result<Sent, CapabilityError> {
        let Some(settings) = self.transports.get(transport) else {
            let hint = config::suggestion(transport, self.transports.keys().map(String::as_str));
            return Err(CapabilityError::new(
                ErrorKind::NotFound,
                format!(
                    "there is no mail transport `{transport}`; {hint}, or add a table [mail.{transport}]"
                ),
            ));
        };
        let recipients = allowed_recipients(plugin, transport, settings, recipients, &self.host)?;
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
                recipients: composed.to,
                message_id: composed.message_id.clone(),
                raw: composed.raw,
            });
            return Ok(Sent { message_id: composed.message_id, refused: Vec::new() });
        }
        let mut progress = if message.identity.is_empty() {
            Progress::default()
        } else {
            Progress::of(&self.dirs.mail_progress(), task, &composed.message_id)
        };
        let transport_used = self.checked(transport, settings)?;
        // A message whose recipients cannot be recorded would be sent again by every attempt.
        progress.claim().map_err(|error| {
            let directory = self.dirs.mail_progress();
            CapabilityError::refused(format!(
                "mail transport `{transport}`: {} cannot be written ({error}), so nothing is sent; \
                 run `hookrun check` as root, which corrects its owner and mode",
                directory.display()
            ))
        })?;
        let sent = self.deliver(plugin, transport, &transport_used, &composed, &mut progress).await;
        if let Err(error) = progress.save() {
            let directory = self.dirs.mail_progress();
            tracing::warn!(directory = %directory.display(), %error, "cannot keep who has a mail");
        }
        Ok(Sent { message_id: composed.message_id, refused: sent? })
    }

    /// Delivers to all recipients without a verdict yet, and returns those that did not get it.
    async fn deliver(
        &self,
        plugin: &config::Plugin,
        name: &str,
        transport: &Transport,
        message: &Composed,
        progress: &mut Progress,
    ) -> Result<Vec<Refusal>, CapabilityError> {
        let to: Vec<String> =
            message.to.iter().filter(|to| !progress.is_settled(to)).cloned().collect();
        let mut later: Vec<Refusal> = Vec::new();
        let delivered_before = progress.delivered_count();
        if !to.is_empty() {
            let refused = match transport {
                Transport::Maildir(maildir) => {
                    maildir.deliver(message, &self.host).await?;
                    for recipient in &to {
                        progress.delivered(recipient);
                    }
                    Vec::new()
                }
                Transport::Smtp(smtp) => {
                    smtp.send(message, &to, |recipient| progress.delivered(recipient)).await?
                }
                Transport::Sendmail(sendmail) => {
                    self.start_each(plugin, name, sendmail, message, &to, progress).await?
                }
            };
            for refusal in refused {
                if refusal.transient {
                    later.push(refusal);
                } else {
                    progress.refuse(refusal);
                }
            }
        }
        let waiting = !later.is_empty();
        let refused: Vec<Refusal> = progress.refused().iter().cloned().chain(later).collect();
        let all = progress.delivered_count();
        // Without a delivery of its own an attempt with recipients left has failed.
        if all > delivered_before || (all > 0 && !waiting) {
            return Ok(refused);
        }
        let list = refused.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let (kind, fix) = if waiting {
            (ErrorKind::Transient, "it will be tried again".to_owned())
        } else {
            // Nothing is left to do, unless somebody asks for it once more.
            progress.forget_refused();
            let fix = format!(
                "correct the recipients in `to` under [plugins.{}.config] or [mail.{name}]",
                plugin.name
            );
            (ErrorKind::Permanent, fix)
        };
        let what = if all == 0 {
            format!("no recipient was accepted: {list}")
        } else {
            format!("still not accepted: {list}; the other recipients have the message")
        };
        Err(CapabilityError::new(kind, format!("mail transport `{name}`: {what}; {fix}")))
    }

    /// Starts the program once for each recipient, so that each has a verdict of its own.
    async fn start_each(
        &self,
        plugin: &config::Plugin,
        name: &str,
        sendmail: &Sendmail,
        message: &Composed,
        to: &[String],
        progress: &mut Progress,
    ) -> Result<Vec<Refusal>, CapabilityError> {
        let mut refused = Vec::new();
        for recipient in to {
            let started = match self.programs.get() {
                None => {
                    let envelope =
                        Envelope { from: message.from.clone(), to: vec![recipient.clone()] };
                    sendmail.send(&envelope, &message.unix_text()).await
                }
                Some(programs) => {
                    programs.sendmail(for_program(plugin, name, message, recipient)?).await
                }
            };
            match started {
                Ok(()) => progress.delivered(recipient),
                // It would be the same for the others, or there is nobody else.
                Err(error) if error.kind == ErrorKind::Refused || to.len() == 1 => {
                    return Err(error);
                }
                Err(CapabilityError { kind, message, .. }) => refused.push(Refusal {
                    recipient: recipient.clone(),
                    transient: kind == ErrorKind::Transient,
                    reason: quoted(&message),
                }),
            }
        }
        Ok(refused)
    }

    fn checked(&self, name: &str, settings: &config::Mail) -> Result<Transport, CapabilityError> {
        if let Some(held) = self.held.lock().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Ok(held.clone());
        }
        checked_transport(name, settings, &self.dirs)
            .map_err(|(_, message)| CapabilityError::new(ErrorKind::Refused, message))
    }

    /// Reads the secrets of a transport now and keeps them. A secret that cannot be read is
    /// reported when the transport is used.
    pub fn hold(&self, name: &str) {
        let Some(settings) = self.transports.get(name) else { return };
        if let Ok(Transport::Smtp(smtp)) = checked_transport(name, settings, &self.dirs) {
            self.held
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(name.to_owned(), Transport::Smtp(smtp.hold()));
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

    /// From now on `programs` starts the programs.
    pub fn delegate(&self, programs: Arc<dyn Programs>) {
        // Set once, when a runner starts.
        let _first = self.programs.set(programs);
    }

    /// What a transport needs of the operating system. A program is not among it: a walled process
    /// starts none.
    pub fn needs_of(&self, name: &str) -> SandboxNeeds {
        let settings = self.transports.get(name).filter(|_| self.captured.is_none());
        match settings.map(|settings| checked_transport(name, settings, &self.dirs)) {
            Some(Ok(Transport::Maildir(maildir))) => SandboxNeeds::directory(&maildir.directory)
                .and(SandboxNeeds::directory(&self.dirs.mail_progress())),
            Some(Ok(Transport::Smtp(smtp))) => SandboxNeeds::ports([smtp.port()])
                .and(SandboxNeeds::directory(&self.dirs.mail_progress())),
            Some(Ok(Transport::Sendmail(_))) => SandboxNeeds::directory(&self.dirs.mail_progress()),
            Some(Err(_)) | None => SandboxNeeds::default(),
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
        let recipients = allowed_recipients(plugin, transport, settings, to, &self.host)?;
        let from = mailbox(from)?.email.to_string();
        let to = recipients.into_iter().map(|recipient| recipient.envelope).collect();
        sendmail.send(&Envelope { from, to }, text.as_bytes()).await
    }
}

/// Checks every `[mail.NAME]` as far as that goes without opening a file or a socket.
///
/// # Errors
/// The first transport that cannot work as it is written.
pub fn check(config: &Config, dirs: &Dirs) -> Result<(), KeyError> {
    let host = compose::host_name("");
    for (name, settings) in &config.mail {
        checked_transport(name, settings, dirs)
            .map_err(|(key, message)| KeyError::new(&["mail", name, key], message))?;
        compose::sender(name, settings, &host)
            .map_err(|error| KeyError::new(&["mail", name, "from"], error.message))?;
        for to in &settings.to {
            recipient(to, settings.transport, &host)
                .map_err(|error| KeyError::new(&["mail", name, "to"], error.message))?;
        }
    }
    for (name, plugin) in &config.plugins {
        let granted = || plugin.grant.mail.iter().filter_map(|name| config.mail.get(name));
        for to in own_recipients(plugin) {
            // Which of the granted transports the plugin uses is not known here.
            let mut refused = None;
            let reached = granted().any(|settings| {
                refused = recipient(to, settings.transport, &host).err();
                refused.is_none()
            });
            if let Some(error) = refused.filter(|_| !reached) {
                return Err(KeyError::new(&["plugins", name, "config", "to"], error.message));
            }
        }
    }
    Ok(())
}

/// The transports whose password goes over the network without encryption, which is accepted for a
/// server on this machine only.
fn clear_text_passwords(config: &Config) -> Vec<KeyError> {
    let clear = |(name, settings): (&String, &config::Mail)| {
        let smtp = Smtp::new(name, settings).ok()?;
        let warning = smtp.sends_password_in_clear().then(|| {
            format!(
                "mail transport `{name}` sends its password without encryption, to this machine \
                 only; write `smtps://` or `?tls=required` if its server can do that"
            )
        })?;
        Some(KeyError::new(&["mail", name, "url"], warning))
    };
    let smtp = config.mail.iter().filter(|(_, mail)| mail.transport == MailTransport::Smtp);
    smtp.filter_map(clear).collect()
}

/// Turns settings into a transport. The error is the key and a sentence.
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
        helo_name,
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
        ("helo-name", helo_name.is_some()),
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
