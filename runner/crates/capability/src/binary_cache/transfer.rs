//! Sends the NAR of one path, in one pass: it is read, hashed, compared with Nix's database,
//! compressed and sent ([`ObjectStores::put_nar_once`]).
//!
//! [`ObjectStores::put_nar_once`]: crate::object_store::ObjectStores::put_nar_once

use super::condemned::Standing;
use super::graph::Lane;
use super::index;
use super::push::{Context, Trouble};
use crate::CapabilityError;
use crate::nix_store::Nar;
use crate::object_store::{ObjectAttributes, StoredNar};
use hookrun_nix::nar::Expected;

/// The directory of the NARs in a cache.
const NARS: &str = "nar";
/// The content type that Nix uses.
const CONTENT_TYPE: &str = "application/x-nix-nar";

/// Sends the NAR of the path `number`, unless it is there.
///
/// # Errors
/// The path is corrupt, gone or unreadable, or as the store has it.
pub(super) async fn send(context: &Context, number: usize) -> Result<StoredNar, Trouble> {
    let (Some(info), Some(form)) = (context.infos.get(number), context.form(number)) else {
        return Err(CapabilityError::invalid("there is no such path".to_owned()).into());
    };
    let key = format!("{NARS}/{}", form.compression.object_name(&info.nar_hash));
    let condemned = context.condemned().await?;
    if let Standing::Sweeping { until } = condemned.object(&key, super::push::now()) {
        return Err(Trouble::swept(&key, until));
    }
    let nar = Nar {
        source: context.nix.nar_source(&info.path),
        expected: Expected {
            path: info.path.clone(),
            nar_hash: info.nar_hash.clone(),
            nar_size: info.nar_size,
        },
    };
    let attributes = ObjectAttributes {
        content_type: Some(CONTENT_TYPE.to_owned()),
        cache_control: context.push.settings.cache_control.clone(),
        storage_class: form.storage_class.clone(),
        tags: form.tags.clone(),
        content_encoding: None,
    };
    let _turn = match Lane::of(info.nar_size) {
        Lane::Small => None,
        Lane::Large => context.caches().large.acquire().await.ok(),
    };
    let stores = context.services.object_stores();
    let store = &context.push.store;
    let sending = stores.put_nar_once(store, NARS, form.compression, nar, &attributes);
    let (stored, ()) = tokio::try_join!(sending, index::write(context, &info.path, &key))?;
    Ok(stored)
}
