//! Messages on a pipe: the length in four bytes, little-endian, then JSON. Both ends are hookrun of
//! the same build.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The maximum length of a message. Events, and reports of runs with all log lines, are far
/// shorter.
const MAX: usize = 64 << 20;

/// The number of bytes that are read from a pipe at once, which is its capacity (pipe(7)). With
/// many short runs each read returns several messages.
pub(super) const BUFFER: usize = 64 << 10;

fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    let prefix =
        u32::try_from(length).ok().filter(|_| length <= MAX).ok_or_else(|| too_long(length))?;
    bytes.splice(0..4, prefix.to_le_bytes());
    Ok(bytes)
}

/// A message longer than [`MAX`]. None of it was sent, so the pipe can still be used.
#[derive(Debug, thiserror::Error)]
#[error("a message has {0} bytes, more than the limit of {MAX}")]
struct TooLong(usize);

fn too_long(length: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, TooLong(length))
}

/// Returns whether this is the error of a message that is too long to be sent.
pub(super) fn is_too_long(error: &io::Error) -> bool {
    matches!(error.get_ref(), Some(error) if error.is::<TooLong>())
}

/// Sends one message.
pub(super) fn write(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    to.write_all(&encode(message)?)?;
    to.flush()
}

/// Receives one message; returns none at the end.
pub(super) fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut prefix = [0; 4];
    match from.read_exact(&mut prefix) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let mut body = vec![0; checked(prefix)?];
    from.read_exact(&mut body)?;
    Ok(Some(serde_json::from_slice(&body)?))
}

/// Like [`write()`], asynchronously.
pub(super) async fn send(
    to: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> io::Result<()> {
    to.write_all(&encode(message)?).await?;
    to.flush().await
}

/// Like [`read()`], asynchronously.
pub(super) async fn receive<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    let mut prefix = [0; 4];
    match from.read_exact(&mut prefix).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let mut body = vec![0; checked(prefix)?];
    from.read_exact(&mut body).await?;
    Ok(Some(serde_json::from_slice(&body)?))
}

fn checked(prefix: [u8; 4]) -> io::Result<usize> {
    let length = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    if length > MAX { Err(too_long(length)) } else { Ok(length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let mut pipe = Vec::new();
        write(&mut pipe, &"one").unwrap();
        write(&mut pipe, &vec![1, 2]).unwrap();
        let mut from = pipe.as_slice();
        assert_eq!(read::<String>(&mut from).unwrap().as_deref(), Some("one"));
        assert_eq!(read::<Vec<u8>>(&mut from).unwrap(), Some(vec![1, 2]));
        assert_eq!(read::<String>(&mut from).unwrap(), None);
    }

    #[test]
    fn a_truncated_or_oversized_message_is_an_error() {
        let mut pipe = Vec::new();
        write(&mut pipe, &"message").unwrap();
        assert!(read::<String>(&mut &pipe[..pipe.len() - 1]).is_err());
        assert!(read::<String>(&mut [255, 255, 255, 255, b'"'].as_slice()).is_err());
        assert!(read::<String>(&mut [1, 0, 0, 0, b'!'].as_slice()).is_err());
        let error = write(&mut pipe, &"x".repeat(MAX)).unwrap_err();
        assert!(is_too_long(&error), "{error}");
        assert!(!is_too_long(&io::Error::other("gone")));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes: Vec<u8>) {
            let _answered = read::<String>(&mut bytes.as_slice());
        }
    }
}
