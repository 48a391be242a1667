//! Explains a store's refusal to a plugin: whether a retry may help, and what should be changed.
//!
//! The crate's own messages hold whole responses with request signatures; these hold the store's
//! name, the key, the HTTP status and the service's own code and sentence.

use std::error::Error as StdError;

use ::object_store::Error;
use ::object_store::client::{HttpError, HttpErrorKind};

use super::open::Open;
use super::pace::Paused;
use super::s3::NoCredentials;
use crate::{CapabilityError, ErrorKind};

/// How much of a service's sentence is passed on.
const MAX_SENTENCE: usize = 300;

/// The error response of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub status: u16,
    /// The service's word for it, such as `AccessDenied`; the answer to a HEAD has none.
    pub code: Option<String>,
    message: Option<String>,
}

impl Answer {
    /// The answer that `error` is about, if there was one.
    pub(super) fn of(error: &Error) -> Option<Self> {
        let texts: Vec<String> = chain(error).map(ToString::to_string).collect();
        let status = texts.iter().rev().find_map(|text| status(text))?;
        let said = |name| texts.iter().rev().find_map(|text| element(text, name));
        Some(Self { status, code: said("Code"), message: said("Message") })
    }

    /// Returns whether it says that this object may not be read. S3 answers so for an object that
    /// does not exist if the caller may not list the bucket. An answer about credentials has
    /// another code.
    pub(super) fn is_forbidden_object(&self) -> bool {
        let code = self.code.as_deref();
        self.status == 403 && code.is_none_or(|code| matches!(code, "AccessDenied" | "Forbidden"))
    }
}

