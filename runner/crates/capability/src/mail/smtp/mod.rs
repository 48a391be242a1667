//! Mail over SMTP: the settings, the connection, TLS by rustls from the first byte (`smtps`, RFC
//! 8314) or after STARTTLS (RFC 3207), and the meaning of each problem for the operator.
//!
//! The dialogue is implemented here ([`dialogue`]) and not by a library, because a server is not
//! trusted: the bytes, lines and time of each reply are limited ([`reply`]), and each recipient has
//! its own result.

mod connection;
pub mod dialogue;
pub mod reply;
mod settings;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::ClientConfig;
use zeroize::Zeroizing;

use self::dialogue::{DialogueError, Step};
use self::reply::{Reply, ReplyError};
use super::error::{current_user, file_error, quoted};
use super::{Composed, Refusal};
use crate::http::tls;
use crate::{CapabilityError, ErrorKind};

/// Time limit for the whole dialogue, against a server that replies slowly to each of many
/// commands.
const TOTAL_TIMEOUT: Duration = Duration::from_mins(10);
/// One server and the settings for its use.
#[derive(Clone)]
pub(super) struct Smtp {
    name: String,
    host: String,
    port: u16,
    security: Security,
    username: Option<String>,
    password_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    /// The name for EHLO, if the configuration has one.
    helo_name: Option<String>,
    /// The secrets, if they were read before the sandbox closed.
    held: Option<Result<Secrets, CapabilityError>>,
}

/// Contents of files.
#[derive(Clone, Default)]
struct Secrets {
    password: Option<Arc<Zeroizing<String>>>,
    /// The trusted certificates, if the connection may be encrypted.
    trust: Option<Arc<ClientConfig>>,
}

impl std::fmt::Debug for Smtp {
    /// Leaves out the contents of files.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Smtp")
            .field("name", &self.name)
            .field("server", &self.server())
            .finish_non_exhaustive()
    }
}

/// When the connection is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Security {
    /// From the first byte.
    Tls,
    /// By STARTTLS; otherwise no message is sent.
    StartTls,
    /// By STARTTLS if the server offers it.
    Opportunistic,
    /// Never.
    Plain,
}

impl Smtp {
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Reads the files now. A file that cannot be read is reported when it is used.
    pub(super) fn hold(mut self) -> Self {
        self.held = Some(self.read_secrets());
        self
    }

    /// Returns whether a login sends the password without encryption.
    pub(super) fn sends_password_in_clear(&self) -> bool {
        self.security == Security::Plain && self.username.is_some()
    }

    fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    fn server(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn error(&self, kind: ErrorKind, what: &str, fix: &str) -> CapabilityError {
        CapabilityError::new(kind, format!("mail transport `{}`: {what}; {fix}", self.name))
    }

    /// Sends `message` to `to`, and returns the recipients that the server refused. `delivered` is
    /// called for each of the others.
    pub(super) async fn send(
        &self,
        message: &Composed,
        to: &[String],
        delivered: impl FnMut(&str),
    ) -> Result<Vec<Refusal>, CapabilityError> {
        let sending = self.converse(message, to, delivered);
        tokio::time::timeout(TOTAL_TIMEOUT, sending)
            .await
            .unwrap_or_else(|_| Err(self.silent(TOTAL_TIMEOUT)))
    }

    async fn converse(
        &self,
        message: &Composed,
        to: &[String],
        mut delivered: impl FnMut(&str),
    ) -> Result<Vec<Refusal>, CapabilityError> {
        let (mut dialogue, name) = self.open().await?;
        let failed = |(step, problem): (Step, DialogueError)| {
            self.failed(step, &problem, &name, &message.from, None)
        };
        let recipients: Vec<&str> = to.iter().map(String::as_str).collect();
        let mut nobody = true;
        let refused = dialogue
            .send(&message.from, &recipients, &message.raw, |recipient| {
                nobody = false;
                delivered(recipient);
            })
            .await
            .map_err(failed)?;
        dialogue.quit().await;
        if let Some((_, reply)) = refused.first()
            && nobody
            && refused.iter().all(|(_, reply)| reply.is_for_the_operator())
        {
            return Err(self.refused(Step::Recipient, reply, &name, &message.from, None));
        }
        Ok(refused
            .into_iter()
            .map(|(recipient, reply)| Refusal {
                recipient: recipient.to_owned(),
                transient: reply.is_transient() || reply.is_too_many_recipients(),
                reason: quoted(&reply.to_string()),
            })
            .collect())
    }

    /// Connects and logs in, without sending anything.
    pub(super) async fn log_in(&self) -> Result<(), CapabilityError> {
        let (dialogue, _) = self.open().await?;
        dialogue.quit().await;
        Ok(())
    }

    fn silent(&self, time: Duration) -> CapabilityError {
        let time = humantime::format_duration(time);
        self.error(
            ErrorKind::Transient,
            &format!("{} did not reply within {time}", self.server()),
            &format!(
                "it will be tried again; if that does not help, check `url` under [mail.{}]",
                self.name
            ),
        )
    }

    fn lost(&self, why: &str) -> CapabilityError {
        self.error(
            ErrorKind::Transient,
            &format!("the connection to {} was lost ({why})", self.server()),
            "it will be tried again",
        )
    }

    fn read_secrets(&self) -> Result<Secrets, CapabilityError> {
        let trust = (self.security != Security::Plain).then(|| self.trust()).transpose()?;
        Ok(Secrets { password: self.password()?, trust })
    }

    fn password(&self) -> Result<Option<Arc<Zeroizing<String>>>, CapabilityError> {
        let Some(path) = &self.password_file else { return Ok(None) };
        let text = self.read(path)?;
        let password =
            std::str::from_utf8(&text).ok().map(|text| text.trim_end_matches(['\r', '\n']));
        match password.filter(|password| !password.is_empty()) {
            Some(password) => Ok(Some(Arc::new(Zeroizing::new(password.to_owned())))),
            None => Err(self.error(
                ErrorKind::Refused,
                &format!("the password file {} is empty or not UTF-8", path.display()),
                "write the password into it, as one line",
            )),
        }
    }

    fn read(&self, path: &Path) -> Result<Zeroizing<Vec<u8>>, CapabilityError> {
        std::fs::read(path).map(Zeroizing::new).map_err(|error| {
            let fix = format!(
                "make it readable for user {}, and check `password-file` under [mail.{}]",
                current_user(),
                self.name
            );
            let what = format!("cannot read password-file {}", path.display());
            file_error(&self.name, &what, &error, &fix)
        })
    }

    fn trust(&self) -> Result<Arc<ClientConfig>, CapabilityError> {
        let config = tls::trust(self.ca_file.as_deref()).map_err(|message| {
            CapabilityError::new(
                ErrorKind::Refused,
                format!("mail transport `{}`: {message}", self.name),
            )
        })?;
        let mut config = ClientConfig::clone(&config);
        config.alpn_protocols.clear();
        Ok(Arc::new(config))
    }

    /// Returns the meaning of a problem for the operator.
    fn failed(
        &self,
        step: Step,
        problem: &DialogueError,
        hello: &str,
        from: &str,
        password: Option<&str>,
    ) -> CapabilityError {
        let (name, server) = (&self.name, self.server());
        match problem {
            DialogueError::Refused(reply) => self.refused(step, reply, hello, from, password),
            DialogueError::Silent(time) => self.silent(*time),
            DialogueError::Lacking(what) => self.error(
                ErrorKind::Refused,
                &format!("{server} does not offer {what}"),
                &format!("check `url` and `username` under [mail.{name}]"),
            ),
            DialogueError::Reply(
                error @ (ReplyError::Malformed(_) | ReplyError::Line | ReplyError::Long),
            ) => {
                let kind = match step {
                    // Another service replies on this port.
                    Step::Connect => ErrorKind::Refused,
                    _ => ErrorKind::Transient,
                };
                let why = said(&error.to_string(), password);
                self.error(
                    kind,
                    &format!("{server} is not a mail server that hookrun understands ({why})"),
                    &format!("check `url` under [mail.{name}], or ask the server's operator"),
                )
            }
            DialogueError::Reply(error) => self.lost(&quoted(&error.to_string())),
        }
    }

    /// Returns the meaning of a refusal for the operator.
    fn refused(
        &self,
        step: Step,
        reply: &Reply,
        hello: &str,
        from: &str,
        password: Option<&str>,
    ) -> CapabilityError {
        let (name, server) = (&self.name, self.server());
        let text = said(&reply.to_string(), password.filter(|_| step == Step::Login));
        if reply.is_transient() {
            return self.error(
                ErrorKind::Transient,
                &format!("{server} cannot take mail now ({text})"),
                "it will be tried again",
            );
        }
        let ask = || format!("check `url` under [mail.{name}], or ask the server's operator");
        match (step, reply.code) {
            (Step::Login, _) => self.error(
                ErrorKind::Refused,
                &format!(
                    "{server} refused the login of `{}` ({text})",
                    self.username.as_deref().unwrap_or_default()
                ),
                &format!("check `username` and `password-file` under [mail.{name}]"),
            ),
            (Step::Hello, _) => self.error(
                ErrorKind::Refused,
                &format!("{server} refused the name `{hello}` of this machine ({text})"),
                &format!("write a name that the server accepts as `helo-name` under [mail.{name}]"),
            ),
            // Postfix refuses short names with this code.
            (_, 504) => self.error(
                ErrorKind::Refused,
                &format!("{server} requires full host names ({text})"),
                &format!(
                    "write one as `helo-name` (now `{hello}`), and as the host of `from` (now `{from}`), under [mail.{name}]"
                ),
            ),
            (_, 523 | 530 | 538) => self.error(
                ErrorKind::Refused,
                &format!("{server} requires encryption or a login first ({text})"),
                &format!(
                    "write `?tls=required` or `smtps://` in `url`, or `username` and `password-file`, under [mail.{name}]"
                ),
            ),
            (_, 534 | 535) => self.error(
                ErrorKind::Refused,
                &format!("{server} requires another login ({text})"),
                &format!("check `username` and `password-file` under [mail.{name}]"),
            ),
            (Step::Sender, _) => self.error(
                ErrorKind::Refused,
                &format!("{server} refused the sender `{from}` ({text})"),
                &format!("write a sender that the server accepts as `from` under [mail.{name}]"),
            ),
            (Step::Connect | Step::Secure, _) => self.error(
                ErrorKind::Refused,
                &format!("{server} refused the connection ({text})"),
                &ask(),
            ),
            (Step::Recipient | Step::Message, _) => self.error(
                ErrorKind::Permanent,
                &format!("{server} refused the message ({text})"),
                &format!("check the sender `from` under [mail.{name}], or ask the server's operator"),
            ),
        }
    }
}

/// Returns text of a server, with the password removed in any form.
fn said(text: &str, password: Option<&str>) -> String {
    if let Some(password) = password
        && (text.contains(password)
            || text.contains(&BASE64.encode(password))
            || text.contains("AUTH "))
    {
        return "the server's text is left out, as it may repeat the password".to_owned();
    }
    quoted(text)
}
