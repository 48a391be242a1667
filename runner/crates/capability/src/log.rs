//! The log of one run. Its size is limited, and the `log` interface and the guest's standard output
//! and error share it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hookrun_nix::outcome::LogLine;

/// The log of one run. Its clones share the content.
#[derive(Debug, Clone)]
pub struct RunLog(Arc<Mutex<Content>>);

#[derive(Debug)]
struct Content {
    lines: Vec<LogLine>,
    /// Number of bytes used so far.
    bytes: u64,
    /// The limit [`hookrun_config::Limit::LogBytes`].
    allowed: u64,
    /// Number of messages that did not fit.
    dropped: u64,
}

/// The cost of a line, and of each of its fields, in addition to its text, so that empty ones are
/// not free.
const LINE_COST: u64 = 16;

impl RunLog {
    /// Creates an empty log of at most `allowed` bytes.
    pub fn new(allowed: u64) -> Self {
        Self(Arc::new(Mutex::new(Content { lines: Vec::new(), bytes: 0, allowed, dropped: 0 })))
    }

    /// Adds a line, or counts it as dropped if it does not fit.
    pub fn push(&self, line: LogLine) {
        let mut log = self.lock();
        let fields: u64 = line
            .fields
            .iter()
            .map(|(key, value)| LINE_COST + (key.len() + value.len()) as u64)
            .sum();
        let cost = LINE_COST + line.message.len() as u64 + fields;
        if log.bytes + cost > log.allowed {
            log.dropped += 1;
        } else {
            log.bytes += cost;
            log.lines.push(line);
        }
    }

    pub fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// Returns all lines and a last line about the dropped ones, which ends with `fix`.
    pub fn finish(&self, fix: &str) -> Vec<LogLine> {
        let mut log = self.lock();
        let mut lines = std::mem::take(&mut log.lines);
        if log.dropped > 0 {
            let message = format!("{} more messages were dropped: {fix}", log.dropped);
            lines.push(LogLine { level: "warn".to_owned(), message, fields: Vec::new() });
        }
        lines
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
