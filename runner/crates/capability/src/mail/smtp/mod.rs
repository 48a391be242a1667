//! Mail over SMTP: the settings, the connection, TLS by rustls from the first byte (`smtps`, RFC
//! 8314) or after STARTTLS (RFC 3207), and what each problem means for the operator.
//!
//! The dialogue is hookrun's own ([`dialogue`]), and not that of a library, because a server is not
//! trusted: each reply is bounded in bytes, lines and time ([`reply`]), and each recipient has a
//! verdict of its own.

pub mod dialogue;
pub mod reply;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;
use zeroize::Zeroizing;

use self::dialogue::{Dialogue, Patience, Problem, Step, Stream};
use self::reply::{Reply, ReplyError};
use super::compose::{host_name, is_full_host_name};
use super::error::{current_user, file_error, quoted};
use super::{Composed, Refusal};
use crate::http::tls;
use crate::{CapabilityError, ErrorKind};
use hookrun_config as config;

/// For a connection to one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// For TLS to be established.
const TLS_TIMEOUT: Duration = Duration::from_secs(30);
/// For all of it: a server that takes its time for each of many commands ends here.
const TOTAL_TIMEOUT: Duration = Duration::from_mins(10);
/// Addresses of one server that are tried.
const MAX_ADDRESSES: usize = 4;

/// RFC 5321 section 4.5.4.2, RFC 6409 and RFC 8314.
const SMTP_PORT: u16 = 25;
const SUBMISSION_PORT: u16 = 587;
const SUBMISSIONS_PORT: u16 = 465;

/// One server and how to talk to it.
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
    /// What was read while this process might.
    held: Option<Result<Secrets, CapabilityError>>,
}

/// What is read from files.
#[derive(Clone, Default)]
struct Secrets {
    password: Option<Arc<Zeroizing<String>>>,
    /// Whom to trust, where the connection may be encrypted.
    trust: Option<Arc<ClientConfig>>,
}

impl std::fmt::Debug for Smtp {
    /// Without what was read.
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
    /// By STARTTLS, or no message is sent.
    StartTls,
    /// By STARTTLS if the server offers it.
    Opportunistic,
    /// Never.
    Plain,
}

