//! Opens a dialogue: connects, encrypts and logs in according to the settings.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::super::compose::{host_name, is_full_host_name};
use super::super::error::quoted;
use super::dialogue::{Dialogue, DialogueError, ReplyTimeouts, Step, Stream};
use super::{Secrets, Security, Smtp};
use crate::{CapabilityError, ErrorKind};

/// Time limit for a connection to one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Time limit for the TLS handshake.
const TLS_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of a server's addresses that are tried.
const MAX_ADDRESSES: usize = 4;

impl Smtp {
    /// Returns a dialogue that is ready for a message, and the name given in EHLO.
    pub(super) async fn open(&self) -> Result<(Dialogue, String), CapabilityError> {
        // Secrets and certificates come first, because a connection is useless without them.
        let secrets = match &self.held {
            Some(held) => held.clone()?,
            None => self.read_secrets()?,
        };
        let (stream, local) = self.connect().await?;
        let name = self.hello(local);
        let failed = |(step, problem): (Step, DialogueError)| {
            let password = secrets.password.as_ref().map(|password| password.as_str());
            self.failed(step, &problem, &name, "", password)
        };
        let mut dialogue = self.begin(stream, &secrets, &name).await?.map_err(failed)?;
        if let (Some(username), Some(password)) = (&self.username, &secrets.password) {
            dialogue.login(username, password).await.map_err(failed)?;
        }
        Ok((dialogue, name))
    }

    /// Returns a connection, and its local address.
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
            Err(_) => return Err(unreachable("looking its name up takes too long")),
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

    /// Returns the name for EHLO: the configured one, or this machine's name if it is fully
    /// qualified, or its address. RFC 5321 section 4.1.4 requires the address from a client without
    /// a full name, and servers that refuse a short name (Postfix: `reject_non_fqdn_helo_hostname`)
    /// accept it.
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

    /// Begins a dialogue on a connection, with the configured encryption.
    async fn begin(
        &self,
        stream: TcpStream,
        secrets: &Secrets,
        name: &str,
    ) -> Result<Result<Dialogue, (Step, DialogueError)>, CapabilityError> {
        if self.security == Security::Tls {
            let stream = self.encrypt(Box::new(stream), secrets).await?;
            return Ok(Dialogue::begin(stream, name, ReplyTimeouts::default()).await);
        }
        let dialogue = match Dialogue::begin(Box::new(stream), name, ReplyTimeouts::default()).await
        {
            Ok(dialogue) => dialogue,
            Err(problem) => return Ok(Err(problem)),
        };
        let offered = dialogue.offers("STARTTLS");
        if self.security == Security::StartTls && !offered {
            return Err(self.error(
                ErrorKind::Refused,
                &format!("{} does not offer STARTTLS, which `?tls=required` requires", self.server()),
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
                    Ok(Dialogue::resume(stream, name, ReplyTimeouts::default()).await)
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
            .map_err(|_| untrusted("its name is not valid in a certificate"))?;
        let connect = TlsConnector::from(Arc::clone(trust)).connect(name, stream);
        match tokio::time::timeout(TLS_TIMEOUT, connect).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => {
                let text = quoted(&error.to_string());
                // rustls reports its own errors inside an I/O error.
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
}
