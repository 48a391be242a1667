//! Integers, strings and lists as Nix writes them between its processes (`libutil/serialise.cc`,
//! unchanged from 2.3 to 2.35): an integer is 8 bytes, little endian; a string is its length, its
//! bytes, and zero bytes up to a multiple of 8; a list is its count and that many strings.
//!
//! The other process may end, or be replaced, at any byte. So every length is limited, memory grows
//! only with bytes that have arrived, and every failure is an error value.

use std::io::{self, Read, Write};

/// The unit of lengths and padding.
const WORD: usize = 8;
/// The longest string. Settings such as `trusted-users` are short, but Nix has no limit for
/// `builders`.
pub const MAX_STRING: u64 = 16 << 20;
/// The maximum total size of a list, and of all settings, in bytes. The closure of a system's
/// inputs has a few MiB.
pub const MAX_TOTAL: u64 = 16 << 20;
/// The maximum number of strings in a list: the inputs of one derivation, of which the largest
/// known closures have about 100,000.
pub const MAX_LIST: u64 = 4 << 20;
/// The number of bytes that are read at once, so that a length alone allocates nothing.
const CHUNK: u64 = 64 << 10;

/// The reason why a value could not be read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The other side closed the stream within a value.
    #[error("the stream ended inside {0}")]
    Eof(&'static str),
    /// The stream cannot be read.
    #[error("cannot read {what}: {source}")]
    Io {
        /// The value that was being read.
        what: &'static str,
        /// The error of the system.
        source: io::Error,
    },
    /// A length or count over its limit: the other side is not Nix, or the stream is out of step.
    #[error("{what} has length {length}, more than the limit of {cap}")]
    TooLong {
        /// The value that was being read.
        what: &'static str,
        /// The length.
        length: u64,
        /// The limit.
        cap: u64,
    },
    /// Padding that is not zero: the stream is out of step.
    #[error("{0} is padded with bytes that are not zero")]
    Padding(&'static str),
}

/// Reads an integer; `None` if the stream ended before its first byte.
///
/// # Errors
/// The stream ends within it or cannot be read.
pub fn read_u64_or_eof(from: &mut impl Read, what: &'static str) -> Result<Option<u64>, WireError> {
    let mut bytes = [0; WORD];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(WireError::Eof(what)),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(WireError::Io { what, source }),
        }
    }
    Ok(Some(u64::from_le_bytes(bytes)))
}

/// Reads an integer.
///
/// # Errors
/// The stream ends before or within it, or cannot be read.
pub fn read_u64(from: &mut impl Read, what: &'static str) -> Result<u64, WireError> {
    read_u64_or_eof(from, what)?.ok_or(WireError::Eof(what))
}

/// Reads a string; `None` if the stream ended before its first byte.
///
/// # Errors
/// The stream ends within it, the length is over [`MAX_STRING`], or the padding is not zero.
pub fn read_bytes_or_eof(
    from: &mut impl Read,
    what: &'static str,
) -> Result<Option<Vec<u8>>, WireError> {
    let Some(length) = read_u64_or_eof(from, what)? else { return Ok(None) };
    if length > MAX_STRING {
        return Err(WireError::TooLong { what, length, cap: MAX_STRING });
    }
    let padded = length.next_multiple_of(WORD as u64);
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < padded {
        let chunk = (padded - bytes.len() as u64).min(CHUNK);
        let before = bytes.len() as u64;
        from.take(chunk)
            .read_to_end(&mut bytes)
            .map_err(|source| WireError::Io { what, source })?;
        if bytes.len() as u64 == before {
            return Err(WireError::Eof(what));
        }
    }
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if bytes.iter().skip(length).any(|byte| *byte != 0) {
        return Err(WireError::Padding(what));
    }
    bytes.truncate(length);
    Ok(Some(bytes))
}

/// Reads a string.
///
/// # Errors
/// As for [`read_bytes_or_eof`], or the stream ends before it.
pub fn read_bytes(from: &mut impl Read, what: &'static str) -> Result<Vec<u8>, WireError> {
    read_bytes_or_eof(from, what)?.ok_or(WireError::Eof(what))
}

/// Reads a list of strings.
///
/// # Errors
/// As for [`read_bytes`], or the count is over [`MAX_LIST`].
pub fn read_list(from: &mut impl Read, what: &'static str) -> Result<Vec<Vec<u8>>, WireError> {
    let count = read_u64(from, what)?;
    if count > MAX_LIST {
        return Err(WireError::TooLong { what, length: count, cap: MAX_LIST });
    }
    let (mut list, mut total) = (Vec::new(), 0);
    for _ in 0..count {
        let bytes = read_bytes(from, what)?;
        add_to(&mut total, &bytes, what)?;
        list.push(bytes);
    }
    Ok(list)
}

