//! Sends one request and reads the head of its response: check, complete, resolve, connect, send.
//!
//! It runs as a task of its own, so that a guest can continue meanwhile; the task ends with the run
//! at the latest. One connection carries one request, with HTTP/1.1 and without a proxy. A redirect
//! is returned like any other response and never followed.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use wasmtime_wasi::runtime::AbortOnDropJoinHandle;
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use super::body::{About, Metered, WaitLimit, header_bytes};
use super::problem::{HttpProblem, response_error};
use super::resolve::{self, Unreachable};
use super::{Client, tls};
use crate::script::Script;
use hookrun_config::http::{HttpTarget, Scheme};
use hookrun_config::{HttpGrant, Limit};

/// The `User-Agent` of requests in which the guest sets none (RFC 9110 section 10.1.5). Some
/// services require one.
const AGENT: &str = concat!("hookrun/", env!("CARGO_PKG_VERSION"));

/// Maximum number of header fields of a response. `http-header-bytes` limits their bytes; this
/// limits the memory that the parser reserves.
const MAX_FIELDS: usize = 1000;

/// Minimum size of the connection's buffer in bytes, in addition to a header section: one read from
/// the kernel.
const MIN_BUFFER: usize = 256 << 10;

/// A response and the task that drives its connection.
pub type HttpResponse = (Response<WasiBody>, AbortOnDropJoinHandle<()>);

/// One request that its grant covers.
pub struct Exchange {
    pub client: Arc<Client>,
    /// The request's description for messages, limits and counting.
    pub about: Arc<About>,
    pub grant: HttpGrant,
    pub target: HttpTarget,
    /// The path with the query: `/path?query`.
    pub path_and_query: String,
    pub headers: HeaderMap,
    pub options: RequestOptions,
    /// The scripted answers of a test.
    pub script: Option<Arc<Script>>,
    /// One of the run's places for concurrent requests. `None` if all are taken.
    pub slot: Option<OwnedSemaphorePermit>,
}

impl Exchange {
    /// Sends the request with the guest's body, if there is one. A problem is written to the run's
    /// log, and its code is returned to the guest.
    ///
    /// # Errors
    /// Returns an error if there is no response.
    pub async fn run(self, body: Option<WasiBody>) -> Result<HttpResponse, Error> {
        let about = self.about.clone();
        self.answer(body).await.map_err(|mut problem| {
            about.report(&mut problem);
            problem.into()
        })
    }

