//! The narinfo of a path in a binary cache: parses it as Nix does, prints it in the order of Nix,
//! merges two of one path, and verifies its signatures.
//!
//! The format is that of `NarInfo::to_string` (Nix 2.8 to 2.35, `libstore/nar-info.cc`). Lines with
//! other names, such as Determinate's `Provenance`, are kept in their order. A signature may have
//! any length. The URL is what the cache says; [`Narinfo::nar_key`] returns it only if it names an
//! object of the same cache.

use std::collections::BTreeSet;
use std::fmt;

use nix_derivation::{NixHash, StoreDir, StorePath};
use nix_narinfo::{Compression, Field, NarInfo, NarInfoBuilder, NixSignature, TrustedPublicKey};

use crate::database::PathInfo;

/// The maximum size of a narinfo in bytes. One with 10,000 references has about 600 KB.
pub const MAX_SIZE: u64 = nix_narinfo::MAX_NARINFO_SIZE as u64;
/// The suffix of the key of a narinfo.
pub const SUFFIX: &str = ".narinfo";
/// The content type that Nix uses for a narinfo.
pub const CONTENT_TYPE: &str = "text/x-nix-narinfo";
/// The longest key of an object in S3, in bytes.
const MAX_KEY: usize = 1024;

/// The reason why a narinfo cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarinfoError {
    /// The text is not a narinfo.
    #[error("{0}")]
    Malformed(String),
    /// Two narinfos of one path differ in a field that identifies the contents.
    #[error("`{field}` is `{stored}` in the cache and `{new}` in the new narinfo")]
    Conflict {
        /// The name of the field.
        field: &'static str,
        /// The value of the narinfo that is in the cache.
        stored: String,
        /// The value of the other narinfo.
        new: String,
    },
    /// The URL does not name an object of the same cache.
    #[error("the URL `{0}` does not name an object of the cache")]
    ForeignUrl(String),
    /// A signature does not have the form `name:base64`.
    #[error("`{0}` is not a signature of the form `name:base64`")]
    Signature(String),
    /// A public key does not have the form `name:base64`.
    #[error("`{0}` is not a public key of the form `name:base64`")]
    PublicKey(String),
}

/// The object that contains the NAR of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarObject {
    /// The key of the object, relative to the cache.
    pub url: String,
    /// The compression as in a narinfo, such as `zstd`.
    pub compression: String,
    /// The hash of the stored bytes, `sha256:` and Nix's base32.
    pub file_hash: Option<String>,
    /// The number of stored bytes.
    pub file_size: Option<u64>,
}

/// A valid narinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Narinfo {
    inner: NarInfo,
}

/// Trusted public keys.
#[derive(Debug, Clone, Default)]
pub struct PublicKeys(Vec<TrustedPublicKey>);

impl PublicKeys {
    /// Adds a key of the form `name:base64`. The same key is kept once.
    ///
    /// # Errors
    /// The text is not a public key.
    pub fn add(&mut self, text: &str) -> Result<(), NarinfoError> {
        let key = TrustedPublicKey::parse(text.trim())
            .map_err(|_| NarinfoError::PublicKey(text.to_owned()))?;
        if !self.0.contains(&key) {
            self.0.push(key);
        }
        Ok(())
    }

    /// Returns whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the names of the keys.
    pub fn names(&self) -> BTreeSet<&str> {
        self.0.iter().map(|key| key.name.as_str()).collect()
    }
}

/// The result of the verification of one signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureState {
    /// A trusted key of this name made it.
    Valid,
    /// There is no trusted key of this name.
    UnknownKey,
    /// There is a trusted key of this name, and it did not make this signature.
    Wrong,
}

impl Narinfo {
    /// Parses the contents of a `.narinfo` object of a cache for `store_dir`.
    ///
    /// # Errors
    /// The text is too long, or it is not a narinfo of that store directory.
    pub fn parse(store_dir: &str, text: &[u8]) -> Result<Self, NarinfoError> {
        let store_dir = directory(store_dir)?;
        let inner = NarInfo::parse_in(&store_dir, text)
            .map_err(|error| NarinfoError::Malformed(error.to_string()))?;
        // Printing must be possible: a value may contain a carriage return.
        rebuild(&inner).build().map_err(malformed)?;
        Ok(Self { inner })
    }

