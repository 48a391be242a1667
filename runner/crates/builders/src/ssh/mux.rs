//! A client of a shared ssh connection: OpenSSH's multiplexing protocol, version 4, unchanged since
//! OpenSSH 5.4 (`PROTOCOL.mux`, `mux.c`).
//!
//! ssh itself cannot be the client: it does not run `LocalCommand` for a shared session, although
//! Nix waits for its output, and it waits without limit for a connection that hangs. This client
//! has time limits, and reports when the session is open.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage};

const HELLO: u32 = 1;
const VERSION: u32 = 4;
const NEW_SESSION: u32 = 0x1000_0002;
const PERMISSION_DENIED: u32 = 0x8000_0002;
const FAILURE: u32 = 0x8000_0003;
const EXIT_MESSAGE: u32 = 0x8000_0004;
const SESSION_OPENED: u32 = 0x8000_0006;
/// The value for "no escape character" (`mux.c`).
const NO_ESCAPE: u32 = u32::MAX;
/// The number of the only request that this client sends.
const REQUEST: u32 = 1;
/// The length of the longest packet that is read. The longest useful one contains a reason.
const MAX_PACKET: u32 = 256 << 10;

/// The reason why there is no session.
#[derive(Debug, thiserror::Error)]
pub(super) enum MuxError {
    /// The connection works but accepts no further session (`MaxSessions` of its sshd,
    /// `sshd_config(5)`).
    #[error("no further session over this connection ({0})")]
    Refused(String),
    /// The master does not answer in time, or uses another protocol.
    #[error("{0}")]
    Io(#[from] io::Error),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Session<'a> {
    pub command: &'a [u8],
    /// Variables as `NAME=value`.
    pub environment: &'a [Vec<u8>],
}

/// A client after the exchange of greetings.
#[derive(Debug)]
pub(super) struct Client {
    stream: UnixStream,
}

/// A reply of a master.
#[derive(Debug, PartialEq, Eq)]
enum MuxReply {
    Hello(u32),
    Opened,
    No(String),
    Exit(u32),
    Other,
}

impl Client {
    /// Connects to the socket of a master, which must send its greeting within this time.
    ///
    /// # Errors
    /// No master listens, or it does not answer in this protocol.
    pub(super) fn connect(socket: &Path, patience: Duration) -> io::Result<Self> {
        let mut client = Self { stream: UnixStream::connect(socket)? };
        let until = Instant::now() + patience;
        client.send(&packet(HELLO, |out| put_u32(out, VERSION)))?;
        match client.receive(Some(until))? {
            Some(MuxReply::Hello(VERSION)) => Ok(client),
            other => {
                Err(io::Error::other(format!("not a greeting of version {VERSION} ({other:?})")))
            }
        }
    }

