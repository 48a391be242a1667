//! A real S3 server in this process: `s3s` checks the signature of every request (SigV4), `s3s-fs`
//! keeps objects as files, so that they can also be read as a `file://` binary cache.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder as Connection;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::sync::oneshot;

/// The access key id that the server knows.
pub const ACCESS_KEY_ID: &str = "lab-access-key-id";
/// Its secret.
pub const SECRET_ACCESS_KEY: &str = "lab-secret-access-key";

/// A server that runs until it is dropped.
pub struct S3Server {
    address: SocketAddr,
    root: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl S3Server {
    /// Starts a server that keeps its buckets, these, in `root`.
    pub fn start(root: &Path, buckets: &[&str]) -> Self {
        Self::start_with(root, buckets, SECRET_ACCESS_KEY)
    }

    /// As [`S3Server::start`], with another secret.
    pub fn start_with(root: &Path, buckets: &[&str], secret: &str) -> Self {
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
                    let service = service.clone();
                    tokio::spawn(async move {
                        let server = Connection::new(TokioExecutor::new());
                        // A client that hangs up is no failure of the server.
                        let _ = server.serve_connection(TokioIo::new(socket), service).await;
                    });
                }
            });
        });
        Self { address, root: root.to_owned(), stop: Some(stop), thread: Some(thread) }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where the objects of `bucket` lie.
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
