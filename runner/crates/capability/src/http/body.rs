//! Bodies of requests and responses, each with its own limit. The bytes that guests read and write
//! are counted in the streams of `wasi:io`. A long pause in a response ends it.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::{Error, WasiBody};

use super::problem::HttpProblem;
use crate::RunLog;
use hookrun_config::{Limit, Limits};
use hookrun_nix::outcome::LogLine;

/// The parts of a request that error messages need.
#[derive(Debug)]
pub struct About {
    /// Method, origin and path. The query is left out, because a guest may put anything into it.
    pub target: String,
    pub plugin: String,
    pub limits: Limits,
    pub log: RunLog,
}

impl About {
    /// Returns a problem with the code and a fragment that follows the target.
    pub fn problem(&self, code: ErrorCode, what: &str) -> HttpProblem {
        HttpProblem::new(code, format!("plugin `{}`: http `{}`: {what}", self.plugin, self.target))
    }

    pub fn limit(&self, limit: Limit, wanted: Option<u64>, code: ErrorCode) -> HttpProblem {
        let problem = HttpProblem::limit(limit, &self.plugin, &self.limits, wanted, code);
        HttpProblem { message: format!("http `{}`: {}", self.target, problem.message), ..problem }
    }

    /// Writes the problem to the run's log, once.
    pub fn report(&self, problem: &mut HttpProblem) {
        if !std::mem::replace(&mut problem.reported, true) {
            self.log.push(LogLine {
                level: "warn".to_owned(),
                message: problem.message.clone(),
                fields: Vec::new(),
            });
        }
    }
}

/// The time that an operation may take: the lesser of the limit and the plugin's own timeout.
#[derive(Debug, Clone, Copy)]
pub(super) struct WaitLimit {
    pub time: Duration,
    limit: Limit,
    own: bool,
}

impl WaitLimit {
    /// Returns the lesser of `limit` and the timeout that the plugin set.
    pub(super) fn new(limits: &Limits, limit: Limit, wanted: Option<Duration>) -> Self {
        let allowed = limits.time(limit);
        match wanted {
            Some(wanted) if wanted < allowed => Self { time: wanted, limit, own: true },
            _ => Self { time: allowed, limit, own: false },
        }
    }

    /// Returns the problem of an operation that exceeded the time.
    pub(super) fn problem(self, about: &About, code: ErrorCode) -> HttpProblem {
        if self.own {
            about.problem(
                code,
                &format!(
                    "nothing came within the {} that the plugin allows",
                    humantime::format_duration(self.time)
                ),
            )
        } else {
            about.limit(self.limit, None, code)
        }
    }
}

/// Returns the bytes of a header section on the wire: `name: value CR LF` (RFC 9112 section 5).
pub fn header_bytes(headers: &http::HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len() + 4) as u64).sum()
}

/// The direction of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the guest.
    Request,
    /// To the guest.
    Response,
}

impl Direction {
    const fn limit(self) -> Limit {
        match self {
            Self::Request => Limit::HttpRequestBytes,
            Self::Response => Limit::HttpResponseBytes,
        }
    }

    fn too_large(self, bytes: u64) -> ErrorCode {
        match self {
            Self::Request => ErrorCode::HttpRequestBodySize(Some(bytes)),
            Self::Response => ErrorCode::HttpResponseBodySize(Some(bytes)),
        }
    }

    fn trailers_too_large(self, bytes: u64) -> ErrorCode {
        let bytes = Some(u32::try_from(bytes).unwrap_or(u32::MAX));
        match self {
            Self::Request => ErrorCode::HttpRequestTrailerSectionSize(bytes),
            Self::Response => ErrorCode::HttpResponseTrailerSectionSize(bytes),
        }
    }
}

