//! The client side of SMTP (RFC 5321) over any stream: greeting, EHLO, STARTTLS, AUTH, and one
//! message to several recipients. Each command has its own time limit.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};

use super::reply::{Reply, ReplyError};

/// Time limits for the replies of a server.
#[derive(Debug, Clone, Copy)]
pub struct ReplyTimeouts {
    /// The limit for the greeting and for each command.
    pub command: Duration,
    /// The limit for accepting a complete message.
    pub message: Duration,
}

impl Default for ReplyTimeouts {
    fn default() -> Self {
        Self {
            // Some servers delay replies by half a minute on purpose.
            command: Duration::from_mins(1),
            // Servers check for spam and viruses before they reply, and a message is sent twice if
            // the client gives up too early.
            message: Duration::from_mins(3),
        }
    }
}

/// A connection, encrypted or not.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// The step of a dialogue in which a problem occurred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Connecting and receiving the greeting.
    Connect,
    /// Introducing this machine by EHLO.
    Hello,
    /// STARTTLS and TLS.
    Secure,
    /// AUTH.
    Login,
    /// The sender's address.
    Sender,
    /// A recipient's address.
    Recipient,
    /// The message.
    Message,
}

/// The reason why a dialogue failed.
#[derive(Debug)]
pub enum DialogueError {
    /// The server refused.
    Refused(Reply),
    /// The server did not reply in time.
    Silent(Duration),
    /// The server's reply is not usable, or the connection is lost.
    Reply(ReplyError),
    /// The server does not offer a feature that the configuration requires.
    Lacking(&'static str),
}

impl From<ReplyError> for DialogueError {
    fn from(error: ReplyError) -> Self {
        Self::Reply(error)
    }
}

/// The result of a step. The error is the step that failed and the problem.
pub type Result<T> = std::result::Result<T, (Step, DialogueError)>;

/// A dialogue with a server after the greeting.
pub struct Dialogue {
    stream: BufReader<Box<dyn Stream>>,
    /// The keywords of the EHLO reply, in capitals, and the mechanisms of AUTH as `AUTH PLAIN`.
    offers: BTreeSet<String>,
    patience: ReplyTimeouts,
}

impl Dialogue {
    /// Waits for the greeting and sends EHLO with `name`.
    ///
    /// # Errors
    /// Returns an error if the server does not greet or refuses the name.
    pub async fn begin(
        stream: Box<dyn Stream>,
        name: &str,
        patience: ReplyTimeouts,
    ) -> Result<Self> {
        let mut dialogue = Self::over(stream, patience);
        let greeting = dialogue.reply(patience.command).await;
        greeting.map_err(|problem| (Step::Connect, problem))?;
        dialogue.hello(name).await?;
        Ok(dialogue)
    }

    /// Sends EHLO on a connection that has just been encrypted.
    ///
    /// # Errors
    /// Returns an error if the server refuses the name.
    pub async fn resume(
        stream: Box<dyn Stream>,
        name: &str,
        patience: ReplyTimeouts,
    ) -> Result<Self> {
        let mut dialogue = Self::over(stream, patience);
        dialogue.hello(name).await?;
        Ok(dialogue)
    }

    fn over(stream: Box<dyn Stream>, patience: ReplyTimeouts) -> Self {
        Self { stream: BufReader::new(stream), offers: BTreeSet::new(), patience }
    }

    /// Returns whether the server offers the keyword.
    pub fn offers(&self, keyword: &str) -> bool {
        self.offers.contains(keyword)
    }

    async fn hello(&mut self, name: &str) -> Result<()> {
        let at = |problem| (Step::Hello, problem);
        match self.command(&format!("EHLO {name}")).await {
            Ok(reply) => {
                self.offers = offers(&reply);
                Ok(())
            }
            // The server is older than 1995, or a firewall in front of it allows no extensions.
            Err(DialogueError::Refused(reply)) if matches!(reply.code, 500 | 502) => {
                self.command(&format!("HELO {name}")).await.map_err(at)?;
                Ok(())
            }
            Err(problem) => Err(at(problem)),
        }
    }

    /// Sends STARTTLS and returns the bare connection, on which TLS begins.
    ///
    /// # Errors
    /// Returns an error if the server refuses.
    pub async fn start_tls(mut self) -> Result<Box<dyn Stream>> {
        let at = |problem| (Step::Secure, problem);
        self.command("STARTTLS").await.map_err(at)?;
        if !self.stream.buffer().is_empty() {
            // An attacker on the network may have added it. It must not count as part of the
            // encrypted data that follows (CVE-2011-0411).
            let more = ReplyError::Malformed("text after its reply to STARTTLS".to_owned());
            return Err(at(more.into()));
        }
        Ok(self.stream.into_inner())
    }

    /// Logs in by PLAIN or LOGIN, whichever the server offers.
    ///
    /// # Errors
    /// Returns an error if the server refuses, or offers neither.
    pub async fn login(&mut self, username: &str, password: &str) -> Result<()> {
        let at = |problem| (Step::Login, problem);
        if self.offers("AUTH PLAIN") {
            let both = BASE64.encode(format!("\0{username}\0{password}"));
            let reply = self.command(&format!("AUTH PLAIN {both}")).await.map_err(at)?;
            accepted(reply).map_err(at)
        } else if self.offers("AUTH LOGIN") {
            self.command("AUTH LOGIN").await.map_err(at)?;
            self.command(&BASE64.encode(username)).await.map_err(at)?;
            let reply = self.command(&BASE64.encode(password)).await.map_err(at)?;
            accepted(reply).map_err(at)
        } else {
            Err(at(DialogueError::Lacking("a login by PLAIN or LOGIN")))
        }
    }

