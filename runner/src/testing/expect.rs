//! What a step of a scenario expects, and what it did.
//!
//! Texts are patterns in which `*` stands for any text. A key that is left out expects nothing,
//! except `outcome`, which is `done`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use hookrun_capability::script::{Called, fits};
use hookrun_nix::outcome::{Class, Outcome, RunReport};

/// Calls that are not compared: a plugin may read its configuration and log at any time.
const UNCOUNTED_CALLS: [&str; 2] = ["config.get", "log.write"];

/// Characters of a text that are shown from the place where it differs.
const SHOWN_TEXT: usize = 300;
/// Characters before that place that are shown.
const SHOWN_SAME: usize = 40;

/// The expectations of a step: `[step.expect]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Expect {
    /// The class of the outcome; none: `done`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Class>,
    /// The message of the outcome.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Details of the outcome.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
    /// For a policy: the action.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
    /// For a policy: the chosen machines, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machines: Option<Vec<String>>,
    /// All host calls in order, as `interface.function(arguments)` in WAVE, without those of
    /// `config` and `log`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls: Option<Vec<String>>,
    /// Host calls that are made, in any order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub some_calls: Vec<String>,
    /// Host calls that are not made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub no_calls: Vec<String>,
    /// Lines of the log that are there in this order, as `level: message`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
    /// The most that the run may use.
    #[serde(skip_serializing_if = "Most::is_empty")]
    pub most: Most,
    /// All HTTP requests, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Vec<Request>>,
    /// All mails, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mails: Option<Vec<Mail>>,
    /// All pairs of the plugin's key-value store after the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<BTreeMap<String, String>>,
    /// For each named object store, all its objects after the step. Keys may be patterns.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub objects: BTreeMap<String, BTreeMap<String, String>>,
}

/// An HTTP request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Request {
    pub method: String,
    pub url: String,
    /// Some of its headers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// The name of the credential that the host adds. Its value is never part of a test.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

/// A mail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Mail {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// A pattern for the whole message, as it is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The most that a run may use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Most {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_calls: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wasi_calls: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_bytes: Option<u64>,
}

impl Most {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a step did.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Observed {
    pub report: RunReport,
    /// Host calls in order, in WAVE, with their results.
    pub calls: Vec<(String, String)>,
    pub requests: Vec<Request>,
    pub mails: Vec<Mail>,
    pub state: BTreeMap<String, String>,
    pub objects: BTreeMap<String, BTreeMap<String, String>>,
}

/// Returns a host call as text, for comparison.
pub(super) fn call_text(Called { call, arguments, result }: Called) -> (String, String) {
    (format!("{call}{arguments}"), result)
}

impl Observed {
    fn message(&self) -> &str {
        self.report.outcome.message()
    }

    /// Returns the calls that are compared.
    fn compared_calls(&self) -> Vec<&str> {
        let counted =
            |call: &&str| !UNCOUNTED_CALLS.iter().any(|uncounted| call.starts_with(uncounted));
        self.calls.iter().map(|(call, _)| call.as_str()).filter(counted).collect()
    }

    fn log(&self) -> Vec<String> {
        let lines = self.report.log.iter();
        lines.map(|line| format!("{}: {}", line.level, line.message)).collect()
    }

    /// Returns the action and the machines of a policy.
    fn decision(&self) -> (Option<&str>, Vec<&str>) {
        let Outcome::Done { details, .. } = &self.report.outcome else { return (None, Vec::new()) };
        let all = |key: &'static str| {
            details.iter().filter(move |(own, _)| own == key).map(|(_, value)| value.as_str())
        };
        (all("action").next(), all("machine").collect())
    }

