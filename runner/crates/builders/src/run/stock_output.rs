//! Classifies the output of Nix's own hook after its accept: whether the build failed, its machine
//! was lost, or this machine has a problem. Pure; [`crate::run::stock`] carries the bytes.
//!
//! The stream contains messages of the hook, of the machine's Nix and of the build. Only those of
//! the hook count, and the protocol distinguishes them from the others:
//!
//! * The end is the exit status, and the exception that ended the hook. That is the last message of
//!   level 0 with `raw_msg`, which only a logger of the hook's own process writes (`logging.cc`,
//!   `logEI`); messages of a machine or a build do not have it. Nix 2.3 has no `raw_msg`: there it
//!   is the last message of level 0.
//! * The stage of the build follows from the activities of the hook. A build may begin only
//!   activities of one type, downloads (`handleJSONLogMessage`), and those of a machine have the
//!   number of another process in the upper half of their ids.
//! * The exception may quote the build's log at its end ("last 10 log lines:"): that part is cut.
//!
//! Only the fixed beginning of the exception counts, or the error text of a system call at its end
//! (`SysError`), because names and values in between are chosen by others. The texts are those of
//! Nix 2.8 (tested) and 2.35 (from its source).
//!
//! `build of '...' on '...' failed: ...` means that the machine has answered. A build that is known
//! to have failed is never tried again, and neither is one whose end is not understood. It is moved
//! only if the connection was demonstrably lost, or the machine refused to build. An error while
//! only this machine's store and state are in use is a problem of this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitStatus;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use hookrun_system::process::describe_end;
use rustix::io::Errno;
use serde_json::Value;

use crate::slots::slot_files::forms;

/// The prefix of a message of a logger (`logging.cc`, `makeJSONLogger`).
const JSON: &[u8] = b"@nix ";
/// The length of the longest JSON line that is parsed. Longer ones are only relayed.
const LONGEST: usize = 1 << 20;
/// The largest number of errors that are held back.
const MOST_HELD: usize = 64;
/// `actUnknown`, the type of the hook's own activities.
const UNKNOWN: u64 = 0;
/// `actCopyPath`.
const COPY_PATH: u64 = 100;
/// `resProgress`.
const PROGRESS: u64 = 105;
/// The beginnings, in lower case, of exceptions that mean the end of a connection, or a peer that
/// does not use Nix's protocol.
const LOST: [&str; 13] = [
    "unexpected end-of-file",
    "unexpected eof",
    "cannot open connection to remote store",
    "failed to start ssh",
    "cannot connect to",
    "nix daemon disconnected unexpectedly",
    "protocol mismatch",
    "'nix-store --serve' protocol mismatch",
    "unsupported 'nix-store --serve' protocol",
    "serialised integer",
    "string is too long",
    "got unknown message type",
    "corrupt daemon response",
];
/// Errors of system calls that mean the end of a connection.
const CONNECTION: [Errno; 11] = [
    Errno::PIPE,
    Errno::CONNRESET,
    Errno::CONNREFUSED,
    Errno::CONNABORTED,
    Errno::TIMEDOUT,
    Errno::HOSTUNREACH,
    Errno::HOSTDOWN,
    Errno::NETUNREACH,
    Errno::NETDOWN,
    Errno::NETRESET,
    Errno::NOTCONN,
];
/// Errors of system calls that mean a full disk.
const FULL: [Errno; 2] = [Errno::NOSPC, Errno::DQUOT];
/// Errors of system calls that mean a missing permission.
const FORBIDDEN: [Errno; 3] = [Errno::ACCESS, Errno::PERM, Errno::ROFS];
/// Messages of a machine that refuses to build for this user, or cannot build such a derivation,
/// whatever the machines file contains: the beginning, and a text that follows; in lower case.
const REFUSED: [(&str, &str); 7] = [
    ("you are not privileged to build", ""),
    ("unable to start any build", ""),
    // "a 'X' with features {..} is required to build '..', but I am a 'Y' with features {..}"
    ("a '", "' with features {"),
    // 2.29 to 2.33.
    ("cannot build '", "'. reason: required system or feature not available"),
    // From 2.34 on.
    ("cannot build '", "'. reason: missing system features"),
    ("cannot build '", "'. reason: platform mismatch"),
    ("cannot build '", "'. reason: local builds are disabled"),
];
/// Error texts of other systems (musl, macOS).
const ELSEWHERE: [(&str, Errno); 5] = [
    ("Operation timed out", Errno::TIMEDOUT),
    ("Host is unreachable", Errno::HOSTUNREACH),
    ("Network unreachable", Errno::NETUNREACH),
    ("Quota exceeded", Errno::DQUOT),
    ("Disc quota exceeded", Errno::DQUOT),
];
/// The error numbers of Linux.
const ERRNOS: std::ops::RangeInclusive<i32> = 1..=133;

