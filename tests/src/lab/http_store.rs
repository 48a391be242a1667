//! A plain HTTP server that keeps objects in memory by their digest: PUT with a length, GET, HEAD
//! and `If-None-Match`, with or without TLS and client certificates. The bytes of large objects are
//! hashed and dropped, so that a test can send many GiB.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_LENGTH, IF_NONE_MATCH};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

/// The largest object that is kept as a whole.
const KEPT: usize = 1 << 20;

/// An object of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// SHA-256 in hexadecimal digits.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
    /// The bytes of a small object.
    pub bytes: Option<Bytes>,
    /// The `Content-Type`.
    pub content_type: Option<String>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Stored>,
    requests: Vec<String>,
    /// Statuses that the next PUT requests are answered with.
    failures: Vec<u16>,
}

/// A server that runs until it is dropped.
pub struct HttpStore {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    scheme: &'static str,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The files of a client of a server with TLS.
pub struct ClientFiles {
    /// The certificate of the authority of both.
    pub authority: PathBuf,
    /// The client's certificate.
    pub certificate: PathBuf,
    /// The client's key.
    pub key: PathBuf,
}

impl HttpStore {
    /// Starts a server without TLS.
    pub fn plain() -> Self {
        Self::start(None)
    }

    /// Starts a server that demands certificates of clients. Writes the files of a client.
    pub fn tls(directory: &Path) -> (Self, ClientFiles) {
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let authority = rcgen::CertifiedIssuer::self_signed(authority, key).unwrap();
        let issue = |names: &[&str]| {
            let key = rcgen::KeyPair::generate().unwrap();
            let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            let certificate = rcgen::CertificateParams::new(names).unwrap();
            (certificate.signed_by(&key, &authority).unwrap().pem(), key.serialize_pem())
        };
        let (certificate, key) = issue(&["localhost", "127.0.0.1"]);
        let (client_certificate, client_key) = issue(&["client"]);
        let file = |name: &str, text: &str| {
            let path = directory.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let files = ClientFiles {
            authority: file("authority.pem", &authority.pem()),
            certificate: file("client.pem", &client_certificate),
            key: file("client.key", &client_key),
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        (Self::start(Some(TlsAcceptor::from(Arc::new(config)))), files)
    }

    fn start(tls: Option<TlsAcceptor>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (stop, mut stopped) = oneshot::channel();
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let socket = tokio::select! {
                        _ = &mut stopped => return,
                        accepted = listener.accept() => accepted.unwrap().0,
                    };
                    let (state, tls) = (Arc::clone(&shared), tls.clone());
                    tokio::spawn(async move {
                        let service = service_fn(|request| answer(request, &state));
                        let http = hyper::server::conn::http1::Builder::new();
                        // A client may close the connection, or have no certificate.
                        match tls {
                            None => {
                                let _ = http.serve_connection(TokioIo::new(socket), service).await;
                            }
                            Some(tls) => {
                                if let Ok(stream) = tls.accept(socket).await {
                                    let stream = TokioIo::new(stream);
                                    let _ = http.serve_connection(stream, service).await;
                                }
                            }
                        }
                    });
                }
            });
        });
        Self { address, state, scheme, stop: Some(stop), thread: Some(thread) }
    }

    /// Returns `http://127.0.0.1:PORT` or `https://...`.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Returns the objects by path.
    pub fn objects(&self) -> BTreeMap<String, Stored> {
        self.state.lock().unwrap().objects.clone()
    }

    /// Returns the requests so far as `METHOD /path`.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    /// Answers the next PUT requests with these statuses.
    pub fn fail_next(&self, statuses: &[u16]) {
        self.state.lock().unwrap().failures.extend(statuses.iter().rev());
    }
}

impl Drop for HttpStore {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    state: &Mutex<State>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, mut body) = request.into_parts();
    let path = head.uri.path().to_owned();
    state.lock().unwrap().requests.push(format!("{} {path}", head.method));
    let status = |status: StatusCode| {
        Ok(Response::builder().status(status).body(Full::new(Bytes::new())).unwrap())
    };
    let found = state.lock().unwrap().objects.get(&path).cloned();
    match head.method.as_str() {
        "GET" | "HEAD" => {
            let Some(found) = found else { return status(StatusCode::NOT_FOUND) };
            let answer = Response::builder().header(CONTENT_LENGTH, found.size);
            let bytes = found.bytes.filter(|_| head.method == "GET").unwrap_or_default();
            Ok(answer.body(Full::new(bytes)).unwrap())
        }
        "PUT" => {
            let Some(length) = head.headers.get(CONTENT_LENGTH) else {
                return status(StatusCode::LENGTH_REQUIRED);
            };
            let length: u64 = length.to_str().unwrap().parse().unwrap();
            let mut hash = Sha256::new();
            let (mut size, mut kept) = (0, Vec::new());
            while let Some(frame) = body.frame().await {
                let Ok(frame) = frame else { return status(StatusCode::BAD_REQUEST) };
                if let Some(data) = frame.data_ref() {
                    hash.update(data);
                    size += data.len() as u64;
                    if kept.len() + data.len() <= KEPT {
                        kept.extend_from_slice(data);
                    }
                }
            }
            if let Some(failure) = state.lock().unwrap().failures.pop() {
                return status(StatusCode::from_u16(failure).unwrap());
            }
            if size != length {
                return status(StatusCode::BAD_REQUEST);
            }
            if found.is_some() && head.headers.contains_key(IF_NONE_MATCH) {
                return status(StatusCode::PRECONDITION_FAILED);
            }
            let sha256 = hash.finalize().iter().fold(String::new(), |mut text, byte| {
                use std::fmt::Write as _;
                write!(text, "{byte:02x}").unwrap();
                text
            });
            let bytes = (kept.len() as u64 == size).then(|| Bytes::from(kept));
            let content_type = head.headers.get("content-type");
            let content_type = content_type.map(|value| value.to_str().unwrap().to_owned());
            let stored = Stored { sha256, size, bytes, content_type };
            state.lock().unwrap().objects.insert(path, stored);
            status(StatusCode::CREATED)
        }
        _ => status(StatusCode::METHOD_NOT_ALLOWED),
    }
}
