//! What a store's refusal means to a plugin: is a retry worth it, and what should be changed.
//!
//! The crate's own messages hold whole responses with request signatures; these hold the store's
//! name, the key, the HTTP status and the service's own code and sentence.

use std::error::Error as StdError;

use ::object_store::Error;
use ::object_store::client::{HttpError, HttpErrorKind};

use super::open::Open;
use crate::capability::{CapabilityError, ErrorKind};

/// How much of a service's sentence is passed on.
const MAX_SENTENCE: usize = 300;

/// The error of `verb`ing `key` in `open`.
pub fn explain(open: &Open, verb: &str, key: &str, error: &Error) -> CapabilityError {
    let Open { name, place, .. } = open;
    let subject = format!("object store `{name}` ({place}): cannot {verb} `{key}`");
    let texts: Vec<String> = chain(error).map(ToString::to_string).collect();
    if let Some(status) = texts.iter().rev().find_map(|text| status(text)) {
        let said = texts
            .iter()
            .rev()
            .find_map(|text| sentence(text))
            .map(|said| format!(", {said}"))
            .unwrap_or_default();
        let (kind, fix) = judge(status, &said, name);
        return CapabilityError::new(kind, format!("{subject}: HTTP status {status}{said}; {fix}"));
    }
    let cause = texts
        .last()
        .map_or_else(String::new, |text| text.split_whitespace().collect::<Vec<_>>().join(" "));
    if let Some(http) = chain(error).find_map(|error| error.downcast_ref::<HttpError>()) {
        let what = match http.kind() {
            HttpErrorKind::Connect => "no connection",
            HttpErrorKind::Timeout => "no answer in time",
            _ => "the connection broke",
        };
        return CapabilityError::transient(format!(
            "{subject}: {what} ({cause}); see that the server can be reached"
        ));
    }
    if let Some(io) = chain(error).find_map(|error| error.downcast_ref::<std::io::Error>()) {
        use std::io::ErrorKind as Io;
        let kind = match io.kind() {
            Io::PermissionDenied
            | Io::ReadOnlyFilesystem
            | Io::NotADirectory
            | Io::IsADirectory => ErrorKind::Permanent,
            _ => ErrorKind::Transient,
        };
        return CapabilityError::new(
            kind,
            format!("{subject} ({io}); the user that runs plugins must be able to write there"),
        );
    }
    match error {
        Error::NotImplemented { .. } | Error::NotSupported { .. } => {
            CapabilityError::permanent(format!(
                "{subject}: this kind of store cannot do it; for objects over {} MiB use s3://, gs://, az:// or file://",
                super::put_nar::PART >> 20
            ))
        }
        Error::InvalidPath { .. } => {
            CapabilityError::invalid(format!("{subject}: the key is malformed ({cause})"))
        }
        Error::NotFound { .. } => {
            CapabilityError::not_found(format!("{subject}: it does not exist"))
        }
        _ => CapabilityError::transient(format!("{subject} ({cause}); see [object-stores.{name}]")),
    }
}

/// Is a retry worth it, and what is to be done?
fn judge(status: u16, said: &str, name: &str) -> (ErrorKind, String) {
    match status {
        // RFC 9110 15.5.9 and 15.6, RFC 6585: the other side asks for another try.
        408 | 409 | 425 | 429 | 500..=599 => {
            (ErrorKind::Transient, "it is worth another try".to_owned())
        }
        // Tokens of a role are renewed under way.
        _ if said.contains("ExpiredToken") || said.contains("RequestTimeTooSkewed") => (
            ErrorKind::Transient,
            "the credentials have expired, or this machine's clock is wrong".to_owned(),
        ),
        401 | 403 => (
            ErrorKind::Permanent,
            format!(
                "check the credentials of [object-stores.{name}], and that they may read, write and list there"
            ),
        ),
        404 => (
            ErrorKind::Permanent,
            format!("see that the bucket of `url` under [object-stores.{name}] exists"),
        ),
        300..=399 => (
            ErrorKind::Permanent,
            format!("write the bucket's own `region` under [object-stores.{name}]"),
        ),
        _ => (ErrorKind::Permanent, format!("see [object-stores.{name}]")),
    }
}

fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| (**error).source())
}

/// The status in a message of the crate, whose error type is not public: `...status code: 403
/// Forbidden: ...`.
fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok().filter(|status| (100..600).contains(status))
}

/// `Code: Message` of a response in S3's form (Azure's is alike), bounded and in one line.
fn sentence(text: &str) -> Option<String> {
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        let (inner, _) = rest.split_once(&format!("</{name}>"))?;
        let plain = inner
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(MAX_SENTENCE)
            .collect::<String>();
        Some(plain.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    match (element("Code"), element("Message")) {
        (Some(code), Some(message)) => Some(format!("{code}: {message}")),
        (code, message) => code.or(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_and_sentences() {
        let text = "Error performing PUT http://h/b/k in 1ms - Server returned non-2xx status code: 403 Forbidden: <?xml?>\
                    <Error><Code>SignatureDoesNotMatch</Code><Message>The request\nsignature</Message>\
                    <StringToSign>AWS4</StringToSign></Error>";
        assert_eq!(status(text), Some(403));
        assert_eq!(sentence(text).as_deref(), Some("SignatureDoesNotMatch: The request signature"));
        assert_eq!(status("status code: 9"), None);
    }

    #[test]
    fn which_statuses_are_worth_a_retry() {
        let kinds: Vec<&str> = [403, 401, 404, 400, 301, 500, 503, 429, 507]
            .iter()
            .map(|status| judge(*status, "", "c").0.as_str())
            .collect();
        assert_eq!(
            kinds,
            [
                "permanent",
                "permanent",
                "permanent",
                "permanent",
                "permanent",
                "transient",
                "transient",
                "transient",
                "transient"
            ]
        );
        assert_eq!(judge(400, ", ExpiredToken: x", "c").0.as_str(), "transient");
    }

    proptest::proptest! {
        #[test]
        fn any_text(text in "\\PC*(status code: \\PC*)?(<Code>\\PC*</Code>)?") {
            let _ = status(&text);
            if let Some(said) = sentence(&text) {
                proptest::prop_assert!(!said.contains('\n'));
            }
        }
    }
}