/// The outcome of a delegated build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DelegationOutcome {
    /// The build succeeded.
    Built,
    /// The build failed, or ended in a way that is not understood, with the reason in lower case.
    Failed(String),
    /// The machine was lost, or refused to build, with the reason in lower case.
    Lost(String),
    /// This machine failed. The text continues "this machine", with the failed operation and the
    /// reason.
    Here(String),
    /// The Nix that called does not read replies any longer.
    NixGone,
}

/// The times at which stages began.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Timing {
    /// The start of copying the inputs.
    pub copying: Option<Instant>,
    /// The time when the machine had the inputs.
    pub started: Option<Instant>,
    /// The start of copying the outputs back.
    pub built: Option<Instant>,
    /// The number of bytes copied to the machine.
    pub bytes: u64,
}

impl Timing {
    /// Returns the duration of the build, if it is known.
    pub fn building(&self) -> Option<Duration> {
        self.built?.checked_duration_since(self.started?)
    }

    /// Returns the transfer rate of the inputs, in bytes per second.
    #[expect(clippy::cast_precision_loss, reason = "a speed need not be exact")]
    pub fn bytes_per_second(&self) -> Option<f64> {
        let seconds = self.started?.checked_duration_since(self.copying?)?.as_secs_f64();
        // For less data, the time is mostly latency.
        (self.bytes > 1 << 20 && seconds > 0.0).then(|| self.bytes as f64 / seconds)
    }
}

/// Classifies the output of one build.
#[derive(Debug, Default)]
pub struct OutputClassifier {
    /// The process id of the hook.
    process: u32,
    /// The names of the machine, in quotes.
    machine: Vec<String>,
    /// Exceptions, as plain text.
    errors: Vec<Exception>,
    /// Errors, unchanged, held back until it is known whether they matter.
    held: Vec<Vec<u8>>,
    /// Whether the outputs are being copied back, so that this machine writes.
    fetching: bool,
    /// Activities that were begun and not ended.
    open: BTreeSet<u64>,
    /// The activity that copies the inputs.
    inputs: Option<u64>,
    /// Paths that are being copied to the machine, and the number of bytes that it has of each.
    copies: BTreeMap<u64, u64>,
    timing: Timing,
}

/// An exception that may have ended the hook.
#[derive(Debug)]
struct Exception {
    /// Whether it is certainly from the hook.
    own: bool,
    text: String,
}

impl OutputClassifier {
    /// Returns a classifier for the hook with this process id, which builds on `machine`.
    pub fn of(process: u32, machine: &str) -> Self {
        let machine = forms(machine).into_iter().map(|form| format!("'{form}'")).collect();
        Self { process, machine, ..Self::default() }
    }

    /// Reads a line. Returns whether to pass it on now.
    pub fn line(&mut self, line: &[u8], now: Instant) -> bool {
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
                let own = number("type") == Some(UNKNOWN) && self.is_own(id, text("text"));
                if own && text("text").starts_with("copying dependencies to ") {
                    self.inputs = Some(id);
                    self.timing.copying = Some(now);
                } else if own && text("text").starts_with("copying outputs from ") {
                    self.fetching = true;
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
            ("msg", _) if number("level") == Some(0) => self.error_line(line, &message),
            _ => true,
        }
    }

    /// Returns whether this activity is one of the hook. Nix numbers them from its process id,
    /// shifted by 32 bits (`logging.cc`). If the hook was started by a script, which is another
    /// process, the text ends with the machine.
    fn is_own(&self, id: u64, text: &str) -> bool {
        id >> 32 == u64::from(self.process) || self.machine.iter().any(|name| text.ends_with(name))
    }

