//! HTTP requests with complete bodies, one at a time. Wants [`http`](crate::Wants::http), grant
//! `[[plugins.NAME.grant.http]]` with `url = "https://host/path/"` (a prefix) and `methods`
//! (default: GET and HEAD).
//!
//! ```no_run
//! # fn example() -> Result<(), hookrun_sdk::Error> {
//! use hookrun_sdk::http;
//!
//! let response = http::post("https://hooks.example.org/v1/notify").json(&serde_json::json!({ "text": "built" }))?.send()?;
//! let id = response.error_for_status()?.header("x-request-id").map(str::to_owned);
//! # Ok(())
//! # }
//! ```
//!
//! Behaviour of the host:
//!
//! * Plugins do not see credentials. The grant may name one (`credential = "NAME"`), and the host
//!   adds it to the request. A request that sets the same header itself is refused.
//! * Only public addresses are reached, unless the grant names others. Redirects are not followed:
//!   the response is returned, and a request to its `location` needs a grant of its own.
//! * The protocol is HTTP/1.1 with one connection for each request. Bodies are not decompressed. No
//!   `accept-encoding` header is sent; set `accept-encoding: identity` if the server compresses
//!   anyway.
//! * These keys of `[plugins.NAME.limits]` apply: `http-request-bytes`, `http-response-bytes`,
//!   `http-header-bytes`, `http-connections`, `http-connect-time`, `http-first-byte-time`,
//!   `http-between-bytes-time`, and the run's `host-bytes` and `wall-time`. The response is stored
//!   in the plugin's memory, so `memory` limits it too.
//! * `hookrun test` sends nothing. A request with a grant is answered with status 200 and the JSON
//!   body `{}`, and shown in the report. A request without a grant is refused as usual.
//!
//! This module is a client for the standard interface `wasi:http`. Other clients work as well and
//! need the same grants.

mod codes;

use std::time::Duration;

use codes::{failed, header_error};

use crate::bindings::http::wasi::http::outgoing_handler;
use crate::bindings::http::wasi::http::types::{
    Fields, IncomingBody, IncomingResponse, Method, OutgoingBody, OutgoingRequest, RequestOptions,
    Scheme, http_error_code,
};
use crate::bindings::http::wasi::io::streams::{InputStream, OutputStream, StreamError};
use crate::{Error, ErrorKind};

/// The number of bytes that one read requests from the host.
const PIECE: u64 = 64 << 10;

/// A request that has not been sent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a request does nothing until it is sent"]
pub struct Request {
    method: String,
    url: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    connect_timeout: Option<Duration>,
    timeout: Option<Duration>,
}

/// Returns a GET request.
pub fn get(url: impl Into<String>) -> Request {
    Request::new("GET", url)
}

/// Returns a POST request.
pub fn post(url: impl Into<String>) -> Request {
    Request::new("POST", url)
}

/// Returns a PUT request.
pub fn put(url: impl Into<String>) -> Request {
    Request::new("PUT", url)
}