/// Adds a string to the total number of bytes that were read.
///
/// # Errors
/// The total is more than [`MAX_TOTAL`].
pub fn add_to(total: &mut u64, bytes: &[u8], what: &'static str) -> Result<(), WireError> {
    *total = total.saturating_add(bytes.len() as u64);
    if *total > MAX_TOTAL {
        return Err(WireError::TooLong { what, length: *total, cap: MAX_TOTAL });
    }
    Ok(())
}

/// Writes an integer.
///
/// # Errors
/// `to` cannot be written.
pub fn write_u64(to: &mut impl Write, value: u64) -> io::Result<()> {
    to.write_all(&value.to_le_bytes())
}

/// Writes a string.
///
/// # Errors
/// `to` cannot be written.
pub fn write_bytes(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    write_u64(to, bytes.len() as u64)?;
    to.write_all(bytes)?;
    let padding = bytes.len().next_multiple_of(WORD) - bytes.len();
    to.write_all([0; WORD].get(..padding).unwrap_or_default())
}

/// Writes a list of strings.
///
/// # Errors
/// `to` cannot be written.
pub fn write_list<S: AsRef<[u8]>>(to: &mut impl Write, list: &[S]) -> io::Result<()> {
    write_u64(to, list.len() as u64)?;
    list.iter().try_for_each(|bytes| write_bytes(to, bytes.as_ref()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_messages_are_decoded() {
        let mut out = Vec::new();
        write_bytes(&mut out, b"try").unwrap();
        write_u64(&mut out, 1).unwrap();
        assert_eq!(out, b"\x03\0\0\0\0\0\0\0try\0\0\0\0\0\x01\0\0\0\0\0\0\0");
        let mut out = Vec::new();
        write_bytes(&mut out, b"12345678").unwrap();
        assert_eq!(out.len(), 16, "no padding where none is needed");
    }

    #[test]
    fn lengths_are_capped_before_anything_is_allocated() {
        let mut huge = u64::MAX.to_le_bytes().to_vec();
        huge.extend_from_slice(b"abc");
        insta::assert_snapshot!(read_bytes(&mut huge.as_slice(), "a setting").unwrap_err(), @"a setting has length 18446744073709551615, more than the limit of 16777216");
        insta::assert_snapshot!(read_list(&mut huge.as_slice(), "the inputs").unwrap_err(), @"the inputs has length 18446744073709551615, more than the limit of 4194304");
        let short = MAX_STRING.to_le_bytes();
        insta::assert_snapshot!(read_bytes(&mut short.as_slice(), "a setting").unwrap_err(), @"the stream ended inside a setting");
    }

    #[test]
    fn padding_is_checked() {
        let bytes = b"\x03\0\0\0\0\0\0\0try\0\0x\0\0";
        insta::assert_snapshot!(read_bytes(&mut bytes.as_slice(), "the request").unwrap_err(), @"the request is padded with bytes that are not zero");
    }

    proptest! {
        #[test]
        fn written_values_are_read_back(list in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8), number: u64) {
            let mut out = Vec::new();
            write_list(&mut out, &list).unwrap();
            write_u64(&mut out, number).unwrap();
            let mut from = out.as_slice();
            prop_assert_eq!(read_list(&mut from, "list").unwrap(), list.clone());
            prop_assert_eq!(read_u64(&mut from, "number").unwrap(), number);
            prop_assert!(from.is_empty());
            for cut in 0..out.len() - 8 {
                prop_assert!(matches!(read_list(&mut &out[..cut], "list"), Err(WireError::Eof("list"))));
            }
        }

        #[test]
        fn random_bytes_never_panic_and_reencode(bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(1u8), any::<u8>()], 0..200)) {
            let mut from = bytes.as_slice();
            if let Ok(list) = read_list(&mut from, "list") {
                let mut out = Vec::new();
                write_list(&mut out, &list).unwrap();
                prop_assert_eq!(out.as_slice(), &bytes[..bytes.len() - from.len()]);
            }
        }
    }

    #[test]
    fn a_list_of_long_strings_is_refused() {
        let count = MAX_TOTAL / MAX_STRING + 1;
        let mut bytes = Vec::new();
        write_u64(&mut bytes, count).unwrap();
        let long = vec![b'f'; usize::try_from(MAX_STRING).unwrap()];
        (0..count).for_each(|_| write_bytes(&mut bytes, &long).unwrap());
        assert!(matches!(
            read_list(&mut bytes.as_slice(), "the features"),
            Err(WireError::TooLong { cap: MAX_TOTAL, .. })
        ));
    }
}