#[derive(Debug)]
pub(super) struct Metered {
    inner: WasiBody,
    direction: Direction,
    about: Arc<About>,
    bytes: u64,
    /// The problem that ended the body, for callers that see only that it ended.
    failed: Arc<OnceLock<HttpProblem>>,
    /// The maximum pause of a response, and the timer of the current pause.
    pause: Option<(WaitLimit, Pin<Box<Sleep>>)>,
    /// The place among the run's concurrent requests, released with the body.
    slot: Option<OwnedSemaphorePermit>,
}

impl Metered {
    /// Returns the body of a request, and the place where its problem will be stored.
    pub(super) fn request(
        inner: WasiBody,
        about: Arc<About>,
    ) -> (Self, Arc<OnceLock<HttpProblem>>) {
        let failed = Arc::new(OnceLock::new());
        let body = Self {
            inner,
            direction: Direction::Request,
            about,
            bytes: 0,
            failed: failed.clone(),
            pause: None,
            slot: None,
        };
        (body, failed)
    }

    /// Returns the body of a response with a maximum pause.
    pub(super) fn response(
        inner: WasiBody,
        about: Arc<About>,
        pause: WaitLimit,
        slot: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Self {
            inner,
            direction: Direction::Response,
            about,
            bytes: 0,
            failed: Arc::default(),
            pause: Some((pause, Box::pin(tokio::time::sleep(pause.time)))),
            slot,
        }
    }

    fn counted(&mut self, frame: &Frame<Bytes>) -> Result<(), HttpProblem> {
        let direction = self.direction;
        if let Some(data) = frame.data_ref() {
            self.bytes = self.bytes.saturating_add(data.len() as u64);
            if self.bytes > self.about.limits.get(direction.limit()) {
                return Err(self.about.limit(
                    direction.limit(),
                    Some(self.bytes),
                    direction.too_large(self.bytes),
                ));
            }
            return Ok(());
        }
        if let Some(trailers) = frame.trailers_ref() {
            let bytes = header_bytes(trailers);
            if bytes > self.about.limits.get(Limit::HttpHeaderBytes) {
                return Err(self.about.limit(
                    Limit::HttpHeaderBytes,
                    Some(bytes),
                    direction.trailers_too_large(bytes),
                ));
            }
        }
        Ok(())
    }

    /// Ends the body with a problem, which is written to the run's log.
    fn end(&mut self, mut problem: HttpProblem) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.slot = None;
        self.about.report(&mut problem);
        let error = problem.clone().into();
        // Only the first problem is kept, because it is the cause.
        drop(self.failed.set(problem));
        Poll::Ready(Some(Err(error)))
    }

    fn inner_problem(&self, error: &Error) -> HttpProblem {
        match (self.direction, error) {
            (Direction::Request, _) => self
                .about
                .problem(ErrorCode::HttpProtocolError, "the plugin did not finish its body"),
            (Direction::Response, Error::HttpResponseTrailerSectionSize(size)) => {
                let code = ErrorCode::HttpResponseTrailerSectionSize(*size);
                self.about.limit(Limit::HttpHeaderBytes, None, code)
            }
            (Direction::Response, Error::HttpResponseIncomplete) => self.about.problem(
                ErrorCode::HttpResponseIncomplete,
                "the response ended before its body did",
            ),
            (Direction::Response, _) => self
                .about
                .problem(ErrorCode::HttpProtocolError, "the body of the response is malformed"),
        }
    }
}

impl Body for Metered {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Err(problem) = self.counted(&frame) {
                    return self.end(problem);
                }
                if let Some((pause, sleep)) = &mut self.pause {
                    sleep.as_mut().reset(tokio::time::Instant::now() + pause.time);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                let problem = self.inner_problem(&error);
                self.end(problem)
            }
            Poll::Ready(None) => {
                self.slot = None;
                Poll::Ready(None)
            }
            Poll::Pending => {
                let Some((pause, sleep)) = &mut self.pause else { return Poll::Pending };
                std::task::ready!(sleep.as_mut().poll(context));
                let pause = *pause;
                let problem = pause.problem(&self.about, ErrorCode::ConnectionReadTimeout);
                self.end(problem)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
