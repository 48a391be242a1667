//! Large NARs for plain HTTP servers, as one streamed PUT.
//!
//! Such servers need the length before the first byte, and have no parts that could be aborted. So
//! the NAR is encoded twice: first to know its length and to compare it with Nix's database, and
//! then to be sent. Memory is constant and nothing is written to disk.

use std::sync::Arc;
use std::time::Duration;

use ::object_store::client::{HttpError, HttpErrorKind};
use ::object_store::path::Path;
use ::object_store::{Attribute, Error};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, IF_NONE_MATCH,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::sync::mpsc;
use url::Url;

use super::attributes::ObjectAttributes;
use super::connector::{MAX_ERROR, SLOWEST};
use super::error::{Answer, explain};
use super::once::{Condition, Creation, is_conflict, is_refusal};
use super::open::{Open, RETRIES};
use super::put_nar::{Filler, nar_error};
use super::stored::{self, Sent};
use super::transfers::UnderWay;
use crate::CapabilityError;
use crate::nix_store::Nar;
use hookrun_nix::nar::{self, Compression, NarError, Written};

/// The size of the pieces that are sent.
const PIECE: usize = 1 << 20;
/// The wait before the second attempt; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// Sends large objects to a plain HTTP server.
#[derive(Debug, Clone)]
pub(super) struct HttpPut {
    pub client: reqwest::Client,
    pub base: Url,
    /// How long the server may take to answer after the last byte.
    pub timeout: Duration,
}

/// Puts the NAR, unless there is an object.
///
/// # Errors
/// As [`super::put_nar::put_nar`].
pub(super) async fn put(
    open: &Open,
    http: &HttpPut,
    path: &Path,
    compression: Compression,
    nar: Nar,
    attributes: &ObjectAttributes,
    under_way: &Arc<UnderWay>,
) -> Result<(Sent, Creation), CapabilityError> {
    let sent = stored::encode(compression, nar.clone()).await?;
    let mut headers = headers(open, attributes);
    headers.insert(CONTENT_LENGTH, sent.written.file_size.into());
    if open.conditions.put() != Condition::Refused {
        headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
    }
    let failed = |error: &Error| explain(open, "put", path.as_ref(), error);
    let mut wait = FIRST_WAIT;
    let mut attempts = 0;
    let mut has_directories = false;
    loop {
        let error = match http
            .attempt(open, path, compression, nar.clone(), &sent.written, headers.clone())
            .await?
        {
            Ok(()) => {
                under_way.sent(usize::try_from(sent.written.file_size).unwrap_or(usize::MAX));
                return Ok((sent, Creation::Created));
            }
            Err(error) => error,
        };
        let status = Answer::of(&error).map(|answer| answer.status);
        if is_conflict(&error) {
            return Ok((sent, Creation::Exists));
        } else if is_refusal(open, &error) && headers.remove(IF_NONE_MATCH).is_some() {
            open.conditions.set(open, Condition::Refused);
        } else if matches!(status, Some(404 | 409)) && !has_directories {
            // WebDAV wants directories to be made.
            has_directories = true;
            http.make_directories(path).await;
        } else if is_transient(&error, status) && attempts < RETRIES {
            attempts += 1;
            tokio::time::sleep(wait.mul_f64(0.5 + rand::random::<f64>())).await;
            wait *= 2;
        } else {
            return Err(failed(&error));
        }
    }
}

fn is_transient(error: &Error, status: Option<u16>) -> bool {
    match status {
        Some(status) => matches!(status, 408 | 429 | 500..=599),
        None => super::error::chain(error).any(<dyn std::error::Error>::is::<HttpError>),
    }
}

fn headers(open: &Open, attributes: &ObjectAttributes) -> HeaderMap {
    let name = |attribute: &Attribute| -> Option<HeaderName> {
        match attribute {
            Attribute::ContentType => Some(CONTENT_TYPE),
            Attribute::CacheControl => Some(CACHE_CONTROL),
            Attribute::ContentEncoding => Some(CONTENT_ENCODING),
            _ => None,
        }
    };
    let attributes = attributes.or(&open.defaults).headers(open.keeps);
    attributes
        .into_iter()
        .filter_map(|(attribute, value)| {
            Some((name(attribute)?, HeaderValue::from_str(value.as_ref()).ok()?))
        })
        .collect()
}

