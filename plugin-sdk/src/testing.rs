//! A host in memory for native tests: a whole `handle` runs in `cargo test`, without WebAssembly.
//!
//! ```
//! use hookrun_sdk::{Failure, Outcome, PostBuild, http, log, post_build, state, testing};
//!
//! struct Announce;
//!
//! impl PostBuild for Announce {
//!     fn handle(event: post_build::Event) -> Result<Outcome, Failure> {
//!         let url: String = state::get_json("url")?.ok_or_else(|| Failure::permanent("no URL"))?;
//!         http::post(url).json(&event)?.send()?.error_for_status()?;
//!         log::info(format!("announced {}", event.name));
//!         Ok(Outcome::new("announced"))
//!     }
//! }
//!
//! let host = testing::Host::new().state("url", r#""https://chat.example.org/""#);
//! let outcome = host.run(|| Announce::handle(post_build::Event::sample())).unwrap();
//! assert_eq!(outcome.message, "announced");
//! assert_eq!(host.requests()[0].url, "https://chat.example.org/");
//! assert_eq!(host.logged(), ["info: announced greet-2.12"]);
//!
//! // A service that is busy is a transient failure.
//! let host = host.response(503, "busy");
//! assert!(host.run(|| Announce::handle(post_build::Event::sample())).unwrap_err().transient);
//! ```
//!
//! The host is that of the thread, for the time of [`Host::run`]. It grants everything and knows no
//! limits; `hookrun test` runs the component with those. Reading the Nix store and NARs are not
//! part of it, and return an error.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use crate::mail::{Message, Sent};
use crate::{Error, ErrorKind};

thread_local! {
    static CURRENT: RefCell<Option<Host>> = const { RefCell::new(None) };
}

/// A host in memory. Clones share it.
#[derive(Debug, Clone)]
pub struct Host(Rc<RefCell<Memory>>);

#[derive(Debug, Default)]
struct Memory {
    config: String,
    state: BTreeMap<String, Vec<u8>>,
    objects: BTreeMap<(String, String), Vec<u8>>,
    signing_keys: Vec<String>,
    responses: VecDeque<(u16, Vec<u8>)>,
    errors: VecDeque<(String, Error)>,
    requests: Vec<HttpRequest>,
    mails: Vec<Mail>,
    log: Vec<String>,
}

/// An HTTP request that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpRequest {
    /// The method.
    pub method: String,
    /// The URL.
    pub url: String,
    /// The headers that the plugin set.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: Vec<u8>,
}