    /// Returns the narinfo of a valid path of this machine, without signatures.
    ///
    /// # Errors
    /// The information about the path or the object has a malformed value.
    pub fn new(store_dir: &str, info: &PathInfo, object: &NarObject) -> Result<Self, NarinfoError> {
        let directory = directory(store_dir)?;
        let path = |text: &String| directory.parse_path(text.as_bytes()).map_err(malformed);
        let references: Vec<StorePath> =
            info.references.iter().map(path).collect::<Result<_, _>>()?;
        let builder = NarInfoBuilder::new_in(
            directory.clone(),
            path(&info.path)?,
            object.url.clone(),
            hash(&info.nar_hash)?,
            info.nar_size,
        );
        let builder = builder
            .references(references)
            .deriver(info.deriver.as_ref().map(path).transpose()?)
            .content_address(
                info.ca
                    .as_deref()
                    .map(nix_derivation::CAHash::parse)
                    .transpose()
                    .map_err(malformed)?,
            );
        let inner = stored_as(builder, object)?.build().map_err(malformed)?;
        Ok(Self { inner })
    }

    /// Returns the full store path.
    pub fn store_path(&self) -> String {
        self.inner.store_dir().render_path(self.inner.store_path())
    }

    /// Returns the store directory.
    pub fn store_dir(&self) -> &str {
        self.inner.store_dir().as_str()
    }

    /// Returns the hash part of the store path, 32 characters.
    pub fn hash_part(&self) -> String {
        hash_part(&self.inner.store_path().to_basename()).to_owned()
    }

    /// Returns the key of this narinfo.
    pub fn key(&self) -> String {
        format!("{}{SUFFIX}", self.hash_part())
    }

    /// Returns the URL of the NAR as the narinfo has it.
    pub fn url(&self) -> &str {
        self.inner.url()
    }

    /// Returns the key of the NAR's object, without a query.
    ///
    /// # Errors
    /// The URL is absolute, leaves the cache, or is not a key.
    pub fn nar_key(&self) -> Result<&str, NarinfoError> {
        let url = self.inner.url();
        let key = url.split_once(['?', '#']).map_or(url, |(key, _)| key);
        let segments_are_plain =
            key.split('/').all(|segment| !matches!(segment, "" | "." | "..")) && !key.contains(':');
        let is_printable = key.bytes().all(|byte| matches!(byte, b'!'..=b'~'));
        if segments_are_plain && is_printable && key.len() <= MAX_KEY {
            Ok(key)
        } else {
            Err(NarinfoError::ForeignUrl(url.to_owned()))
        }
    }

    /// Returns the compression, such as `zstd`; `bzip2` if the narinfo has none, as in Nix.
    pub fn compression(&self) -> &str {
        self.inner.compression().as_str()
    }

    /// Returns the hash of the stored object, `sha256:` and Nix's base32.
    pub fn file_hash(&self) -> Option<String> {
        self.inner.file_hash().map(NixHash::to_nix_nixbase32_string)
    }

    /// Returns the size of the stored object in bytes.
    pub fn file_size(&self) -> Option<u64> {
        self.inner.file_size()
    }

    /// Returns the hash of the NAR, `sha256:` and Nix's base32.
    pub fn nar_hash(&self) -> String {
        self.inner.nar_hash().to_nix_nixbase32_string()
    }

    /// Returns the size of the NAR in bytes.
    pub fn nar_size(&self) -> u64 {
        self.inner.nar_size()
    }

