//! The meaning of the error codes of `wasi:http` for a plugin.

use crate::bindings::http::wasi::http::types::{ErrorCode, HeaderError};
use crate::{Error, ErrorKind};

pub(super) fn header_error(error: HeaderError) -> Error {
    let message = match error {
        HeaderError::InvalidSyntax => "a header is malformed",
        HeaderError::Forbidden => {
            "a header is reserved for the host (host, connection, transfer-encoding, te, expect, ...); remove it"
        }
        HeaderError::Immutable => "the headers cannot be changed after the request was made",
    };
    Error { kind: ErrorKind::Invalid, message: message.to_owned(), retry_after: None }
}

/// Converts an error code. The host writes the message for the operator into the log of the run.
pub(super) fn failed(code: &ErrorCode) -> Error {
    use ErrorKind::{Denied, Invalid, Limit, Permanent, Transient};
    const LOG: &str = "the log of this run contains the line to write";
    let (kind, what) = match code {
        ErrorCode::HttpRequestDenied => (Denied, format!("refused; {LOG}")),
        ErrorCode::DestinationIpProhibited => {
            (Denied, format!("the address is not allowed; {LOG}"))
        }
        ErrorCode::HttpRequestUriInvalid | ErrorCode::HttpRequestMethodInvalid => {
            (Invalid, "the URL is malformed; the log of this run contains the reason".to_owned())
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
        ErrorCode::ConnectionLimitReached => {
            (Limit, format!("too many concurrent requests; {LOG}"))
        }
        ErrorCode::DnsError(_) | ErrorCode::DnsTimeout => {
            (Transient, "the host name has no address".to_owned())
        }
        ErrorCode::ConnectionRefused => (Transient, "the connection was refused".to_owned()),
        ErrorCode::ConnectionTimeout => (Transient, "the connection timed out".to_owned()),
        ErrorCode::ConnectionReadTimeout | ErrorCode::HttpResponseTimeout => {
            (Transient, "the response timed out".to_owned())
        }
        ErrorCode::ConnectionTerminated
        | ErrorCode::DestinationUnavailable
        | ErrorCode::DestinationNotFound
        | ErrorCode::DestinationIpUnroutable
        | ErrorCode::HttpResponseIncomplete => {
            (Transient, "the connection failed or broke".to_owned())
        }
        ErrorCode::TlsCertificateError => {
            (Permanent, "the server's certificate is not trusted".to_owned())
        }
        ErrorCode::ConfigurationError => {
            (Permanent, format!("the configuration of hookrun is incomplete; {LOG}"))
        }
        other => (Permanent, format!("failed ({other:?})")),
    };
    Error { kind, message: what, retry_after: None }
}
