//! The request that reports an event to a service.

use serde_json::{Map, Value, json};

use crate::notice::{Notice, PLACEHOLDERS};
use crate::settings::{Format, Settings};
use crate::template::render;

/// The texts without a `template`.
const BUILT: &str = "{name} was built on {host} ({outputs})";
const DIFFERS: &str =
    "{name} ({outputs}) is not reproducible: {files} differ on {host}\n{differences}";

/// ntfy makes an attachment of a longer message.
const MAX_NTFY: usize = 4_096;
/// Slack cuts longer texts, and an event of Matrix may have 65,536 bytes with its escapes.
const MAX_TEXT: usize = 16_000;

/// The body of a request, its method and its URL. The body is JSON for every format.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// The method.
    pub method: String,
    /// The URL.
    pub url: String,
    /// The body.
    pub body: Value,
}

impl Message {
    /// Writes the message about an event.
    ///
    /// # Errors
    /// A template is wrong, or gives no text; the message names the key to change.
    pub fn new(settings: &Settings, notice: &Notice) -> Result<Self, String> {
        let format = settings.format;
        let default = if notice.differs { DIFFERS } else { BUILT };
        let template = settings.template.as_deref().unwrap_or(default);
        let text = render(template, &PLACEHOLDERS, |name| escaped(format, notice.value(name)))
            .map_err(|error| format!("`template`: {error}"))?;
        let text = text.trim();
        if text.is_empty() {
            let hook = notice.value("hook");
            return Err(format!(
                "`template` gives an empty text for a {hook} event; add `{{name}}` to it, or leave \
                 `{hook}` out of the plugin's `hooks`"
            ));
        }
        let channel = settings.channel.as_deref();
        let missing = |what: &str| format!("`channel` is missing; write {what}");
        let url = settings.url.clone();
        let method = settings.method.clone().unwrap_or_else(|| "POST".to_owned());
        match format {
            Format::Json => {
                let body = match &settings.body {
                    None => json!({
                        "hook": notice.value("hook"),
                        "status": notice.value("status"),
                        "text": text,
                        "event": notice.event,
                    }),
                    Some(body) => Value::Object(filled(body, notice, text)?),
                };
                Ok(Self { method, url, body })
            }
            Format::Slack => {
                let mut body = json!({ "text": cut(text, MAX_TEXT), "unfurl_links": false });
                if let (Some(channel), Some(keys)) = (channel, body.as_object_mut()) {
                    keys.insert("channel".to_owned(), channel.into());
                }
                Ok(Self { method, url, body })
            }
            Format::Matrix => {
                let room = channel.ok_or_else(|| missing("the room's ID, `!...`"))?;
                // The server ignores a second event with the same transaction ID.
                let url = format!(
                    "{}/_matrix/client/v3/rooms/{}/send/m.room.message/{}",
                    url.trim_end_matches('/'),
                    path_segment(room),
                    path_segment(&notice.id)
                );
                // Clients do not answer or highlight notices of programs.
                let body = json!({ "msgtype": "m.notice", "body": cut(text, MAX_TEXT) });
                Ok(Self { method: "PUT".to_owned(), url, body })
            }
            Format::Ntfy => {
                let topic = channel.ok_or_else(|| missing("the topic"))?;
                let (priority, tag) = if notice.differs { (4, "warning") } else { (3, "package") };
                let body = json!({
                    "topic": topic,
                    "title": format!("{} is {}", notice.value("name"), notice.value("status")),
                    "message": cut(text, MAX_NTFY),
                    "priority": priority,
                    "tags": [tag],
                });
                Ok(Self { method: "POST".to_owned(), url, body })
            }
        }
    }
}

/// Returns `body` with the placeholders of its texts replaced.
fn filled(
    body: &Map<String, Value>,
    notice: &Notice,
    text: &str,
) -> Result<Map<String, Value>, String> {
    body.iter()
        .map(|(key, value)| Ok((key.clone(), filled_value(value, notice, text)?)))
        .collect::<Result<_, String>>()
}

