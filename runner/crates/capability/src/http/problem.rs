//! The reason why a request has no response: a code of `wasi:http` for the guest, and a sentence
//! for the run's log.
//!
//! The guest gets the code; the log has what an operator needs: the plugin, the place and the line
//! to write. A sentence never contains text of a server or the value of a header, because either
//! may contain a credential.

use std::error::Error as _;
use std::io;

use wasmtime_wasi_http::Error;
use wasmtime_wasi_http::p2::bindings::http::types::{DnsErrorPayload, ErrorCode};

use hookrun_config::{Limit, Limits};

/// The reason why a request has no response.
#[derive(Debug, Clone)]
pub struct HttpProblem {
    /// The code for the guest.
    pub code: ErrorCode,
    /// The message for the log: the request, the error and the fix.
    pub message: String,
    /// Whether the log already has it.
    pub reported: bool,
}

impl HttpProblem {
    /// Returns a problem with a code and a sentence.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), reported: false }
    }

    /// Returns the problem that `wanted` exceeds a limit.
    pub fn limit(
        limit: Limit,
        plugin: &str,
        limits: &Limits,
        wanted: Option<u64>,
        code: ErrorCode,
    ) -> Self {
        Self::new(code, limit.reached(plugin, limits.get(limit), wanted))
    }

    /// Returns the problem that a name has no address.
    pub fn dns(rcode: &str, message: String) -> Self {
        Self::new(
            ErrorCode::DnsError(DnsErrorPayload { rcode: Some(rcode.to_owned()), info_code: None }),
            message,
        )
    }
}

impl From<HttpProblem> for Error {
    fn from(problem: HttpProblem) -> Self {
        problem.code.into()
    }
}

/// Returns the code inside an error of a body's stream. wasmtime-wasi-http 48.0 looks for an
/// `ErrorCode` in such an error, but puts an [`Error`] there (`http_error_code` in
/// src/p2/types_impl.rs, `read` in src/p2/body.rs), so hookrun links its own host function.
pub fn stream_error_code(error: &wasmtime::Error) -> Option<ErrorCode> {
    if let Some(code) = error.downcast_ref::<ErrorCode>() {
        return Some(code.clone());
    }
    Some(match error.downcast_ref::<Error>()? {
        Error::HttpResponseBodySize(size) => ErrorCode::HttpResponseBodySize(*size),
        Error::HttpResponseTrailerSectionSize(size) => {
            ErrorCode::HttpResponseTrailerSectionSize(*size)
        }
        Error::HttpResponseIncomplete => ErrorCode::HttpResponseIncomplete,
        Error::ConnectionReadTimeout => ErrorCode::ConnectionReadTimeout,
        _ => ErrorCode::HttpProtocolError,
    })
}

/// Returns the code for an error that occurred while the response was read.
pub(super) fn response_error(error: &hyper::Error) -> Error {
    let io = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    // hyper 1.12 reports this for a body with a length, and `is_incomplete_message` only for heads.
    let broke = io.is_some_and(|io| {
        matches!(
            io.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
        )
    });
    if error.is_incomplete_message() || broke {
        Error::HttpResponseIncomplete
    } else if error.is_parse_too_large() {
        Error::HttpResponseTrailerSectionSize(None)
    } else {
        Error::HttpProtocolError
    }
}
