//! Attacks through WASI and the standard library, not through the interfaces of hookrun.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket};

use hookrun_sdk::{Failure, Outcome};

use crate::escaped;

fn refused(error: &std::io::Error) -> Failure {
    Failure::permanent(format!("refused: {error}"))
}

pub(crate) fn read(path: &str) -> Result<Outcome, Failure> {
    let text = std::fs::read(path).map_err(|error| refused(&error))?;
    escaped(format!("read {} bytes of {path}", text.len()))
}

pub(crate) fn write(path: &str) -> Result<Outcome, Failure> {
    std::fs::write(path, "hostile").map_err(|error| refused(&error))?;
    escaped(format!("wrote {path}"))
}

pub(crate) fn list(path: &str) -> Result<Outcome, Failure> {
    let entries = std::fs::read_dir(path).map_err(|error| refused(&error))?;
    escaped(format!("listed {} entries of {path}", entries.count()))
}

pub(crate) fn tcp(address: &str) -> Result<Outcome, Failure> {
    TcpStream::connect(address).map_err(|error| refused(&error))?;
    escaped(format!("connected to {address}"))
}

pub(crate) fn listen() -> Result<Outcome, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| refused(&error))?;
    escaped(format!("listens on {:?}", listener.local_addr()))
}

pub(crate) fn udp(address: &str) -> Result<Outcome, Failure> {
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(|error| refused(&error))?;
    let sent = socket.send_to(b"hostile", address).map_err(|error| refused(&error))?;
    escaped(format!("sent {sent} bytes to {address}"))
}

pub(crate) fn lookup(name: &str) -> Result<Outcome, Failure> {
    let addresses: Vec<_> =
        (name, 80).to_socket_addrs().map_err(|error| refused(&error))?.collect();
    escaped(format!("{name} is {addresses:?}"))
}

pub(crate) fn environment() -> Result<Outcome, Failure> {
    let names: Vec<String> = std::env::vars().map(|(name, _)| name).collect();
    if names.is_empty() { Ok(Outcome::new("no environment")) } else { escaped(names.join(" ")) }
}

pub(crate) fn arguments() -> Result<Outcome, Failure> {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.is_empty() {
        Ok(Outcome::new("no arguments"))
    } else {
        escaped(arguments.join(" "))
    }
}

pub(crate) fn stdin() -> Result<Outcome, Failure> {
    let mut text = Vec::new();
    let ended = std::io::stdin().read_to_end(&mut text);
    match (ended, text.len()) {
        (Ok(_), 0) => Ok(Outcome::new("standard input is empty")),
        (Err(error), 0) => Err(refused(&error)),
        (_, length) => escaped(format!("read {length} bytes of standard input")),
    }
}

/// A hash map needs 16 random bytes. This asks for a million times as many in one call.
pub(crate) fn random() -> Result<Outcome, Failure> {
    use std::collections::HashMap;
    let mut maps = Vec::new();
    for _ in 0..1_000_000 {
        maps.push(HashMap::<u8, u8>::new());
        maps.clear();
    }
    Ok(Outcome::new("a million hash maps"))
}
