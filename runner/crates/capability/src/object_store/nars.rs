//! Uploads of NARs: one, or several at once, within the memory that all uploads share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use ::object_store::path::Path;
use futures_util::StreamExt as _;

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

/// An object that [`ObjectStores::put_nars`] stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub key: String,
    pub written: Written,
}

impl ObjectStores {
    /// Reads, hashes, compresses and sends a NAR in one pass.
    ///
    /// # Errors
    /// `permanent` if the store path is corrupt, `not-found` if it is gone, an `invalid` key, or as
    /// the store has it.
    pub async fn put_nar(
        &self,
        name: &str,
        key: &str,
        compression: Compression,
        nar: Nar,
    ) -> Result<Written, CapabilityError> {
        let open = self.open(name)?;
        let path = path(name, key)?;
        let result = self.put_within_memory(&open, &path, compression, nar).await;
        self.noticed(name, result)
    }

    /// As [`ObjectStores::put_nar`] for several at once, each below `directory` under the name that
    /// says what is in it ([`Compression::object_name`]). One that another call is sending, or has
    /// just sent, is not sent again. What was stored is that of the first `nars`, in their order;
    /// if one of them fails, those behind it are left. `sent` is set as soon as one was sent.
    pub async fn put_nars(
        &self,
        name: &str,
        directory: &str,
        compression: Compression,
        nars: Vec<Nar>,
        sent: &AtomicBool,
    ) -> (Vec<Stored>, Option<CapabilityError>) {
        let mut stored = Vec::with_capacity(nars.len());
        let mut sending = futures_util::stream::iter(nars)
            .map(|nar| self.put_once(name, directory, compression, nar, sent))
            .buffered(PARALLEL_NARS);
        while let Some(result) = sending.next().await {
            match self.noticed(name, result) {
                Ok(one) => stored.push(one),
                Err(error) => return (stored, Some(error)),
            }
        }
        drop(sending);
        (stored, None)
    }

    /// One NAR of [`ObjectStores::put_nars`].
    async fn put_once(
        &self,
        name: &str,
        directory: &str,
        compression: Compression,
        nar: Nar,
        sent: &AtomicBool,
    ) -> Result<Stored, CapabilityError> {
        let open = self.open(name)?;
        let key = format!("{directory}/{}", compression.object_name(&nar.expected.nar_hash));
        let path = path(name, &key)?;
        let upload = self.uploads.of(name, &key);
        let mut upload = upload.lock().await;
        if let Some(written) = present::written(upload.as_ref()) {
            return Ok(Stored { key, written });
        }
        let written = self.put_within_memory(&open, &path, compression, nar).await?;
        *upload = Some((Instant::now(), written.clone()));
        sent.store(true, Ordering::Relaxed);
        Ok(Stored { key, written })
    }

    async fn put_within_memory(
        &self,
        open: &Open,
        path: &Path,
        compression: Compression,
        nar: Nar,
    ) -> Result<Written, CapabilityError> {
        self.swept(open).await;
        let bytes = put_nar::memory(compression, nar.expected.nar_size);
        let wanted = u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX).min(NAR_MEMORY);
        // It is never closed.
        let _taken = self.memory.acquire_many(wanted).await.ok();
        let Expected { path: store_path, nar_size, .. } = &nar.expected;
        let under_way = self.transfers.begin(&open.name, store_path, *nar_size).into();
        put_nar::put_nar(open, path, compression, nar, &self.half_done, under_way).await
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