    /// Returns expectations that this meets: everything that it did and that a later run repeats.
    pub fn as_expectation(&self, is_policy: bool, before: &Expect) -> Expect {
        let (action, machines) = self.decision();
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let mut expect = Expect {
            outcome: Some(self.report.outcome.class()),
            message: some(self.message()),
            some_calls: before.some_calls.clone(),
            no_calls: before.no_calls.clone(),
            most: before.most.clone(),
            log: self.log(),
            ..Expect::default()
        };
        if is_policy {
            expect.decision = action.map(ToOwned::to_owned);
            expect.machines = Some(machines.into_iter().map(ToOwned::to_owned).collect::<Vec<_>>())
                .filter(|machines| !machines.is_empty());
        } else if let Outcome::Done { details, .. } = &self.report.outcome {
            expect.details =
                details.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        }
        if before.calls.is_some() {
            expect.calls = Some(self.compared_calls().into_iter().map(ToOwned::to_owned).collect());
        }
        if !self.requests.is_empty() || before.requests.is_some() {
            let requests = self.requests.iter().map(|request| Request {
                url: request.url.clone(),
                body: request.body.as_deref().map(ToOwned::to_owned),
                headers: request
                    .headers
                    .iter()
                    .filter(|(name, _)| name.as_str() == "content-type")
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect(),
                ..request.clone()
            });
            expect.requests = Some(requests.collect());
        }
        if !self.mails.is_empty() || before.mails.is_some() {
            let mails = self.mails.iter().map(|mail| Mail {
                subject: mail.subject.as_deref().map(ToOwned::to_owned),
                message: None,
                ..mail.clone()
            });
            expect.mails = Some(mails.collect());
        }
        if !self.state.is_empty() || before.state.is_some() {
            let pairs = self.state.iter().map(|(key, value)| (key.clone(), value.clone()));
            expect.state = Some(pairs.collect());
        }
        for (store, objects) in &self.objects {
            if !objects.is_empty() || before.objects.contains_key(store) {
                let objects = objects.iter().map(|(key, body)| (key.clone(), body.clone()));
                expect.objects.insert(store.clone(), objects.collect());
            }
        }
        expect
    }
}

impl Expect {
    /// Compares, and returns what differs, a line each.
    pub fn differences(&self, observed: &Observed) -> Vec<String> {
        let mut found = Differences::default();
        let class = observed.report.outcome.class();
        let expected = self.outcome.unwrap_or(Class::Done);
        if class != expected {
            found.add(
                "outcome",
                &expected.to_string(),
                &format!("{class}: {}", observed.message()),
            );
        }
        found.text("message", self.message.as_ref(), observed.message());
        if let Outcome::Done { details, .. } = &observed.report.outcome {
            let details: BTreeMap<String, String> = details.iter().cloned().collect();
            for (key, pattern) in &self.details {
                found.value(&format!("details.{key}"), pattern, details.get(key));
            }
        }
        let (action, machines) = observed.decision();
        if let Some(decision) = &self.decision
            && Some(decision.as_str()) != action
        {
            found.add("decision", decision, action.unwrap_or("none"));
        }
        if let Some(expected) = &self.machines {
            found.list("machines", expected, &machines);
        }
        let calls = observed.compared_calls();
        if let Some(expected) = &self.calls {
            found.list("calls", expected, &calls);
        }
        for pattern in &self.some_calls {
            if !observed.calls.iter().any(|(call, _)| fits(Some(pattern), call)) {
                found.add("some-calls", pattern, &format!("not among {}", shown(&calls)));
            }
        }
        for pattern in &self.no_calls {
            if let Some((call, _)) =
                observed.calls.iter().find(|(call, _)| fits(Some(pattern), call))
            {
                found.add("no-calls", &format!("no {pattern}"), call);
            }
        }
        let log = observed.log();
        let mut rest = log.iter();
        for pattern in &self.log {
            if !rest.any(|line| fits(Some(pattern), line)) {
                found.add("log", pattern, &format!("not, in this order, among {}", shown(&log)));
                break;
            }
        }
        self.most.differences(observed, &mut found);
        if let Some(expected) = &self.requests {
            requests(expected, &observed.requests, &mut found);
        }
        if let Some(expected) = &self.mails {
            mails(expected, &observed.mails, &mut found);
        }
        if let Some(expected) = &self.state {
            pairs("state", expected, &observed.state, &mut found);
        }
        for (store, expected) in &self.objects {
            let none = BTreeMap::new();
            let objects = observed.objects.get(store).unwrap_or(&none);
            pairs(&format!("objects.{store}"), expected, objects, &mut found);
        }
        found.0
    }
}

impl Most {
    fn differences(&self, observed: &Observed, found: &mut Differences) {
        let usage = &observed.report.usage;
        let of = [
            ("memory", self.memory, usage.memory),
            ("host-calls", self.host_calls, usage.host_calls),
            ("wasi-calls", self.wasi_calls, usage.wasi_calls),
            ("host-bytes", self.host_bytes, usage.host_bytes),
            ("log-bytes", self.log_bytes, usage.log_bytes),
        ];
        for (name, most, used) in of {
            if let Some(most) = most
                && used > most
            {
                found.add(&format!("most.{name}"), &format!("at most {most}"), &used.to_string());
            }
        }
    }
}

