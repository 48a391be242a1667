//! Mail over SMTP (RFC 5321) by lettre, with TLS by rustls from the first byte (`smtps`, RFC 8314)
//! or after STARTTLS (RFC 3207).
//!
//! One connection a message. The steps are walked one by one here, and not left to lettre's pool,
//! so that an error can say what was being done: connecting, securing, logging in, sending.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lettre::address::Envelope;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{
    AsyncSmtpConnection, Certificate, CertificateStore, TlsParameters,
};
use lettre::transport::smtp::extension::ClientId;
use lettre::transport::smtp::{SMTP_PORT, SUBMISSION_PORT, SUBMISSIONS_PORT};
use url::Url;
use zeroize::Zeroizing;

use super::Composed;
use super::error::{current_user, file_error, quoted};
use crate::capability::{CapabilityError, ErrorKind};
use crate::config;

/// For the connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// For one message in all; below the default `wall-time` of a run, so that the error names the
/// server and not the plugin.
const TIMEOUT: Duration = Duration::from_secs(45);

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
    /// Files that were read while this process might.
    held: BTreeMap<PathBuf, Arc<Zeroizing<Vec<u8>>>>,
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

/// What was being done when an error came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Connect,
    Secure,
    Login,
    Send,
}

impl Smtp {
    /// Checks the settings. The error is the key to blame and a sentence.
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
        let url = Url::parse(text).map_err(|error| wrong(format!("is no URL ({error})")))?;
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
            held: BTreeMap::new(),
        };
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

    /// The same with its files read.
    pub(super) fn hold(mut self) -> Result<Self, CapabilityError> {
        for (key, path) in
            [("password-file", self.password_file.clone()), ("ca-file", self.ca_file.clone())]
        {
            if let Some(path) = path {
                let text = self.read(key, &path)?;
                self.held.insert(path, Arc::new(text));
            }
        }
        Ok(self)
    }

    /// Does a login show the password to whoever listens?
    pub(super) fn sends_password_in_clear(&self) -> bool {
        self.security == Security::Plain && self.username.is_some()
    }

    fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
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

    pub(super) async fn send(&self, message: &Composed) -> Result<(), CapabilityError> {
        // Not left to lettre: it bounds the connection, not the commands.
        tokio::time::timeout(TIMEOUT, self.converse(message)).await.unwrap_or_else(|_| {
            let time = humantime::format_duration(TIMEOUT);
            Err(self.error(
                ErrorKind::Transient,
                &format!("{} did not take the message within {time}", self.server()),
                "it will be tried again",
            ))
        })
    }

    /// Connects and logs in, without sending anything.
    pub(super) async fn log_in(&self) -> Result<(), CapabilityError> {
        tokio::time::timeout(TIMEOUT, self.talk(None)).await.unwrap_or_else(|_| {
            let time = humantime::format_duration(TIMEOUT);
            Err(self.error(
                ErrorKind::Transient,
                &format!("{} did not answer within {time}", self.server()),
                &format!("check `url` under [mail.{}]", self.name),
            ))
        })
    }

    async fn converse(&self, message: &Composed) -> Result<(), CapabilityError> {
        let envelope =
            Envelope::new(Some(message.from.clone()), message.to.clone()).map_err(|error| {
                CapabilityError::new(
                    ErrorKind::Invalid,
                    format!("the message cannot be addressed ({error})"),
                )
            })?;
        self.talk(Some((&envelope, &message.raw))).await
    }

    /// Opens a connection, and sends what there is to send.
    async fn talk(&self, message: Option<(&Envelope, &[u8])>) -> Result<(), CapabilityError> {
        // Secrets and certificates first: without them there is no use in a connection.
        let credentials = self.credentials()?;
        let mut tls = self.tls()?;
        let client = ClientId::default();
        let wrapper = if self.security == Security::Tls { tls.take() } else { None };
        let server = (self.host.as_str(), self.port);
        let mut connection = AsyncSmtpConnection::connect_tokio1(
            server,
            Some(CONNECT_TIMEOUT),
            &client,
            wrapper,
            None,
        )
        .await
        .map_err(|error| self.failed(Step::Connect, &error, None))?;
        let sent = self.on_connection(&mut connection, &client, tls, credentials, message).await;
        // A polite end is for a connection in good order: lettre panics on one whose STARTTLS
        // failed halfway. Else it is dropped.
        if sent.is_ok() {
            connection.abort().await;
        }
        sent
    }

    async fn on_connection(
        &self,
        connection: &mut AsyncSmtpConnection,
        client: &ClientId,
        tls: Option<TlsParameters>,
        credentials: Option<(Credentials, String)>,
        message: Option<(&Envelope, &[u8])>,
    ) -> Result<(), CapabilityError> {
        if let Some(tls) =
            tls.filter(|_| self.security == Security::StartTls || connection.can_starttls())
        {
            if !connection.can_starttls() {
                return Err(self.error(
                    ErrorKind::Permanent,
                    &format!("{} does not offer STARTTLS, and `?tls=required` wants it", self.server()),
                    &format!(
                        "write `smtps://` and its port in `url` under [mail.{}], or ask the server's operator",
                        self.name
                    ),
                ));
            }
            connection
                .starttls(tls, client)
                .await
                .map_err(|error| self.failed(Step::Secure, &error, None))?;
        }
        if let Some((credentials, password)) = credentials {
            if !connection.is_encrypted() && !self.is_loopback() {
                return Err(self.error(
                    ErrorKind::Permanent,
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
            connection
                .auth(&[Mechanism::Plain, Mechanism::Login], &credentials)
                .await
                .map_err(|error| self.failed(Step::Login, &error, Some(&password)))?;
        }
        if let Some((envelope, raw)) = message {
            connection
                .send(envelope, raw)
                .await
                .map_err(|error| self.failed(Step::Send, &error, None))?;
        }
        Ok(())
    }

    /// The credentials, and the password once more so that it can be kept out of messages.
    fn credentials(&self) -> Result<Option<(Credentials, String)>, CapabilityError> {
        let (Some(username), Some(path)) = (&self.username, &self.password_file) else {
            return Ok(None);
        };
        let text = self.read("password-file", path)?;
        let password = std::str::from_utf8(&text)
            .ok()
            .map(|text| text.trim_end_matches(['\r', '\n']).to_owned());
        match password.filter(|password| !password.is_empty()) {
            Some(password) => {
                Ok(Some((Credentials::new(username.clone(), password.clone()), password)))
            }
            None => Err(self.error(
                ErrorKind::Permanent,
                &format!("the password file {} is empty or not UTF-8", path.display()),
                "write the password into it, as one line",
            )),
        }
    }

    fn tls(&self) -> Result<Option<TlsParameters>, CapabilityError> {
        if self.security == Security::Plain {
            return Ok(None);
        }
        let mut builder = TlsParameters::builder(self.host.clone());
        if let Some(path) = &self.ca_file {
            let certificates =
                Certificate::from_pem(&self.read("ca-file", path)?).map_err(|error| {
                    self.error(
                        ErrorKind::Permanent,
                        &format!(
                            "the ca-file {} holds no certificates ({})",
                            path.display(),
                            quoted(&error.to_string())
                        ),
                        "write them in PEM form",
                    )
                })?;
            builder = builder
                .certificate_store(CertificateStore::None)
                .add_root_certificate(certificates);
        }
        builder.build().map(Some).map_err(|error| self.failed(Step::Secure, &error, None))
    }

    fn read(&self, key: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>, CapabilityError> {
        if let Some(held) = self.held.get(path) {
            return Ok(Zeroizing::clone(held));
        }
        std::fs::read(path).map(Zeroizing::new).map_err(|error| {
            let fix = format!(
                "make it readable for user {}, and check `{key}` under [mail.{}]",
                current_user(),
                self.name
            );
            file_error(&self.name, &format!("cannot read {key} {}", path.display()), &error, &fix)
        })
    }

    /// What an error of lettre means for the operator.
    fn failed(
        &self,
        step: Step,
        error: &lettre::transport::smtp::Error,
        password: Option<&str>,
    ) -> CapabilityError {
        use ErrorKind::{Permanent, Transient};
        let (name, server) = (&self.name, self.server());
        let text = said(error, password);
        if let Some(code) = error.status() {
            let kind = if error.is_transient() { Transient } else { Permanent };
            let (what, fix) = match (step, kind) {
                (Step::Login, Permanent) => (
                    format!(
                        "{server} refused the login of `{}` ({code} {text})",
                        self.username.as_deref().unwrap_or_default()
                    ),
                    format!("check `username` and `password-file` under [mail.{name}]"),
                ),
                (_, Transient) => (
                    format!("{server} cannot take mail now ({code} {text})"),
                    "it will be tried again".to_owned(),
                ),
                (Step::Send, _) => (
                    format!("{server} refused the message ({code} {text})"),
                    format!(
                        "check the recipients in `to` and the sender `from` under [mail.{name}]"
                    ),
                ),
                _ => (
                    format!("{server} refused the connection ({code} {text})"),
                    format!("check `url` under [mail.{name}], or ask the server's operator"),
                ),
            };
            return self.error(kind, &what, &fix);
        }
        if error.is_tls() || tls_alert(error) {
            return self.error(
                Permanent,
                &format!("no trusted TLS connection to {server} ({text})"),
                &format!("check `url` under [mail.{name}], or name the server's authority by `ca-file = \"/path\"`"),
            );
        }
        if error.is_client() {
            return self.error(
                Permanent,
                &format!("{server} cannot do what the configuration wants ({text})"),
                &format!("check `url` and `username` under [mail.{name}]"),
            );
        }
        self.error(
            Transient,
            &format!("cannot reach {server} ({text})"),
            &format!(
                "it will be tried again; if that does not help, check `url` under [mail.{name}]"
            ),
        )
    }
}

/// The innermost cause, without the password in any form a server might repeat.
fn said(error: &lettre::transport::smtp::Error, password: Option<&str>) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    if let Some(password) = password
        && (text.contains(password)
            || text.contains(&BASE64.encode(password))
            || text.contains("AUTH "))
    {
        "the server's text is left out, as it may repeat the password".clone_into(&mut text);
    }
    quoted(&text)
}

/// Did rustls refuse? It reports that inside an I/O error.
fn tls_alert(error: &lettre::transport::smtp::Error) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some() {
            return true;
        }
        source = cause.source();
    }
    false
}
