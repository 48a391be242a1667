//! What Nix's own hook says after it has accepted: which of its words tell that the build failed,
//! which that its machine was lost. Pure; [`super::stock`] carries the bytes.
//!
//! The words are those of Nix 2.8 (seen) and 2.35 (read). `build-remote.cc` ends with `build of
//! '...' on '...' failed: ...` where the machine has told so, and with the exception of the
//! transport where it could not: `unexpected end-of-file` when the connection went, also while
//! inputs are copied. A build that is known to have failed is never tried again, and neither is one
//! whose end nobody understands: only where the connection demonstrably went, or the machine would
//! not build at all, is it moved.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;

/// What begins a message of a logger (`logging.cc`, `makeJSONLogger`).
const JSON: &[u8] = b"@nix ";
/// Longest JSON line that is looked into; a longer one is carried and nothing else.
const LONGEST: usize = 1 << 20;
/// Most errors held back.
const MOST_HELD: usize = 64;
/// `actCopyPath`.
const COPY_PATH: u64 = 100;
/// `resProgress`.
const PROGRESS: u64 = 105;
/// Ends of a connection, as the transports of Nix, ssh and Linux say it; lower case.
const LOST: [&str; 19] = [
    "unexpected end-of-file",
    "unexpected eof",
    "connection reset by peer",
    "connection refused",
    "connection timed out",
    "connection closed",
    "broken pipe",
    "no route to host",
    "network is unreachable",
    "host is down",
    "cannot open connection to remote store",
    "failed to start ssh",
    "cannot connect to",
    "disconnected unexpectedly",
    // What talks is not Nix, or no longer in step.
    "protocol mismatch",
    "serialised integer",
    "string is too long",
    "unknown message type",
    "corrupt daemon response",
];
/// The machine will not build for this user, or cannot build such a thing at all, whatever the
/// machines file says; lower case.
const REFUSED: [&str; 7] = [
    "you are not privileged to",
    "is required to build",
    "unable to start any build",
    // 2.29 to 2.33.
    "reason: required system or feature not available",
    // From 2.34 on.
    "reason: missing system features",
    "reason: platform mismatch",
    "reason: local builds are disabled",
];
/// The machine's disk is full, in the words of its own Nix (`strerror(3)`, SQLite); lower case.
const FULL: [&str; 3] =
    ["no space left on device", "database or disk is full", "disk quota exceeded"];
/// What tells the builder's words, which Nix repeats, from its own; lower case. A builder may fail
/// for a full disk of its own making.
const OF_BUILDER: [&str; 2] = ["exit code", "log lines"];

/// How a delegated build ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Well.
    Built,
    /// The build failed, or nobody knows better; why, a lower-case fragment.
    Failed(String),
    /// Its machine was lost, or would not build; why, a lower-case fragment.
    Lost(String),
    /// Nobody reads what we say to Nix.
    NixGone,
}

/// When things began.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Timing {
    /// The inputs are being copied.
    pub copying: Option<Instant>,
    /// They are there.
    pub started: Option<Instant>,
    /// The outputs are being copied back.
    pub built: Option<Instant>,
    /// Bytes copied to the machine.
    pub bytes: u64,
}

impl Timing {
    /// How long it was built, if that is known.
    pub fn building(&self) -> Option<Duration> {
        self.built?.checked_duration_since(self.started?)
    }

    /// Bytes a second that the inputs' copy reached.
    #[expect(clippy::cast_precision_loss, reason = "a speed need not be exact")]
    pub fn bytes_per_second(&self) -> Option<f64> {
        let seconds = self.started?.checked_duration_since(self.copying?)?.as_secs_f64();
        // Anything smaller is all latency.
        (self.bytes > 1 << 20 && seconds > 0.0).then(|| self.bytes as f64 / seconds)
    }
}

/// Listens to one build.
#[derive(Debug, Default)]
pub struct Listener {
    /// Errors, as plain text.
    errors: Vec<String>,
    /// The same as they came, kept back until it is known whether they matter.
    held: Vec<Vec<u8>>,
    /// Activities that were begun and not ended.
    open: BTreeSet<u64>,
    /// The one that copies the inputs.
    inputs: Option<u64>,
    /// Paths that are being copied to the machine, and how many bytes of them are there.
    copies: BTreeMap<u64, u64>,
    timing: Timing,
}

