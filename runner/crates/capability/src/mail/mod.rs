//! Mail, for the `mail` interface. Composes and sends the messages of plugins, holds the
//! credentials and the transports of the configuration (`[mail.NAME]`).
//!
//! Host calls of `mail` use it after they have checked that the plugin's grant names the transport.
//! This module checks that every recipient is in the configuration, and that text of the plugin
//! cannot create additional headers. A guest never sees address books, servers or passwords.

mod compose;
mod error;
mod maildir;
mod message;
mod progress;
mod recipients;
mod sendmail;
mod settings;
pub mod smtp;

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

pub use message::{Captured, Message, Refusal, Sent};
pub use sendmail::ProgramMail;
pub use settings::check;

use super::{CapabilityError, ErrorKind, SandboxNeeds, Service, ServiceFinding};
use error::quoted;
use hookrun_config::{self as config, Config, Grant, KeyError};
use hookrun_nix::dirs::Dirs;
use maildir::Maildir;
use message::Composed;
use progress::Progress;
use recipients::{allowed_recipients, mailbox};
use sendmail::Sendmail;
use settings::{checked_transport, clear_text_passwords, readable_files};
use smtp::Smtp;

/// A checked transport.
#[derive(Debug, Clone)]
enum Transport {
    Maildir(Maildir),
    Smtp(Smtp),
    Sendmail(Sendmail),
}

/// A message for a program that another process starts, and the channel for its result.
pub type Delegated = (ProgramMail, oneshot::Sender<Result<(), CapabilityError>>);

/// Sends mail through the transports of a configuration.
#[derive(Debug)]
pub struct Mailer {
    transports: BTreeMap<String, config::Mail>,
    /// The directories of the installation, which contain the default maildir.
    dirs: Dirs,
    /// The host name of this machine, for Message-IDs and the default sender.
    host: String,
    /// Records the messages instead of sending them.
    captured: Option<Mutex<Vec<Captured>>>,
    /// The transports whose secrets have been read.
    held: Mutex<BTreeMap<String, Transport>>,
    /// Receives messages for programs, if this process may not start any.
    programs: OnceLock<UnboundedSender<Delegated>>,
}

impl Service for Mailer {
    fn configure(config: &Config, dirs: &Dirs) -> Self {
        Self::new(config, dirs)
    }

    fn in_memory(config: &Config, dirs: &Dirs) -> Self {
        Self::capturing(config, dirs)
    }

