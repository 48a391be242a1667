//! One entry of the machines file: its columns, and how each version of Nix reads them.

use super::{COLUMNS, MachineLine, Reading, is_blank};

/// Parses one entry; the error is the index of the column that is wrong, and how.
pub(super) fn machine(
    entry: &[u8],
    reading: Reading,
    this_system: &str,
    differs: &mut bool,
) -> Result<MachineLine, (usize, String)> {
    let mut columns = [None; COLUMNS.len()];
    let words = entry.split(|byte| is_blank(*byte)).filter(|word| !word.is_empty());
    for (index, (column, word)) in columns.iter_mut().zip(words).enumerate() {
        let word = std::str::from_utf8(word)
            .map_err(|_| (index, "it is not UTF-8; write it in UTF-8".to_owned()))?;
        *column = Some(word).filter(|word| *word != "-");
    }
    let [uri, systems, ssh_key, max_jobs, speed_factor, supported, mandatory, host_key] = columns;
    let uri =
        uri.ok_or_else(|| (0, "a store URI is needed, such as `ssh://builder`".to_owned()))?;
    let as_before_2_4 = uri_before_2_4(uri);
    let uri = full_uri(uri);
    *differs |= uri != as_before_2_4;
    let max_jobs = match max_jobs {
        None => 1,
        Some(text) => text.parse().or_else(|_| {
            *differs = true;
            leading_number(text).filter(|_| !reading.strict).ok_or_else(|| {
                (
                    3,
                    format!(
                        "`{text}` is not a valid number of jobs; write a whole number such as `4`"
                    ),
                )
            })
        })?,
    };
    let speed_factor = match speed_factor {
        None => 1.0,
        Some(text) => factor(text).map_or_else(
            || {
                *differs = true;
                let number = leading_number(text).filter(|_| !reading.strict);
                number.map(|number| f64::from(number.max(1))).ok_or_else(|| {
                    let what =
                        "is not a valid speed factor; write a number greater than 0 such as `2`";
                    (4, format!("`{text}` {what}"))
                })
            },
            Ok,
        )?,
    };
    if host_key.is_some_and(|text| !is_base64(text)) {
        *differs = true;
        if reading.strict {
            let what = "it is not base64; write the output of `base64 -w0` on the machine's public host key";
            return Err((7, what.to_owned()));
        }
    }
    Ok(MachineLine {
        uri: if reading.bare_hosts { uri } else { as_before_2_4 },
        systems: systems.map_or_else(|| vec![this_system.to_owned()], list),
        ssh_key: ssh_key.map(str::to_owned),
        max_jobs,
        speed_factor,
        supported_features: set(supported),
        mandatory_features: set(mandatory),
        host_key: host_key.map(str::to_owned),
    })
}

/// The elements of a list, which commas separate.
fn list(text: &str) -> Vec<String> {
    text.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The elements of a list, sorted, each once.
fn set(text: Option<&str>) -> Vec<String> {
    let mut words = list(text.unwrap_or_default());
    words.sort_unstable();
    words.dedup();
    words
}

/// `speedFactor` as Nix reads it, in single precision: never negative; 0 counts as 1. What is not a
/// finite number stays comparable.
pub(super) fn factor(text: &str) -> Option<f64> {
    let factor: f64 = text.parse().ok()?;
    #[expect(clippy::cast_possible_truncation, reason = "the precision of Nix")]
    let as_nix = factor as f32;
    match as_nix {
        0.0 => Some(1.0),
        nan if nan.is_nan() => Some(1.0),
        infinite if infinite == f32::INFINITY => Some(f64::from(f32::MAX)),
        positive if positive > 0.0 => Some(factor),
        _ => None,
    }
}

/// `std::stoull`, cut to an `unsigned int`: what is behind the digits is not looked at.
fn leading_number(text: &str) -> Option<u32> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = digits.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
    let number: u64 = digits.get(..end)?.parse().ok()?;
    let number = if negative { number.wrapping_neg() } else { number };
    #[expect(clippy::cast_possible_truncation, reason = "what the C++ does")]
    let number = number as u32;
    Some(number)
}

/// Nix's own decoder: what follows the first `=` is not looked at, and neither is the length.
fn is_base64(text: &str) -> bool {
    let mut code = text.bytes().take_while(|byte| *byte != b'=');
    code.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
}

/// A URI without a scheme that is neither a path nor one of Nix's words is a host name.
pub fn full_uri(uri: &str) -> String {
    let word = uri.split_once('?').map_or(uri, |(word, _)| word);
    if uri.contains('/') || matches!(word, "auto" | "daemon" | "local" | "") {
        uri.to_owned()
    } else {
        format!("ssh://{uri}")
    }
}

/// The same in Nix 2.3.
fn uri_before_2_4(uri: &str) -> String {
    let as_it_is = ["local", "remote", "auto", "/"].iter().any(|start| uri.starts_with(start));
    if as_it_is || uri.contains("://") { uri.to_owned() } else { format!("ssh://{uri}") }
}
