//! Scripted answers and faults of `hookrun test`: what a capability answers instead of its service.
//!
//! The choke point asks the script for each host call of a capability, and the sender of HTTP
//! requests for each request. Nothing else does. A script also keeps what was called, in order.
//! Services of an installation have none.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use wildmatch::WildMatchPattern;

use crate::{CapabilityError, ErrorKind};

/// The call in a rule that means an HTTP request.
pub const HTTP: &str = "http";

/// How long a slow service takes to answer.
pub const SLOW: Duration = Duration::from_millis(300);

/// A pattern in which `*` stands for any text.
pub type Pattern = WildMatchPattern<'*', '\0'>;

/// A rule: which calls it answers, and how.
#[derive(Debug, Clone)]
pub struct Rule {
    /// A pattern for `interface.function` of a host call, or [`HTTP`].
    pub call: String,
    /// A pattern for the arguments of a host call, as WAVE text; none for all.
    pub arguments: Option<String>,
    /// The method of an HTTP request; none for all.
    pub method: Option<String>,
    /// A pattern for the URL of an HTTP request; none for all.
    pub url: Option<String>,
    /// The number of calls that it answers; none for all.
    pub times: Option<u32>,
    /// The answer.
    pub answer: Scripted,
}

/// An answer in place of the service's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scripted {
    /// The service refuses or fails.
    Error(CapabilityError),
    /// The service does not answer in time.
    Timeout,
    /// The service answers, and its answer is not what was asked for.
    Garbage,
    /// The service answers after [`SLOW`].
    Slow,
    /// An HTTP response.
    Response {
        /// The status code.
        status: u16,
        /// The headers.
        headers: Vec<(String, String)>,
        /// The body.
        body: Vec<u8>,
    },
}

impl Scripted {
    /// Returns the answer of a service with an HTTP status, as HTTP response and as error of a host
    /// call.
    pub fn status(status: u16) -> Self {
        Self::Response { status, headers: Vec::new(), body: Vec::new() }
    }

    /// Returns the error that a host call has with this answer; none if it has a result.
    pub fn error(&self, call: &str) -> Option<CapabilityError> {
        let said = match self {
            Self::Error(error) => return Some(error.clone()),
            Self::Timeout => {
                return Some(CapabilityError::transient(format!(
                    "{call}: no answer in time (scripted)"
                )));
            }
            Self::Garbage | Self::Slow => return None,
            Self::Response { status, .. } => *status,
        };
        let kind = match said {
            100..=399 => return None,
            401 | 403 => ErrorKind::Refused,
            404 | 410 => ErrorKind::NotFound,
            408 | 425 | 429 | 500.. => ErrorKind::Transient,
            _ => ErrorKind::Permanent,
        };
        Some(CapabilityError::new(kind, format!("{call}: the service answered {said} (scripted)")))
    }
}

/// A host call that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Called {
    /// `interface.function`.
    pub call: String,
    /// Its arguments as WAVE text, in parentheses.
    pub arguments: String,
    /// Its result as WAVE text: `ok(..)`, or `err(..)` with the error.
    pub result: String,
}

/// The scripted answers of one scenario, and its calls.
#[derive(Debug, Default)]
pub struct Script(Mutex<Content>);

#[derive(Debug, Default)]
struct Content {
    rules: Vec<Rule>,
    calls: Vec<Called>,
    /// The number of calls that a rule answered.
    answered: u64,
}

impl Script {
    /// Returns a script with rules, of which the first that fits answers.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self(Mutex::new(Content { rules, ..Content::default() }))
    }

    /// Returns the answer to a host call.
    pub fn host_call(&self, call: &str, arguments: &str) -> Option<Scripted> {
        self.answer(|rule| {
            rule.call != HTTP
                && fits(Some(&rule.call), call)
                && fits(rule.arguments.as_ref(), arguments)
        })
    }

    /// Returns the answer to an HTTP request.
    pub fn request(&self, method: &str, url: &str) -> Option<Scripted> {
        self.answer(|rule| {
            rule.call == HTTP
                && rule.method.as_ref().is_none_or(|own| own.eq_ignore_ascii_case(method))
                && fits(rule.url.as_ref(), url)
        })
    }

    fn answer(&self, fits: impl Fn(&Rule) -> bool) -> Option<Scripted> {
        let mut content = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rule = content.rules.iter_mut().find(|rule| rule.times != Some(0) && fits(rule))?;
        if let Some(times) = &mut rule.times {
            *times -= 1;
        }
        let answer = rule.answer.clone();
        content.answered += 1;
        Some(answer)
    }

    /// Keeps a host call that was made.
    pub fn keep(&self, called: Called) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).calls.push(called);
    }

    /// Returns the calls since the last time.
    pub fn take_calls(&self) -> Vec<Called> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).calls)
    }

    /// Returns the number of calls that a rule answered.
    pub fn answered(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).answered
    }
}

/// Returns whether `text` fits `pattern`; every text fits none.
pub fn fits(pattern: Option<&String>, text: &str) -> bool {
    pattern.is_none_or(|pattern| Pattern::new(pattern).matches(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(call: &str, times: Option<u32>, answer: Scripted) -> Rule {
        Rule { call: call.to_owned(), arguments: None, method: None, url: None, times, answer }
    }

    #[test]
    fn the_first_rule_that_fits_and_is_not_used_up_answers() {
        let script = Script::new(vec![
            Rule {
                arguments: Some("(\"cache\", *)".to_owned()),
                ..rule("object-store.*", Some(1), Scripted::Timeout)
            },
            rule("object-store.put", None, Scripted::status(403)),
        ]);
        let put = |arguments: &str| script.host_call("object-store.put", arguments);
        assert_eq!(put("(\"cache\", \"key\")"), Some(Scripted::Timeout));
        assert_eq!(put("(\"cache\", \"key\")"), Some(Scripted::status(403)));
        assert_eq!(script.host_call("state.get", "()"), None);
        assert_eq!(script.answered(), 2);
    }

    #[test]
    fn requests_are_answered_by_method_and_url_with_question_marks_as_they_are() {
        let script = Script::new(vec![Rule {
            method: Some("POST".to_owned()),
            url: Some("https://a.example.org/b?c=*".to_owned()),
            ..rule(HTTP, None, Scripted::status(503))
        }]);
        assert_eq!(script.request("GET", "https://a.example.org/b?c=1"), None);
        assert_eq!(script.request("post", "https://a.example.org/b/c=1"), None);
        let answer = script.request("post", "https://a.example.org/b?c=1").unwrap();
        assert_eq!(answer.error("http").unwrap().kind, ErrorKind::Transient);
        assert_eq!(Scripted::status(204).error("http"), None);
        assert_eq!(Scripted::status(403).error("http").unwrap().kind, ErrorKind::Refused);
    }
}