    /// Sends `message` to `to` and returns the recipients that were refused. `delivered` is called
    /// for each other recipient as soon as the server has accepted the message for it.
    ///
    /// # Errors
    /// Recipients for which `delivered` was not called do not have the message.
    pub async fn send<'a>(
        &mut self,
        from: &str,
        to: &[&'a str],
        message: &[u8],
        mut delivered: impl FnMut(&'a str),
    ) -> Result<Vec<(&'a str, Reply)>> {
        let mut refused = Vec::new();
        let mut waiting: Vec<&str> = to.to_vec();
        while !waiting.is_empty() {
            let sender = format!("MAIL FROM:<{from}>");
            self.command(&sender).await.map_err(|problem| (Step::Sender, problem))?;
            let (mut taken, mut later) = (Vec::new(), Vec::new());
            for recipient in std::mem::take(&mut waiting) {
                match self.command(&format!("RCPT TO:<{recipient}>")).await {
                    Ok(_) => taken.push(recipient),
                    // The code 421 means that the server is about to close the connection.
                    Err(DialogueError::Refused(reply)) if reply.code != 421 => {
                        if reply.is_too_many_recipients() && !taken.is_empty() {
                            later.push((recipient, reply));
                        } else {
                            refused.push((recipient, reply));
                        }
                    }
                    Err(problem) => return Err((Step::Recipient, problem)),
                }
            }
            if taken.is_empty() {
                break;
            }
            self.message(message).await.map_err(|problem| (Step::Message, problem))?;
            taken.into_iter().for_each(&mut delivered);
            // Each round delivers to at least one recipient, so this ends.
            waiting = later.into_iter().map(|(recipient, _)| recipient).collect();
        }
        Ok(refused)
    }

    async fn message(&mut self, message: &[u8]) -> std::result::Result<(), DialogueError> {
        let reply = self.command("DATA").await?;
        if reply.code != 354 {
            return Err(DialogueError::Refused(reply));
        }
        self.write(&stuffed(message)).await?;
        accepted(self.reply(self.patience.message).await?)
    }

    /// Ends the dialogue. The server's reply is ignored.
    pub async fn quit(mut self) {
        self.patience.command = self.patience.command.min(Duration::from_secs(5));
        let _said = self.command("QUIT").await;
    }

    async fn command(&mut self, command: &str) -> std::result::Result<Reply, DialogueError> {
        self.write(format!("{command}\r\n").as_bytes()).await?;
        self.reply(self.patience.command).await
    }

    async fn write(&mut self, bytes: &[u8]) -> std::result::Result<(), DialogueError> {
        let write = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        match tokio::time::timeout(self.patience.message, write).await {
            Ok(written) => written.map_err(|error| DialogueError::Reply(error.into())),
            Err(_) => Err(DialogueError::Silent(self.patience.message)),
        }
    }

    async fn reply(&mut self, patience: Duration) -> std::result::Result<Reply, DialogueError> {
        match tokio::time::timeout(patience, Reply::read(&mut self.stream)).await {
            Ok(Ok(reply)) if reply.is_positive() => Ok(reply),
            Ok(Ok(reply)) => Err(DialogueError::Refused(reply)),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(DialogueError::Silent(patience)),
        }
    }
}

/// Checks that a reply completes a command instead of asking for more.
fn accepted(reply: Reply) -> std::result::Result<(), DialogueError> {
    if reply.code < 300 { Ok(()) } else { Err(DialogueError::Refused(reply)) }
}

/// Returns the keywords after the first line.
fn offers(reply: &Reply) -> BTreeSet<String> {
    let mut offers = BTreeSet::new();
    for line in reply.lines.iter().skip(1) {
        // Old servers write `AUTH=PLAIN`.
        let mut words = line.split([' ', '=']).map(str::to_ascii_uppercase);
        let Some(keyword) = words.next() else { continue };
        if keyword == "AUTH" {
            offers.extend(words.map(|mechanism| format!("AUTH {mechanism}")));
        }
        offers.insert(keyword);
    }
    offers
}

/// Returns the message as it is sent: every line ends with CR LF, a dot at the beginning of a line
/// is doubled, and a line with a single dot ends the message (RFC 5321 section 4.5.2).
fn stuffed(message: &[u8]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(message.len() + message.len() / 32 + 8);
    for line in lines(message) {
        // NUL is not allowed in messages, and some servers end a line there.
        let mut line = line.iter().copied().filter(|byte| *byte != 0).peekable();
        if line.peek() == Some(&b'.') {
            wire.push(b'.');
        }
        wire.extend(line);
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b".\r\n");
    wire
}

/// Returns the lines of a message. They end with CR LF, LF, or a single CR, which some servers also
/// take for a line end.
fn lines(message: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = message;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')).unwrap_or(rest.len());
        let (line, tail) = rest.split_at(end);
        rest = tail
            .strip_prefix(b"\r\n")
            .or_else(|| tail.strip_prefix(b"\r"))
            .or_else(|| tail.strip_prefix(b"\n"))
            .unwrap_or(tail);
        Some(line)
    })
}

#[cfg(test)]
mod tests;
