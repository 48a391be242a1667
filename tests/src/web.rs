//! Real HTTP servers on this machine: one that answers by path and records the requests, with or
//! without TLS, and one that answers with malformed bytes.

mod sandbox;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::LOCATION;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

pub use sandbox::{Done, WebSandbox, get, post, sends};

/// A request that the server received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedRequest {
    /// The method.
    pub method: String,
    /// The path and the query.
    pub target: String,
    /// The headers. Names are in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl ReceivedRequest {
    /// Returns the values of a header.
    pub fn header(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(own, _)| own == name)
            .map(|(_, value)| value.as_str())
            .collect()
    }
}

/// A server that answers by path: `/bytes/N` with N bytes, `/header/N` with a header of N bytes,
/// `/redirect` with a redirect to [`REDIRECT`], `/status/N` with that status, and other paths with
/// `hello` and the length of the body. It never answers `/never`.
#[derive(Debug)]
pub struct WebServer {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<ReceivedRequest>>>,
    task: tokio::task::JoinHandle<()>,
    authority: Option<tempfile::NamedTempFile>,
}

/// The target of `/redirect`, which is a metadata service.
pub const REDIRECT: &str = "http://169.254.169.254/latest/meta-data/";

impl WebServer {
    /// Starts a server without TLS.
    pub async fn plain() -> Self {
        Self::start(None, None).await
    }

    /// Starts a server with TLS. Its certificate for `localhost` and 127.0.0.1 is from its own
    /// authority.
    pub async fn tls() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = rcgen::CertifiedIssuer::self_signed(authority, key).unwrap();
        let own = rcgen::KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate =
            rcgen::CertificateParams::new(names).unwrap().signed_by(&own, &authority).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), authority.pem()).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(certificate.pem().as_bytes()).unwrap()];
        let secret = PrivateKeyDer::from_pem_slice(own.serialize_pem().as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = config.with_no_client_auth().with_single_cert(chain, secret).unwrap();
        Self::start(Some(TlsAcceptor::from(Arc::new(config))), Some(file)).await
    }

    async fn start(tls: Option<TlsAcceptor>, authority: Option<tempfile::NamedTempFile>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<ReceivedRequest>>> = Arc::default();
        let kept = seen.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, tls.clone(), kept.clone()));
            }
        });
        Self { address, seen, task, authority }
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Returns the file with the certificate of the authority.
    pub fn authority(&self) -> PathBuf {
        self.authority.as_ref().map_or_else(PathBuf::new, |file| file.path().to_owned())
    }

    /// Returns the requests so far.
    pub fn seen(&self) -> Vec<ReceivedRequest> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    seen: Arc<Mutex<Vec<ReceivedRequest>>>,
) {
    let service = service_fn(move |request| answer(request, seen.clone()));
    let http = hyper::server::conn::http1::Builder::new();
    // In some tests the client closes the connection early.
    let _ = match tls {
        None => http.serve_connection(TokioIo::new(stream), service).await,
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => http.serve_connection(TokioIo::new(stream), service).await,
            Err(_) => return,
        },
    };
}

async fn answer(
    request: Request<Incoming>,
    seen: Arc<Mutex<Vec<ReceivedRequest>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default();
    let text =
        |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers =
        head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let length = body.len();
    let target = head.uri.to_string();
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(ReceivedRequest {
        method: head.method.to_string(),
        target,
        headers,
        body,
    });
    let path = head.uri.path();
    let number =
        path.rsplit('/').next().and_then(|number| number.parse::<usize>().ok()).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(format!("hello {length}"))));
    match path.split('/').nth(1).unwrap_or_default() {
        "bytes" => *response.body_mut() = Full::new(Bytes::from(vec![b'x'; number])),
        "header" => {
            response.headers_mut().insert("x-large", "x".repeat(number).parse().unwrap());
        }
        "redirect" => {
            *response.status_mut() = StatusCode::FOUND;
            response.headers_mut().insert(LOCATION, REDIRECT.parse().unwrap());
        }
        "status" => {
            *response.status_mut() = StatusCode::from_u16(u16::try_from(number).unwrap()).unwrap();
        }
        "never" => std::future::pending().await,
        _ => {}
    }
    Ok(response)
}

/// Starts a server that reads the head of a request, answers with these bytes and closes the
/// connection. Returns its port.
pub async fn raw(answer: &'static [u8]) -> u16 {
    raw_server(answer, false).await
}

/// Starts a server like [`raw`], but it does not close the connection.
pub async fn raw_then_silence(answer: &'static [u8]) -> u16 {
    raw_server(answer, true).await
}

async fn raw_server(answer: &'static [u8], hold: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            if hold && answer.is_empty() {
                held.push(stream);
                continue;
            }
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            let _ = stream.write_all(answer).await;
            if hold {
                held.push(stream);
            }
        }
    });
    port
}
