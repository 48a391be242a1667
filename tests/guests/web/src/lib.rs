//! A guest that sends the HTTP requests of its configuration one after the other, and returns their
//! results.

use hookrun_sdk::bindings::http::wasi::http::outgoing_handler;
use hookrun_sdk::bindings::http::wasi::http::types::{Fields, OutgoingRequest, Scheme};
use hookrun_sdk::{Error, Failure, Outcome, PostBuild, Want, Wants, config, http, post_build};

#[derive(serde::Deserialize)]
struct Config {
    requests: Vec<Request>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Request {
    #[serde(default = "get")]
    method: String,
    url: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
    #[serde(default)]
    body: String,
    /// Adds so many bytes to the body.
    #[serde(default)]
    body_bytes: usize,
    /// Adds the header `x-filler` of 1 KiB so many times.
    #[serde(default)]
    fillers: usize,
    /// Sends this request so many times before it waits for the first response.
    #[serde(default)]
    at_once: usize,
}

fn get() -> String {
    "GET".to_owned()
}

struct Web;

fn send(request: Request) -> Result<String, Error> {
    let mut body = request.body.into_bytes();
    body.resize(body.len() + request.body_bytes, b'x');
    let mut sent = http::Request::new(request.method, request.url).body(body);
    for (name, value) in request.headers {
        sent = sent.header(name, value);
    }
    for _ in 0..request.fillers {
        sent = sent.header("x-filler", "x".repeat(1024));
    }
    let response = sent.send()?;
    let location =
        response.header("location").map(|location| format!(" to {location}")).unwrap_or_default();
    let text = if response.body.len() > 4096 {
        format!("{} bytes", response.body.len())
    } else {
        response.text()
    };
    Ok(format!("{}{location}: {text}", response.status))
}

/// Uses the interface `wasi:http` directly, since the SDK sends one request after the other.
fn at_once(request: &Request) -> String {
    let asked = request.at_once;
    let Some((_, rest)) = request.url.split_once("://") else { return "no URL".to_owned() };
    let authority = rest.trim_end_matches('/');
    let started: Vec<_> = (0..asked)
        .filter_map(|_| {
            let request = OutgoingRequest::new(Fields::new());
            request.set_scheme(Some(&Scheme::Http)).ok()?;
            request.set_authority(Some(authority)).ok()?;
            outgoing_handler::handle(request, None).ok()
        })
        .collect();
    let answered = started.iter().filter(|coming| {
        coming.subscribe().block();
        matches!(coming.get(), Some(Ok(Ok(_))))
    });
    format!("{} of {asked} were answered", answered.count())
}

impl PostBuild for Web {
    fn handle(_: post_build::Event) -> Result<Outcome, Failure> {
        let config: Config = config()?;
        let mut outcome = Outcome::new("sent");
        for request in config.requests {
            if request.at_once > 0 {
                outcome = outcome.detail("answer", at_once(&request));
                continue;
            }
            let answer = send(request)
                .unwrap_or_else(|error| format!("{:?}: {}", error.kind, error.message));
            outcome = outcome.detail("answer", answer);
        }
        Ok(outcome)
    }
}

hookrun_sdk::plugin! {
    plugin: Web,
    hooks: [PostBuild],
    wants: Wants { http: Want::Required, ..Wants::NOTHING },
}