/// The error of `verb`ing `key` in `open`.
pub(super) fn explain(open: &Open, verb: &str, key: &str, error: &Error) -> CapabilityError {
    let Open { name, place, .. } = open;
    let subject = format!("object store `{name}` ({place}): cannot {verb} `{key}`");
    if let Some(answer) = Answer::of(error) {
        let said = match (&answer.code, &answer.message) {
            (Some(code), Some(message)) => format!(", {code}: {message}"),
            (Some(said), None) | (None, Some(said)) => format!(", {said}"),
            (None, None) => String::new(),
        };
        let (kind, fix) = judge(answer.status, answer.code.as_deref(), name);
        let status = answer.status;
        let error =
            CapabilityError::new(kind, format!("{subject}: HTTP status {status}{said}; {fix}"));
        return match open.pace.left() {
            Some(left) if kind == ErrorKind::Transient => error.retry_after(left),
            _ => error,
        };
    }
    if let Some(Paused(left)) = chain(error).find_map(|error| error.downcast_ref()) {
        let left = *left;
        let error = CapabilityError::transient(format!("{subject}: {}", Paused(left)));
        return error.retry_after(left);
    }
    if let Some(missing) = chain(error).find_map(|error| error.downcast_ref::<NoCredentials>()) {
        return CapabilityError::refused(format!("{subject}: {missing}"));
    }
    // Of Google's and Azure's clients, which ask the machine's metadata when they find nothing
    // else.
    let asks_metadata = |text: String| {
        text.contains("metadata.google.internal") || text.contains("://169.254.169.254/")
    };
    let texts = || chain(error).map(ToString::to_string);
    if texts().any(asks_metadata) {
        return CapabilityError::refused(format!(
            "{subject}: no credentials: the environment has none, and this machine's metadata service gives none; set the variables of the service for hookrun's worker"
        ));
    }
    if texts().any(|text| text.contains("redirect without LOCATION")) {
        let fix = judge(301, None, name).1;
        return CapabilityError::refused(format!("{subject}: the bucket is elsewhere; {fix}"));
    }
    let cause = chain(error)
        .last()
        .map(ToString::to_string)
        .map_or_else(String::new, |text| text.split_whitespace().collect::<Vec<_>>().join(" "));
    if let Some(tls) = chain(error).find_map(|error| error.downcast_ref::<rustls::Error>()) {
        return CapabilityError::refused(format!(
            "{subject}: no secure connection ({tls}); see that the server's certificate is valid and of an authority that this machine trusts (or write `ca-file` under [object-stores.{name}]), and that `url` and `endpoint` name its TLS port"
        ));
    }
    if let Some(http) = chain(error).find_map(|error| error.downcast_ref::<HttpError>()) {
        let what = match http.kind() {
            HttpErrorKind::Connect => "no connection",
            HttpErrorKind::Timeout => "no answer in time",
            HttpErrorKind::Decode => "the answer is not usable",
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
            | Io::IsADirectory => ErrorKind::Refused,
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
                "{subject}: this kind of store cannot do that ({cause}); use s3://, gs://, az:// or file://"
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

/// Decides whether a retry may help, and what has to be done.
fn judge(status: u16, code: Option<&str>, name: &str) -> (ErrorKind, String) {
    let mend = |fix: String| (ErrorKind::Refused, fix);
    match (status, code.unwrap_or_default()) {
        // A lifecycle rule, or an answer that was lost.
        (_, "NoSuchUpload") => (
            ErrorKind::Transient,
            "the upload was ended while it was under way; it begins again".to_owned(),
        ),
        (_, "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired") => {
            mend(format!("the credentials have expired; renew those of [object-stores.{name}]"))
        }
        (_, "RequestTimeTooSkewed" | "RequestExpired") => {
            mend("this machine's clock is wrong; set it".to_owned())
        }
        (405 | 501, _) => mend(format!(
            "the server does not take such requests; see `url` and `endpoint` under [object-stores.{name}]"
        )),
        (404, "" | "NoSuchBucket" | "ContainerNotFound") => {
            mend(format!("see that the bucket of `url` under [object-stores.{name}] exists"))
        }
        // RFC 9110 15.5.9 and 15.6, RFC 6585 and S3's words: the other side asks for another try,
        // or what arrived was not what was sent.
        (404 | 408 | 409 | 412 | 425 | 429 | 500..=599, _)
        | (
            400,
            "RequestTimeout"
            | "IncompleteBody"
            | "BadDigest"
            | "InvalidPart"
            | "InvalidDigest"
            | "XAmzContentSHA256Mismatch"
            | "XAmzContentChecksumMismatch",
        ) => (ErrorKind::Transient, "it is worth another try".to_owned()),
        (400, "EntityTooLarge" | "KeyTooLongError") => {
            (ErrorKind::Permanent, "the service takes no such object".to_owned())
        }
        (413, _) => mend("raise the server's limit on the size of a request".to_owned()),
        (401 | 403, _) => mend(format!(
            "check the credentials of [object-stores.{name}], and that they may read and write there"
        )),
        (300..=399, _) => {
            mend(format!("write the bucket's own `region` under [object-stores.{name}]"))
        }
        _ => mend(format!("see [object-stores.{name}]")),
    }
}

/// The error and its causes. `source` of an I/O error skips the error that it wraps and gives
/// that one's own cause.
pub(super) fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| {
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        match wrapped {
            Some(wrapped) => Some(wrapped as &(dyn StdError + 'static)),
            None => (**error).source(),
        }
    })
}

/// The status in a message of the crate, whose error type is not public: `...status code: 403
/// Forbidden: ...`.
fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok().filter(|status| (100..600).contains(status))
}

/// An element of a response in S3's form (Azure's is alike), bounded and in one line.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    let plain: String =
        inner.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_SENTENCE).collect();
    Some(plain.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_message_of_a_response_are_found() {
        let text = "Error performing PUT http://h/b/k in 1ms - Server returned non-2xx status code: 403 Forbidden: <?xml?>\
                    <Error><Code>SignatureDoesNotMatch</Code><Message>The request\nsignature</Message>\
                    <StringToSign>AWS4</StringToSign></Error>";
        assert_eq!(status(text), Some(403));
        assert_eq!(element(text, "Code").as_deref(), Some("SignatureDoesNotMatch"));
        assert_eq!(element(text, "Message").as_deref(), Some("The request signature"));
        assert_eq!(status("status code: 9"), None);
    }

    #[test]
    fn what_the_operator_has_to_mend_is_refused() {
        let kinds: Vec<String> = [
            (401, ""),
            (403, ""),
            (403, "SignatureDoesNotMatch"),
            (403, "RequestTimeTooSkewed"),
            (400, ""),
            (400, "ExpiredToken"),
            (400, "RequestTimeout"),
            (400, "EntityTooLarge"),
            (404, ""),
            (404, "NoSuchBucket"),
            (404, "NoSuchUpload"),
            (404, "NoSuchKey"),
            (301, "PermanentRedirect"),
            (405, ""),
            (413, ""),
            (429, ""),
            (500, ""),
            (501, "NotImplemented"),
            (503, "SlowDown"),
            (507, ""),
        ]
        .into_iter()
        .map(|(status, code)| {
            let kind = judge(status, Some(code).filter(|code| !code.is_empty()), "c").0;
            format!("{status} {code}: {}", kind.as_str())
        })
        .collect();
        insta::assert_snapshot!(kinds.join("\n"), @r"
        401 : refused
        403 : refused
        403 SignatureDoesNotMatch: refused
        403 RequestTimeTooSkewed: refused
        400 : refused
        400 ExpiredToken: refused
        400 RequestTimeout: transient
        400 EntityTooLarge: permanent
        404 : refused
        404 NoSuchBucket: refused
        404 NoSuchUpload: transient
        404 NoSuchKey: transient
        301 PermanentRedirect: refused
        405 : refused
        413 : refused
        429 : transient
        500 : transient
        501 NotImplemented: refused
        503 SlowDown: transient
        507 : transient
        ");
    }

    #[test]
    fn an_object_that_may_not_be_read_is_told_from_wrong_credentials() {
        let answer = |status, code: Option<&str>| Answer {
            status,
            code: code.map(ToOwned::to_owned),
            message: None,
        };
        assert!(answer(403, Some("AccessDenied")).is_forbidden_object());
        assert!(answer(403, None).is_forbidden_object());
        assert!(!answer(403, Some("InvalidAccessKeyId")).is_forbidden_object());
        assert!(!answer(401, None).is_forbidden_object());
    }

    #[test]
    fn missing_credentials_are_called_that() {
        let missing = NoCredentials::new("c", "Network is unreachable");
        let error = Error::Unauthenticated { path: String::new(), source: Box::new(missing) };
        let error = explain(&super::super::open::in_memory("c"), "put", "a", &error);
        assert_eq!(error.kind, ErrorKind::Refused);
        assert!(error.message.contains("cannot put `a`: no credentials: "), "{error}");
        assert!(error.message.contains("(Network is unreachable)"), "{error}");
        assert!(error.message.ends_with("under [object-stores.c]"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_of_a_service_is_explained(text in "\\PC*(status code: \\PC*)?(<Code>\\PC*</Code>)?") {
            let _ = status(&text);
            if let Some(said) = element(&text, "Code") {
                proptest::prop_assert!(!said.contains('\n'));
            }
        }
    }
}
