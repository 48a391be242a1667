//! What the error codes of `wasi:http` mean for a plugin.

use crate::bindings::http::wasi::http::types::{ErrorCode, HeaderError};
use crate::{Error, ErrorKind};

pub(super) fn header_error(error: HeaderError) -> Error {
    let message = match error {
        HeaderError::InvalidSyntax => "a header is malformed",
        HeaderError::Forbidden => {
            "a header belongs to the host (host, connection, transfer-encoding, te, expect, ...); leave it out"
        }
        HeaderError::Immutable => "the headers cannot be changed any more",
    };
    Error { kind: ErrorKind::Invalid, message: message.to_owned(), retry_after: None }
}

/// What a code means for a plugin. The words for the operator are in the run's log, where the host
/// writes them.
pub(super) fn failed(code: &ErrorCode) -> Error {
    use ErrorKind::{Denied, Invalid, Limit, Permanent, Transient};
    const LOG: &str = "the log of this run has the line to write";
    let (kind, what) = match code {
        ErrorCode::HttpRequestDenied => (Denied, format!("refused; {LOG}")),
        ErrorCode::DestinationIpProhibited => {
            (Denied, format!("the address is not reached; {LOG}"))
        }
        ErrorCode::HttpRequestUriInvalid | ErrorCode::HttpRequestMethodInvalid => {
            (Invalid, "the URL is malformed; the log of this run says how".to_owned())
        }
        ErrorCode::HttpRequestBodySize(_) => {
            (Limit, format!("the body is too large or does not fit its content-length; {LOG}"))
        }
        ErrorCode::HttpRequestHeaderSectionSize(_)
        | ErrorCode::HttpRequestTrailerSectionSize(_) => {
            (Limit, format!("the headers are too large; {LOG}"))
        }
        ErrorCode::HttpResponseBodySize(_) => (Limit, format!("the response is too large; {LOG}")),
        ErrorCode::HttpResponseHeaderSectionSize(_)
        | ErrorCode::HttpResponseTrailerSectionSize(_) => {
            (Limit, format!("the response's headers are too large; {LOG}"))
        }
        ErrorCode::ConnectionLimitReached => (Limit, format!("too many requests at once; {LOG}")),
        ErrorCode::DnsError(_) | ErrorCode::DnsTimeout => {
            (Transient, "the host has no address".to_owned())
        }
        ErrorCode::ConnectionRefused => (Transient, "the connection is refused".to_owned()),
        ErrorCode::ConnectionTimeout => (Transient, "no connection in time".to_owned()),
        ErrorCode::ConnectionReadTimeout | ErrorCode::HttpResponseTimeout => {
            (Transient, "no response in time".to_owned())
        }
        ErrorCode::ConnectionTerminated
        | ErrorCode::DestinationUnavailable
        | ErrorCode::DestinationNotFound
        | ErrorCode::DestinationIpUnroutable
        | ErrorCode::HttpResponseIncomplete => {
            (Transient, "the connection broke, or there was none".to_owned())
        }
        ErrorCode::TlsCertificateError => {
            (Permanent, "the server's certificate is not trusted".to_owned())
        }
        ErrorCode::ConfigurationError => {
            (Permanent, format!("the host's configuration is incomplete; {LOG}"))
        }
        other => (Permanent, format!("failed ({other:?})")),
    };
    Error { kind, message: what, retry_after: None }
}
