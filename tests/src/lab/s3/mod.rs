//! A real S3 server in this process: `s3s` checks the signature of every request (SigV4), and
//! `s3s-fs` keeps objects as files, so that a test can also read them as a `file://` binary cache.
//! In front of it is a proxy that injects faults and records writes ([`proxy`]); the proxy can also
//! stand in front of another server.

mod proxy;

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder as Connection;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::sync::oneshot;

use self::proxy::{Backend, Proxy};
pub use self::proxy::{Conditions, Fault, Rule, Write};

/// The access key id that the server knows.
pub const ACCESS_KEY_ID: &str = "lab-access-key-id";
/// Its secret.
pub const SECRET_ACCESS_KEY: &str = "lab-secret-access-key";

/// A server that runs until it is dropped.
pub struct S3Server {
    address: SocketAddr,
    root: PathBuf,
    proxy: Arc<Proxy>,
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
        let service = Self::service(root, buckets, Some(secret));
        Self::serve(root, Proxy::new(service, Conditions::Honour, Box::new(|_| None)))
    }

    /// Starts a server with faults.
    pub fn start_faulty(
        root: &Path,
        buckets: &[&str],
        rule: impl Fn(&str) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        let service = Self::service(root, buckets, Some(SECRET_ACCESS_KEY));
        Self::serve(root, Proxy::new(service, Conditions::Honour, Box::new(rule)))
    }

    /// Starts a server that ignores or refuses conditions of writes, with faults. It does not check
    /// signatures, because the proxy changes headers: use it with `credentials.anonymous`.
    pub fn start_old(
        root: &Path,
        buckets: &[&str],
        conditions: Conditions,
        rule: impl Fn(&str) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        let service = Self::service(root, buckets, None);
        Self::serve(root, Proxy::new(service, conditions, Box::new(rule)))
    }

    /// Starts only the proxy, in front of the S3 server at `upstream`.
    pub fn in_front_of(
        upstream: SocketAddr,
        rule: impl Fn(&str) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        let proxy = Proxy::new(Backend::Other(upstream), Conditions::Honour, Box::new(rule));
        Self::serve(Path::new(""), proxy)
    }

    /// Makes a bucket with an unsigned request.
    pub fn make_bucket(&self, bucket: &str) {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(self.address).unwrap();
        let (host, end) = (self.address, "Content-Length: 0\r\nConnection: close");
        write!(stream, "PUT /{bucket} HTTP/1.1\r\nHost: {host}\r\n{end}\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    fn service(root: &Path, buckets: &[&str], secret: Option<&str>) -> Backend {
        for bucket in buckets {
            std::fs::create_dir_all(root.join(bucket)).unwrap();
        }
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
        if let Some(secret) = secret {
            builder.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, secret));
        }
        Backend::Files(builder.build())
    }

    fn serve(root: &Path, proxy: Proxy) -> Self {
        let proxy = Arc::new(proxy);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, mut stopped) = oneshot::channel();
        let answering = Arc::clone(&proxy);
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
                    let proxy = Arc::clone(&answering);
                    let service = service_fn(move |request: Request<Incoming>| {
                        let proxy = Arc::clone(&proxy);
                        async move { proxy.answer(request).await }
                    });
                    tokio::spawn(async move {
                        let server = Connection::new(TokioExecutor::new());
                        // A client may close the connection.
                        let _ = server.serve_connection(TokioIo::new(socket), service).await;
                    });
                }
            });
        });
        Self { address, root: root.to_owned(), proxy, stop: Some(stop), thread: Some(thread) }
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

    /// Returns the table of an object store on this server for requests without a signature.
    pub fn anonymous_store(&self, url: &str) -> toml::Table {
        toml::toml! {
            url = url
            region = "eu-west-1"
            endpoint = (self.endpoint())
            credentials.anonymous = true
        }
    }

    /// Returns the requests so far, in the form that a [`Rule`] gets.
    pub fn requests(&self) -> Vec<String> {
        self.proxy.requests.lock().unwrap().clone()
    }

    /// Returns the writes so far that have made an object.
    pub fn writes(&self) -> Vec<Write> {
        self.proxy.writes.lock().unwrap().clone()
    }

    /// Fails if an object was ever replaced by other bytes, except for narinfos, which may get more
    /// signatures, and for lists and pins of hookrun. Returns the number of objects that were
    /// written.
    #[track_caller]
    pub fn expect_written_once(&self) -> usize {
        let mut objects = std::collections::BTreeMap::new();
        for Write { key, identity } in self.writes() {
            let first = objects.entry(key.clone()).or_insert_with(|| identity.clone());
            assert!(
                *first == identity || key.ends_with(".narinfo") || key.contains("/hookrun/"),
                "{key} was replaced by other bytes: {first}, then {identity}"
            );
        }
        objects.len()
    }

    /// Returns the multipart uploads that have neither been completed nor aborted, and have made no
    /// object.
    pub fn open_uploads(&self) -> Vec<String> {
        self.proxy.open_uploads()
    }

    /// Returns the number of bytes of bodies in both directions.
    pub fn bytes(&self) -> u64 {
        self.proxy.bytes.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Returns the directory with the objects of `bucket`.
    pub fn bucket(&self, bucket: &str) -> PathBuf {
        self.root.join(bucket)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
