//! Requests in `hookrun test`, which are not sent. A request that a grant covers is answered with
//! `200` and the JSON body `{}`, and recorded for the report.

use std::sync::{Arc, OnceLock, PoisonError};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use http_body_util::{BodyExt as _, Full};
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;

use super::Client;
use super::body::{About, Metered, WaitLimit};
use super::problem::HttpProblem;
use super::send::HttpResponse;
use hookrun_config::Limit;
use hookrun_config::http::HttpTarget;

/// The body of every response. It is valid JSON, and short for a plugin that reads text.
const BODY: &[u8] = b"{}";

/// A request that was recorded instead of sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requested {
    pub method: String,
    /// The URL, with its query.
    pub url: String,
    pub body: Vec<u8>,
}

impl Client {
    /// Answers a request without sending it.
    ///
    /// # Errors
    /// Returns an error if its body exceeds a limit or is incomplete.
    pub(super) async fn canned(
        &self,
        target: &HttpTarget,
        path_and_query: &str,
        body: Metered,
        failed: &OnceLock<HttpProblem>,
        about: &Arc<About>,
    ) -> Result<HttpResponse, HttpProblem> {
        let body = body.collect().await.map_err(|_| {
            failed.get().cloned().unwrap_or_else(|| {
                about.problem(ErrorCode::HttpProtocolError, "its body broke off")
            })
        })?;
        let url =
            format!("{}://{}{path_and_query}", target.url.scheme.as_str(), target.url.authority());
        let requested =
            Requested { method: target.method.clone(), url, body: body.to_bytes().to_vec() };
        if let Some(kept) = &self.canned {
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(requested);
        }
        let answer = if target.method == "HEAD" { Bytes::new() } else { Bytes::from_static(BODY) };
        let answer = Full::new(answer).map_err(|never| match never {}).boxed_unsync();
        let pause = WaitLimit::new(&about.limits, Limit::HttpBetweenBytesTime, None);
        let mut response =
            Response::new(Metered::response(answer, about.clone(), pause, None).boxed_unsync());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok((response, wasmtime_wasi::runtime::spawn(std::future::ready(()))))
    }

    /// Returns the requests so far, in order, if nothing is sent.
    pub fn requested(&self) -> Vec<Requested> {
        self.canned.as_ref().map_or_else(Vec::new, |kept| {
            kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
        })
    }
}
