//! The format of a spool file: one line with version and checksum, then the event as JSON.
//!
//! The checksum distinguishes a whole file from one that a crash cut short. The hook renames first
//! and syncs once (see [`super::spool`]), so after a power failure a file may have its name without
//! its contents. The checksum is not a signature; the file's owner decides whether it is accepted
//! ([`super::trust`]).

use sha2::{Digest as _, Sha256};

use hookrun_nix::event::{Event, FORMAT};

/// The version in the first line.
const VERSION: &str = "1";
/// The first word of a spool file.
const MAGIC: &str = "hookrun-event";

/// The largest spool file that is read. The largest one that hooks write is less than 3 MiB: 100
/// differences with the longest paths.
pub const MAX_SIZE: u64 = 4 << 20;

/// The reason why a file is not an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// The first line is missing or malformed.
    #[error("it does not begin with `{MAGIC} {VERSION} sha256:...`")]
    Header,
    /// A later release wrote the file.
    #[error(
        "it has version {0}, but this hookrun reads version {VERSION}; install the newer hookrun that wrote it"
    )]
    Version(String),
    /// The file was truncated or changed.
    #[error(
        "its checksum is wrong; it was truncated by a crash before the hook returned, or changed"
    )]
    Checksum,
    /// The contents are not an event.
    #[error("it does not contain an event ({0})")]
    Json(String),
    /// A later release wrote the event.
    #[error(
        "its event has format {0}, but this hookrun reads format {FORMAT}; install the newer hookrun that wrote it"
    )]
    Format(u32),
}

/// Returns the bytes of a spool file.
///
/// # Errors
/// The event cannot be written as JSON, because a directory is not UTF-8.
pub fn seal(event: &Event) -> Result<Vec<u8>, serde_json::Error> {
    let json = serde_json::to_vec(event)?;
    let mut bytes = format!("{MAGIC} {VERSION} sha256:{}\n", digest(&json)).into_bytes();
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

/// Returns the event in the bytes of a spool file.
///
/// # Errors
/// The bytes are not an event, for the returned reason.
pub fn open(bytes: &[u8]) -> Result<Event, EnvelopeError> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(EnvelopeError::Header)?;
    let (header, json) = bytes.split_at(end);
    let json = json.get(1..).unwrap_or_default();
    let header = std::str::from_utf8(header).map_err(|_| EnvelopeError::Header)?;
    let checksum = match header.split(' ').collect::<Vec<_>>().as_slice() {
        [MAGIC, VERSION, checksum] => *checksum,
        [MAGIC, version, ..] if *version != VERSION => {
            return Err(EnvelopeError::Version((*version).chars().take(20).collect()));
        }
        _ => return Err(EnvelopeError::Header),
    };
    if checksum.strip_prefix("sha256:") != Some(&digest(json)) {
        return Err(EnvelopeError::Checksum);
    }
    // The format is checked first, because an event of a later format may have other fields.
    let wrong = |error: serde_json::Error| EnvelopeError::Json(error.to_string());
    let Versioned { format } = serde_json::from_slice(json).map_err(wrong)?;
    if format != FORMAT {
        return Err(EnvelopeError::Format(format));
    }
    serde_json::from_slice(json).map_err(wrong)
}

/// The fields that an event of every release has.
#[derive(serde::Deserialize)]
struct Versioned {
    format: u32,
}

/// Returns the SHA-256 in hexadecimal.
pub(super) fn digest(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tests::post_build;

    #[test]
    fn an_event_is_read_back_and_a_damaged_file_is_refused() {
        let event = post_build("hello-1.0");
        let sealed = seal(&event).unwrap();
        assert_eq!(open(&sealed), Ok(event.clone()));
        let text = String::from_utf8(sealed.clone()).unwrap();
        let error = |text: &str| open(text.as_bytes()).unwrap_err().to_string();
        insta::assert_snapshot!(error(""), @"it does not begin with `hookrun-event 1 sha256:...`");
        insta::assert_snapshot!(error(&text.replace("event 1 ", "event 2 ")), @"it has version 2, but this hookrun reads version 1; install the newer hookrun that wrote it");
        insta::assert_snapshot!(error(&text.replace("hello", "hellp")), @"its checksum is wrong; it was truncated by a crash before the hook returned, or changed");
        let later = seal(&Event { format: 7, ..event }).unwrap();
        insta::assert_snapshot!(open(&later).unwrap_err(), @"its event has format 7, but this hookrun reads format 1; install the newer hookrun that wrote it");
    }

    proptest! {
        #[test]
        fn a_truncated_file_is_recognised(at in any::<prop::sample::Index>()) {
            let sealed = seal(&post_build("hello-1.0")).unwrap();
            prop_assert!(open(&sealed[..at.index(sealed.len())]).is_err());
        }

        #[test]
        fn the_reader_refuses_any_bytes_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(open(&bytes).is_err());
        }
    }
}
