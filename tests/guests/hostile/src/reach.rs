//! Attacks on what is not granted, through the interfaces of the host.

use hookrun_sdk::binary_cache::{self, Group, Settings};
use hookrun_sdk::mail::{self, Message};
use hookrun_sdk::nix_store;
use hookrun_sdk::object_store::ObjectStore;
use hookrun_sdk::{Failure, Outcome, http, signing, state};

use crate::escaped;

pub(crate) fn read_file(path: &str, relative: &str) -> Result<Outcome, Failure> {
    let bytes = nix_store::read_file(path, relative, 0, 4096)?;
    escaped(format!("read {} bytes of {path} {relative}", bytes.len()))
}

pub(crate) fn list_directory(path: &str, relative: &str) -> Result<Outcome, Failure> {
    let entries = nix_store::list_directory(path, relative)?;
    escaped(format!("listed {} entries of {path} {relative}", entries.len()))
}

pub(crate) fn path_info(path: &str) -> Result<Outcome, Failure> {
    let infos = nix_store::path_infos(&[path.to_owned()])?;
    escaped(format!("{infos:?}"))
}

pub(crate) fn closure(path: &str) -> Result<Outcome, Failure> {
    let infos = nix_store::closure(&[path.to_owned()])?;
    escaped(format!("{infos:?}"))
}

pub(crate) fn derivation(path: &str) -> Result<Outcome, Failure> {
    let derivation = nix_store::derivation(path)?;
    escaped(format!("read the derivation of {}", derivation.name))
}

pub(crate) fn not_utf8() -> Result<Outcome, Failure> {
    // SAFETY: none: a string that is not UTF-8, which the host has to notice. It is only handed
    // over here.
    let text = unsafe { String::from_utf8_unchecked(b"/nix/store/\xff\xfe".to_vec()) };
    path_info(&text)
}

pub(crate) fn sign(key: &str, path: &str) -> Result<Outcome, Failure> {
    let signature = signing::sign_path(key, path)?;
    escaped(format!("{path} is signed: {signature}"))
}

pub(crate) fn put(store: &str, key: &str) -> Result<Outcome, Failure> {
    ObjectStore::named(store).put(key, "text/plain", b"hostile")?;
    escaped(format!("wrote {key} to {store}"))
}

pub(crate) fn push(store: &str, key: String, path: String) -> Result<Outcome, Failure> {
    let settings = Settings { keys: vec![key], ..Settings::default() };
    let paths = Group { paths: vec![path], ..Group::default() };
    let report = binary_cache::push(store, &settings, &[paths], &[])?;
    escaped(format!("uploaded {} paths to {store}", report.uploaded))
}

pub(crate) fn put_content_type(store: &str) -> Result<Outcome, Failure> {
    ObjectStore::named(store).put(
        "key",
        "text/plain\r\nx-amz-acl: public-read-write",
        b"hostile",
    )?;
    escaped("wrote a header of its own")
}

pub(crate) fn get(store: &str, key: &str) -> Result<Outcome, Failure> {
    let body = ObjectStore::named(store).get(key, u64::MAX)?;
    escaped(format!("read {key} of {store}: {:?} bytes", body.map(|body| body.len())))
}

pub(crate) fn list(store: &str, prefix: &str) -> Result<Outcome, Failure> {
    let keys = ObjectStore::named(store).list(prefix, u32::MAX)?;
    escaped(format!("{store} has {}", keys.join(" ")))
}

/// Any text is a valid key in the state of the plugin. It can be read back, and no other key
/// exists.
pub(crate) fn state_key(key: &str) -> Result<Outcome, Failure> {
    let before = state::keys("")?;
    if !before.is_empty() {
        return escaped(format!("the keys of another: {}", before.join(" ")));
    }
    state::set(key, b"hostile")?;
    match state::keys("")?.as_slice() {
        [only] if only == key => Ok(Outcome::new("a key like any other")),
        keys => escaped(format!("the keys are {keys:?}")),
    }
}

pub(crate) fn mail(
    transport: &str,
    to: String,
    subject: String,
    header: Option<(String, String)>,
) -> Result<Outcome, Failure> {
    let message = Message { subject, headers: header.into_iter().collect(), ..Message::default() };
    mail::send(transport, std::slice::from_ref(&to), message)?;
    escaped(format!("wrote to {to}"))
}

pub(crate) fn http(
    method: &str,
    url: &str,
    header: Option<(String, String)>,
) -> Result<Outcome, Failure> {
    let request = http::Request::new(method, url);
    let request =
        header.into_iter().fold(request, |request, (name, value)| request.header(name, value));
    let response = request.send()?;
    escaped(format!("{url} answers {}", response.status))
}
