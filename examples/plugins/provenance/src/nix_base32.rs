//! Hashes as Nix writes them: in its own base32, with the last digit first.

const DIGITS: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
/// The number of bytes of SHA-256.
const BYTES: usize = 32;
/// The number of digits of a SHA-256.
const LENGTH: usize = 52;

/// Returns a hash like `sha256:1b8m...` in lower-case hexadecimal, without `sha256:`.
pub fn hex(hash: &str) -> Result<String, String> {
    let invalid = || format!("`{hash}` is not a SHA-256 in Nix's base32");
    let digits = hash.strip_prefix("sha256:").ok_or_else(invalid)?;
    if digits.len() != LENGTH {
        return Err(invalid());
    }
    let mut bytes = [0_u8; BYTES];
    for (number, digit) in digits.bytes().rev().enumerate() {
        let value = DIGITS.iter().position(|known| *known == digit).ok_or_else(invalid)?;
        let (byte, shift) = (number * 5 / 8, number * 5 % 8);
        let bits = (value << shift).to_le_bytes();
        bytes[byte] |= bits[0];
        match bytes.get_mut(byte + 1) {
            Some(next) => *next |= bits[1],
            None if bits[1] != 0 => return Err(invalid()),
            None => {}
        }
    }
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `nix-hash --type sha256 --to-base32 HEX` of these hashes.
    #[test]
    fn hashes_are_converted_as_nix_converts_them() {
        for (base32, expected) in [
            (
                "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ),
            (
                "sha256:1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s",
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
        ] {
            assert_eq!(hex(base32).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn other_texts_are_errors() {
        let long = format!("sha256:{}", "z".repeat(52));
        for text in [
            "",
            "sha256:",
            "sha1:0mdq",
            "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c7e",
            &long,
        ] {
            assert!(hex(text).is_err(), "{text}");
        }
    }
}