    async fn answer(mut self, body: Option<WasiBody>) -> Result<HttpResponse, HttpProblem> {
        let slot = self.slot.take().ok_or_else(|| {
            self.about.limit(Limit::HttpConnections, None, ErrorCode::ConnectionLimitReached)
        })?;
        self.check_headers(body.is_some())?;
        self.check_credential()?;
        let authority = HeaderValue::try_from(self.target.url.authority());
        self.headers.insert(
            HOST,
            authority.map_err(|_| self.invalid("its host is not valid in a header"))?,
        );
        self.headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(AGENT));
        let body = body.unwrap_or_else(empty);
        let (body, failed) = Metered::request(body, self.about.clone());
        if self.client.is_canned() {
            return self.client.canned(&self, body, &failed).await;
        }
        let body = self.completed(body, &failed).await?;
        let stream = self.connect().await?;
        self.send(stream, body, &failed, slot).await
    }

    fn invalid(&self, what: &str) -> HttpProblem {
        self.about.problem(ErrorCode::HttpRequestUriInvalid, what)
    }

    /// Checks the size of the header section, and Content-Length, the only header that frames the
    /// body. The guest's map holds at most one Content-Length, which consists of digits.
    fn check_headers(&self, has_body: bool) -> Result<(), HttpProblem> {
        let line = self.target.method.len() + self.path_and_query.len() + " HTTP/1.1\r\n ".len();
        let bytes = header_bytes(&self.headers) + line as u64;
        let shown = Some(u32::try_from(bytes).unwrap_or(u32::MAX));
        if bytes > self.about.limits.get(Limit::HttpHeaderBytes) {
            let code = ErrorCode::HttpRequestHeaderSectionSize(shown);
            return Err(self.about.limit(Limit::HttpHeaderBytes, Some(bytes), code));
        }
        let length = self
            .headers
            .get(CONTENT_LENGTH)
            .map(|length| length.to_str().unwrap_or_default().parse::<u64>());
        match length {
            Some(Ok(0)) | None => Ok(()),
            Some(Ok(length)) if length > self.about.limits.get(Limit::HttpRequestBytes) => {
                let code = ErrorCode::HttpRequestBodySize(Some(length));
                Err(self.about.limit(Limit::HttpRequestBytes, Some(length), code))
            }
            Some(Ok(_)) if has_body => Ok(()),
            Some(_) => {
                let what = "its Content-Length does not fit its body; the plugin's author must leave that header out";
                Err(self.about.problem(ErrorCode::HttpRequestBodySize(Some(0)), what))
            }
        }
    }

    /// Checks that the guest does not set the header of the credential.
    fn check_credential(&self) -> Result<(), HttpProblem> {
        let Some(name) = &self.grant.credential else { return Ok(()) };
        let own = self.headers.keys().find(|header| self.client.sets(name, header.as_str()));
        match own {
            None => Ok(()),
            Some(header) => Err(self.about.problem(
                ErrorCode::HttpRequestDenied,
                &format!(
                    "the plugin sets `{header}`, which [http-credentials.{name}] sets; its author must leave that header out"
                ),
            )),
        }
    }

    /// Returns the complete request: the body, and headers with the credential. If a signature
    /// covers the body, the body is read first.
    async fn completed(
        &mut self,
        body: Metered,
        failed: &OnceLock<HttpProblem>,
    ) -> Result<WasiBody, HttpProblem> {
        let Some(name) = &self.grant.credential else { return Ok(body.boxed_unsync()) };
        let credential = self
            .client
            .credential(name)
            .map_err(|message| self.about.problem(ErrorCode::ConfigurationError, message))?;
        let method = Method::from_bytes(self.target.method.as_bytes())
            .map_err(|_| self.invalid("it has no method"))?;
        let mut digest = [0; 32];
        let body = if credential.covers_body() {
            let whole = body.collect().await.map_err(|error| self.ended(failed, error))?.to_bytes();
            digest = Sha256::digest(&whole).into();
            Full::new(whole).map_err(|never| match never {}).boxed_unsync()
        } else {
            body.boxed_unsync()
        };
        let url = &self.target.url;
        let url = format!("{}://{}{}", url.scheme.as_str(), url.authority(), self.path_and_query);
        let url = url.parse::<Uri>().map_err(|_| self.invalid("its URL is malformed"))?;
        credential
            .apply(&method, &url, &digest, &mut self.headers)
            .map_err(|what| self.about.problem(ErrorCode::ConfigurationError, what))?;
        Ok(body)
    }

    /// Returns the reason why a request's body ended: its own problem, or one that describes the
    /// error.
    fn ended(&self, failed: &OnceLock<HttpProblem>, _error: Error) -> HttpProblem {
        failed.get().cloned().unwrap_or_else(|| {
            self.about.problem(ErrorCode::HttpProtocolError, "its body broke off")
        })
    }

    /// Connects to an address that was checked, with TLS if the scheme requires it.
    async fn connect(&self) -> Result<Stream, HttpProblem> {
        let patience = WaitLimit::new(
            &self.about.limits,
            Limit::HttpConnectTime,
            self.options.connect_timeout,
        );
        tokio::time::timeout(patience.time, self.connected(patience))
            .await
            .unwrap_or_else(|_| Err(patience.problem(&self.about, ErrorCode::ConnectionTimeout)))
    }

    async fn connected(&self, patience: WaitLimit) -> Result<Stream, HttpProblem> {
        let url = &self.target.url;
        let found = resolve::permitted(self.client.resolver(), url, &self.grant).await;
        let addresses = found.map_err(|unreachable| self.unreachable(&unreachable))?;
        let each = patience.time / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
        let mut last = None;
        for address in &addresses {
            match tokio::time::timeout(each, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return self.secured(stream, *address).await,
                Ok(Err(error)) => last = Some((*address, Some(error))),
                Err(_) => last = Some((*address, None)),
            }
        }
        Err(match last {
            Some((address, Some(error))) => {
                let code = match error.kind() {
                    ErrorKind::ConnectionRefused => ErrorCode::ConnectionRefused,
                    ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                        ErrorCode::DestinationIpUnroutable
                    }
                    _ => ErrorCode::DestinationUnavailable,
                };
                self.about.problem(
                    code,
                    &format!("no connection to {address} ({error}); check that the server is running and reachable"),
                )
            }
            _ => patience.problem(&self.about, ErrorCode::ConnectionTimeout),
        })
    }

    async fn secured(&self, stream: TcpStream, address: SocketAddr) -> Result<Stream, HttpProblem> {
        // Without Nagle's algorithm a request and its response are not delayed.
        drop(stream.set_nodelay(true));
        if self.target.url.scheme == Scheme::Http {
            return Ok(Stream::Plain(stream));
        }
        let configuration =
            |message: &str| self.about.problem(ErrorCode::ConfigurationError, message);
        let trust = self.client.trust(self.grant.ca_file.as_deref()).map_err(configuration)?;
        let secured = tls::connect(trust, &self.target.url.host, stream).await;
        secured.map(|stream| Stream::Tls(Box::new(stream))).map_err(|(code, what)| {
            let fix = "check the url, or name the server's authority by `ca-file = \"/path\"` in the grant";
            self.about.problem(code, &format!("{what} at {address}; {fix}"))
        })
    }

    fn unreachable(&self, unreachable: &Unreachable) -> HttpProblem {
        let host = &self.target.url.host;
        match unreachable {
            Unreachable::LookUp(error) => HttpProblem::dns(
                "lookup failed",
                self.about
                    .problem(
                        ErrorCode::DnsTimeout,
                        &format!("`{host}` cannot be looked up ({error}); check the name, or this machine's resolver"),
                    )
                    .message,
            ),
            Unreachable::Nothing => HttpProblem::dns(
                "no address",
                self.about
                    .problem(
                        ErrorCode::DnsTimeout,
                        &format!("`{host}` has no address; check the name, or this machine's resolver"),
                    )
                    .message,
            ),
            Unreachable::Prohibited(address, kind) => {
                let url = self.grant.url.as_ref().map(|url| format!(" beside `url = \"{url}\"`")).unwrap_or_default();
                let what = format!(
                    "`{host}` is {address}, {}, which is not reached; to allow it, write `address = [\"{address}\"]`{url} under \
                     [[plugins.{}.grant.http]]",
                    kind.as_str(),
                    self.about.plugin
                );
                self.about.problem(ErrorCode::DestinationIpProhibited, &what)
            }
        }
    }

    async fn send(
        self,
        stream: Stream,
        body: WasiBody,
        failed: &OnceLock<HttpProblem>,
        slot: OwnedSemaphorePermit,
    ) -> Result<HttpResponse, HttpProblem> {
        let mut request = Request::new(body);
        *request.method_mut() = Method::from_bytes(self.target.method.as_bytes())
            .map_err(|_| self.invalid("it has no method"))?;
        *request.uri_mut() =
            self.path_and_query.parse().map_err(|_| self.invalid("its path is malformed"))?;
        *request.headers_mut() = self.headers.clone();
        let first_byte = WaitLimit::new(
            &self.about.limits,
            Limit::HttpFirstByteTime,
            self.options.first_byte_timeout,
        );
        let pause = WaitLimit::new(
            &self.about.limits,
            Limit::HttpBetweenBytesTime,
            self.options.between_bytes_timeout,
        );
        let exchanged = async {
            match stream {
                Stream::Plain(stream) => self.exchange(stream, request).await,
                Stream::Tls(stream) => self.exchange(*stream, request).await,
            }
        };
        let (response, worker) = match tokio::time::timeout(first_byte.time, exchanged).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                return Err(failed.get().cloned().unwrap_or_else(|| self.broken(&error)));
            }
            Err(_) => return Err(first_byte.problem(&self.about, ErrorCode::ConnectionReadTimeout)),
        };
        if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.about.problem(
                ErrorCode::HttpProtocolError,
                "the server wants to speak another protocol",
            ));
        }
        let head = header_bytes(response.headers());
        let too_large = |bytes: u64| {
            ErrorCode::HttpResponseHeaderSectionSize(Some(u32::try_from(bytes).unwrap_or(u32::MAX)))
        };
        if head > self.about.limits.get(Limit::HttpHeaderBytes) {
            return Err(self.about.limit(Limit::HttpHeaderBytes, Some(head), too_large(head)));
        }
        let about = self.about.clone();
        let response = response.map(|incoming| {
            let inner = incoming.map_err(|error| response_error(&error)).boxed_unsync();
            Metered::response(inner, about, pause, Some(slot)).boxed_unsync()
        });
        Ok((response, worker))
    }

    async fn exchange<S>(
        &self,
        stream: S,
        request: Request<WasiBody>,
    ) -> hyper::Result<(Response<hyper::body::Incoming>, AbortOnDropJoinHandle<()>)>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let head =
            usize::try_from(self.about.limits.get(Limit::HttpHeaderBytes)).unwrap_or(usize::MAX);
        let mut builder = hyper::client::conn::http1::Builder::new();
        builder
            .max_headers(MAX_FIELDS)
            .max_header_size(head)
            .max_buf_size(head.saturating_mul(2).max(MIN_BUFFER));
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        // An error of the connection is also reported by the sender or the body.
        let worker = wasmtime_wasi::runtime::spawn(async move { drop(connection.await) });
        Ok((sender.send_request(request).await?, worker))
    }

    /// Returns the problem that an error of the connection stands for. Its text is hyper's own,
    /// never the server's.
    fn broken(&self, error: &hyper::Error) -> HttpProblem {
        if error.is_parse_too_large() {
            let code = ErrorCode::HttpResponseHeaderSectionSize(None);
            return self.about.limit(Limit::HttpHeaderBytes, None, code);
        }
        if error.is_parse() {
            return self.about.problem(
                ErrorCode::HttpProtocolError,
                &format!("the response is malformed ({error})"),
            );
        }
        if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
            return self.about.problem(
                ErrorCode::ConnectionTerminated,
                "the server closed the connection without a response",
            );
        }
        self.about
            .problem(ErrorCode::ConnectionTerminated, &format!("the connection broke ({error})"))
    }
}

/// The transport of a request.
enum Stream {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

fn empty() -> WasiBody {
    http_body_util::Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync()
}
