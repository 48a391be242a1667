//! A proxy in front of an S3 server, which injects faults and records each write.
//!
//! A write is recorded with a digest of its bytes when the server has accepted it, so that a test
//! can prove that no object was ever replaced by other bytes. For a multipart upload, the digest is
//! that of the digests of its parts.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{HeaderValue, IF_NONE_MATCH};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use s3s::service::S3Service;

/// A fault that a request meets.
pub enum Fault {
    /// An answer with this status and this S3 error code. The answer to a HEAD request has no body.
    Answer(u16, &'static str),
    /// An answer 503 `SlowDown` with `Retry-After` in seconds.
    SlowDown(u64),
    /// An answer with this status and an endless body of zeros.
    Endless(u16),
    /// No answer.
    Hang,
    /// The connection is closed while the body of the request is sent.
    Reset,
    /// The request is executed, and the connection is closed in the body of the answer.
    CutAnswer,
    /// The request is executed, and the connection is closed without an answer.
    Lost,
    /// The request is executed after this time.
    Later(Duration),
    /// The request is executed, and the answer comes byte by byte with this pause.
    Drip(Duration),
    /// The request is executed twice, as if another writer with the same bytes came first. The
    /// client gets the second answer.
    Race,
}

/// Chooses the fault of a request `METHOD /bucket/key?query`.
pub type Rule = dyn Fn(&str) -> Option<Fault> + Send + Sync;

/// What the server does with `If-None-Match` of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conditions {
    /// As AWS.
    Honour,
    /// As Garage.
    Ignore,
    /// As Backblaze: an error.
    Refuse,
}

/// A write that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// `/bucket/key`.
    pub key: String,
    /// A digest of the bytes.
    pub identity: String,
}

pub(super) enum Backend {
    Files(S3Service),
    /// Another server.
    Other(SocketAddr),
}

pub(super) struct Proxy {
    pub backend: Backend,
    pub rule: Box<Rule>,
    pub conditions: Conditions,
    pub requests: Mutex<Vec<String>>,
    pub writes: Mutex<Vec<Write>>,
    pub bytes: AtomicU64,
    /// By upload id.
    uploads: Mutex<HashMap<String, Upload>>,
}

/// A multipart upload.
#[derive(Default)]
struct Upload {
    key: String,
    /// The digests of the parts by number.
    parts: BTreeMap<u32, String>,
}

type Answer = io::Result<Response<s3s::Body>>;

impl Proxy {
    pub(super) fn new(backend: Backend, conditions: Conditions, rule: Box<Rule>) -> Self {
        Self {
            backend,
            rule,
            conditions,
            requests: Mutex::default(),
            writes: Mutex::default(),
            bytes: AtomicU64::new(0),
            uploads: Mutex::default(),
        }
    }

    pub(super) fn open_uploads(&self) -> Vec<String> {
        self.uploads.lock().unwrap().values().map(|upload| upload.key.clone()).collect()
    }

    /// Returns the `ListMultipartUploadsResult` of a bucket. All uploads began long ago.
    fn list_uploads(&self, bucket: &str) -> String {
        let bucket = format!("{}/", bucket.trim_end_matches('/'));
        let uploads = self.uploads.lock().unwrap();
        let listed = uploads.iter().filter_map(|(id, upload)| {
            let key = upload.key.strip_prefix(&bucket)?;
            Some(format!(
                "<Upload><Key>{key}</Key><UploadId>{id}</UploadId>\
                 <Initiated>2020-01-01T00:00:00.000Z</Initiated></Upload>"
            ))
        });
        let listed: String = listed.collect();
        format!(
            "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>{listed}\
             </ListMultipartUploadsResult>"
        )
    }

    pub(super) async fn answer(&self, request: Request<Incoming>) -> Answer {
        let asked = format!("{} {}", request.method(), request.uri());
        self.requests.lock().unwrap().push(asked.clone());
        let fault = (self.rule)(&asked);
        let is_head = request.method() == Method::HEAD;
        let error = |status: u16, code: &str| {
            let text = format!("<Error><Code>{code}</Code><Message>told to</Message></Error>");
            let body = if is_head { s3s::Body::empty() } else { text.into() };
            Response::builder().status(status).body(body).unwrap()
        };
        if matches!(fault, Some(Fault::Hang)) {
            return std::future::pending().await;
        }
        let (mut head, mut body) = request.into_parts();
        if matches!(fault, Some(Fault::Reset)) {
            let _first = body.frame().await;
            return Err(io::Error::other("the connection is reset"));
        }
        // A server that checks the body reads it first.
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        self.bytes.fetch_add(body.len() as u64, Ordering::SeqCst);
        match fault {
            Some(Fault::Answer(status, code)) => return Ok(error(status, code)),
            Some(Fault::SlowDown(seconds)) => {
                let mut answer = error(503, "SlowDown");
                answer.headers_mut().insert("retry-after", HeaderValue::from(seconds));
                return Ok(answer);
            }
            Some(Fault::Endless(status)) => {
                let zeros = futures_util::stream::repeat_with(|| {
                    Ok::<_, io::Error>(Frame::data(Bytes::from(vec![0; 64 << 10])))
                });
                let body = s3s::Body::http_body(StreamBody::new(zeros));
                return Ok(Response::builder().status(status).body(body).unwrap());
            }
            Some(Fault::Later(wait)) => tokio::time::sleep(wait).await,
            _ => {}
        }
        let query = head.uri.query().unwrap_or_default();
        if head.method == Method::GET && query.split('&').any(|name| name.starts_with("uploads")) {
            // s3s-fs does not have this request.
            return Ok(Response::new(self.list_uploads(head.uri.path()).into()));
        }
        // As Cloudflare in front of R2.
        head.headers.insert("accept-encoding", HeaderValue::from_static("gzip, br"));
        if head.headers.contains_key(IF_NONE_MATCH) && head.method != Method::GET {
            match self.conditions {
                Conditions::Honour => {}
                Conditions::Ignore => drop(head.headers.remove(IF_NONE_MATCH)),
                Conditions::Refuse => return Ok(error(501, "NotImplemented")),
            }
        }
        if matches!(fault, Some(Fault::Race)) {
            drop(self.execute(&head, body.clone()).await?);
        }
        let answer = self.execute(&head, body).await?;
        let (answer, body) = answer.into_parts();
        match fault {
            Some(Fault::Lost) => Err(io::Error::other("the answer is lost")),
            Some(Fault::CutAnswer) => {
                let half = body.slice(..body.len() / 2);
                let frames = [Ok(Frame::data(half)), Err(io::Error::other("cut"))];
                let frames = StreamBody::new(futures_util::stream::iter(frames));
                Ok(Response::from_parts(answer, s3s::Body::http_body(frames)))
            }
            Some(Fault::Drip(pause)) => {
                let bytes: Vec<Bytes> = body.chunks(1).map(Bytes::copy_from_slice).collect();
                let frames = futures_util::stream::iter(bytes).then(move |byte| async move {
                    tokio::time::sleep(pause).await;
                    Ok::<_, io::Error>(Frame::data(byte))
                });
                let body = s3s::Body::http_body(StreamBody::new(Box::pin(frames)));
                Ok(Response::from_parts(answer, body))
            }
            _ => Ok(Response::from_parts(answer, s3s::Body::from(body))),
        }
    }