    /// Returns the names of the references without the store directory, sorted.
    pub fn references(&self) -> impl Iterator<Item = String> + '_ {
        self.inner.references().iter().map(StorePath::to_basename)
    }

    /// Returns the name of the derivation without the store directory.
    pub fn deriver(&self) -> Option<String> {
        self.inner.deriver().map(StorePath::to_basename)
    }

    /// Returns the signatures, `name:base64`, in their order.
    pub fn signatures(&self) -> impl Iterator<Item = String> + '_ {
        self.inner.signatures().iter().map(NixSignature::to_nix_string)
    }

    /// Returns the text that is signed: `1;path;sha256:hash;size;reference,reference`.
    pub fn fingerprint(&self) -> String {
        self.inner.fingerprint(self.inner.store_dir())
    }

    /// Returns whether the path is named after its contents, so that it needs no signature.
    pub fn is_content_addressed(&self) -> bool {
        self.inner.is_content_addressed(self.inner.store_dir())
    }

    /// Verifies every signature; returns the name of each signing key with the result.
    pub fn verify(&self, keys: &PublicKeys) -> Vec<(String, SignatureState)> {
        let fingerprint = self.fingerprint();
        let state = |signature: &NixSignature| {
            if !keys.0.iter().any(|key| key.name == signature.key_name) {
                return SignatureState::UnknownKey;
            }
            match signature.verify(fingerprint.as_bytes(), &keys.0) {
                Ok(true) => SignatureState::Valid,
                Ok(false) | Err(_) => SignatureState::Wrong,
            }
        };
        let signatures = self.inner.signatures().iter();
        signatures.map(|signature| (signature.key_name.clone(), state(signature))).collect()
    }

    /// Returns this narinfo with another signature, or unchanged if it already has the signature.
    ///
    /// # Errors
    /// The text is not a signature.
    pub fn with_signature(&self, text: &str) -> Result<Self, NarinfoError> {
        let signature =
            NixSignature::parse(text).map_err(|_| NarinfoError::Signature(text.to_owned()))?;
        if self.inner.signatures().contains(&signature) {
            return Ok(self.clone());
        }
        let inner = rebuild(&self.inner).signature(signature).build().map_err(malformed)?;
        Ok(Self { inner })
    }

    /// Returns this narinfo without the signatures of which `keep` returns false.
    ///
    /// # Errors
    /// The narinfo cannot be built again.
    pub fn retain_signatures(&self, keep: impl Fn(&str) -> bool) -> Result<Self, NarinfoError> {
        let kept = self.inner.signatures().iter();
        let kept: Vec<NixSignature> =
            kept.filter(|signature| keep(&signature.to_nix_string())).cloned().collect();
        let inner = rebuild(&self.inner).signatures(kept).build().map_err(malformed)?;
        Ok(Self { inner })
    }

    /// Returns this narinfo with the NAR in another object.
    ///
    /// # Errors
    /// The object has a malformed value.
    pub fn with_object(&self, object: &NarObject) -> Result<Self, NarinfoError> {
        let inner =
            stored_as(rebuild_at(&self.inner, &object.url), object)?.build().map_err(malformed)?;
        Ok(Self { inner })
    }

    /// Merges a new narinfo of the same path into this one, which is in the cache. The object stays
    /// that of this narinfo. Signatures and unknown lines of both are kept, once each.
    ///
    /// # Errors
    /// [`NarinfoError::Conflict`] if path, NAR hash, NAR size, references or content address
    /// differ.
    pub fn merge(&self, new: &Self) -> Result<Self, NarinfoError> {
        let (mine, other) = (&self.inner, &new.inner);
        let references = |narinfo: &Self| narinfo.references().collect::<Vec<_>>().join(" ");
        let identity = [
            ("StorePath", self.store_path(), new.store_path()),
            ("NarHash", self.nar_hash(), new.nar_hash()),
            ("NarSize", self.nar_size().to_string(), new.nar_size().to_string()),
            ("References", references(self), references(new)),
        ];
        let conflict = |field, stored, new| Err(NarinfoError::Conflict { field, stored, new });
        for (field, stored, new) in identity {
            if stored != new {
                return conflict(field, stored, new);
            }
        }
        let content_address = match (mine.content_address(), other.content_address()) {
            (Some(stored), Some(new)) if stored != new => {
                return conflict("CA", stored.to_nix_string(), new.to_nix_string());
            }
            (stored, new) => stored.or(new).cloned(),
        };
        let mut signatures = mine.signatures().to_vec();
        let added = other.signatures().iter().filter(|added| !mine.signatures().contains(added));
        signatures.extend(added.cloned());
        let mut extensions = mine.extensions().to_vec();
        let is_new = |field: &&Field| !mine.extensions().iter().any(|own| own.name == field.name);
        extensions.extend(other.extensions().iter().filter(is_new).cloned());
        let inner = rebuild(mine)
            .content_address(content_address)
            .deriver(mine.deriver().or(other.deriver()).cloned())
            .signatures(signatures)
            .extensions(extensions)
            .build()
            .map_err(malformed)?;
        Ok(Self { inner })
    }
}

impl fmt::Display for Narinfo {
    /// Writes the text of the object in the order of Nix, unknown lines last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The parser takes UTF-8 only.
        f.write_str(&String::from_utf8_lossy(&self.inner.to_canonical_bytes()))
    }
}

/// Returns the hash part of a store path or of its name.
pub fn hash_part(path: &str) -> &str {
    let base = path.rsplit('/').next().unwrap_or(path);
    base.split_once('-').map_or(base, |(hash, _)| hash)
}