    fn error_line(&mut self, line: &[u8], message: &Value) -> bool {
        let text = |name: &str| message.get(name).and_then(Value::as_str);
        let own = text("raw_msg").is_some();
        let said = without_colours(text("raw_msg").or_else(|| text("msg")).unwrap_or_default());
        if (!own && !said.starts_with("error:")) || self.held.len() >= MOST_HELD {
            return true;
        }
        self.errors.push(Exception { own, text: plain(without_log(&said)) });
        self.held.push(line.to_vec());
        false
    }

    /// Returns the exception that ended the hook.
    fn exception(&self) -> Option<&str> {
        let own = self.errors.iter().rev().find(|error| error.own);
        own.or_else(|| self.errors.last()).map(|error| error.text.as_str())
    }

    /// Returns the errors that were held back.
    pub fn held(&self) -> &[Vec<u8>] {
        &self.held
    }

    /// Returns the time at which each stage began.
    pub const fn timing(&self) -> Timing {
        self.timing
    }

    /// Returns messages that end the activities of a lost hook.
    pub fn close_activities(&mut self) -> Vec<u8> {
        let ids = std::mem::take(&mut self.open).into_iter().rev();
        ids.flat_map(|id| format!("@nix {{\"action\":\"stop\",\"id\":{id}}}\n").into_bytes())
            .collect()
    }

    /// Returns the outcome for the end of the hook's process.
    pub fn ending(&self, status: ExitStatus) -> DelegationOutcome {
        if status.code().is_none() {
            return DelegationOutcome::Here(format!(
                "cannot continue, because Nix's own build hook ended with {status}"
            ));
        }
        if status.success() {
            return DelegationOutcome::Built;
        }
        let Some(error) = self.exception() else {
            return DelegationOutcome::Failed(format!(
                "Nix's own build hook {}",
                describe_end(status, "")
            ));
        };
        if let Some(why) = failed_build(error) {
            let lost = !is_failed_builder(why) && (is_refusal(why) || is_full(why));
            return if lost {
                DelegationOutcome::Lost(why.to_owned())
            } else {
                DelegationOutcome::Failed(why.to_owned())
            };
        }
        if is_end_of_connection(error) {
            return DelegationOutcome::Lost(error.to_owned());
        }
        if self.fetching && is_of_system(error) {
            return here("cannot store the outputs", error);
        }
        if is_of_system(error) && is_lock_of_hook(error) {
            return here("cannot begin the build", error);
        }
        if is_refusal(error) || is_full(error) {
            return DelegationOutcome::Lost(error.to_owned());
        }
        DelegationOutcome::Failed(error.to_owned())
    }
}

/// Returns a problem of this machine, with its fix.
fn here(cannot: &str, error: &str) -> DelegationOutcome {
    let number = errno(error);
    let fix = if is_full(error) {
        "; free space in the Nix store and in Nix's state directory, then build again"
    } else if number.is_some_and(|number| FORBIDDEN.contains(&number)) {
        "; make the Nix store and Nix's state directory writable for the user that Nix builds as"
    } else {
        ""
    };
    DelegationOutcome::Here(format!("{cannot}: {error}{fix}"))
}

/// Returns the reason in the message of `build-remote.cc` for a build that failed on the machine.
fn failed_build(error: &str) -> Option<&str> {
    let (_, rest) = error.strip_prefix("build of '")?.split_once("' on '")?;
    let (_, why) = rest.split_once("' failed: ")?;
    Some(why.strip_prefix("error: ").unwrap_or(why))
}

/// Returns whether the machine reports that the builder has failed. It may have failed for any
/// reason, and Nix quotes its output.
fn is_failed_builder(why: &str) -> bool {
    let why = why.to_lowercase();
    let is_new = |rest: &str| rest.contains("'. reason: builder failed");
    why.starts_with("builder for '") || why.strip_prefix("cannot build '").is_some_and(is_new)
}