fn filled_value(value: &Value, notice: &Notice, text: &str) -> Result<Value, String> {
    match value {
        Value::String(template) => {
            let fill =
                |name: &str| if name == "text" { text } else { notice.value(name) }.to_owned();
            let known: Vec<&str> = ["text"].into_iter().chain(PLACEHOLDERS).collect();
            let filled = render(template, &known, fill);
            filled.map(Value::String).map_err(|error| format!("`body`: {error}"))
        }
        Value::Array(items) => items.iter().map(|item| filled_value(item, notice, text)).collect(),
        Value::Object(keys) => filled(keys, notice, text).map(Value::Object),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(value.clone()),
    }
}

/// Escapes a value for the text of a format, so that it mentions no users and makes no links.
fn escaped(format: Format, value: &str) -> String {
    match format {
        Format::Slack => value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;"),
        Format::Json | Format::Matrix | Format::Ntfy => value.to_owned(),
    }
}

/// Returns at most `max` bytes of a text, and three dots if it is cut.
fn cut(text: &str, max: usize) -> String {
    const DOTS: &str = "...";
    if text.len() <= max {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(max.saturating_sub(DOTS.len()));
    let (start, _) = text.split_at(end);
    format!("{start}{DOTS}")
}

/// Encodes a segment of a path (RFC 3986 section 3.3).
fn path_segment(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$'()*+,;=:@".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notice::tests::{build, difference};

    fn settings(json: Value) -> Settings {
        serde_json::from_value(json).unwrap()
    }

    /// Returns the message about a difference as text.
    fn shown(settings: &Settings, notice: &Notice) -> String {
        let Message { method, url, body } = Message::new(settings, notice).unwrap();
        format!("{method} {url}\n{}", serde_json::to_string_pretty(&body).unwrap())
    }

    #[test]
    fn a_message_in_each_format() {
        let formats = [
            json!({ "url": "https://hooks.example.org/builds" }),
            json!({ "url": "https://slack.com/api/chat.postMessage", "format": "slack", "channel": "#builds" }),
            json!({ "url": "https://matrix.example.org/", "format": "matrix", "channel": "!a b/c:example.org" }),
            json!({ "url": "https://ntfy.sh", "format": "ntfy", "channel": "builds" }),
        ];
        let built = Notice::built(&build()).unwrap();
        let differs = Notice::differs(&difference(&["bin/greet", "<!channel>&"])).unwrap();
        let all = formats.map(|keys| {
            let settings = settings(keys);
            format!("{}\n\n{}\n", shown(&settings, &built), shown(&settings, &differs))
        });
        insta::assert_snapshot!(all.join("\n"));
    }

    #[test]
    fn the_body_of_any_service_can_be_written_with_placeholders() {
        let settings = settings(json!({
            "url": "https://discord.com/api/webhooks/1",
            "template": "{name} is {status}",
            "body": { "content": "{text}", "allowed_mentions": { "parse": ["{hook}", 1, true] } },
        }));
        let message = Message::new(&settings, &Notice::built(&build()).unwrap()).unwrap();
        let expected = json!({
            "content": "greet-2.12 is built",
            "allowed_mentions": { "parse": ["post-build", 1, true] },
        });
        assert_eq!(message.body, expected);
    }

    #[test]
    fn a_wrong_template_is_an_error_that_names_the_key() {
        let notice = Notice::built(&build()).unwrap();
        let error = |more: Value| {
            let mut keys = json!({ "url": "https://h" });
            keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            Message::new(&settings(keys), &notice).unwrap_err()
        };
        let errors = [
            error(json!({ "template": "{nam}" })),
            error(json!({ "template": "{differences}" })),
            error(json!({ "body": { "a": [{ "b": "{nam}" }] } })),
            error(json!({ "format": "matrix" })),
        ];
        insta::assert_snapshot!(errors.join("\n"));
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(cut("äöü", 6), "äöü");
        assert_eq!(cut("äöüß", 7), "äö...");
    }
}