impl Smtp {
    /// Checks the settings. The error is the key and a sentence.
    pub(super) fn new(name: &str, settings: &config::Mail) -> Result<Self, (&'static str, String)> {
        let example = "`url = \"smtps://mail.example.org:465\"`";
        let Some(text) = &settings.url else {
            return Err((
                "transport",
                format!(
                    "mail transport `{name}` has no `url`; write {example} under [mail.{name}]"
                ),
            ));
        };
        let wrong = |why: String| {
            ("url", format!("`url` of [mail.{name}] {why}; write for example {example}"))
        };
        let url =
            Url::parse(text).map_err(|error| wrong(format!("is not a valid URL ({error})")))?;
        // Never quoted: a URL with a password is a mistake, and repeating it would spread the
        // password.
        if url.password().is_some() || !url.username().is_empty() {
            return Err((
                "url",
                format!(
                    "`url` of [mail.{name}] holds a user name or a password; write them as `username` and `password-file`"
                ),
            ));
        }
        let mut tls = None;
        for (key, value) in url.query_pairs() {
            match (&*key, &*value) {
                ("tls", "required") => tls = Some(Security::StartTls),
                ("tls", "opportunistic") => tls = Some(Security::Opportunistic),
                _ => {
                    return Err(wrong(format!(
                        "has the parameter `{key}={value}`, and `tls` is `required` or `opportunistic`"
                    )));
                }
            }
        }
        let security = match (url.scheme(), tls) {
            ("smtps", None) => Security::Tls,
            ("smtps", Some(_)) => {
                return Err(wrong(
                    "is `smtps`, which is encrypted from the start, and takes no `?tls=`".into(),
                ));
            }
            ("smtp", tls) => tls.unwrap_or(Security::Plain),
            (other, _) => {
                return Err(wrong(format!(
                    "has the scheme `{other}`, and `smtp` and `smtps` are known"
                )));
            }
        };
        let Some(host) = url.host_str().filter(|host| !host.is_empty()) else {
            return Err(wrong("names no host".into()));
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if !matches!(url.path(), "" | "/") {
            return Err(wrong(format!(
                "has the path `{}`, which means nothing for mail",
                url.path()
            )));
        }
        let port = url.port().unwrap_or(match security {
            Security::Tls => SUBMISSIONS_PORT,
            Security::StartTls | Security::Opportunistic => SUBMISSION_PORT,
            Security::Plain => SMTP_PORT,
        });
        match (&settings.username, &settings.password_file) {
            (Some(_), None) => {
                return Err((
                    "username",
                    format!(
                        "[mail.{name}] has a `username` and no password; write `password-file = \"/path\"`"
                    ),
                ));
            }
            (None, Some(_)) => {
                return Err((
                    "password-file",
                    format!("[mail.{name}] has a `password-file` and no `username`; write one"),
                ));
            }
            _ => {}
        }
        let smtp = Self {
            name: name.to_owned(),
            host,
            port,
            security,
            username: settings.username.clone(),
            password_file: settings.password_file.clone(),
            ca_file: settings.ca_file.clone(),
            helo_name: settings.helo_name.clone(),
            held: None,
        };
        if let Some(helo) = &smtp.helo_name
            && !is_hello(helo)
        {
            return Err((
                "helo-name",
                format!(
                    "`helo-name` of [mail.{name}] is `{}`, which is neither a host name nor an address in brackets; write for \
                     example `helo-name = \"build1.example.org\"` or `\"[192.0.2.1]\"`",
                    helo.escape_debug()
                ),
            ));
        }
        if smtp.username.is_some() && security == Security::Plain && !smtp.is_loopback() {
            return Err((
                "url",
                format!(
                    "`url` of [mail.{name}] would send the password over the network in clear text; write `smtps://{}` or \
                     `smtp://{}?tls=required`",
                    smtp.host, smtp.host
                ),
            ));
        }
        Ok(smtp)
    }

    /// The port it connects to.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The same with its files read. A file that cannot be read is reported when it is used.
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
    /// told of each of the others.
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
        let failed = |(step, problem): (Step, Problem)| {
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

    /// A dialogue with the server that is ready for a message, and the name given in EHLO.
    async fn open(&self) -> Result<(Dialogue, String), CapabilityError> {
        // Secrets and certificates first: without them there is no use in a connection.
        let secrets = match &self.held {
            Some(held) => held.clone()?,
            None => self.read_secrets()?,
        };
        let (stream, local) = self.connect().await?;
        let name = self.hello(local);
        let failed = |(step, problem): (Step, Problem)| {
            let password = secrets.password.as_ref().map(|password| password.as_str());
            self.failed(step, &problem, &name, "", password)
        };
        let mut dialogue = self.begin(stream, &secrets, &name).await?.map_err(failed)?;
        if let (Some(username), Some(password)) = (&self.username, &secrets.password) {
            dialogue.login(username, password).await.map_err(failed)?;
        }
        Ok((dialogue, name))
    }

    /// A connection, and its end on this machine.
    async fn connect(&self) -> Result<(TcpStream, Option<IpAddr>), CapabilityError> {
        let unreachable = |why: &str| {
            self.error(
                ErrorKind::Transient,
                &format!("cannot reach {} ({why})", self.server()),
                &format!(
                    "it will be tried again; if that does not help, check `url` under [mail.{}]",
                    self.name
                ),
            )
        };
        let look_up = tokio::net::lookup_host((self.host.as_str(), self.port));
        let addresses: Vec<SocketAddr> = match tokio::time::timeout(CONNECT_TIMEOUT, look_up).await
        {
            Ok(Ok(addresses)) => addresses.take(MAX_ADDRESSES).collect(),
            Ok(Err(error)) => return Err(unreachable(&quoted(&error.to_string()))),
            Err(_) => return Err(unreachable("its name is not resolved in time")),
        };
        let mut why = "its name has no address".to_owned();
        for address in addresses {
            match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    let local = stream.local_addr().ok().map(|local| local.ip());
                    return Ok((stream, local));
                }
                Ok(Err(error)) => why = error.to_string(),
                Err(_) => {
                    let time = humantime::format_duration(CONNECT_TIMEOUT);
                    why = format!("no connection within {time}");
                }
            }
        }
        Err(unreachable(&why))
    }

    /// The name for EHLO: the configuration's, or this machine's if it is a full one, or its
    /// address. RFC 5321 section 4.1.4 wants the address from a client without a full name, and
    /// servers that refuse a short name (Postfix: `reject_non_fqdn_helo_hostname`) take it.
    fn hello(&self, local: Option<IpAddr>) -> String {
        if let Some(name) = &self.helo_name {
            return name.clone();
        }
        let host = host_name(&rustix::system::uname().nodename().to_string_lossy());
        if is_full_host_name(&host) {
            return host;
        }
        match local {
            Some(IpAddr::V4(address)) => format!("[{address}]"),
            Some(IpAddr::V6(address)) => format!("[IPv6:{address}]"),
            None => "[127.0.0.1]".to_owned(),
        }
    }

