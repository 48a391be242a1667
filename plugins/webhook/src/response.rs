//! Decides from a response whether the message was sent, has to be sent again, or needs a fix.

use std::time::{Duration, SystemTime};

use hookrun_sdk::Failure;
use hookrun_sdk::http::Response;
use serde_json::Value;

use crate::settings::{Format, Settings};

/// The part of a response's body that a message shows.
const SHOWN: usize = 200;

/// Errors of Slack after which a retry may help.
const SLACK_TRANSIENT: [&str; 5] =
    ["fatal_error", "internal_error", "ratelimited", "request_timeout", "service_unavailable"];

/// Returns nothing if the service has taken the message.
///
/// # Errors
/// The failure is transient for 408, 425, 429 and 5xx, with the time that the service asks to
/// wait. Otherwise it is permanent and names the fix.
pub fn judge(settings: &Settings, response: &Response, now: SystemTime) -> Result<(), Failure> {
    let status = response.status;
    if response.is_success() {
        return match settings.format {
            Format::Slack => slack(response),
            Format::Json | Format::Matrix | Format::Ntfy => Ok(()),
        };
    }
    let said = said(response);
    if matches!(status, 408 | 425 | 429 | 500..=599) {
        let failure = Failure::transient(format!("the server answered with status {status}{said}"));
        return Err(match wait(response, now) {
            Some(wait) => failure.retry_after(wait),
            None => failure,
        });
    }
    let fix = match status {
        300..=399 => {
            let target = response.header("location").unwrap_or("another URL");
            format!("it redirects to {target}; write that as `url`, and in the grant `http`")
        }
        401 | 403 => "check the `credential` of this plugin's grant `http` and its file".to_owned(),
        404 | 410 => match settings.format {
            Format::Matrix => "correct `url` and `channel`".to_owned(),
            Format::Json | Format::Slack | Format::Ntfy => "correct `url`".to_owned(),
        },
        405 => "correct `method` and `url`".to_owned(),
        413 => "shorten `template`".to_owned(),
        _ => match settings.format {
            Format::Json => "correct `body` and `template`".to_owned(),
            Format::Slack | Format::Matrix | Format::Ntfy => {
                "correct `format`, `channel` and `template`".to_owned()
            }
        },
    };
    Err(Failure::permanent(format!("the server answered with status {status}{said}; {fix}")))
}

/// Slack's methods answer every request with status 200. Webhooks answer with the text `ok`.
fn slack(response: &Response) -> Result<(), Failure> {
    let Ok(answer) = serde_json::from_slice::<Value>(&response.body) else { return Ok(()) };
    if answer.get("ok") != Some(&Value::Bool(false)) {
        return Ok(());
    }
    let code = answer.get("error").and_then(Value::as_str).unwrap_or("unknown");
    let what = format!("Slack answered with the error `{}`", shown(code));
    if SLACK_TRANSIENT.contains(&code) {
        return Err(Failure::transient(what));
    }
    let fix = match code {
        "channel_not_found" | "not_in_channel" | "is_archived" => {
            "correct `channel`, and invite the bot to it"
        }
        "missing_scope" => "give the bot the scope `chat:write`",
        _ => "check the `credential` of this plugin's grant `http` and its file",
    };
    Err(Failure::permanent(format!("{what}; {fix}")))
}

/// Returns how long the service asks to wait: `Retry-After` in seconds or as a date, or the key
/// that older Matrix servers use.
fn wait(response: &Response, now: SystemTime) -> Option<Duration> {
    let Some(header) = response.header("retry-after") else {
        let answer: Value = serde_json::from_slice(&response.body).ok()?;
        return answer.get("retry_after_ms").and_then(Value::as_u64).map(Duration::from_millis);
    };
    match header.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(header.trim()).ok()?.duration_since(now).ok(),
    }
}

/// Returns the beginning of the body in parentheses; empty if there is none.
fn said(response: &Response) -> String {
    let text = shown(&response.text());
    if text.is_empty() { text } else { format!(" ({text})") }
}

/// Returns the beginning of a text on one line.
fn shown(text: &str) -> String {
    let line: Vec<&str> = text.split_whitespace().collect();
    line.join(" ").chars().filter(|c| !c.is_control()).take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(format: &str) -> Settings {
        serde_json::from_value(serde_json::json!({ "url": "https://h", "format": format })).unwrap()
    }

    fn response(status: u16, header: Option<(&str, &str)>, body: &str) -> Response {
        let headers = header.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
        Response { status, headers: headers.into_iter().collect(), body: body.into() }
    }

    fn judged(format: &str, response: &Response) -> Result<(), Failure> {
        // 1994-11-06T08:49:07Z, thirty seconds before the date below.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_747);
        judge(&settings(format), response, now)
    }

    #[test]
    fn busy_servers_are_tried_again_when_they_ask_for_it() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        for (status, header, body, wait) in [
            (429, Some(("Retry-After", "30")), "", Some(30)),
            (503, Some(("retry-after", date)), "", Some(30)),
            (503, Some(("retry-after", "soon")), "", None),
            (429, None, r#"{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":2000}"#, Some(2)),
            (500, None, "", None),
            (408, None, "not json", None),
        ] {
            let failure = judged("matrix", &response(status, header, body)).unwrap_err();
            assert!(failure.transient, "{status}");
            assert_eq!(failure.retry_after, wait.map(Duration::from_secs), "{status}");
        }
    }

    #[test]
    fn other_failures_are_permanent_and_name_the_fix() {
        let moved = Some(("location", "https://new.example.org/"));
        let failures = [
            judged("json", &response(301, moved, "")),
            judged("json", &response(400, None, " {\"error\":\n \"no field content\"}\u{7} ")),
            judged("ntfy", &response(403, None, &"forbidden ".repeat(100))),
            judged("matrix", &response(404, None, "{\"errcode\":\"M_NOT_FOUND\"}")),
            judged("json", &response(405, None, "")),
            judged("slack", &response(413, None, "")),
            judged("slack", &response(200, None, r#"{"ok":false,"error":"not_in_channel"}"#)),
            judged("slack", &response(200, None, r#"{"ok":false,"error":"invalid_auth"}"#)),
        ]
        .map(|judged| {
            let failure = judged.unwrap_err();
            assert!(!failure.transient, "{failure}");
            failure.message
        });
        insta::assert_snapshot!(failures.join("\n"));
    }

    #[test]
    fn slack_takes_a_message_with_ok_and_asks_for_a_retry_by_code() {
        for body in ["ok", r#"{"ok":true,"ts":"1"}"#, "{}"] {
            assert_eq!(judged("slack", &response(200, None, body)), Ok(()));
        }
        let busy = response(200, None, r#"{"ok":false,"error":"service_unavailable"}"#);
        assert!(judged("slack", &busy).unwrap_err().transient);
        assert_eq!(judged("json", &response(204, None, "")), Ok(()));
    }
}
