//! Random secrets. Text of a [`Canary`] in any other place is a leak. This module has the forms of
//! a secret in the usual encodings, and searches files and the linear memories of guests in this
//! process.

use std::fmt::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use memchr::memmem::Finder;

/// wasmtime reserves 4 GiB for a linear memory by default (`Config::memory_reservation`), so unused
/// address space follows it. No other mapping in this process is followed by that much.
const LEAST_RESERVED: u64 = 2 << 30;

/// A secret of a test.
#[derive(Debug)]
pub struct Canary {
    /// The name for messages.
    pub name: String,
    /// The secret.
    pub secret: Vec<u8>,
    forms: Vec<(String, Finder<'static>)>,
}

/// Returns a random text of letters and digits with the length of a cloud secret. It contains
/// characters that encodings change.
///
/// # Panics
/// If there are no random numbers.
pub fn random_text() -> String {
    const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut bytes = [0; 40];
    std::fs::File::open("/dev/urandom").unwrap().read_exact_at(&mut bytes, 0).unwrap();
    let mut text: String = bytes
        .iter()
        .map(|byte| char::from(*LETTERS.get(usize::from(*byte) % LETTERS.len()).unwrap()))
        .collect();
    text.insert(13, '+');
    text.insert(26, '/');
    text
}

impl Canary {
    /// Creates a secret with this text.
    pub fn of(name: &str, secret: impl Into<Vec<u8>>) -> Self {
        let secret = secret.into();
        let forms = forms(&secret)
            .into_iter()
            .map(|(form, bytes)| (form, Finder::new(&bytes).into_owned()))
            .collect();
        Self { name: name.to_owned(), secret, forms }
    }

    /// Creates a random secret.
    pub fn random(name: &str) -> Self {
        Self::of(name, random_text())
    }

    /// Returns the secret as text.
    ///
    /// # Panics
    /// If it is not text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.secret).unwrap()
    }

    /// Returns the form in which `bytes` contain the secret.
    pub fn found_in(&self, bytes: &[u8]) -> Option<&str> {
        self.forms
            .iter()
            .find(|(_, finder)| finder.find(bytes).is_some())
            .map(|(form, _)| form.as_str())
    }
}

/// Returns the forms of `secret`: unchanged, and in the encodings of protocols and programs.
fn forms(secret: &[u8]) -> Vec<(String, Vec<u8>)> {
    let hex = |format: fn(u8) -> String| {
        secret.iter().map(|byte| format(*byte)).collect::<String>().into_bytes()
    };
    let mut forms = vec![
        ("raw".to_owned(), secret.to_vec()),
        ("hexadecimal".to_owned(), hex(|byte| format!("{byte:02x}"))),
        ("upper-case hexadecimal".to_owned(), hex(|byte| format!("{byte:02X}"))),
        ("percent-encoded whole".to_owned(), hex(|byte| format!("%{byte:02X}"))),
        (
            "as a list of numbers".to_owned(),
            secret.iter().map(u8::to_string).collect::<Vec<_>>().join(",").into_bytes(),
        ),
        (
            "as a spaced list of numbers".to_owned(),
            secret.iter().map(u8::to_string).collect::<Vec<_>>().join(", ").into_bytes(),
        ),
        ("reversed".to_owned(), secret.iter().rev().copied().collect()),
    ];
    let percent = secret.iter().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() {
            text.push(char::from(*byte));
        } else {
            write!(text, "%{byte:02X}").unwrap();
        }
        text
    });
    forms.push(("percent-encoded".to_owned(), percent.into_bytes()));
    // Three bytes become four characters, so there are three forms, depending on the text before
    // the secret.
    for skipped in 0..3 {
        let aligned = secret.get(skipped..).unwrap_or_default();
        let whole = aligned.get(..aligned.len() / 3 * 3).unwrap_or_default();
        forms.push((format!("base64 from byte {skipped}"), base64(whole, *b"+/")));
        forms.push((format!("base64url from byte {skipped}"), base64(whole, *b"-_")));
    }
    forms
}

/// Encodes a multiple of three bytes (RFC 4648 sections 4 and 5).
fn base64(bytes: &[u8], last: [u8; 2]) -> Vec<u8> {
    let letters =
        [&b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"[..], &last].concat();
    let letter = |value: u32| *letters.get(usize::try_from(value & 63).unwrap()).unwrap();
    bytes
        .chunks_exact(3)
        .flat_map(|three| {
            let word = three.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
            [letter(word >> 18), letter(word >> 12), letter(word >> 6), letter(word)]
        })
        .collect()
}

/// Returns the linear memories of the guests in this process.
///
/// # Panics
/// If the memory of the process cannot be read.
pub fn guest_memories() -> Vec<Vec<u8>> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let memory = std::fs::File::open("/proc/self/mem").unwrap();
    let mut found = Vec::new();
    // The writable mapping that ends here.
    let mut written: Option<std::ops::Range<u64>> = None;
    for line in maps.lines() {
        let mut words = line.split(' ');
        let (range, access) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (start, end) = range.split_once('-').unwrap();
        let (start, end) =
            (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        let before = written.take().filter(|before| before.end == start);
        if access.starts_with("rw") {
            written = Some(before.map_or(start, |before| before.start)..end);
        } else if let Some(before) = before
            && access.starts_with("---")
            && end - start >= LEAST_RESERVED
        {
            let mut bytes = vec![0; usize::try_from(before.end - before.start).unwrap()];
            memory.read_exact_at(&mut bytes, before.start).unwrap();
            found.push(bytes);
        }
    }
    found
}

/// Returns all files below `directory`, except for those below `without`.
///
/// # Panics
/// If a directory cannot be read.
pub fn files_below(directory: &Path, without: &[PathBuf]) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if without.contains(&path) {
                continue;
            }
            if kind.is_dir() {
                directories.push(path);
            } else if kind.is_file() {
                files.push(path);
            }
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_encoding_is_found_wherever_it_begins() {
        let canary = Canary::random("test");
        let secret = canary.text();
        assert_eq!(canary.found_in(b"nothing of it"), None);
        assert_eq!(canary.found_in(format!("x{secret}y").as_bytes()), Some("raw"));
        assert!(
            canary.found_in(secret.replace('+', "%2B").replace('/', "%2F").as_bytes()).is_some()
        );
        for prefix in ["", "a", "ab", "abc"] {
            let padded = format!("{prefix}{secret}");
            let whole = padded.get(..padded.len() / 3 * 3).unwrap();
            assert!(
                canary.found_in(&base64(whole.as_bytes(), *b"+/")).is_some(),
                "after `{prefix}`"
            );
        }
    }
}
