//! One `try` of Nix: the derivation that it offers, and the data that Nix sends to the machine
//! after an accept.

use std::io::{self, Read, Write};

use hookrun_nix::event::derivation_name;
use hookrun_nix::selection::Candidate;
use hookrun_nix::wire::{self, WireError};

/// The word that begins a request.
const TRY: &[u8] = b"try";

/// The error of reading a request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The stream is malformed or ends early.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A word other than `try`.
    #[error("Nix sent `{0}` instead of `try`")]
    Word(String),
}

/// One `try`, stored so that it can be repeated byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    am_willing: u64,
    system: Vec<u8>,
    drv_path: Vec<u8>,
    required_features: Vec<Vec<u8>>,
}

impl Request {
    /// Reads a request; `None` if the stream ended before it.
    ///
    /// # Errors
    /// The stream is malformed or ends early.
    pub fn read(from: &mut impl Read) -> Result<Option<Self>, RequestError> {
        let Some(word) = wire::read_bytes_or_eof(from, "the request")? else { return Ok(None) };
        if word != TRY {
            return Err(RequestError::Word(
                String::from_utf8_lossy(&word).chars().take(40).collect(),
            ));
        }
        Ok(Some(Self {
            am_willing: wire::read_u64(from, "the request")?,
            system: wire::read_bytes(from, "the request's system")?,
            drv_path: wire::read_bytes(from, "the request's derivation")?,
            required_features: wire::read_list(from, "the request's features")?,
        }))
    }

    /// Writes the request again.
    ///
    /// # Errors
    /// `to` cannot be written.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        wire::write_bytes(to, TRY)?;
        wire::write_u64(to, self.am_willing)?;
        wire::write_bytes(to, &self.system)?;
        wire::write_bytes(to, &self.drv_path)?;
        wire::write_list(to, &self.required_features)
    }

    /// Returns whether this machine has a free slot.
    pub const fn am_willing(&self) -> bool {
        self.am_willing != 0
    }

    /// Returns the derivation as a policy gets it.
    pub fn candidate(&self) -> Candidate {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let drv_path = text(&self.drv_path);
        Candidate {
            name: derivation_name(&drv_path).to_owned(),
            drv_path,
            system: text(&self.system),
            required_features: self.required_features.iter().map(|feature| text(feature)).collect(),
            ..Candidate::default()
        }
    }
}

/// The data that Nix sends after an accept: the closure of the inputs, and the wanted outputs. It
/// is stored, so that it can be sent to a second machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs {
    paths: Vec<Vec<u8>>,
    wanted_outputs: Vec<Vec<u8>>,
}

impl Inputs {
    /// Reads the inputs.
    ///
    /// # Errors
    /// The stream is malformed or ends early.
    pub fn read(from: &mut impl Read) -> Result<Self, WireError> {
        Ok(Self {
            paths: wire::read_list(from, "the inputs")?,
            wanted_outputs: wire::read_list(from, "the wanted outputs")?,
        })
    }

    /// Writes the inputs again.
    ///
    /// # Errors
    /// `to` cannot be written.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        wire::write_list(to, &self.paths)?;
        wire::write_list(to, &self.wanted_outputs)
    }
}

#[cfg(test)]
impl Request {
    /// Returns a request for tests.
    pub(crate) fn of(name: &str, system: &str, features: &[&str], willing: bool) -> Self {
        Self {
            am_willing: u64::from(willing),
            system: system.as_bytes().to_vec(),
            drv_path: format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}.drv")
                .into_bytes(),
            required_features: features.iter().map(|feature| feature.as_bytes().to_vec()).collect(),
        }
    }
}

#[cfg(test)]
impl Inputs {
    /// Returns inputs for tests.
    pub(crate) fn of(paths: &[&str]) -> Self {
        let bytes = |text: &&str| text.as_bytes().to_vec();
        Self { paths: paths.iter().map(bytes).collect(), wanted_outputs: vec![b"out".to_vec()] }
    }
}