impl Listener {
    /// Hears a line. Is it to be passed on now?
    pub fn hear(&mut self, line: &[u8], now: Instant) -> bool {
        let Some(json) = line.strip_prefix(JSON).filter(|json| json.len() <= LONGEST) else {
            return true;
        };
        // Most lines are the log of a build that runs on the machine.
        if self.inputs.is_none() && contains(json, b"\"action\":\"result\"") {
            return true;
        }
        let Ok(message) = serde_json::from_slice::<Value>(json) else { return true };
        let number = |name: &str| message.get(name).and_then(Value::as_u64);
        let text = |name: &str| message.get(name).and_then(Value::as_str).unwrap_or_default();
        match (text("action"), number("id")) {
            ("start", Some(id)) => {
                self.open.insert(id);
                if text("text").starts_with("copying dependencies to ") {
                    self.inputs = Some(id);
                    self.timing.copying = Some(now);
                } else if text("text").starts_with("copying outputs from ") {
                    self.timing.built = Some(now);
                } else if self.inputs.is_some() && number("type") == Some(COPY_PATH) {
                    self.copies.insert(id, 0);
                }
                true
            }
            ("stop", Some(id)) => {
                self.open.remove(&id);
                if self.inputs == Some(id) {
                    self.inputs = None;
                    self.timing.started = Some(now);
                    self.timing.bytes = std::mem::take(&mut self.copies).values().sum();
                }
                true
            }
            ("result", Some(id)) => {
                let done = || message.get("fields")?.get(0)?.as_u64();
                if number("type") == Some(PROGRESS)
                    && let (Some(bytes), Some(done)) = (self.copies.get_mut(&id), done())
                {
                    *bytes = done;
                }
                true
            }
            ("msg", _) if number("level") == Some(0) => self.hear_error(line, &message),
            _ => true,
        }
    }

    /// An exception that ends the hook has `raw_msg`, or up to Nix 2.3 `error: ` in front; other
    /// messages of that level are the words of a remote daemon.
    fn hear_error(&mut self, line: &[u8], message: &Value) -> bool {
        let text = |name: &str| message.get(name).and_then(Value::as_str);
        let shown = text("msg").unwrap_or_default();
        let plain = plain(text("raw_msg").unwrap_or(shown));
        let is_exception = text("raw_msg").is_some()
            || super::speech::without_colours(shown).starts_with("error:");
        if !is_exception || self.held.len() >= MOST_HELD {
            return true;
        }
        self.errors.push(plain);
        self.held.push(line.to_vec());
        false
    }

    /// Errors that were kept back.
    pub fn held(&self) -> &[Vec<u8>] {
        &self.held
    }

    /// When things began.
    pub const fn timing(&self) -> Timing {
        self.timing
    }

    /// Ends activities that a lost hook has left open, so that nobody shows them for ever.
    pub fn close_activities(&mut self) -> Vec<u8> {
        let ids = std::mem::take(&mut self.open).into_iter().rev();
        ids.flat_map(|id| format!("@nix {{\"action\":\"stop\",\"id\":{id}}}\n").into_bytes())
            .collect()
    }

    /// What the end means: with `code`, or by a signal.
    pub fn ending(&self, code: Option<i32>) -> Ending {
        if code == Some(0) {
            return Ending::Built;
        }
        if let Some(failed) = self.errors.iter().find(|error| is_failed_build(error)) {
            let why =
                failed.split_once(" failed: ").map_or(failed.as_str(), |(_, why)| why).to_owned();
            let lost = says(&REFUSED, &why) || is_full(&why);
            return if lost { Ending::Lost(why) } else { Ending::Failed(why) };
        }
        let lost = self
            .errors
            .iter()
            .find(|error| says(&LOST, error) || says(&REFUSED, error) || is_full(error));
        match (lost, self.errors.first(), code) {
            (Some(lost), ..) => Ending::Lost(lost.clone()),
            (None, Some(error), _) => Ending::Failed(error.clone()),
            (None, None, None) => Ending::Lost("Nix's own build hook was killed".to_owned()),
            (None, None, Some(code)) => Ending::Failed(format!(
                "Nix's own build hook ended with code {code} without a word"
            )),
        }
    }
}

fn says(words: &[&str], error: &str) -> bool {
    let error = error.to_lowercase();
    words.iter().any(|words| error.contains(words))
}

/// Has the machine's Nix, and not what it built, found the disk full?
fn is_full(error: &str) -> bool {
    says(&FULL, error) && !says(&OF_BUILDER, error)
}

/// The words of `build-remote.cc` for a build that the machine says has failed.
fn is_failed_build(error: &str) -> bool {
    error.starts_with("build of '") && error.contains("' on '") && error.contains("' failed: ")
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).take(64).any(|window| window == part)
}

/// Without the sequences that colour (ECMA-48: ESC [ parameters, up to a letter).
pub(super) fn without_colours(text: &str) -> String {
    let mut bare = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            let _ = characters.by_ref().find(char::is_ascii_alphabetic);
        } else {
            bare.push(character);
        }
    }
    bare
}

/// A message of Nix as one plain line: without colours, line ends and the words that only repeat
/// which machine it is.
pub(super) fn plain(text: &str) -> String {
    let line = without_colours(text).split_whitespace().collect::<Vec<_>>().join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    let reason = line.strip_prefix("cannot build on '").and_then(|rest| rest.split_once("': "));
    let reason = reason.map_or(line, |(_, reason)| reason);
    reason.strip_prefix("error: ").unwrap_or(reason).to_owned()
}

#[cfg(test)]
mod tests;