    /// Opens a session with these three streams, within this time.
    ///
    /// # Errors
    /// The session is refused, or there is no answer in time, in which case the connection may be
    /// dead.
    pub(super) fn open(
        mut self,
        session: Session<'_>,
        streams: [BorrowedFd<'_>; 3],
        patience: Duration,
    ) -> Result<OpenSession, MuxError> {
        let until = Instant::now() + patience;
        self.send(&request(session))?;
        for stream in streams {
            self.send_fd(stream)?;
        }
        loop {
            match self.receive(Some(until))? {
                Some(MuxReply::Opened) => return Ok(OpenSession { client: self }),
                Some(MuxReply::No(why)) => return Err(MuxError::Refused(why)),
                Some(_) => {}
                None => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            }
        }
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        self.stream.write_all(packet)
    }

    fn send_fd(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let fds = [fd];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        // One byte with each, as `mm_send_fd` of OpenSSH's monitor_fdpass.c.
        rustix::net::sendmsg(
            &self.stream,
            &[IoSlice::new(&[0])],
            &mut control,
            hookrun_system::descriptor::NO_SIGNAL,
        )?;
        Ok(())
    }

    fn receive(&mut self, until: Option<Instant>) -> io::Result<Option<MuxReply>> {
        let mut length = [0; 4];
        if !self.read(&mut length, until)? {
            return Ok(None);
        }
        let length = u32::from_be_bytes(length);
        if length > MAX_PACKET {
            return Err(io::Error::other(format!("a packet of {length} bytes")));
        }
        let mut packet = vec![0; usize::try_from(length).unwrap_or_default()];
        if !self.read(&mut packet, until)? {
            return Ok(None);
        }
        Ok(Some(understand(&packet)))
    }

    /// Fills `buffer`. Returns `false` if the stream has ended.
    fn read(&mut self, mut buffer: &mut [u8], until: Option<Instant>) -> io::Result<bool> {
        while !buffer.is_empty() {
            let left = match until.map(|until| until.checked_duration_since(Instant::now())) {
                None => None,
                // Zero would mean no limit.
                Some(Some(left)) if !left.is_zero() => Some(left),
                Some(_) => return Err(io::ErrorKind::TimedOut.into()),
            };
            self.stream.set_read_timeout(left)?;
            match self.stream.read(buffer) {
                Ok(0) => return Ok(false),
                Ok(count) => buffer = buffer.get_mut(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// An open session. The master closes it when this is dropped or its process dies.
#[derive(Debug)]
pub(super) struct OpenSession {
    client: Client,
}

impl OpenSession {
    /// Waits for its end. Returns the exit code of the command, if there is one.
    pub(super) fn wait(mut self) -> Option<u32> {
        let mut code = None;
        // The code arrives before the last output is written, and the end of the stream after it.
        while let Ok(Some(said)) = self.client.receive(None) {
            if let MuxReply::Exit(number) = said {
                code = Some(number);
            }
        }
        code
    }
}

fn put_u32(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_be_bytes());
}

fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    // Texts from arguments and the environment are much shorter (ARG_MAX).
    put_u32(out, u32::try_from(text.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(text);
}

/// Makes a packet: its length, its type, and the data that `fill` adds.
fn packet(kind: u32, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut body = Vec::new();
    put_u32(&mut body, kind);
    fill(&mut body);
    let mut packet = Vec::new();
    put_string(&mut packet, &body);
    packet
}

fn request(Session { command, environment }: Session<'_>) -> Vec<u8> {
    packet(NEW_SESSION, |out| {
        put_u32(out, REQUEST);
        put_string(out, b"");
        // No terminal, no X11, no agent, no subsystem.
        for _ in 0..4 {
            put_u32(out, 0);
        }
        put_u32(out, NO_ESCAPE);
        // The terminal's name.
        put_string(out, b"");
        put_string(out, command);
        for assignment in environment {
            put_string(out, assignment);
        }
    })
}

fn understand(packet: &[u8]) -> MuxReply {
    let mut rest = packet;
    let mut number = || {
        let (number, after) = rest.split_first_chunk::<4>()?;
        rest = after;
        Some(u32::from_be_bytes(*number))
    };
    let said = match number() {
        Some(HELLO) => number().map(MuxReply::Hello),
        Some(SESSION_OPENED) => number().map(|_| MuxReply::Opened),
        Some(EXIT_MESSAGE) => number().and_then(|_| number()).map(MuxReply::Exit),
        Some(PERMISSION_DENIED | FAILURE) => {
            let (_, length) = (number(), number().unwrap_or(0));
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            Some(MuxReply::No(
                String::from_utf8_lossy(rest.get(..length).unwrap_or(rest)).into_owned(),
            ))
        }
        _ => None,
    };
    said.unwrap_or(MuxReply::Other)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixListener;

    use proptest::prelude::*;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_mins(1);

    /// Returns a master that answers each packet with the next of `answers`, then closes. Its
    /// result is the received data.
    fn master(
        answers: Vec<Vec<u8>>,
        closes: bool,
    ) -> (tempfile::TempDir, std::path::PathBuf, std::thread::JoinHandle<Vec<u8>>) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let serve = move || {
            let (mut stream, _) = listener.accept().unwrap();
            for answer in answers {
                stream.write_all(&answer).unwrap();
            }
            let mut read = Vec::new();
            if closes {
                stream.shutdown(std::net::Shutdown::Write).unwrap();
            }
            // A client that has received enough resets the connection.
            let _ = stream.read_to_end(&mut read);
            read
        };
        (directory, socket, std::thread::spawn(serve))
    }

    fn hello() -> Vec<u8> {
        packet(HELLO, |out| put_u32(out, VERSION))
    }

    fn run(answers: Vec<Vec<u8>>, closes: bool) -> (Result<Option<u32>, String>, Vec<u8>) {
        let (_directory, socket, master) = master(answers, closes);
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let session = Session { command: b"true", environment: &[b"A=b".to_vec()] };
        let ran = Client::connect(&socket, SHORT).map_err(MuxError::from).and_then(|client| {
            let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
            client.open(session, streams, if closes { LONG } else { SHORT })
        });
        let ran = ran.map(OpenSession::wait).map_err(|error| error.to_string());
        (ran, master.join().unwrap())
    }

    #[test]
    fn a_session_returns_the_exit_code_of_its_command() {
        let opened = packet(SESSION_OPENED, |out| {
            for number in [REQUEST, 7] {
                put_u32(out, number);
            }
        });
        let exit =
            packet(EXIT_MESSAGE, |out| [7, 3].iter().for_each(|number| put_u32(out, *number)));
        let (ran, read) = run(vec![hello(), opened, exit], true);
        assert_eq!(ran, Ok(Some(3)));
        let mut expected = hello();
        expected.extend(request(Session { command: b"true", environment: &[b"A=b".to_vec()] }));
        // One byte for each descriptor.
        expected.extend([0; 3]);
        assert_eq!(read, expected);
    }

    #[test]
    fn a_master_that_refuses_or_is_silent_or_uses_another_protocol_is_an_error() {
        let refusal = packet(FAILURE, |out| {
            put_u32(out, REQUEST);
            put_string(out, b"Session open refused by peer");
        });
        let (ran, _) = run(vec![hello(), refusal], true);
        assert_eq!(
            ran,
            Err("no further session over this connection (Session open refused by peer)".to_owned())
        );
        assert_eq!(run(vec![hello()], false).0, Err("timed out".to_owned()));
        assert_eq!(run(vec![], false).0, Err("timed out".to_owned()));
        assert!(run(vec![hello()], true).0.unwrap_err().contains("end of file"));
        assert!(
            run(vec![packet(HELLO, |out| put_u32(out, 5))], true)
                .0
                .unwrap_err()
                .contains("not a greeting")
        );
        assert!(
            run(vec![vec![0xff; 8]], true).0.unwrap_err().contains("a packet of 4294967295 bytes")
        );
    }

    proptest! {
        #[test]
        fn any_packet_is_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64), kind in 0_u32..12) {
            let _ = understand(&bytes);
            let mut packet = (0x8000_0000 | kind).to_be_bytes().to_vec();
            packet.extend(bytes);
            let _ = understand(&packet);
        }
    }
}
