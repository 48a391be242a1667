//! A guest of the tests that sends the HTTP requests its configuration names, one after the other, and returns what became of them.

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
    /// So many bytes more in the body.
    #[serde(default)]
    body_bytes: usize,
    /// So many times the header `x-filler`, of 1 KiB each.
    #[serde(default)]
    fillers: usize,
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
    let location = response.header("location").map(|location| format!(" to {location}")).unwrap_or_default();
    let text = if response.body.len() > 4096 { format!("{} bytes", response.body.len()) } else { response.text() };
    Ok(format!("{}{location}: {text}", response.status))
}

impl PostBuild for Web {
    fn handle(_: post_build::Event) -> Result<Outcome, Failure> {
        let config: Config = config()?;
        let mut outcome = Outcome::new("sent");
        for request in config.requests {
            let answer = send(request).unwrap_or_else(|error| format!("{:?}: {}", error.kind, error.message));
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