    /// From a bare connection to a dialogue that is encrypted as far as the configuration wants it.
    async fn begin(
        &self,
        stream: TcpStream,
        secrets: &Secrets,
        name: &str,
    ) -> Result<Result<Dialogue, (Step, Problem)>, CapabilityError> {
        if self.security == Security::Tls {
            let stream = self.encrypt(Box::new(stream), secrets).await?;
            return Ok(Dialogue::begin(stream, name, Patience::default()).await);
        }
        let dialogue = match Dialogue::begin(Box::new(stream), name, Patience::default()).await {
            Ok(dialogue) => dialogue,
            Err(problem) => return Ok(Err(problem)),
        };
        let offered = dialogue.offers("STARTTLS");
        if self.security == Security::StartTls && !offered {
            return Err(self.error(
                ErrorKind::Refused,
                &format!("{} does not offer STARTTLS, and `?tls=required` wants it", self.server()),
                &format!(
                    "write `smtps://` and its port in `url` under [mail.{}], or ask the server's operator",
                    self.name
                ),
            ));
        }
        if self.security != Security::Plain && offered {
            return match dialogue.start_tls().await {
                Ok(stream) => {
                    let stream = self.encrypt(stream, secrets).await?;
                    Ok(Dialogue::resume(stream, name, Patience::default()).await)
                }
                Err(problem) => Ok(Err(problem)),
            };
        }
        if self.username.is_some() && !self.is_loopback() {
            return Err(self.error(
                ErrorKind::Refused,
                &format!(
                    "{} offers no encryption, and a password is not sent in clear text",
                    self.server()
                ),
                &format!(
                    "write `smtps://` in `url` under [mail.{}], or remove `username`",
                    self.name
                ),
            ));
        }
        Ok(Ok(dialogue))
    }

    async fn encrypt(
        &self,
        stream: Box<dyn Stream>,
        secrets: &Secrets,
    ) -> Result<Box<dyn Stream>, CapabilityError> {
        let server = self.server();
        let untrusted = |why: &str| {
            self.error(
                ErrorKind::Refused,
                &format!("no trusted TLS connection to {server} ({why})"),
                &format!(
                    "check `url` under [mail.{}], or name the server's authority by `ca-file = \"/path\"`",
                    self.name
                ),
            )
        };
        let Some(trust) = &secrets.trust else {
            return Err(untrusted("there are no certificate authorities"));
        };
        let name = ServerName::try_from(self.host.clone())
            .map_err(|_| untrusted("its name cannot stand in a certificate"))?;
        let connect = TlsConnector::from(Arc::clone(trust)).connect(name, stream);
        match tokio::time::timeout(TLS_TIMEOUT, connect).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => {
                let text = quoted(&error.to_string());
                // rustls reports its own errors inside of an I/O error.
                let ours = error
                    .get_ref()
                    .is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>);
                if ours {
                    return Err(untrusted(&text));
                }
                Err(self.lost(&text))
            }
            Err(_) => Err(self.silent(TLS_TIMEOUT)),
        }
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

    /// What a problem means for the operator.
    fn failed(
        &self,
        step: Step,
        problem: &Problem,
        hello: &str,
        from: &str,
        password: Option<&str>,
    ) -> CapabilityError {
        let (name, server) = (&self.name, self.server());
        match problem {
            Problem::Refused(reply) => self.refused(step, reply, hello, from, password),
            Problem::Silent(time) => self.silent(*time),
            Problem::Lacking(what) => self.error(
                ErrorKind::Refused,
                &format!("{server} does not offer {what}"),
                &format!("check `url` and `username` under [mail.{name}]"),
            ),
            Problem::Reply(
                error @ (ReplyError::Malformed(_) | ReplyError::Line | ReplyError::Long),
            ) => {
                let kind = match step {
                    // Another service answers there.
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
            Problem::Reply(error) => self.lost(&quoted(&error.to_string())),
        }
    }

    /// What a refusal means for the operator.
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
            // As Postfix says it of short names.
            (_, 504) => self.error(
                ErrorKind::Refused,
                &format!("{server} wants full host names ({text})"),
                &format!(
                    "write one as `helo-name` (now `{hello}`), and as the host of `from` (now `{from}`), under [mail.{name}]"
                ),
            ),
            (_, 523 | 530 | 538) => self.error(
                ErrorKind::Refused,
                &format!("{server} wants encryption or a login first ({text})"),
                &format!(
                    "write `?tls=required` or `smtps://` in `url`, or `username` and `password-file`, under [mail.{name}]"
                ),
            ),
            (_, 534 | 535) => self.error(
                ErrorKind::Refused,
                &format!("{server} wants another login ({text})"),
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

/// Returns whether this is a valid argument of EHLO (RFC 5321 section 4.1.1.1).
fn is_hello(name: &str) -> bool {
    let literal = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match literal {
        Some(address) => {
            let address = address.strip_prefix("IPv6:").unwrap_or(address);
            address.parse::<IpAddr>().is_ok()
        }
        None => name.len() <= 255 && host_name(name) == name,
    }
}

/// Text of a server, without the password in any form that it might repeat.
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
