//! The HTTP client of the object stores. Every answer of a server is bounded in bytes and in time
//! before it is kept: the client library reads error messages, lists and credentials as a whole.

use std::cell::Cell;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use ::object_store::{ClientConfigKey, ClientOptions};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::IF_NONE_MATCH;
use http::{HeaderValue, Method};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::pace::{self, Pace};
use super::tls::Tls;

const USER_AGENT: &str = concat!("hookrun/", env!("CARGO_PKG_VERSION"));
/// How long a server may take to begin its answer, and between two pieces of it, unless the
/// configuration says otherwise.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);
/// The slowest line that the body of a request may travel over, in bytes per second: a request has
/// so much more time.
pub(super) const SLOWEST: u64 = 64 << 10;
/// Joining the parts of a large object takes a server time, and some say nothing meanwhile.
const COMPLETE_TIMES: u32 = 10;
/// Bytes of an error that are kept. Those of S3 have less than a KiB.
pub(super) const MAX_ERROR: usize = 64 << 10;
/// An answer that the library reads as a whole: the longest is a page of a list, of 1,000 keys of
/// 1,024 bytes each, every byte of which may be escaped.
const MAX_ANSWER: u64 = 8 << 20;

/// The longest value in such an answer. The library puts what names a page of a list, and an upload
/// in parts, into the URL of the next request, and panics if that is longer than 64 KiB; escaped, a
/// value is three times as long.
const MAX_VALUE: usize = 16 << 10;

/// Pages of a list in a row that may hold no key. Services have empty pages, for example between
/// two partitions; each is a round trip.
pub(super) const MAX_EMPTY_PAGES: u32 = 256;

tokio::task_local! {
    /// Requests for pages of the list that this task reads, since the last key.
    pub(super) static PAGES: Cell<u32>;
    /// Requests of this task must not replace an object. For requests that the library cannot send
    /// with a condition.
    pub(super) static CREATE_ONLY: ();
}

/// Marks a request for the contents of an object: the reader bounds them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contents;

/// Makes clients whose answers are bounded.
#[derive(Debug)]
pub(super) struct BoundedConnector {
    timeout: Duration,
    pace: Arc<Pace>,
    tls: Tls,
}

impl BoundedConnector {
    /// With so much time for each answer.
    pub(super) fn new(timeout: Duration, pace: Arc<Pace>, tls: Tls) -> Self {
        Self { timeout, pace, tls }
    }
}

/// The settings of all connections. A server must not choose where requests go, nor whose answer a
/// plugin gets, so redirects are not followed.
pub(super) fn client(tls: &Tls, allow_http: bool) -> reqwest::ClientBuilder {
    let client = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .redirect(reqwest::redirect::Policy::none())
        .http1_only()
        .https_only(!allow_http);
    tls.apply(client)
}

impl HttpConnector for BoundedConnector {
    fn connect(&self, options: &ClientOptions) -> ::object_store::Result<HttpClient> {
        let value = |key| options.get_config_value(&key).unwrap_or_default();
        let duration = |key| humantime::parse_duration(&value(key)).ok();
        let mut client = client(&self.tls, value(ClientConfigKey::AllowHttp) == "true");
        if let Some(timeout) = duration(ClientConfigKey::ConnectTimeout) {
            client = client.connect_timeout(timeout);
        }
        if let Some(timeout) = duration(ClientConfigKey::Timeout) {
            client = client.timeout(timeout);
        }
        let failed = |error: reqwest::Error| ::object_store::Error::Generic {
            store: "HTTP",
            source: Box::new(error),
        };
        let inner = HttpClient::new(client.build().map_err(failed)?);
        let (timeout, pace) = (self.timeout, Arc::clone(&self.pace));
        Ok(HttpClient::new(Bounded { inner, timeout, pace }))
    }
}

#[derive(Debug)]
struct Bounded {
    inner: HttpClient,
    timeout: Duration,
    pace: Arc<Pace>,
}

#[async_trait]
impl HttpService for Bounded {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if !counts_page(&request) {
            return Err(HttpError::new(HttpErrorKind::Decode, Unread::EmptyPages));
        }
        let contents = request.extensions().get::<Contents>().is_some();
        let completes = request.method() == Method::POST
            && request.uri().query().is_some_and(|query| query.contains("uploadId="));
        if CREATE_ONLY.try_with(|()| ()).is_ok() && (completes || request.method() == Method::PUT) {
            // It need not be signed: S3 demands only `host` and its own headers.
            request.headers_mut().insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        let paused = |paused| HttpError::new(HttpErrorKind::Unknown, paused);
        let permit = self.pace.permit(request.body().content_length()).await;
        self.pace.wait().await.map_err(paused)?;
        let answering = if completes { self.timeout * COMPLETE_TIMES } else { self.timeout };
        let sending = Duration::from_secs(request.body().content_length() as u64 / SLOWEST);
        let allowed = answering.saturating_add(sending);
        let answer = tokio::time::timeout(allowed, self.inner.execute(request));
        let (head, body) = answer.await.map_err(|_| late(allowed))??.into_parts();
        self.pace.answered(head.status, &head.headers);
        permit.answered(pace::is_throttled(head.status));
        drop(permit);
        if !head.status.is_success() {
            let message = error_message(body, self.timeout).await;
            return Ok(HttpResponse::from_parts(head, message.into()));
        }
        let left = if contents { u64::MAX } else { MAX_ANSWER };
        if body.size_hint().lower() > left {
            return Err(too_long());
        }
        let idle = Box::pin(tokio::time::sleep(self.timeout));
        let body = BoundedBody {
            inner: body,
            left,
            value: (!contents).then_some(0),
            timeout: self.timeout,
            idle,
        };
        Ok(HttpResponse::from_parts(head, HttpResponseBody::new(body)))
    }
}

