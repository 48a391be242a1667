//! A store that is a binary cache: its `nix-cache-info`, and reads and writes of narinfos.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use hookrun_capability::binary_cache::condemned::{self, Condemned};
use hookrun_capability::object_store::{Bucket, Fetched};
use hookrun_nix::narinfo::{self, Narinfo, NarinfoError};

use crate::CacheError;

/// The key of the object that describes a cache.
pub const CACHE_INFO: &str = "nix-cache-info";
/// Its content type.
pub(crate) const CACHE_INFO_TYPE: &str = "text/x-nix-cache-info";
/// It has three lines.
const MAX_CACHE_INFO: u64 = 64 << 10;
/// The store directory of a cache that does not name one.
const DEFAULT_STORE_DIR: &str = "/nix/store";
/// How often a changed object is read again.
pub(crate) const ATTEMPTS: usize = 8;

/// The time, and waiting. A test replaces it.
pub trait Clock: Send + Sync {
    /// Returns the time in seconds since 1970.
    fn now(&self) -> u64;

    /// Waits.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;
}

/// The clock of the machine.
struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> u64 {
        now()
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(time))
    }
}

/// A binary cache.
#[derive(Clone)]
pub struct Cache {
    bucket: Bucket,
    store_dir: String,
    fields: BTreeMap<String, String>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

/// A narinfo as it is in the cache.
#[derive(Debug)]
pub struct Stored {
    /// The narinfo, or why it cannot be used.
    pub narinfo: Result<Narinfo, NarinfoError>,
    /// The object.
    pub object: Fetched,
}

impl Cache {
    /// Opens a store and reads its `nix-cache-info`.
    ///
    /// # Errors
    /// The store cannot be read, or it is not a binary cache.
    pub async fn open(bucket: Bucket) -> Result<Self, CacheError> {
        let Some(info) = bucket.get(CACHE_INFO, MAX_CACHE_INFO).await? else {
            return Err(CacheError::NotACache {
                place: bucket.place().to_owned(),
                reason: format!(
                    "it has no `{CACHE_INFO}`; check its name, or upload a path to it first"
                ),
            });
        };
        let text = String::from_utf8_lossy(&info.bytes).into_owned();
        let fields = text.lines().filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.trim().to_owned(), value.trim().to_owned()))
        });
        let fields: BTreeMap<String, String> = fields.collect();
        let store_dir = fields.get("StoreDir").map_or(DEFAULT_STORE_DIR, String::as_str).to_owned();
        if !store_dir.starts_with('/') {
            return Err(CacheError::NotACache {
                place: bucket.place().to_owned(),
                reason: format!(
                    "`StoreDir` in its `{CACHE_INFO}` is `{store_dir}`, which is not an absolute \
                     path; write `StoreDir: {DEFAULT_STORE_DIR}`"
                ),
            });
        }
        Ok(Self { bucket, store_dir, fields, clock: Arc::new(SystemClock) })
    }

    /// Opens a store as a cache for `store_dir`, and writes its `nix-cache-info` if it has none.
    ///
    /// # Errors
    /// As [`Cache::open`], or the cache is for another store directory.
    pub async fn open_or_create(bucket: Bucket, source: &Self) -> Result<Self, CacheError> {
        if bucket.head(CACHE_INFO).await?.is_none() {
            let text = source
                .fields
                .iter()
                .fold(String::new(), |text, (name, value)| format!("{text}{name}: {value}\n"));
            bucket.create(CACHE_INFO, CACHE_INFO_TYPE, text.into_bytes()).await?;
        }
        let cache = Self::open(bucket).await?;
        if cache.store_dir != source.store_dir {
            return Err(CacheError::NotACache {
                place: cache.bucket.place().to_owned(),
                reason: format!(
                    "it is for the store directory `{}`, and the paths are of `{}`; use another \
                     bucket or prefix",
                    cache.store_dir, source.store_dir
                ),
            });
        }
        Ok(cache)
    }

    /// Returns the same cache with another source of time.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    /// Returns the time in seconds since 1970.
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// Waits.
    pub async fn sleep(&self, time: Duration) {
        self.clock.sleep(time).await;
    }

    /// Returns the store.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// Returns the store directory of the paths in the cache.
    pub fn store_dir(&self) -> &str {
        &self.store_dir
    }

    /// Returns the lines of `nix-cache-info`.
    pub fn fields(&self) -> &BTreeMap<String, String> {
        &self.fields
    }

    /// Returns the narinfo of the path with this hash part, or none if it is absent.
    ///
    /// # Errors
    /// As the store has it. A narinfo that cannot be used is not an error here.
    pub async fn narinfo(&self, hash: &str) -> Result<Option<Stored>, CacheError> {
        let key = format!("{hash}{}", narinfo::SUFFIX);
        let object = match self.bucket.get(&key, narinfo::MAX_SIZE).await {
            Ok(Some(object)) => object,
            Ok(None) => return Ok(None),
            Err(error) if error.kind == hookrun_capability::ErrorKind::Limit => {
                let text = format!("it has more than {} bytes", narinfo::MAX_SIZE);
                return Ok(Some(Stored {
                    narinfo: Err(NarinfoError::Malformed(text)),
                    object: Fetched::default(),
                }));
            }
            Err(error) => return Err(error.into()),
        };
        let text = decoded(&object);
        let narinfo = text.and_then(|text| Narinfo::parse(&self.store_dir, &text));
        Ok(Some(Stored { narinfo, object }))
    }

    /// Changes the narinfo of a path. `change` returns the new narinfo, or none to leave it as it
    /// is, and is called again if another machine changed it meanwhile. An unchanged narinfo is
    /// written only to `revive` a condemned path. Returns whether it was written.
    ///
    /// # Errors
    /// As the store has it, `change` fails, or others change it again and again.
    pub async fn change_narinfo(
        &self,
        hash: &str,
        revive: bool,
        mut change: impl FnMut(&Stored) -> Result<Option<Narinfo>, CacheError>,
    ) -> Result<bool, CacheError> {
        let key = format!("{hash}{}", narinfo::SUFFIX);
        for _ in 0..ATTEMPTS {
            let Some(stored) = self.narinfo(hash).await? else { return Ok(false) };
            let Some(new) = change(&stored)? else { return Ok(false) };
            let text = new.to_string().into_bytes();
            if text == stored.object.bytes && !revive {
                return Ok(false);
            }
            if self.bucket.replace(&key, narinfo::CONTENT_TYPE, &stored.object, text).await? {
                return Ok(true);
            }
        }
        Err(CacheError::Contended { key })
    }

    /// Writes a narinfo, or merges it with the one that is there. An unchanged narinfo is written
    /// only to `revive` a condemned path.
    ///
    /// # Errors
    /// As [`Cache::change_narinfo`].
    pub async fn put_narinfo(&self, narinfo: &Narinfo, revive: bool) -> Result<(), CacheError> {
        let key = narinfo.key();
        for _ in 0..ATTEMPTS {
            let text = narinfo.to_string().into_bytes();
            if self.bucket.create(&key, narinfo::CONTENT_TYPE, text).await? {
                return Ok(());
            }
            let mut gone = true;
            self.change_narinfo(&narinfo.hash_part(), revive, |stored| {
                gone = false;
                let path = narinfo.store_path();
                match &stored.narinfo {
                    Ok(stored) => {
                        stored.merge(narinfo).map(Some).map_err(CacheError::narinfo(path))
                    }
                    Err(_) => Ok(Some(narinfo.clone())),
                }
            })
            .await?;
            if !gone {
                return Ok(());
            }
        }
        Err(CacheError::Contended { key })
    }

    /// Returns the list of condemned objects, and its object if there is one.
    ///
    /// # Errors
    /// As the store has it, or the list has another form.
    pub async fn condemned(&self) -> Result<(Condemned, Option<Fetched>), CacheError> {
        let Some(object) = self.bucket.get(condemned::KEY, condemned::MAX_SIZE).await? else {
            return Ok((Condemned::default(), None));
        };
        let condemned = Condemned::parse(&object.bytes).map_err(|error| CacheError::NotACache {
            place: self.bucket.place().to_owned(),
            reason: error.to_string(),
        })?;
        Ok((condemned, Some(object)))
    }
}

/// Returns the text of an object. `narinfo-compression` of Nix stores it compressed.
fn decoded(object: &Fetched) -> Result<Vec<u8>, NarinfoError> {
    use std::io::Read as _;
    let mut text = Vec::new();
    let read = match object.encoding.as_deref() {
        None | Some("" | "identity") => return Ok(object.bytes.clone()),
        Some("zstd") => zstd::Decoder::new(&*object.bytes)
            .and_then(|decoder| decoder.take(narinfo::MAX_SIZE).read_to_end(&mut text)),
        Some("xz") => liblzma::read::XzDecoder::new(&*object.bytes)
            .take(narinfo::MAX_SIZE)
            .read_to_end(&mut text),
        Some(encoding) => {
            return Err(NarinfoError::Malformed(format!(
                "the encoding `{encoding}` is not supported"
            )));
        }
    };
    read.map(|_| text).map_err(|error| NarinfoError::Malformed(error.to_string()))
}

/// Returns the time in seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
