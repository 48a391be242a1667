//! The standard output and error of a guest, which become lines in the log of its run.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};

use super::stopped::BACKTRACE_NOTE;
use hookrun_capability::RunLog;
use hookrun_nix::outcome::LogLine;

/// Maximum length of a log line in bytes. Longer lines are broken.
const MAX_LINE: usize = 8 << 10;
/// The number of last lines that are kept for the message of a trap; a panic has a few.
const LAST_LINES: usize = 16;
/// The length to which each of them is cut.
const MAX_LAST_LINE: usize = 1 << 10;

/// One of the two streams.
#[derive(Clone)]
pub(super) struct GuestOutput(Arc<Mutex<Stream>>);

struct Stream {
    log: RunLog,
    level: &'static str,
    name: &'static str,
    line: Vec<u8>,
    last_lines: VecDeque<String>,
}

impl GuestOutput {
    /// Returns standard output, which is logged at level `info`.
    pub(super) fn stdout(log: &RunLog) -> Self {
        Self::new(log, "info", "stdout")
    }

    /// Returns standard error, which is logged at level `error` because language runtimes write
    /// panics to it.
    pub(super) fn stderr(log: &RunLog) -> Self {
        Self::new(log, "error", "stderr")
    }

    fn new(log: &RunLog, level: &'static str, name: &'static str) -> Self {
        Self(Arc::new(Mutex::new(Stream {
            log: log.clone(),
            level,
            name,
            line: Vec::new(),
            last_lines: VecDeque::new(),
        })))
    }

    /// Returns the last lines, oldest first, whether or not the log had room for them.
    pub(super) fn last_lines(&self) -> Vec<String> {
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stream.last_lines.iter().cloned().collect()
    }

    /// Logs the last line if it does not end with a line break.
    pub(super) fn finish(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).end_line();
    }
}

impl Stream {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' || self.line.len() >= MAX_LINE {
                self.end_line();
            }
            if *byte != b'\n' {
                self.line.push(*byte);
            }
        }
    }

    fn end_line(&mut self) {
        if self.line.is_empty() {
            return;
        }
        let message = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
        if message.starts_with(BACKTRACE_NOTE) {
            return;
        }
        if self.last_lines.len() == LAST_LINES {
            self.last_lines.pop_front();
        }
        self.last_lines.push_back(message.chars().take(MAX_LAST_LINE).collect());
        let fields = vec![("stream".to_owned(), self.name.to_owned())];
        self.log.push(LogLine { level: self.level.to_owned(), message, fields });
    }
}

impl IsTerminal for GuestOutput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestOutput {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    /// Writes directly. The adapter over [`StdoutStream::async_stream`] writes from a task, which
    /// could lose the end of a run's output.
    fn p2_stream(&self) -> Box<dyn wasmtime_wasi::p2::OutputStream> {
        Box::new(self.clone())
    }
}

impl AsyncWrite for GuestOutput {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Maximum number of bytes in one write.
const WRITE_BUDGET: usize = 64 << 10;

#[wasmtime_wasi::async_trait]
impl wasmtime_wasi::p2::Pollable for GuestOutput {
    async fn ready(&mut self) {}
}

impl wasmtime_wasi::p2::OutputStream for GuestOutput {
    fn write(&mut self, bytes: bytes::Bytes) -> Result<(), wasmtime_wasi::p2::StreamError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), wasmtime_wasi::p2::StreamError> {
        Ok(())
    }

    fn check_write(&mut self) -> Result<usize, wasmtime_wasi::p2::StreamError> {
        Ok(WRITE_BUDGET)
    }
}