/// Counts a request of a list. Returns false if too many pages before it held no key.
fn counts_page(request: &HttpRequest) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let is_page = query.split('&').any(|pair| pair == "list-type=2" || pair == "comp=list");
    if !is_page {
        return true;
    }
    let count = |pages: &Cell<u32>| pages.replace(pages.get().saturating_add(1));
    PAGES.try_with(count).map_or(true, |before| before <= MAX_EMPTY_PAGES)
}

/// The beginning of an error's body, as text: what the library would fail to read as a string must
/// not hide the status.
async fn error_message(body: HttpResponseBody, timeout: Duration) -> String {
    let mut kept = Vec::new();
    let read = async {
        let mut pieces = body.bytes_stream();
        while let Some(Ok(piece)) = pieces.next().await {
            let room = MAX_ERROR.saturating_sub(kept.len());
            kept.extend(piece.iter().take(room));
            if kept.len() >= MAX_ERROR {
                break;
            }
        }
    };
    // What came in time is enough.
    let _whole = tokio::time::timeout(timeout, read).await;
    String::from_utf8_lossy(&kept).into_owned()
}

/// A body that may have so many bytes more, and may not pause for long.
struct BoundedBody {
    inner: HttpResponseBody,
    left: u64,
    /// Bytes since the last tag of an XML document; none for the contents of an object.
    value: Option<usize>,
    timeout: Duration,
    idle: Pin<Box<Sleep>>,
}

impl Body for BoundedBody {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.inner).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                let Some(left) = this.left.checked_sub(length) else {
                    return Poll::Ready(Some(Err(too_long())));
                };
                this.left = left;
                let data = frame.data_ref().map_or(&[][..], |data| data);
                if this.value.as_mut().is_some_and(|value| !are_short(value, data)) {
                    return Poll::Ready(Some(Err(long_value())));
                }
                this.idle.as_mut().reset(Instant::now() + this.timeout);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Pending => {
                this.idle.as_mut().poll(context).map(|()| Some(Err(late(this.timeout))))
            }
            ended @ Poll::Ready(_) => ended,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Why an answer was not read.
#[derive(Debug)]
enum Unread {
    Late(Duration),
    TooLong,
    LongValue,
    EmptyPages,
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Late(waited) => write!(f, "waited {}", humantime::format_duration(*waited)),
            Self::TooLong => write!(f, "the answer has more than {} MiB", MAX_ANSWER >> 20),
            Self::LongValue => {
                write!(f, "a value in the answer has more than {} KiB", MAX_VALUE >> 10)
            }
            Self::EmptyPages => write!(f, "{MAX_EMPTY_PAGES} pages in a row hold no key"),
        }
    }
}

impl std::error::Error for Unread {}

fn late(waited: Duration) -> HttpError {
    HttpError::new(HttpErrorKind::Timeout, Unread::Late(waited))
}

fn too_long() -> HttpError {
    HttpError::new(HttpErrorKind::Decode, Unread::TooLong)
}

fn long_value() -> HttpError {
    HttpError::new(HttpErrorKind::Decode, Unread::LongValue)
}

/// Returns whether no text between two tags is longer than [`MAX_VALUE`]. `value` is the length of
/// the text since the last tag.
fn are_short(value: &mut usize, data: &[u8]) -> bool {
    let mut pieces = data.split(|byte| *byte == b'<');
    *value += pieces.next().map_or(0, <[u8]>::len);
    let mut short = *value <= MAX_VALUE;
    for piece in pieces {
        *value = piece.len();
        short &= *value <= MAX_VALUE;
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_value_is_found_however_it_is_cut_into_pieces() {
        for (length, expected) in [(MAX_VALUE - 6, true), (MAX_VALUE + 1, false)] {
            let answer = format!("<a><token>{}</token></a>", "x".repeat(length));
            for size in [1, 7, 1000, answer.len()] {
                let mut value = 0;
                let short =
                    answer.as_bytes().chunks(size).all(|piece| are_short(&mut value, piece));
                assert_eq!(short, expected, "{length} bytes in pieces of {size}");
            }
        }
    }
}
