//! A real S3 server in this process: `s3s` checks the signature of every request (SigV4), and
//! `s3s-fs` keeps objects as files, so that a test can also read them as a `file://` binary cache.
//! A rule can inject faults.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder as Connection;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::sync::oneshot;

/// The access key id that the server knows.
pub const ACCESS_KEY_ID: &str = "lab-access-key-id";
/// Its secret.
pub const SECRET_ACCESS_KEY: &str = "lab-secret-access-key";

/// A fault that a request meets.
pub enum Fault {
    /// An answer with this status and this S3 error code. The answer to a HEAD request has no body.
    Answer(u16, &'static str),
    /// An answer with this status and an endless body of zeros.
    Endless(u16),
    /// No answer.
    Hang,
    /// The request is executed, and the connection is closed without an answer.
    Lost,
    /// The request is executed after this time.
    Later(Duration),
}

/// Chooses the fault of a request `METHOD /bucket/key?query`.
pub type Rule = dyn Fn(&str) -> Option<Fault> + Send + Sync;

/// A server that runs until it is dropped.
pub struct S3Server {
    address: SocketAddr,
    root: PathBuf,
    requests: Arc<Mutex<Vec<String>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl S3Server {
    /// Starts a server with these buckets, which it keeps in `root`.
    pub fn start(root: &Path, buckets: &[&str]) -> Self {
        Self::start_with(root, buckets, SECRET_ACCESS_KEY)
    }

    /// Starts a server with another secret.
    pub fn start_with(root: &Path, buckets: &[&str], secret: &str) -> Self {
        Self::serve(root, buckets, secret, Arc::new(|_| None))
    }

    /// Starts a server with faults.
    pub fn start_faulty(
        root: &Path,
        buckets: &[&str],
        rule: impl Fn(&str) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        Self::serve(root, buckets, SECRET_ACCESS_KEY, Arc::new(rule))
    }

    fn serve(root: &Path, buckets: &[&str], secret: &str, rule: Arc<Rule>) -> Self {
        for bucket in buckets {
            std::fs::create_dir_all(root.join(bucket)).unwrap();
        }
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, secret));
        let service = builder.build();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, mut stopped) = oneshot::channel();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
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
                    let (service, rule, log) =
                        (service.clone(), Arc::clone(&rule), Arc::clone(&log));
                    let service = service_fn(move |request: Request<Incoming>| {
                        let asked = format!("{} {}", request.method(), request.uri());
                        log.lock().unwrap().push(asked.clone());
                        answer(service.clone(), request, rule(&asked))
                    });
                    tokio::spawn(async move {
                        let server = Connection::new(TokioExecutor::new());
                        // A client may close the connection.
                        let _ = server.serve_connection(TokioIo::new(socket), service).await;
                    });
                }
            });
        });
        Self { address, root: root.to_owned(), requests, stop: Some(stop), thread: Some(thread) }
    }

    /// Returns `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the table of an object store on this server. Writes the credentials into
    /// `directory`.
    pub fn object_store(&self, url: &str, directory: &Path, secret: &str) -> toml::Table {
        let secret_file = |name: &str, text: &str| {
            let path = directory.join(name);
            std::fs::write(&path, format!("{text}\n")).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            path.display().to_string()
        };
        toml::toml! {
            url = url
            region = "eu-west-1"
            endpoint = (self.endpoint())
            credentials.access-key-id-file = (secret_file("access-key-id", ACCESS_KEY_ID))
            credentials.secret-access-key-file = (secret_file("secret-access-key", secret))
        }
    }

    /// Returns the requests so far, in the form that a [`Rule`] gets.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// Returns the directory with the objects of `bucket`.
    pub fn bucket(&self, bucket: &str) -> PathBuf {
        self.root.join(bucket)
    }
}

/// Executes the request, unless it meets a fault.
async fn answer(
    service: S3Service,
    request: Request<Incoming>,
    fault: Option<Fault>,
) -> std::io::Result<Response<s3s::Body>> {
    let is_head = request.method() == Method::HEAD;
    let status =
        |status: u16, body: s3s::Body| Ok(Response::builder().status(status).body(body).unwrap());
    match fault {
        None => {}
        Some(Fault::Later(wait)) => tokio::time::sleep(wait).await,
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Answer(code, _)) if is_head => return status(code, s3s::Body::empty()),
        Some(Fault::Answer(code, word)) => {
            // A server that checks the body reads it first.
            drop(request.into_body().collect().await);
            let text = format!("<Error><Code>{word}</Code><Message>told to</Message></Error>");
            return status(code, text.into());
        }
        Some(Fault::Endless(code)) => {
            drop(request.into_body().collect().await);
            let zeros = futures_util::stream::repeat_with(|| {
                Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![0; 64 << 10])))
            });
            return status(code, s3s::Body::http_body(StreamBody::new(zeros)));
        }
        Some(Fault::Lost) => {
            drop(service.call(request.map(s3s::Body::from)).await);
            return Err(std::io::Error::other("the answer is lost"));
        }
    }
    service
        .call(request.map(s3s::Body::from))
        .await
        .map_err(|error| std::io::Error::other(format!("{error:?}")))
}

impl Drop for S3Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