impl HttpPut {
    fn url(&self, path: &Path) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path.parts().map(|part| part.as_ref().to_owned()));
        }
        url
    }

    /// One request. The outer error is about the store path.
    async fn attempt(
        &self,
        open: &Open,
        path: &Path,
        compression: Compression,
        nar: Nar,
        expected: &Written,
        headers: HeaderMap,
    ) -> Result<Result<(), Error>, CapabilityError> {
        if let Err(paused) = open.pace.wait().await {
            return Ok(Err(http_error(HttpError::new(HttpErrorKind::Unknown, paused))));
        }
        let (sender, mut pieces) = mpsc::channel::<Bytes>(1);
        let writing = tokio::task::spawn_blocking(move || {
            let mut filler = Filler::new(sender, PIECE, PIECE);
            let written = nar::write(&nar.source, &nar.expected, compression, &mut filler)?;
            let failed = |error| NarError::Write { path: nar.expected.path.clone(), error };
            filler.send().map_err(failed)?;
            Ok(written)
        });
        let body = futures_util::stream::poll_fn(move |context| pieces.poll_recv(context));
        let time = self.timeout + Duration::from_secs(expected.file_size / SLOWEST);
        let answer = self
            .client
            .put(self.url(path))
            .headers(headers)
            .timeout(time)
            .body(reqwest::Body::wrap_stream(body.map(Ok::<_, std::io::Error>)))
            .send()
            .await;
        // A request that has ended ends the writer, too.
        let written = writing.await;
        let result = match answer {
            Ok(answer) => self.judge(open, answer).await,
            Err(error) => Err(http_error(of_reqwest(error))),
        };
        if result.is_err() {
            // The path was changed or collected after the first pass.
            if let Ok(Err(error)) = written
                && !matches!(error, NarError::Write { .. })
            {
                return Err(nar_error(&error));
            }
        }
        Ok(result)
    }

    async fn judge(&self, open: &Open, answer: reqwest::Response) -> Result<(), Error> {
        let status = answer.status();
        open.pace.answered(status, answer.headers());
        if status.is_success() {
            return Ok(());
        }
        let mut kept = Vec::new();
        let read = async {
            let mut pieces = answer.bytes_stream();
            while let Some(Ok(piece)) = pieces.next().await {
                let room = MAX_ERROR.saturating_sub(kept.len());
                kept.extend(piece.iter().take(room));
                if kept.len() >= MAX_ERROR {
                    break;
                }
            }
        };
        // What came in time is enough.
        let _whole = tokio::time::timeout(self.timeout, read).await;
        Err(status_error(status, &String::from_utf8_lossy(&kept)))
    }

    /// Makes the directories of `path`. A server that needs none refuses, which is as good.
    async fn make_directories(&self, path: &Path) {
        let Ok(method) = Method::from_bytes(b"MKCOL") else { return };
        let parts: Vec<_> = path.parts().collect();
        for length in 1..parts.len() {
            let directory: Path = parts.iter().take(length).cloned().collect();
            let request = self.client.request(method.clone(), self.url(&directory));
            let _answer = request.timeout(self.timeout).send().await;
        }
    }
}

fn http_error(error: HttpError) -> Error {
    Error::Generic { store: "HTTP", source: Box::new(error) }
}

/// In the words of the library, which [`Answer::of`] reads.
fn status_error(status: StatusCode, body: &str) -> Error {
    let text = format!("Server returned non-2xx status code: {status}: {body}");
    Error::Generic { store: "HTTP", source: text.into() }
}

fn of_reqwest(error: reqwest::Error) -> HttpError {
    let kind = if error.is_timeout() {
        HttpErrorKind::Timeout
    } else if error.is_connect() {
        HttpErrorKind::Connect
    } else {
        HttpErrorKind::Interrupted
    };
    HttpError::new(kind, error.without_url())
}