impl Request {
    /// Returns a request with a method such as `PATCH` (in capitals), to
    /// `https://host[:port][/path][?query]` or `http://...`.
    pub fn new(method: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            method: method.into(),
            url: url.into(),
            headers: Vec::new(),
            body: Vec::new(),
            connect_timeout: None,
            timeout: None,
        }
    }

    /// Adds a header. Headers such as `host`, `connection` and `transfer-encoding` are reserved for
    /// the host; `content-length` is set automatically.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets the body to `value` as JSON, and `content-type`.
    ///
    /// # Errors
    /// `value` cannot be written as JSON.
    pub fn json(self, value: &impl serde::Serialize) -> Result<Self, Error> {
        let body = serde_json::to_vec(value).map_err(|error| {
            Error::permanent(format!("the body cannot be written as JSON: {error}"))
        })?;
        Ok(self.header("content-type", "application/json").body(body))
    }

    /// Sets the time limit of name look-up, connection and TLS; at most `http-connect-time`.
    pub fn connect_timeout(mut self, time: Duration) -> Self {
        self.connect_timeout = Some(time);
        self
    }

    /// Sets the time limit for the head of the response, and between two pieces of its body; at
    /// most `http-first-byte-time` and `http-between-bytes-time`.
    pub fn timeout(mut self, time: Duration) -> Self {
        self.timeout = Some(time);
        self
    }

    /// Sends the request and reads the whole response. Any status is a response; see
    /// [`Response::error_for_status`].
    ///
    /// # Errors
    /// [`ErrorKind::Denied`]: no grant covers the request, or the address is not allowed; the log
    /// of the run contains the lines to write. [`ErrorKind::Limit`]: a limit was reached; the log
    /// names its key. [`ErrorKind::Invalid`]: the URL or a header is malformed.
    /// [`ErrorKind::Transient`]: the connection failed or broke. [`ErrorKind::Permanent`]: TLS
    /// failed, or the host's configuration is incomplete.
    pub fn send(self) -> Result<Response, Error> {
        if cfg!(target_arch = "wasm32") {
            self.exchange()
        } else {
            let Self { method, url, headers, body, .. } = self;
            let request = crate::testing::HttpRequest { method, url, headers, body };
            crate::testing::call("http.send", |host| {
                let (status, body) = host.request(request);
                Ok(Response { status, headers: Vec::new(), body })
            })
        }
    }

    fn exchange(self) -> Result<Response, Error> {
        let what = format!("{} {}", self.method, shown(&self.url));
        self.exchanged().map_err(|error| error.context(what))
    }

    fn exchanged(self) -> Result<Response, Error> {
        let Self { method, url, mut headers, body, connect_timeout, timeout } = self;
        let (scheme, authority, path) = split(&url)?;
        let framed = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        if !body.is_empty() && !framed {
            headers.push(("content-length".to_owned(), body.len().to_string().into_bytes()));
        }
        let fields = Fields::from_list(&headers).map_err(header_error)?;
        let request = OutgoingRequest::new(fields);
        let invalid = |what: &'static str| {
            move |()| Error {
                kind: ErrorKind::Invalid,
                message: what.to_owned(),
                retry_after: None,
            }
        };
        request.set_method(&method_of(method)).map_err(invalid("the method is malformed"))?;
        request.set_scheme(Some(&scheme)).map_err(invalid("the URL's scheme is malformed"))?;
        request.set_authority(Some(authority)).map_err(invalid("the URL's host is malformed"))?;
        request.set_path_with_query(Some(path)).map_err(invalid("the URL's path is malformed"))?;
        let outgoing = if body.is_empty() {
            None
        } else {
            Some(request.body().map_err(invalid("the content-length is malformed"))?)
        };
        let options = RequestOptions::new();
        let nanos = |time: Option<Duration>| {
            time.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
        };
        // hookrun supports all three timeouts; another host may ignore them.
        let _ = options.set_connect_timeout(nanos(connect_timeout));
        let _ = options.set_first_byte_timeout(nanos(timeout));
        let _ = options.set_between_bytes_timeout(nanos(timeout));
        let coming =
            outgoing_handler::handle(request, Some(options)).map_err(|code| failed(&code))?;
        if let Some(outgoing) = outgoing {
            write(outgoing, &body)?;
        }
        let response = loop {
            match coming.get() {
                Some(response) => break response,
                None => coming.subscribe().block(),
            }
        };
        let response = response.map_err(|()| Error::permanent("the response was already read"))?;
        read(&response.map_err(|code| failed(&code))?)
    }
}

/// A complete response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body as received.
    pub body: Vec<u8>,
}

impl Response {
    /// Returns whether the status is 2xx.
    pub const fn is_success(&self) -> bool {
        self.status >= 200 && self.status < 300
    }

    /// Returns the first value of a header, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let value = self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
        value.and_then(|(_, value)| std::str::from_utf8(value).ok())
    }

    /// Returns the body as text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Parses the body as JSON.
    ///
    /// # Errors
    /// The body is not JSON, or does not fit `T`.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Error::permanent(format!("the response is not the expected JSON: {error}"))
        })
    }

    /// Returns the response if its status is 2xx.
    ///
    /// # Errors
    /// Returns an error for any other status: [`ErrorKind::Transient`] for 408, 425, 429 and 5xx,
    /// with the time in `retry-after` if it is in seconds; [`ErrorKind::NotFound`] for 404 and 410;
    /// [`ErrorKind::Denied`] for 401 and 403; otherwise [`ErrorKind::Permanent`].
    pub fn error_for_status(self) -> Result<Self, Error> {
        if self.is_success() {
            return Ok(self);
        }
        let kind = match self.status {
            408 | 425 | 429 | 500..=599 => ErrorKind::Transient,
            404 | 410 => ErrorKind::NotFound,
            401 | 403 => ErrorKind::Denied,
            _ => ErrorKind::Permanent,
        };
        let wait = self
            .header("retry-after")
            .and_then(|seconds| seconds.trim().parse().ok())
            .map(Duration::from_secs);
        let retry_after = wait.filter(|_| kind == ErrorKind::Transient);
        Err(Error {
            kind,
            message: format!("the server answered with status {}", self.status),
            retry_after,
        })
    }
}

/// Returns the URL for messages: without the query and the fragment, which may contain secrets, and
/// without user name and password.
fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let end = rest.find('/').unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{path}")
        }
        None => url.to_owned(),
    }
}