/// A mail that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mail {
    /// The name of the transport.
    pub transport: String,
    /// The recipients.
    pub recipients: Vec<String>,
    /// The message.
    pub message: Message,
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// Returns a host with an empty configuration, whose services hold nothing.
    pub fn new() -> Self {
        let memory = Memory { config: "{}".to_owned(), ..Memory::default() };
        Self(Rc::new(RefCell::new(memory)))
    }

    fn change(self, change: impl FnOnce(&mut Memory)) -> Self {
        change(&mut self.0.borrow_mut());
        self
    }

    /// Sets the plugin's `config` table.
    ///
    /// ```
    /// let host = hookrun_sdk::testing::Host::new().config(serde_json::json!({ "greeting": "hi" }));
    /// assert_eq!(host.run(hookrun_sdk::config_json), r#"{"greeting":"hi"}"#);
    /// ```
    #[must_use]
    pub fn config(self, config: impl serde::Serialize) -> Self {
        let config = serde_json::to_string(&config).unwrap_or_default();
        self.change(|memory| memory.config = config)
    }

    /// Sets a pair of the plugin's key-value store.
    #[must_use]
    pub fn state(self, key: &str, value: impl Into<Vec<u8>>) -> Self {
        self.change(|memory| drop(memory.state.insert(key.to_owned(), value.into())))
    }

    /// Puts an object into a store.
    #[must_use]
    pub fn object(self, store: &str, key: &str, body: impl Into<Vec<u8>>) -> Self {
        let place = (store.to_owned(), key.to_owned());
        self.change(|memory| drop(memory.objects.insert(place, body.into())))
    }

    /// Grants a signing key.
    #[must_use]
    pub fn signing_key(self, name: &str) -> Self {
        self.change(|memory| memory.signing_keys.push(name.to_owned()))
    }

    /// Answers the next HTTP request that has no answer yet with this status and body. Without one,
    /// the answer is 200 and `{}`.
    #[must_use]
    pub fn response(self, status: u16, body: impl Into<Vec<u8>>) -> Self {
        self.change(|memory| memory.responses.push_back((status, body.into())))
    }

    /// Lets the next call of a host function, such as `object-store.put`, fail.
    ///
    /// ```
    /// use hookrun_sdk::{Error, ErrorKind, state, testing::Host};
    ///
    /// let host = Host::new().fails("state.set", ErrorKind::Transient, "the disk is full");
    /// assert!(host.run(|| state::set("key", b"value")).unwrap_err().is_transient());
    /// ```
    #[must_use]
    pub fn fails(self, function: &str, kind: ErrorKind, message: &str) -> Self {
        let error = Error { kind, message: message.to_owned(), retry_after: None };
        self.change(|memory| memory.errors.push_back((function.to_owned(), error)))
    }

    /// Runs a function with this host.
    pub fn run<T>(&self, function: impl FnOnce() -> T) -> T {
        /// Restores the host of before, also after a panic.
        struct Restore(Option<Host>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.with(|current| *current.borrow_mut() = self.0.take());
            }
        }
        let before = CURRENT.with(|current| current.borrow_mut().replace(self.clone()));
        let _restore = Restore(before);
        function()
    }

    /// Returns the lines of the log, as `level: message`.
    pub fn logged(&self) -> Vec<String> {
        self.0.borrow().log.clone()
    }

    /// Returns the HTTP requests, in order.
    pub fn requests(&self) -> Vec<HttpRequest> {
        self.0.borrow().requests.clone()
    }

    /// Returns the mails, in order.
    pub fn mails(&self) -> Vec<Mail> {
        self.0.borrow().mails.clone()
    }

    /// Returns the value of a key of the plugin's key-value store.
    pub fn stored_state(&self, key: &str) -> Option<Vec<u8>> {
        self.0.borrow().state.get(key).cloned()
    }

    /// Returns an object of a store.
    pub fn stored_object(&self, store: &str, key: &str) -> Option<Vec<u8>> {
        self.0.borrow().objects.get(&(store.to_owned(), key.to_owned())).cloned()
    }
}

/// Makes a host call of a native build: an error if the thread has no host.
pub(crate) fn call<T>(
    function: &str,
    work: impl FnOnce(&Services<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    let host = CURRENT.with(|current| current.borrow().clone());
    let Some(host) = host else { return Err(Error::no_host(function)) };
    let next = {
        let mut memory = host.0.borrow_mut();
        let next = memory.errors.iter().position(|(name, _)| name == function);
        next.and_then(|next| memory.errors.remove(next))
    };
    match next {
        Some((_, error)) => Err(error),
        None => work(&Services(&host.0)),
    }
}

/// Returns the configuration, or `{}` without a host.
pub(crate) fn config_json() -> String {
    call("config.get", |host| Ok(host.0.borrow().config.clone()))
        .unwrap_or_else(|_| "{}".to_owned())
}

/// Logs a line; to standard error without a host.
pub(crate) fn log(level: &str, message: &str, fields: &[(&str, &str)]) {
    let line = format!("{level}: {message}");
    let kept = call("log.write", |host| {
        host.0.borrow_mut().log.push(line.clone());
        Ok(())
    });
    if kept.is_err() {
        eprintln!("{line} {fields:?}");
    }
}

/// The services of a host in memory.
pub(crate) struct Services<'a>(&'a RefCell<Memory>);

