//! Requests of S3 that the library does not have: the list of multipart uploads that were begun,
//! and a copy from another bucket. The library signs their URLs.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use ::object_store::aws::AmazonS3;
use ::object_store::client::{HttpClient, HttpConnector as _, HttpRequestBody};
use ::object_store::path::Path;
use ::object_store::signer::{SignedUrlOptions, Signer as _};
use http::{HeaderName, HeaderValue, Method, Request};
use http_body_util::BodyExt as _;

use super::connector::BoundedConnector;
use super::open::client;

/// A request is sent at once.
const SIGNED_FOR: Duration = Duration::from_mins(5);
/// The header that names the source of a copy, `/bucket/key`.
const COPY_SOURCE: &str = "x-amz-copy-source";

/// A client for such requests.
#[derive(Clone)]
pub(super) struct Signed {
    s3: Arc<AmazonS3>,
    http: HttpClient,
    bucket: String,
    /// What tells one service from another.
    service: String,
    prefix: Path,
}

impl fmt::Debug for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signed").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

/// The reason why a request has no result.
#[derive(Debug)]
pub(super) enum SignedError {
    /// The request could not be sent, or the answer not be read.
    Library(::object_store::Error),
    /// The service refused it.
    Status(u16, String),
}

impl Signed {
    pub(super) fn new(
        s3: &Arc<AmazonS3>,
        connector: &BoundedConnector,
        bucket: &str,
        service: &str,
        prefix: &Path,
    ) -> ::object_store::Result<Self> {
        let http = connector.connect(&client().with_allow_http(true))?;
        Ok(Self {
            s3: Arc::clone(s3),
            http,
            bucket: bucket.to_owned(),
            service: service.to_owned(),
            prefix: prefix.clone(),
        })
    }

    /// Returns the key as the service has it.
    pub(super) fn key(&self, key: &str) -> Path {
        self.prefix.parts().chain(Path::from(key).parts()).collect()
    }

    /// Returns the prefix of all keys of the store, with a slash at the end if there is one.
    pub(super) fn prefix(&self) -> String {
        let prefix = self.prefix.as_ref();
        if prefix.is_empty() { String::new() } else { format!("{prefix}/") }
    }

    /// Returns whether both are buckets of one service.
    pub(super) fn is_of_service_of(&self, other: &Self) -> bool {
        self.service == other.service
    }

    /// Returns the answer to a list of the bucket with this query.
    pub(super) async fn list(&self, query: Vec<(&str, String)>) -> Result<String, SignedError> {
        let options = SignedUrlOptions::default().with_query(query);
        self.send(Method::GET, &Path::default(), &options).await
    }

    /// Copies the object `from` of the bucket of `source`, of at most 5 GiB.
    pub(super) async fn copy(
        &self,
        source: &Self,
        from: &str,
        to: &str,
    ) -> Result<String, SignedError> {
        let from = source.key(from);
        let from = format!("/{}/{}", source.bucket, escaped(from.as_ref()));
        let from = HeaderValue::from_str(&from)
            .map_err(|error| SignedError::Library(generic(Box::new(error))))?;
        let options = SignedUrlOptions::default()
            .with_signed_header(HeaderName::from_static(COPY_SOURCE), from);
        self.send(Method::PUT, &self.key(to), &options).await
    }

    async fn send(
        &self,
        method: Method,
        path: &Path,
        options: &SignedUrlOptions,
    ) -> Result<String, SignedError> {
        let url = self.s3.signed_url_opts(method.clone(), path, SIGNED_FOR, options).await;
        let url = url.map_err(SignedError::Library)?;
        let failed = |source| SignedError::Library(generic(source));
        let mut request = Request::builder()
            .method(method)
            .uri(url.as_str())
            .body(HttpRequestBody::empty())
            .map_err(|error| failed(Box::new(error)))?;
        request.headers_mut().extend(options.signed_headers.clone());
        let answer = self.http.execute(request).await.map_err(|error| failed(Box::new(error)))?;
        let (head, body) = answer.into_parts();
        // The connector bounds it.
        let body = body.collect().await.map_err(|error| failed(Box::new(error)))?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        // A copy that fails late is reported in a body with status 200.
        if head.status.is_success() && !text.contains("<Error>") {
            Ok(text)
        } else {
            Err(SignedError::Status(head.status.as_u16(), text))
        }
    }
}

fn generic(source: Box<dyn std::error::Error + Send + Sync>) -> ::object_store::Error {
    ::object_store::Error::Generic { store: "S3", source }
}

/// Returns a key with everything escaped but slashes and what RFC 3986 leaves unreserved.
fn escaped(key: &str) -> String {
    key.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(byte));
            }
            // Writing to a string cannot fail.
            byte => drop(write!(text, "%{byte:02X}")),
        }
        text
    })
}