/// Splits a URL into scheme, authority, and path with query. The fragment is not sent (RFC 9110
/// section 7.1).
fn split(url: &str) -> Result<(Scheme, &str, &str), Error> {
    let url = url.split('#').next().unwrap_or_default();
    let (scheme, rest) = url.split_once("://").ok_or_else(|| Error {
        kind: ErrorKind::Invalid,
        message: "the URL has no scheme; write `https://host/path`".to_owned(),
        retry_after: None,
    })?;
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "https" => Scheme::Https,
        "http" => Scheme::Http,
        other => Scheme::Other(other.to_owned()),
    };
    let (authority, path) = rest.find(['/', '?']).map_or((rest, "/"), |end| rest.split_at(end));
    Ok((scheme, authority, path))
}

fn method_of(method: String) -> Method {
    match method.as_str() {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "CONNECT" => Method::Connect,
        "OPTIONS" => Method::Options,
        "TRACE" => Method::Trace,
        "PATCH" => Method::Patch,
        _ => Method::Other(method),
    }
}

/// Writes the whole body. If the server answers before it has read all of it, the response counts
/// and the error of the body does not.
fn write(outgoing: OutgoingBody, body: &[u8]) -> Result<(), Error> {
    let stream = outgoing.write().map_err(|()| Error::permanent("the body was already opened"))?;
    let written = write_all(&stream, body);
    drop(stream);
    match written {
        Ok(()) => OutgoingBody::finish(outgoing, None).map_err(|code| failed(&code)),
        Err(StreamError::Closed) => Ok(()),
        Err(StreamError::LastOperationFailed(error)) => Err(http_error_code(&error)
            .map_or_else(|| Error::permanent("the body could not be sent"), |code| failed(&code))),
    }
}

fn write_all(stream: &OutputStream, mut rest: &[u8]) -> Result<(), StreamError> {
    while !rest.is_empty() {
        let room = usize::try_from(stream.check_write()?).unwrap_or(usize::MAX);
        if room == 0 {
            stream.subscribe().block();
            continue;
        }
        let (piece, after) = rest.split_at(room.min(rest.len()));
        stream.write(piece)?;
        rest = after;
    }
    stream.blocking_flush()
}

fn read(response: &IncomingResponse) -> Result<Response, Error> {
    let status = response.status();
    let headers = response.headers().entries();
    let incoming =
        response.consume().map_err(|()| Error::permanent("the response was already read"))?;
    let stream = incoming.stream().map_err(|()| Error::permanent("the body was already opened"))?;
    let body = read_all(&stream);
    drop(stream);
    drop::<IncomingBody>(incoming);
    Ok(Response { status, headers, body: body? })
}

fn read_all(stream: &InputStream) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    loop {
        match stream.blocking_read(PIECE) {
            Ok(piece) => body.extend_from_slice(&piece),
            Err(StreamError::Closed) => return Ok(body),
            Err(StreamError::LastOperationFailed(error)) => {
                return Err(http_error_code(&error).map_or_else(
                    || Error::permanent("the response ended too early"),
                    |code| failed(&code),
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split_into_scheme_authority_and_path() {
        let parts = |url| {
            split(url)
                .map(|(scheme, authority, path)| format!("{scheme:?} {authority} {path}"))
                .map_err(|e| e.kind)
        };
        assert_eq!(parts("https://h").as_deref(), Ok("Scheme::Https h /"));
        assert_eq!(parts("HTTP://h:80/a?b#c").as_deref(), Ok("Scheme::Http h:80 /a?b"));
        assert_eq!(parts("http://h?b").as_deref(), Ok("Scheme::Http h ?b"));
        assert_eq!(parts("/relative"), Err(ErrorKind::Invalid));
    }

    #[test]
    fn urls_in_messages_have_no_query_and_no_password() {
        assert_eq!(shown("https://me:secret@h/a?token=secret#x"), "https://h/a");
        assert_eq!(shown("https://h"), "https://h");
    }

    #[test]
    fn statuses_are_mapped_to_kinds_of_error() {
        let response = |status, headers: &[(&str, &str)]| Response {
            status,
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()))
                .collect(),
            body: Vec::new(),
        };
        assert!(response(204, &[]).error_for_status().is_ok());
        let error = response(429, &[("Retry-After", "7")]).error_for_status().unwrap_err();
        assert_eq!(
            (error.kind, error.retry_after),
            (ErrorKind::Transient, Some(Duration::from_secs(7)))
        );
        for (status, kind) in [
            (301, ErrorKind::Permanent),
            (403, ErrorKind::Denied),
            (404, ErrorKind::NotFound),
            (503, ErrorKind::Transient),
        ] {
            assert_eq!(
                response(status, &[]).error_for_status().unwrap_err().kind,
                kind,
                "{status}"
            );
        }
    }

    #[test]
    fn a_request_in_a_native_test_is_an_error() {
        assert_eq!(get("https://h/").send().unwrap_err().kind, ErrorKind::Permanent);
    }
}