impl Services<'_> {
    pub(crate) fn state_get(&self, key: &str) -> Option<Vec<u8>> {
        self.0.borrow().state.get(key).cloned()
    }

    pub(crate) fn state_set(&self, key: &str, value: &[u8]) {
        self.0.borrow_mut().state.insert(key.to_owned(), value.to_vec());
    }

    pub(crate) fn state_delete(&self, key: &str) {
        self.0.borrow_mut().state.remove(key);
    }

    pub(crate) fn state_keys(&self, prefix: &str) -> Vec<String> {
        let memory = self.0.borrow();
        memory.state.keys().filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    pub(crate) fn get(&self, store: &str, key: &str, most: u64) -> Result<Option<Vec<u8>>, Error> {
        let object = self.0.borrow().objects.get(&(store.to_owned(), key.to_owned())).cloned();
        match object {
            Some(object) if object.len() as u64 > most => Err(Error {
                kind: ErrorKind::Limit,
                message: format!("the object `{key}` has more than {most} bytes"),
                retry_after: None,
            }),
            object => Ok(object),
        }
    }

    pub(crate) fn put(&self, store: &str, key: &str, body: &[u8]) {
        let place = (store.to_owned(), key.to_owned());
        self.0.borrow_mut().objects.insert(place, body.to_vec());
    }

    pub(crate) fn list(&self, store: &str, prefix: &str, most: u32) -> Vec<String> {
        let memory = self.0.borrow();
        let keys =
            memory.objects.keys().filter(|(own, key)| own == store && key.starts_with(prefix));
        keys.map(|(_, key)| key.clone()).take(usize::try_from(most).unwrap_or(usize::MAX)).collect()
    }

    pub(crate) fn signing_keys(&self) -> Vec<String> {
        self.0.borrow().signing_keys.clone()
    }

    /// Returns text of the form of a signature, which is valid for nothing.
    pub(crate) fn sign(&self, key: &str, what: &str) -> Result<String, Error> {
        if self.0.borrow().signing_keys.iter().any(|own| own == key) {
            return Ok(format!("{key}:signature-of-{what}"));
        }
        Err(Error {
            kind: ErrorKind::Denied,
            message: format!(
                "the test grants no signing key `{key}`; add `.signing_key(\"{key}\")`"
            ),
            retry_after: None,
        })
    }

    pub(crate) fn send_mail(
        &self,
        transport: &str,
        recipients: &[String],
        message: Message,
    ) -> Sent {
        let mut memory = self.0.borrow_mut();
        memory.mails.push(Mail {
            transport: transport.to_owned(),
            recipients: recipients.to_vec(),
            message,
        });
        let message_id = format!("<{}@test>", memory.mails.len());
        Sent { message_id, refused: Vec::new() }
    }

    pub(crate) fn request(&self, request: HttpRequest) -> (u16, Vec<u8>) {
        let mut memory = self.0.borrow_mut();
        memory.requests.push(request);
        memory.responses.pop_front().unwrap_or_else(|| (200, b"{}".to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object_store::{Object, ObjectStore};
    use crate::{http, log, mail, signing, state};

    #[test]
    fn every_service_of_the_host_keeps_what_it_is_given() {
        let host = Host::new().object("cache", "a", "1").signing_key("k").response(404, "none");
        host.run(|| {
            state::set_json("n", &1).unwrap();
            assert_eq!(state::keys("").unwrap(), ["n"]);
            state::delete("n").unwrap();
            let store = ObjectStore::named("cache");
            store.put("b", "text/plain", b"22").unwrap();
            let object = Object {
                key: "c".to_owned(),
                content_type: "text/plain".to_owned(),
                body: Vec::new(),
            };
            store.put_all(&[object]).unwrap();
            assert_eq!(store.list("", 10).unwrap(), ["a", "b", "c"]);
            assert_eq!(store.exists(&["a".to_owned(), "x".to_owned()]).unwrap(), [true, false]);
            assert_eq!(store.get("b", 1).unwrap_err().kind, ErrorKind::Limit);
            assert_eq!(signing::keys().unwrap(), ["k"]);
            assert_eq!(signing::sign_path("k", "/p").unwrap(), "k:signature-of-/p");
            assert_eq!(signing::public_key("x").unwrap_err().kind, ErrorKind::Denied);
            let message = mail::Message { subject: "s".to_owned(), ..mail::Message::default() };
            mail::send("default", &["a@example.org".to_owned()], message).unwrap();
            assert_eq!(http::get("https://a.example.org/").send().unwrap().status, 404);
            assert_eq!(http::get("https://a.example.org/").send().unwrap().status, 200);
            log::warn("w");
        });
        assert_eq!(host.stored_state("n"), None);
        assert_eq!(host.stored_object("cache", "b").as_deref(), Some(&b"22"[..]));
        assert_eq!(host.mails()[0].message.subject, "s");
        assert_eq!(host.requests().len(), 2);
        assert_eq!(host.logged(), ["warn: w"]);
    }

    #[test]
    fn without_a_host_a_call_is_an_error_also_after_a_test() {
        Host::new().run(|| state::set("a", b"").unwrap());
        assert!(state::get("a").unwrap_err().message.contains("only inside hookrun"));
    }
}
