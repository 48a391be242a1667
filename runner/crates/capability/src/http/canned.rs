//! Requests in `hookrun test`, which are not sent. A request that a grant covers is answered as the
//! [`script`] says, else with `200` and the JSON body `{}`, and kept for the report.

use std::sync::{OnceLock, PoisonError};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Response};
use http_body_util::{BodyExt as _, Full};
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;

use super::Client;
use super::body::{Metered, WaitLimit};
use super::problem::HttpProblem;
use super::send::{Exchange, HttpResponse};
use crate::script::{self, Scripted};
use hookrun_config::Limit;

/// The body of every response. It is valid JSON, and short for a plugin that reads text.
const BODY: &[u8] = b"{}";

/// A body that is not what anybody asked for: no text, and not JSON.
const GARBAGE: &[u8] = b"\xff\xfe<garbage";

/// A request that was recorded instead of sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requested {
    pub method: String,
    /// The URL, with its query.
    pub url: String,
    /// The headers that the plugin and the host set, in lower case, sorted.
    pub headers: Vec<(String, String)>,
    /// The name of the credential that the host would add.
    pub credential: Option<String>,
    pub body: Vec<u8>,
}

impl Client {
    /// Answers a request without sending it.
    ///
    /// # Errors
    /// Returns an error if its body exceeds a limit or is incomplete, or if the script says so.
    pub(super) async fn canned(
        &self,
        exchange: &Exchange,
        body: Metered,
        failed: &OnceLock<HttpProblem>,
    ) -> Result<HttpResponse, HttpProblem> {
        let Exchange { about, target, path_and_query, headers, grant, script, .. } = exchange;
        let body = body.collect().await.map_err(|_| {
            failed.get().cloned().unwrap_or_else(|| {
                about.problem(ErrorCode::HttpProtocolError, "its body broke off")
            })
        })?;
        let url =
            format!("{}://{}{path_and_query}", target.url.scheme.as_str(), target.url.authority());
        let shown = |(name, value): (&HeaderName, &HeaderValue)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let mut headers: Vec<_> = headers.iter().map(shown).collect();
        headers.sort();
        let scripted = script.as_ref().and_then(|script| script.request(&target.method, &url));
        let requested = Requested {
            method: target.method.clone(),
            url,
            headers,
            credential: grant.credential.clone(),
            body: body.to_bytes().to_vec(),
        };
        if let Some(kept) = &self.canned {
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(requested);
        }
        let json = HeaderValue::from_static("application/json");
        let usual = || {
            let mut usual = Response::new(Bytes::from_static(BODY));
            usual.headers_mut().insert(CONTENT_TYPE, json.clone());
            usual
        };
        let response = match scripted {
            None => usual(),
            Some(Scripted::Slow) => {
                tokio::time::sleep(script::SLOW).await;
                usual()
            }
            Some(Scripted::Garbage) => usual().map(|_| Bytes::from_static(GARBAGE)),
            Some(Scripted::Timeout) => {
                let what = "no answer in time (scripted)";
                return Err(about.problem(ErrorCode::ConnectionReadTimeout, what));
            }
            Some(Scripted::Error(error)) => {
                return Err(about.problem(ErrorCode::ConnectionRefused, &error.message));
            }
            Some(Scripted::Response { status, headers, body }) => {
                let mut response = Response::builder().status(status);
                for (name, value) in headers {
                    response = response.header(name, value);
                }
                let response = response.body(Bytes::from(body));
                response.map_err(|error| {
                    let what = format!("the scripted answer is not valid ({error})");
                    about.problem(ErrorCode::ConfigurationError, &what)
                })?
            }
        };
        let pause = WaitLimit::new(&about.limits, Limit::HttpBetweenBytesTime, None);
        let response = response.map(|body| {
            let body = if target.method == "HEAD" { Bytes::new() } else { body };
            let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
            Metered::response(body, about.clone(), pause, None).boxed_unsync()
        });
        Ok((response, wasmtime_wasi::runtime::spawn(std::future::ready(()))))
    }

    /// Returns the requests so far, in order, if nothing is sent.
    pub fn requested(&self) -> Vec<Requested> {
        self.canned.as_ref().map_or_else(Vec::new, |kept| {
            kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
        })
    }
}
