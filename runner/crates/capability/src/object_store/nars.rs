//! Uploads of NARs: one, or several at once, within the memory that all uploads share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use ::object_store::path::Path;
use futures_util::StreamExt as _;

use super::attributes::ObjectAttributes;
use super::once::Creation;
use super::open::Open;
use super::requests::path;
use super::{ObjectStores, present, put_nar, upload};
use crate::CapabilityError;
use crate::nix_store::Nar;
use hookrun_nix::nar::{Compression, Expected, Written};

/// NARs of one call that are read, compressed and sent at once.
const PARALLEL_NARS: usize = 16;

/// Memory that all uploads of NARs in this process take together, in MiB. One that needs more by
/// itself (xz at its highest level) goes alone.
pub(super) const NAR_MEMORY: u32 = 512;

/// A NAR in a store. Hash and size are those of the stored object, whoever wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredNar {
    pub key: String,
    pub written: Written,
    /// Whether this process wrote it just now.
    pub created: bool,
}

impl ObjectStores {
    /// Reads, hashes, compresses and sends a NAR in one pass. An object that exists under `key` is
    /// not replaced: what is returned then is its hash and size, if it is this NAR in this
    /// compression.
    ///
    /// # Errors
    /// `permanent` if the store path is corrupt, or another object is stored under `key`;
    /// `not-found` if the path is gone, an `invalid` key, or as the store has it.
    pub async fn put_nar(
        &self,
        name: &str,
        key: &str,
        compression: Compression,
        nar: Nar,
    ) -> Result<Written, CapabilityError> {
        let open = self.open(name)?;
        let path = path(name, key)?;
        let attributes = ObjectAttributes::default();
        let result = self.put_within_memory(&open, &path, compression, nar, &attributes).await;
        self.noticed(name, result).map(|(written, _)| written)
    }

    /// Stores a NAR below `directory`, under the name that determines its bytes
    /// ([`Compression::object_name`]), unless it is there. One that another call of this process is
    /// sending, or has just sent, is not sent again. An object that exists is never replaced.
    ///
    /// The memory is taken from that of all uploads, so any number of calls may be made at once.
    /// If the returned future is dropped, nothing becomes visible.
    ///
    /// # Errors
    /// As [`ObjectStores::put_nar`].
    pub async fn put_nar_once(
        &self,
        name: &str,
        directory: &str,
        compression: Compression,
        nar: Nar,
        attributes: &ObjectAttributes,
    ) -> Result<StoredNar, CapabilityError> {
        let result = self.put_or_find(name, directory, compression, nar, attributes).await;
        self.noticed(name, result)
    }

    /// As [`ObjectStores::put_nar_once`] for several at once. What was stored is that of the first
    /// `nars`, in their order; if one of them fails, those behind it are left. `sent` is set as soon
    /// as one was sent.
    pub async fn put_nars(
        &self,
        name: &str,
        directory: &str,
        compression: Compression,
        nars: Vec<Nar>,
        sent: &AtomicBool,
    ) -> (Vec<StoredNar>, Option<CapabilityError>) {
        let mut stored = Vec::with_capacity(nars.len());
        let attributes = &ObjectAttributes::default();
        let mut sending = futures_util::stream::iter(nars)
            .map(|nar| async move {
                let one = self.put_nar_once(name, directory, compression, nar, attributes).await?;
                sent.fetch_or(one.created, Ordering::Relaxed);
                Ok(one)
            })
            .buffered(PARALLEL_NARS);
        while let Some(result) = sending.next().await {
            match result {
                Ok(one) => stored.push(one),
                Err(error) => return (stored, Some(error)),
            }
        }
        drop(sending);
        (stored, None)
    }

    async fn put_or_find(
        &self,
        name: &str,
        directory: &str,
        compression: Compression,
        nar: Nar,
        attributes: &ObjectAttributes,
    ) -> Result<StoredNar, CapabilityError> {
        attributes.check()?;
        let open = self.open(name)?;
        let key = format!("{directory}/{}", compression.object_name(&nar.expected.nar_hash));
        let path = path(name, &key)?;
        let upload = self.uploads.of(name, &key);
        let mut upload = upload.lock().await;
        if let Some(written) = present::written(upload.as_ref()) {
            return Ok(StoredNar { key, written, created: false });
        }
        let (written, creation) =
            self.put_within_memory(&open, &path, compression, nar, attributes).await?;
        *upload = Some((Instant::now(), written.clone()));
        Ok(StoredNar { key, written, created: creation == Creation::Created })
    }

    async fn put_within_memory(
        &self,
        open: &Open,
        path: &Path,
        compression: Compression,
        nar: Nar,
        attributes: &ObjectAttributes,
    ) -> Result<(Written, Creation), CapabilityError> {
        self.swept(open).await;
        let bytes = put_nar::memory(compression, nar.expected.nar_size);
        let wanted = u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX).min(NAR_MEMORY);
        // It is never closed.
        let _taken = self.memory.acquire_many(wanted).await.ok();
        let Expected { path: store_path, nar_size, .. } = &nar.expected;
        let under_way = self.transfers.begin(&open.name, store_path, *nar_size).into();
        let of_nars = ObjectAttributes::content_type(put_nar::CONTENT_TYPE);
        let attributes = attributes.or(&of_nars);
        let half_done = &self.half_done;
        put_nar::put_nar(open, path, compression, nar, &attributes, half_done, under_way).await
    }

    /// Before the first upload of this process to a store: ends those that others have left there.
    async fn swept(&self, open: &Open) {
        let cell = {
            let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(swept.entry(open.name.clone()).or_default())
        };
        cell.get_or_init(|| upload::sweep(open, &self.half_done)).await;
    }
}