/// Returns the key of the narinfo of a store path.
pub fn key_of(path: &str) -> String {
    format!("{}{SUFFIX}", hash_part(path))
}

/// Returns a builder with all values of a narinfo.
fn rebuild(inner: &NarInfo) -> NarInfoBuilder {
    rebuild_at(inner, inner.url())
}

fn rebuild_at(inner: &NarInfo, url: &str) -> NarInfoBuilder {
    NarInfoBuilder::new_in(
        inner.store_dir().clone(),
        inner.store_path().clone(),
        url,
        inner.nar_hash().clone(),
        inner.nar_size(),
    )
    .compression(inner.compression().clone())
    .references(inner.references().iter().cloned())
    .deriver(inner.deriver().cloned())
    .signatures(inner.signatures().iter().cloned())
    .content_address(inner.content_address().cloned())
    .file_hash(inner.file_hash().cloned())
    .file_size(inner.file_size())
    .extensions(inner.extensions().iter().cloned())
}

fn malformed(error: impl fmt::Display) -> NarinfoError {
    NarinfoError::Malformed(error.to_string())
}

fn directory(store_dir: &str) -> Result<StoreDir, NarinfoError> {
    StoreDir::new(store_dir).map_err(malformed)
}

fn hash(text: &str) -> Result<NixHash, NarinfoError> {
    NixHash::parse(text).map_err(malformed)
}