fn requests(expected: &[Request], observed: &[Request], found: &mut Differences) {
    let line = |request: &Request| format!("{} {}", request.method, request.url);
    if expected.len() != observed.len() {
        let observed: Vec<_> = observed.iter().map(line).collect();
        found.add("requests", &format!("{} requests", expected.len()), &shown(&observed));
        return;
    }
    for (number, (expected, observed)) in expected.iter().zip(observed).enumerate() {
        let name = |field: &str| format!("requests[{number}].{field}");
        if expected.method != observed.method {
            found.add(&name("method"), &expected.method, &observed.method);
        }
        found.text(&name("url"), Some(&expected.url), &observed.url);
        for (header, pattern) in &expected.headers {
            let value = observed.headers.get(&header.to_ascii_lowercase());
            found.value(&name(&format!("headers.{header}")), pattern, value);
        }
        if let Some(credential) = &expected.credential {
            found.value(&name("credential"), credential, observed.credential.as_ref());
        }
        if let Some(body) = &expected.body {
            found.value(&name("body"), body, observed.body.as_ref());
        }
    }
}

fn mails(expected: &[Mail], observed: &[Mail], found: &mut Differences) {
    if expected.len() != observed.len() {
        let subjects: Vec<_> =
            observed.iter().map(|mail| mail.subject.clone().unwrap_or_default()).collect();
        found.add("mails", &format!("{} mails", expected.len()), &shown(&subjects));
        return;
    }
    for (number, (expected, observed)) in expected.iter().zip(observed).enumerate() {
        let name = |field: &str| format!("mails[{number}].{field}");
        let pairs = [
            ("transport", &expected.transport, &observed.transport),
            ("subject", &expected.subject, &observed.subject),
            ("message", &expected.message, &observed.message),
        ];
        for (field, expected, observed) in pairs {
            if let Some(pattern) = expected {
                found.value(&name(field), pattern, observed.as_ref());
            }
        }
        if let Some(to) = &expected.to {
            let none = Vec::new();
            let observed = observed.to.as_ref().unwrap_or(&none);
            let observed: Vec<&str> = observed.iter().map(String::as_str).collect();
            found.list(&name("to"), to, &observed);
        }
    }
}

/// Compares all pairs of a store. An expected key may be a pattern, which fits any number of keys.
fn pairs(
    name: &str,
    expected: &BTreeMap<String, String>,
    observed: &BTreeMap<String, String>,
    found: &mut Differences,
) {
    for (key, pattern) in expected {
        let mut values = observed.iter().filter(|(own, _)| fits(Some(key), own)).peekable();
        if values.peek().is_none() {
            found.add(&format!("{name}.\"{key}\""), pattern, "nothing with this key");
        }
        for (own, value) in values {
            found.text(&format!("{name}.\"{own}\""), Some(pattern), value);
        }
    }
    let unexpected =
        observed.keys().filter(|key| !expected.keys().any(|pattern| fits(Some(pattern), key)));
    for key in unexpected {
        found.add(&format!("{name}.\"{key}\""), "nothing with this key", "it is there");
    }
}

/// Differences that were found, a line each.
#[derive(Debug, Default)]
struct Differences(Vec<String>);

impl Differences {
    fn add(&mut self, name: &str, expected: &str, observed: &str) {
        let (expected, observed) = shortened(expected, observed);
        self.0.push(format!("{name}: expected `{expected}`, found `{observed}`"));
    }

    fn text(&mut self, name: &str, pattern: Option<&String>, observed: &str) {
        if let Some(pattern) = pattern
            && pattern != observed
            && !fits(Some(pattern), observed)
        {
            self.add(name, pattern, observed);
        }
    }

    fn value(&mut self, name: &str, pattern: &str, observed: Option<&String>) {
        match observed {
            Some(observed) => self.text(name, Some(&pattern.to_owned()), observed),
            None => self.add(name, pattern, "nothing"),
        }
    }

    fn list(&mut self, name: &str, expected: &[String], observed: &[&str]) {
        let differs =
            |(pattern, text): (&String, &&str)| pattern != text && !fits(Some(pattern), text);
        let first = expected.iter().zip(observed).position(differs);
        let first = first.or_else(|| {
            (expected.len() != observed.len()).then(|| expected.len().min(observed.len()))
        });
        if let Some(first) = first {
            let nothing = "nothing more";
            self.add(
                &format!("{name}[{first}]"),
                expected.get(first).map_or(nothing, String::as_str),
                observed.get(first).copied().unwrap_or(nothing),
            );
        }
    }
}

