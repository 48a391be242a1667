//! Why a request gave no response: a code of `wasi:http` for the guest, and a sentence for the
//! run's log.
//!
//! The guest learns the code; what an operator needs (the plugin, the place, the line to write) is
//! in the log. No text of a server and no header value is ever part of a sentence: either may hold
//! a credential.

use std::error::Error as _;
use std::io;

use wasmtime_wasi_http::Error;
use wasmtime_wasi_http::p2::bindings::http::types::{DnsErrorPayload, ErrorCode};

use hookrun_config::{Limit, Limits};

/// Why a request gave no response.
#[derive(Debug, Clone)]
pub struct Problem {
    /// For the guest.
    pub code: ErrorCode,
    /// For the log: the request, the error and the fix.
    pub message: String,
    /// Whether it is in the log already.
    pub reported: bool,
}

impl Problem {
    /// A problem with a code and a sentence.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), reported: false }
    }

    /// A limit was reached by `wanted`.
    pub fn limit(
        limit: Limit,
        plugin: &str,
        limits: &Limits,
        wanted: Option<u64>,
        code: ErrorCode,
    ) -> Self {
        Self::new(code, limit.reached(plugin, limits.get(limit), wanted))
    }

    /// A name without an address.
    pub fn dns(rcode: &str, message: String) -> Self {
        Self::new(
            ErrorCode::DnsError(DnsErrorPayload { rcode: Some(rcode.to_owned()), info_code: None }),
            message,
        )
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        problem.code.into()
    }
}

/// The code in an error of a body's stream. wasmtime-wasi-http 48.0 looks for an `ErrorCode` in it,
/// and puts an [`Error`] there (`http_error_code` in src/p2/types_impl.rs, `read` in
/// src/p2/body.rs); so the host function is ours.
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

/// The code for an error while the response was read.
pub(super) fn response_error(error: &hyper::Error) -> Error {
    let io = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    // hyper 1.12 says so for a body with a length, and keeps `is_incomplete_message` for heads.
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