fn is_end_of_connection(error: &str) -> bool {
    let lower = error.to_lowercase();
    LOST.iter().any(|begin| lower.starts_with(begin))
        || lower.ends_with(": unexpected end-of-file")
        || errno(error).is_some_and(|number| CONNECTION.contains(&number))
}

fn is_refusal(error: &str) -> bool {
    let error = error.to_lowercase();
    REFUSED.iter().any(|(begin, then)| {
        error.strip_prefix(begin).is_some_and(|rest| {
            // Between the two is a store path or a system, without quotes.
            let named = rest.split_once('\'').map_or(0, |(name, _)| name.len());
            rest.get(named..).unwrap_or_default().starts_with(then)
        })
    })
}

/// Returns whether Nix, and not the builder, found the disk full.
fn is_full(error: &str) -> bool {
    errno(error).is_some_and(|number| FULL.contains(&number))
        || is_sqlite(error, "database or disk is full")
}

/// Returns whether it is about the lock file that the hook opens before it copies
/// (`build-remote.cc`).
fn is_lock_of_hook(error: &str) -> bool {
    error.starts_with("opening lock file '") && error.contains(".upload-lock'")
}

/// Returns whether a system call or SQLite failed.
fn is_of_system(error: &str) -> bool {
    errno(error).is_some() || is_sqlite(error, "")
}

/// Returns whether it is an error of SQLite as Nix reports it (`libstore/sqlite.cc`): `what: text
/// (in 'file')`, or `SQLite database 'file' is busy`.
fn is_sqlite(error: &str, text: &str) -> bool {
    let is_busy = error.starts_with("SQLite database '") && error.ends_with("' is busy");
    let is_error = error.ends_with("')") && error.contains(" (in '") && error.contains(text);
    is_error || (text.is_empty() && is_busy)
}

/// Returns the number of the system error with which the message ends.
fn errno(message: &str) -> Option<Errno> {
    static TEXTS: LazyLock<BTreeMap<String, Errno>> = LazyLock::new(|| {
        let here = ERRNOS.map(|number| {
            let text = std::io::Error::from_raw_os_error(number).to_string();
            let text = text.split(" (os error").next().unwrap_or_default().to_owned();
            (text, Errno::from_raw_os_error(number))
        });
        let elsewhere = ELSEWHERE.map(|(text, number)| (text.to_owned(), number));
        here.chain(elsewhere).collect()
    });
    let (_, text) = message.rsplit_once(": ")?;
    TEXTS.get(text.trim_end_matches('.')).copied()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).take(64).any(|window| window == part)
}

/// Returns a message without the last lines of a build log, which Nix quotes at the end of the
/// reason (`DerivationGoal::buildDone` and its successors): "last 10 log lines:" up to 2.28, "Last
/// 10 log lines:" from then on, on a line of its own.
pub(crate) fn without_log(message: &str) -> &str {
    let mut length = 0;
    for line in message.split_inclusive('\n') {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_start = matches!(words.as_slice(), [last, count, "log", "lines:" | "line:"]
            if last.eq_ignore_ascii_case("last") && count.bytes().all(|byte| byte.is_ascii_digit()));
        if is_start {
            break;
        }
        length += line.len();
    }
    message.get(..length).unwrap_or(message).trim_end().trim_end_matches(';')
}

/// Returns the text without colour sequences (ECMA-48: ESC [ parameters, up to a letter).
pub(crate) fn without_colours(text: &str) -> String {
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

/// Returns whether this is the message about a machine that cannot be used (`build-remote.cc`).
pub(crate) fn is_about_machine(message: &str) -> bool {
    let message = without_colours(message);
    message.strip_prefix("error: ").unwrap_or(&message).starts_with("cannot build on '")
}

/// Returns a message of Nix as one plain line, without colours, line breaks and the name of the
/// machine.
pub(crate) fn plain(text: &str) -> String {
    let line = without_colours(text).split_whitespace().collect::<Vec<_>>().join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    let reason = line.strip_prefix("cannot build on '").and_then(|rest| rest.split_once("': "));
    let reason = reason.map_or(line, |(_, reason)| reason);
    reason.strip_prefix("error: ").unwrap_or(reason).to_owned()
}

#[cfg(test)]
mod tests;
