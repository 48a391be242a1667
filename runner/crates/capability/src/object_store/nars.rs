//! Uploads of NARs, within the memory that all uploads of this process share.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use ::object_store::path::Path;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::attributes::ObjectAttributes;
use super::once::Creation;
use super::open::Open;
use super::requests::path;
use super::{ObjectStores, present, put_nar, upload};
use crate::CapabilityError;
use crate::nix_store::Nar;
use hookrun_nix::nar::{Compression, Expected, Written};

/// The size up to which a NAR is small.
pub const SMALL_NAR: u64 = 4 << 20;
/// The share of the memory that only small NARs may use, as a divisor. They never wait for large
/// ones.
const SMALL_SHARE: u32 = 4;
/// One unit of memory.
const KIB: u64 = 1 << 10;

/// The memory for uploads of NARs that is left, in KiB. A NAR that needs more than there is (xz at
/// its highest level) takes all that large NARs have.
#[derive(Debug)]
pub(super) struct NarMemory {
    small: Semaphore,
    large: Semaphore,
    most_small: u32,
    most_large: u32,
}

impl NarMemory {
    /// So many bytes for all uploads.
    pub(super) fn new(bytes: u64) -> Self {
        let all = u32::try_from(bytes / KIB).unwrap_or(u32::MAX).max(SMALL_SHARE);
        let most_small = all / SMALL_SHARE;
        let most_large = all - most_small;
        let semaphore = |permits: u32| Semaphore::new(permits as usize);
        let (small, large) = (semaphore(most_small), semaphore(most_large));
        Self { small, large, most_small, most_large }
    }

    /// Waits until a NAR of `nar_size` bytes may use `memory` bytes.
    async fn take(&self, nar_size: u64, memory: u64) -> Option<SemaphorePermit<'_>> {
        let (semaphore, most) = if nar_size <= SMALL_NAR {
            (&self.small, self.most_small)
        } else {
            (&self.large, self.most_large)
        };
        let wanted = u32::try_from(memory.div_ceil(KIB)).unwrap_or(u32::MAX).clamp(1, most);
        // It is never closed.
        semaphore.acquire_many(wanted).await.ok()
    }
}

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
        let memory = put_nar::memory(compression, nar.expected.nar_size);
        let _taken = self.memory.take(nar.expected.nar_size, memory).await;
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