    /// Sends the request to the server, and records what it does.
    async fn execute(
        &self,
        head: &hyper::http::request::Parts,
        body: Bytes,
    ) -> io::Result<Response<Bytes>> {
        let identity = digest(&body);
        let request = Request::from_parts(head.clone(), Full::new(body));
        let answer = match &self.backend {
            Backend::Files(service) => {
                let request = request.map(s3s::Body::http_body);
                let answer = service.call(request).await;
                let answer = answer.map_err(|error| io::Error::other(format!("{error:?}")))?;
                let (head, body) = answer.into_parts();
                let body = BodyExt::collect(body)
                    .await
                    .map_err(|error| io::Error::other(error.to_string()))?;
                Response::from_parts(head, body.to_bytes())
            }
            Backend::Other(address) => {
                let stream = tokio::net::TcpStream::connect(address).await?;
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(stream))
                        .await
                        .map_err(io::Error::other)?;
                tokio::spawn(connection);
                let answer = sender.send_request(request).await.map_err(io::Error::other)?;
                let (mut head, body) = answer.into_parts();
                // The body is sent whole.
                head.headers.remove("transfer-encoding");
                let body = body.collect().await.map_err(io::Error::other)?;
                Response::from_parts(head, body.to_bytes())
            }
        };
        self.bytes.fetch_add(answer.body().len() as u64, Ordering::SeqCst);
        self.record(&head.method, &head.uri, answer.status(), identity, answer.body());
        Ok(answer)
    }

    fn record(
        &self,
        method: &Method,
        uri: &Uri,
        status: StatusCode,
        identity: String,
        answer: &Bytes,
    ) {
        let query = uri.query().unwrap_or_default();
        let value = |name: &str| {
            let of = |pair: &str| Some(unescaped(pair.strip_prefix(name)?.strip_prefix('=')?));
            query.split('&').find_map(of)
        };
        let key = uri.path().to_owned();
        let mut uploads = self.uploads.lock().unwrap();
        let upload = value("uploadId");
        if !status.is_success() {
            // Completed or aborted earlier.
            if let (Some(id), StatusCode::NOT_FOUND) = (&upload, status) {
                uploads.remove(id);
            }
            return;
        }
        match (method.as_str(), upload, value("partNumber")) {
            ("PUT", Some(id), Some(number)) => {
                let upload = uploads.entry(id).or_default();
                upload.key = key;
                upload.parts.insert(number.parse().unwrap(), identity);
            }
            // Not the creation of a bucket.
            ("PUT", None, _) if key.matches('/').count() > 1 => {
                self.writes.lock().unwrap().push(Write { key, identity });
            }
            ("POST", None, _) if query.split('&').any(|name| name.starts_with("uploads")) => {
                let text = String::from_utf8_lossy(answer);
                let id = text.split_once("<UploadId>").and_then(|(_, rest)| rest.split_once('<'));
                if let Some((id, _)) = id {
                    uploads.entry(id.to_owned()).or_default().key = key;
                }
            }
            // Some answer 200 with an error in the body.
            ("POST", Some(id), _) if !answer.windows(7).any(|part| part == b"<Error>") => {
                // Ceph answers the same to a second end of an upload.
                let Some(upload) = uploads.remove(&id) else { return };
                let all: Vec<String> = upload.parts.into_values().collect();
                let identity = format!("parts {}", digest(all.concat().as_bytes()));
                self.writes.lock().unwrap().push(Write { key, identity });
            }
            ("DELETE", Some(id), _) => drop(uploads.remove(&id)),
            _ => {}
        }
    }
}

/// Returns a value of a query without percent encoding.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('%');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (code, rest) = part.split_at(2);
        plain.push(char::from(u8::from_str_radix(code, 16).unwrap()));
        plain.push_str(rest);
    }
    plain
}

fn digest(bytes: &[u8]) -> String {
    hookrun_nix::nar::hash(bytes).0
}