    fn check(&self, config: &Config, dirs: &Dirs) -> Vec<ServiceFinding> {
        let mut findings = Vec::new();
        findings.extend(check(config, dirs).err().map(ServiceFinding::Problem));
        findings.extend(clear_text_passwords(config).into_iter().map(ServiceFinding::Warning));
        findings.extend(readable_files(config));
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
    /// Creates a mailer for the transports of `config`. Opens no files and no connections.
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

    /// Creates a mailer that checks and composes messages as usual but keeps them in memory, for
    /// `hookrun test`.
    pub fn capturing(config: &Config, dirs: &Dirs) -> Self {
        // A name that does not depend on the machine: it is part of Message-IDs.
        let host = "builder.example.org".to_owned();
        Self { captured: Some(Mutex::default()), host, ..Self::new(config, dirs) }
    }

    /// Returns the messages that a capturing mailer has recorded, in order.
    pub fn captured(&self) -> Vec<Captured> {
        self.captured.as_ref().map_or_else(Vec::new, |taken| {
            taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
        })
    }

    /// Sends `message` of `plugin` to `recipients` through `transport`, for the task `task` (an
    /// event's id). A recipient that already got the same message (by its identity) of the same
    /// task does not get it again.
    ///
    /// The message counts as sent when the transport has accepted it: the server's reply 250 after
    /// the data, the exit code 0, or a synced file in the maildir.
    ///
    /// # Errors
    /// Returns `denied` for a recipient that is not in the configuration, `invalid` for an invalid
    /// message, `not-found` for an unknown transport, and `transient`, `refused` or `permanent`
    /// from the transport, or if it accepts none of the remaining recipients.
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
        // If the recipients could not be recorded, every attempt would send the message again.
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
            tracing::warn!(directory = %directory.display(), %error, "cannot record the recipients that have a mail");
        }
        Ok(Sent { message_id: composed.message_id, refused: sent? })
    }

    /// Delivers to all recipients without a result so far, and returns those that did not get it.
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
        // An attempt that delivered to no recipient has failed if any are left.
        if all > delivered_before || (all > 0 && !waiting) {
            return Ok(refused);
        }
        let list = refused.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let (kind, fix) = if waiting {
            (ErrorKind::Transient, "it will be tried again".to_owned())
        } else {
            // Nothing is left to do unless the task is retried by hand.
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

    /// Starts the program once for each recipient, so that each recipient has its own result.
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
            let mail = ProgramMail {
                plugin: plugin.name.clone(),
                transport: name.to_owned(),
                from: message.from.clone(),
                to: recipient.clone(),
                text: message.unix_text(),
            };
            let started = match self.programs.get() {
                None => sendmail.send(&mail).await,
                Some(programs) => {
                    let (answer, answered) = oneshot::channel();
                    // If there is no receiver, `answer` is dropped here.
                    let _sent = programs.send((mail, answer));
                    answered.await.unwrap_or_else(|_| {
                        Err(CapabilityError::transient(
                            "the process that starts mail programs has ended; the mail will be retried",
                        ))
                    })
                }
            };
            match started {
                Ok(()) => progress.delivered(recipient),
                // The other recipients would fail in the same way, or there is only one.
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

    /// Reads and keeps the secrets of a transport now. A secret that cannot be read is reported
    /// when the transport is used.
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
    /// Returns the errors of [`Mailer::send`].
    pub async fn log_in(&self, name: &str) -> Result<(), CapabilityError> {
        let Some(settings) = self.transports.get(name) else { return Ok(()) };
        match self.checked(name, settings)? {
            Transport::Smtp(smtp) => smtp.log_in().await,
            Transport::Maildir(_) | Transport::Sendmail(_) => Ok(()),
        }
    }

    /// Returns the receiver of messages for programs. From now on the caller must have the programs
    /// started.
    pub fn delegate(&self) -> UnboundedReceiver<Delegated> {
        let (programs, delegated) = mpsc::unbounded_channel();
        // It is set once, when a runner starts.
        let _first = self.programs.set(programs);
        delegated
    }

    /// Returns what a transport needs from the operating system. A program is not part of it,
    /// because a sandboxed process cannot start one.
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

    /// Sends a message that a sandboxed process composed through the program of its transport.
    /// Program, recipient and sender are checked again, because that process is not trusted.
    ///
    /// # Errors
    /// Returns `denied` for another recipient, `not-found` for a transport that is not a program,
    /// or the error of the program.
    pub async fn send_for(
        &self,
        plugin: &config::Plugin,
        mail: ProgramMail,
    ) -> Result<(), CapabilityError> {
        let name = mail.transport.as_str();
        let granted = plugin.grant.mail.iter().any(|granted| granted == name);
        let settings = self.transports.get(name).filter(|_| granted);
        let Some((settings, Ok(Transport::Sendmail(sendmail)))) =
            settings.map(|settings| (settings, self.checked(name, settings)))
        else {
            let shown = name.escape_debug();
            return Err(CapabilityError::not_found(format!(
                "there is no mail transport `{shown}` that starts a program"
            )));
        };
        let to = std::slice::from_ref(&mail.to);
        let recipients = allowed_recipients(plugin, name, settings, to, &self.host)?;
        let from = mailbox(&mail.from)?.email.to_string();
        for recipient in recipients {
            let to = recipient.envelope;
            sendmail.send(&ProgramMail { from: from.clone(), to, ..mail.clone() }).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