fn stored_as(builder: NarInfoBuilder, object: &NarObject) -> Result<NarInfoBuilder, NarinfoError> {
    Ok(builder
        .compression(Compression::parse(&object.compression))
        .file_hash(object.file_hash.as_deref().map(hash).transpose()?)
        .file_size(object.file_size))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    const STORE: &str = "/nix/store";
    const HASH: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";
    const OTHER: &str = "p723wxdipj0l4izmjkpnq3l02yh5s5zz";
    const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000";

    fn text() -> String {
        format!(
            "StorePath: /nix/store/{HASH}-hello-2.12\nURL: nar/a.nar.zst\nCompression: zstd\n\
             FileHash: {DIGEST}\nFileSize: 5\nNarHash: {DIGEST}\nNarSize: 120\n\
             References: {HASH}-hello-2.12 {OTHER}-libc\nDeriver: {OTHER}-hello.drv\n\
             Sig: a-1:{}\n",
            "A".repeat(88)
        )
    }

    fn parsed(text: &str) -> Narinfo {
        Narinfo::parse(STORE, text.as_bytes()).unwrap()
    }

    #[test]
    fn a_narinfo_of_nix_is_printed_unchanged() {
        let narinfo = parsed(&text());
        assert_eq!(narinfo.to_string(), text());
        assert_eq!(narinfo.key(), format!("{HASH}.narinfo"));
        assert_eq!(narinfo.nar_key(), Ok("nar/a.nar.zst"));
        assert_eq!((narinfo.nar_size(), narinfo.file_size()), (120, Some(5)));
        assert_eq!(
            narinfo.references().collect::<Vec<_>>(),
            [format!("{HASH}-hello-2.12"), format!("{OTHER}-libc")]
        );
        assert_eq!(
            narinfo.fingerprint(),
            format!(
                "1;/nix/store/{HASH}-hello-2.12;{DIGEST};120;\
                 /nix/store/{HASH}-hello-2.12,/nix/store/{OTHER}-libc"
            )
        );
    }

    #[test]
    fn unknown_lines_long_signatures_and_absent_fields_are_accepted() {
        let long = format!("pq-1:{}", "A".repeat(4 << 10));
        let text = format!(
            "StorePath: /nix/store/{HASH}-a\nProvenance: {{\"type\":\"build\"}}\nURL: x/y?z=1\n\
             NarHash: {DIGEST}\nNarSize: 1\nReferences: \nX-Later: 1\nSig: {long}\n"
        );
        let narinfo = parsed(&text);
        assert_eq!(narinfo.compression(), "bzip2", "the default of Nix");
        assert_eq!(narinfo.file_size(), None);
        assert_eq!(narinfo.nar_key(), Ok("x/y"));
        assert_eq!(narinfo.signatures().collect::<Vec<_>>(), [long]);
        assert!(narinfo.to_string().ends_with("Provenance: {\"type\":\"build\"}\nX-Later: 1\n"));
        assert_eq!(parsed(&narinfo.to_string()), narinfo);
    }

    #[test]
    fn urls_outside_the_cache_name_no_object() {
        for url in
            ["../other/nar", "/etc/passwd", "nar//x", "nar/./x", "https://evil/x", "nar/\u{fc}"]
        {
            let narinfo = parsed(&text().replace("nar/a.nar.zst", url));
            assert_eq!(narinfo.nar_key(), Err(NarinfoError::ForeignUrl(url.to_owned())), "{url}");
        }
    }

    #[test]
    fn a_merge_adds_signatures_once_and_keeps_unknown_lines() {
        let stored = parsed(&format!("{}Provenance: p\n", text()));
        let added = format!("b-1:{}", "B".repeat(88).replace('B', "Q"));
        let new = text().replace("nar/a.nar.zst", "nar/b.nar.xz").replace("zstd", "xz");
        let new = parsed(&format!("{new}Sig: {added}\nProvenance: other\nX: y\n"));
        let merged = stored.merge(&new).unwrap();
        assert_eq!(merged.url(), "nar/a.nar.zst", "the object of the cache stays");
        assert_eq!(merged.signatures().count(), 2);
        assert!(merged.to_string().ends_with("Provenance: p\nX: y\n"), "{merged}");
        assert_eq!(merged.merge(&new).unwrap(), merged);
    }

    #[test]
    fn a_merge_of_different_contents_is_refused() {
        let stored = parsed(&text());
        for (from, to, field) in [
            ("NarSize: 120", "NarSize: 121", "NarSize"),
            (" a-1", " a-1", ""),
            (&format!(" {OTHER}-libc"), "", "References"),
            (&format!("NarHash: {DIGEST}"), &format!("NarHash: {}1", &DIGEST[..58]), "NarHash"),
        ] {
            let merged = stored.merge(&parsed(&text().replace(from, to)));
            match merged {
                Err(NarinfoError::Conflict { field: found, .. }) => assert_eq!(found, field),
                merged => assert!(field.is_empty() && merged.is_ok(), "{field}: {merged:?}"),
            }
        }
    }

    #[test]
    fn signatures_are_verified_by_the_key_of_their_name() {
        let narinfo = parsed(&text());
        let mut keys = PublicKeys::default();
        assert_eq!(narinfo.verify(&keys), [("a-1".to_owned(), SignatureState::UnknownKey)]);
        keys.add("a-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=").unwrap();
        assert_eq!(narinfo.verify(&keys), [("a-1".to_owned(), SignatureState::Wrong)]);
        assert!(keys.add("no key").is_err());
    }

    fn arbitrary_narinfo() -> impl proptest::strategy::Strategy<Value = Narinfo> {
        use proptest::prelude::*;
        let unknown = prop::collection::vec(("[A-Z][A-Za-z-]{3,9}", "[!-~]{0,20}"), 0..3);
        let signatures = prop::collection::vec("[a-z0-9.-]{1,9}:[A-Za-z0-9+/]{4}", 0..4);
        (1..u64::MAX, proptest::option::of(0..u64::MAX), signatures, unknown, "[a-z0-9/.]{1,30}")
            .prop_filter_map("known field", |(size, file_size, signatures, unknown, url)| {
                let mut text = format!(
                    "StorePath: {STORE}/{HASH}-a\nURL: {url}\nNarHash: {DIGEST}\nNarSize: {size}\n"
                );
                if let Some(size) = file_size {
                    writeln!(text, "FileSize: {size}").unwrap();
                }
                for signature in signatures {
                    writeln!(text, "Sig: {signature}").unwrap();
                }
                for (name, value) in unknown {
                    writeln!(text, "{name}: {value}").unwrap();
                }
                Narinfo::parse(STORE, text.as_bytes()).ok()
            })
    }

    proptest::proptest! {
        #[test]
        fn a_printed_narinfo_is_parsed_to_the_same_value(narinfo in arbitrary_narinfo()) {
            let printed = narinfo.to_string();
            proptest::prop_assert_eq!(Narinfo::parse(STORE, printed.as_bytes()).unwrap(), narinfo);
        }

        #[test]
        fn a_merge_with_itself_changes_nothing(narinfo in arbitrary_narinfo()) {
            proptest::prop_assert_eq!(narinfo.merge(&narinfo).unwrap(), narinfo);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, text in "(\\PC*: \\PC*\n)*") {
            for input in [bytes, text.into_bytes()] {
                if let Ok(narinfo) = Narinfo::parse(STORE, &input) {
                    let _ = narinfo.nar_key();
                }
            }
        }
    }
}
