//! Replies of a mail server (RFC 5321 section 4.2), with limits on bytes and lines.
//!
//! A server is not trusted: data beyond these limits is not kept, even if a line never ends.

use std::fmt;

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

/// Maximum length of a line with its end, in bytes. RFC 5321 section 4.5.3.1.5 allows 512; some
/// servers send longer ones.
pub const MAX_LINE: usize = 8 << 10;
/// Maximum number of lines of one reply. An EHLO reply has about twenty.
pub const MAX_LINES: usize = 128;
/// Maximum number of bytes of one reply.
pub const MAX_REPLY: usize = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The code, from 200 to 599.
    pub code: u16,
    /// The text of each line, without the code.
    pub lines: Vec<String>,
}

/// The reason why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// A line is too long.
    #[error("its reply has a line of more than {MAX_LINE} bytes")]
    Line,
    /// The reply is too long.
    #[error("its reply has more than {MAX_LINES} lines or {MAX_REPLY} bytes")]
    Long,
    /// The text is not a reply.
    #[error("it does not speak SMTP: `{0}`")]
    Malformed(String),
    /// The connection was closed.
    #[error("it closed the connection")]
    Closed,
    /// The connection failed.
    #[error(transparent)]
    Connection(#[from] std::io::Error),
}

impl Reply {
    /// Reads one reply.
    ///
    /// # Errors
    /// Returns an error if the connection ends, or if the text is not a reply or exceeds the
    /// limits.
    pub async fn read(stream: &mut (impl AsyncBufRead + Unpin)) -> Result<Self, ReplyError> {
        let mut reply = Self { code: 0, lines: Vec::new() };
        let mut bytes = 0;
        let mut line = Vec::new();
        loop {
            line.clear();
            (&mut *stream).take(MAX_LINE as u64).read_until(b'\n', &mut line).await?;
            if line.last() != Some(&b'\n') {
                return Err(if line.len() < MAX_LINE {
                    ReplyError::Closed
                } else {
                    ReplyError::Line
                });
            }
            bytes += line.len();
            if bytes > MAX_REPLY || reply.lines.len() >= MAX_LINES {
                return Err(ReplyError::Long);
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\r', '\n']);
            let (code, last, text) = parse(text)
                .ok_or_else(|| ReplyError::Malformed(text.chars().take(80).collect()))?;
            if reply.code != 0 && reply.code != code {
                return Err(ReplyError::Malformed(format!(
                    "{} and {code} in one reply",
                    reply.code
                )));
            }
            reply.code = code;
            reply.lines.push(text.to_owned());
            if last {
                return Ok(reply);
            }
        }
    }

    /// Returns whether the server accepts, or asks for more.
    pub const fn is_positive(&self) -> bool {
        self.code < 400
    }

    /// Returns whether the same command may succeed later (RFC 5321 section 4.2.1).
    pub const fn is_transient(&self) -> bool {
        self.code >= 400 && self.code < 500
    }

    /// Returns whether the operator has to fix the cause: the name in EHLO (504 from Postfix), a
    /// missing or wrong login (530, 534, 535) or missing encryption (523, 530, 538). The codes are
    /// those of RFC 4954 section 6 and RFC 3207 section 4.
    pub const fn is_for_the_operator(&self) -> bool {
        matches!(self.code, 504 | 523 | 530 | 534 | 535 | 538)
    }

    /// Returns whether the message has too many recipients for the server. RFC 5321 section
    /// 4.5.3.1.10 defines 452, and 552 for older servers.
    pub const fn is_too_many_recipients(&self) -> bool {
        matches!(self.code, 452 | 552)
    }
}

impl fmt::Display for Reply {
    /// Writes the code and the text on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        for line in self.lines.iter().filter(|line| !line.trim().is_empty()) {
            write!(f, " {}", line.trim())?;
        }
        Ok(())
    }
}

/// Returns the code of a line, whether it is the last one, and its text.
fn parse(line: &str) -> Option<(u16, bool, &str)> {
    let (code, rest) = line.split_at_checked(3)?;
    if !code.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let code = code.parse().ok().filter(|code| (200..600).contains(code))?;
    match rest.as_bytes().first() {
        None => Some((code, true, "")),
        Some(b' ') => Some((code, true, rest.get(1..)?)),
        Some(b'-') => Some((code, false, rest.get(1..)?)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Reply, String> {
        let mut bytes = bytes;
        let read = Reply::read(&mut bytes);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(read).map_err(|error| error.to_string())
    }

    #[test]
    fn a_reply_has_one_or_several_lines() {
        let reply = read(b"250-mail.example.org\r\n250-SIZE 1000\r\n250 HELP\r\n").unwrap();
        assert_eq!((reply.code, reply.lines.len()), (250, 3));
        assert_eq!(reply.to_string(), "250 mail.example.org SIZE 1000 HELP");
        assert_eq!(read(b"250\r\n").unwrap().to_string(), "250");
        assert_eq!(read(b"451 4.7.1 gr\xc3\xbcn\n").unwrap().to_string(), "451 4.7.1 gr\u{fc}n");
    }

    #[test]
    fn text_that_is_not_a_reply_is_quoted_in_the_error() {
        let errors: Vec<String> = [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"25 ok\r\n",
            b"099 ok\r\n",
            b"250+ok\r\n",
            b"250-one\r\n251 two\r\n",
            b"250 no end",
            b"",
        ]
        .iter()
        .map(|bytes| read(bytes).unwrap_err())
        .collect();
        insta::assert_snapshot!(errors.join("\n"));
    }

    #[test]
    fn a_reply_without_an_end_is_refused_at_the_limit() {
        assert_eq!(read(&vec![b'2'; 1 << 20]).unwrap_err(), ReplyError::Line.to_string());
        assert_eq!(
            read(&b"250-x\r\n".repeat(MAX_LINES + 1)).unwrap_err(),
            ReplyError::Long.to_string()
        );
        let long = format!("250-{}\r\n", "x".repeat(MAX_LINE - 6));
        assert_eq!(
            read(&long.repeat(MAX_REPLY / MAX_LINE + 1).into_bytes()).unwrap_err(),
            ReplyError::Long.to_string()
        );
    }
}
