//! A large list or string as an argument of each host function. 16 MiB is twice the limit of one
//! call, and less than the memory limit of a guest.

use hookrun_sdk::binary_cache::{self, Group, Settings};
use hookrun_sdk::log::{self, Level};
use hookrun_sdk::mail::{self, Message};
use hookrun_sdk::nix_store;
use hookrun_sdk::object_store::{Compression, Object, ObjectStore};
use hookrun_sdk::{Failure, Outcome, signing, state};

use crate::Here;

/// The length of the string in bytes.
const LENGTH: usize = 16 << 20;
/// The length of the list. Strings are pairs of words, so a list of strings has 16 MiB without
/// their contents.
const COUNT: usize = 2 << 20;

fn text() -> String {
    "g".repeat(LENGTH)
}

/// Many short strings with any contents.
fn list() -> Vec<String> {
    vec![String::new(); COUNT]
}

fn store() -> ObjectStore {
    ObjectStore::named("own")
}

pub(crate) fn giant(call: &str, here: &Here) -> Result<Outcome, Failure> {
    match call {
        "log.write" => log::write(Level::Info, text(), &[]),
        "log.write-fields" => log::write(Level::Info, "fields", &vec![("k", "v"); COUNT / 2]),
        "state.get" => drop(state::get(&text())?),
        "state.set" => state::set("key", text().as_bytes())?,
        "state.delete" => state::delete(&text())?,
        "state.keys" => drop(state::keys(&text())?),
        "nix-store.path-infos" => drop(nix_store::path_infos(&list())?),
        "nix-store.closure" => drop(nix_store::closure(&list())?),
        "nix-store.read-derivation" => drop(nix_store::derivation(&text())?),
        "nix-store.list-directory" => drop(nix_store::list_directory(&here.out, &text())?),
        "nix-store.read-file" => {
            drop(nix_store::read_file(&here.out, &text(), u64::MAX, u32::MAX)?);
        }
        "nix-store.open-nar" => drop(nix_store::open_nar(&text())?),
        "object-store.exists" => drop(store().exists(&list())?),
        "object-store.get" => drop(store().get(&text(), u64::MAX)?),
        "object-store.put" => store().put("key", "text/plain", text().as_bytes())?,
        "object-store.put-all-objects" => {
            let objects =
                vec![
                    Object { key: String::new(), content_type: String::new(), body: vec![] };
                    COUNT
                ];
            store().put_all(&objects)?;
        }
        "object-store.put-all-body" => {
            let body = text().into_bytes();
            let content_type = "text/plain".to_owned();
            store().put_all(&[Object { key: "key".to_owned(), content_type, body }])?;
        }
        "binary-cache.push-paths" => {
            let paths = Group { paths: list(), level: Some(i32::MAX), ..Group::default() };
            drop(binary_cache::push("own", &Settings::default(), &[paths], &[])?);
        }
        "binary-cache.push-key" => {
            let settings = Settings { keys: vec![text()], ..Settings::default() };
            drop(binary_cache::push("own", &settings, &[], &[])?);
        }
        "object-store.put-nar" => {
            let nar = nix_store::open_nar(&here.out)?;
            store().put_nar(&text(), Compression::None, Some(i32::MAX), &nar)?;
        }
        "object-store.list" => drop(store().list(&text(), u32::MAX)?),
        "signing.sign-path" => drop(signing::sign_path("own-1", &text())?),
        "signing.sign-paths" => drop(signing::sign_paths("own-1", &list())?),
        "signing.public-key" => drop(signing::public_key(&text())?),
        "mail.send-recipients" => drop(mail::send("default", &list(), Message::default())?),
        "mail.send-text" => {
            let message =
                Message { subject: "giant".to_owned(), text: text(), ..Message::default() };
            drop(mail::send("default", &["ann@example.org".to_owned()], message)?);
        }
        other => return Err(Failure::permanent(format!("no such call: {other}"))),
    }
    crate::escaped(format!("{call} took a giant"))
}