/// Returns the parts of two texts around the first character in which they differ.
fn shortened(expected: &str, observed: &str) -> (String, String) {
    let same = expected.chars().zip(observed.chars()).take_while(|(a, b)| a == b).count();
    let start = if same > SHOWN_SAME + SHOWN_SAME / 2 { same - SHOWN_SAME } else { 0 };
    let part = |text: &str| {
        let mut part: String = text.chars().skip(start).take(SHOWN_TEXT).collect();
        if text.chars().nth(start + SHOWN_TEXT).is_some() {
            part.push_str("...");
        }
        if start > 0 { format!("...{part}") } else { part }
    };
    (part(expected), part(observed))
}

fn shown<T: AsRef<str>>(items: &[T]) -> String {
    if items.is_empty() {
        return "nothing".to_owned();
    }
    items.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed() -> Observed {
        let outcome = Outcome::Done {
            message: "announced".to_owned(),
            details: vec![("status".to_owned(), "200".to_owned())],
        };
        Observed {
            report: outcome.into(),
            calls: vec![
                ("config.get()".to_owned(), "ok(\"{}\")".to_owned()),
                ("state.get(\"a\")".to_owned(), "ok(none)".to_owned()),
                ("state.set(\"a\", [49])".to_owned(), "ok".to_owned()),
            ],
            requests: vec![Request {
                method: "POST".to_owned(),
                url: "https://chat.example.org/b?x=1".to_owned(),
                headers: [("content-type".to_owned(), "application/json".to_owned())].into(),
                credential: Some("chat".to_owned()),
                body: Some("{\"a\":1}".to_owned()),
            }],
            mails: Vec::new(),
            state: [("a".to_owned(), "1".to_owned())].into(),
            objects: [("cache".to_owned(), [("k".to_owned(), "*".to_owned())].into())].into(),
        }
    }

    #[test]
    fn what_was_observed_meets_the_expectations_made_of_it() {
        let before = Expect { calls: Some(Vec::new()), ..Expect::default() };
        let expect = observed().as_expectation(false, &before);
        assert_eq!(expect.differences(&observed()), Vec::<String>::new());
        let text = toml::to_string(&expect).unwrap();
        assert_eq!(toml::from_str::<Expect>(&text).unwrap(), expect, "{text}");
    }

    #[test]
    fn long_texts_are_shown_from_the_place_where_they_differ() {
        let text = |end: &str| format!("{}{end}{}", "a".repeat(100), "z".repeat(1000));
        let (expected, observed) = shortened(&text("1"), &text("2"));
        assert!(expected.starts_with("...aaa") && expected.len() < 320, "{expected}");
        assert_ne!(expected, observed);
        assert_eq!(shortened("short", "shirt"), ("short".to_owned(), "shirt".to_owned()));
    }

    #[test]
    fn every_difference_names_the_key_both_values_and_the_place() {
        let expect: Expect = toml::from_str(
            r#"
            outcome = "transient"
            message = "ann*?"
            calls = ["state.get(*)", "state.get(*)"]
            some-calls = ["mail.send(*)"]
            no-calls = ["state.set(*)"]
            log = ["info: *"]
            details = { status = "503", other = "*" }
            state = { a = "2", b = "*" }
            requests = [{ method = "GET", url = "https://chat.example.org/*", body = "", credential = "other" }]
            mails = [{ subject = "x" }]
            objects = { cache = { "l*" = "*" } }
            most = { host-calls = 0 }
            "#,
        )
        .unwrap();
        let mut observed = observed();
        observed.report.usage.host_calls = 3;
        insta::assert_snapshot!(expect.differences(&observed).join("\n"), @r#"
outcome: expected `transient`, found `done: announced`
message: expected `ann*?`, found `announced`
details.other: expected `*`, found `nothing`
details.status: expected `503`, found `200`
calls[1]: expected `state.get(*)`, found `state.set("a", [49])`
some-calls: expected `mail.send(*)`, found `not among state.get("a"), state.set("a", [49])`
no-calls: expected `no state.set(*)`, found `state.set("a", [49])`
log: expected `info: *`, found `not, in this order, among nothing`
most.host-calls: expected `at most 0`, found `3`
requests[0].method: expected `GET`, found `POST`
requests[0].credential: expected `other`, found `chat`
requests[0].body: expected ``, found `{"a":1}`
mails: expected `1 mails`, found `nothing`
state."a": expected `2`, found `1`
state."b": expected `*`, found `nothing with this key`
objects.cache."l*": expected `*`, found `nothing with this key`
objects.cache."k": expected `nothing with this key`, found `it is there`
"#);
    }
}
