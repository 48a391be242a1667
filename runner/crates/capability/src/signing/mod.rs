//! The `signing` interface: Ed25519 signatures of store paths by the keys that `[signing-keys]`
//! names.
//!
//! The signed text is created here from Nix's database, never from data of a guest. A key is read
//! when it is first used, kept until its file changes, then wiped from memory, and never leaves
//! this file.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::Signer as _;
use nix_derivation::{NixHash, StoreDir, StorePath};
use nix_narinfo::NarInfo;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{CapabilityError, Service, ServiceFinding};
use hookrun_config::{Config, Grant, KeyError};
use hookrun_nix::database::PathInfo;
use hookrun_nix::dirs::Dirs;

/// Maximum size of a key file in bytes. It contains a name and 88 characters of base64.
const MAX_FILE: u64 = 4 << 10;
/// Length of a seed and its public key (Nix `libutil/signature/local-keys.cc`, libsodium's
/// `crypto_sign_SECRETKEYBYTES`).
const SECRET_KEY_LENGTH: usize = 64;

/// The keys of an installation.
#[derive(Debug)]
pub struct SigningKeys {
    files: BTreeMap<String, PathBuf>,
    throwaway: bool,
    loaded: Mutex<BTreeMap<String, Loaded>>,
}

#[derive(Debug, Clone)]
struct Loaded {
    key: Arc<ed25519_dalek::SigningKey>,
    /// The stamp of the file. `None` if the key is kept forever, because the file cannot be read
    /// any more.
    stamp: Option<KeyFileStamp>,
}

/// Identifies the content of a file: device, inode, size, seconds and nanoseconds of the last
/// change.
type KeyFileStamp = (u64, u64, u64, i64, i64);

impl Service for SigningKeys {
    fn configure(config: &Config, _dirs: &Dirs) -> Self {
        Self::new(config)
    }

    fn in_memory(config: &Config, _dirs: &Dirs) -> Self {
        Self::throwaway(config)
    }

    fn check(&self, config: &Config, _dirs: &Dirs) -> Vec<ServiceFinding> {
        let checked = |name: &String| match self.public_key(name) {
            Ok(public) => Ok(format!("signing key {public}")),
            Err(error) => Err(KeyError::new(&["signing-keys", name, "file"], error.message)),
        };
        config.signing_keys.keys().map(checked).map(ServiceFinding::of).collect()
    }

    fn hold_secrets(&self, _plugin: &str, grant: &Grant) -> Result<(), KeyError> {
        grant.signing.iter().try_for_each(|name| {
            let held = self.hold(name);
            held.map_err(|error| KeyError::new(&["signing-keys", name, "file"], error.message))
        })
    }
}

impl SigningKeys {
    /// Creates the keys that the configuration names. Reads no files.
    pub fn new(config: &Config) -> Self {
        let files = config
            .signing_keys
            .iter()
            .map(|(name, key)| (name.clone(), key.file.clone()))
            .collect();
        Self { files, throwaway: false, loaded: Mutex::default() }
    }

    /// Creates worthless keys of the same names, derived from the names, for `hookrun test`, whose
    /// results must repeat.
    pub fn throwaway(config: &Config) -> Self {
        Self { throwaway: true, ..Self::new(config) }
    }

    /// Returns the signature of a path's fingerprint by the key `name`, as `name:base64`.
    ///
    /// # Errors
    /// Returns `refused` if the key cannot be used, and `permanent` if the database's entry is
    /// malformed.
    pub fn sign(
        &self,
        name: &str,
        store_dir: &str,
        info: &PathInfo,
    ) -> Result<String, CapabilityError> {
        let text = fingerprint(store_dir, info)?;
        let key = self.key(name)?;
        Ok(format!("{name}:{}", BASE64.encode(key.sign(text.as_bytes()).to_bytes())))
    }

    /// Returns the public key, as `name:base64`.
    ///
    /// # Errors
    /// Returns `refused` if the key cannot be used.
    pub fn public_key(&self, name: &str) -> Result<String, CapabilityError> {
        let key = self.key(name)?;
        Ok(format!("{name}:{}", BASE64.encode(key.verifying_key().as_bytes())))
    }

    fn key(&self, name: &str) -> Result<Arc<ed25519_dalek::SigningKey>, CapabilityError> {
        let Some(file) = self.files.get(name) else {
            return Err(CapabilityError::not_found(format!(
                "signing key `{name}` is not defined; write `file = \"/etc/nix/cache-private-key\"` under [signing-keys.{name:?}]"
            )));
        };
        if self.throwaway {
            let seed: [u8; 32] = Sha256::digest(format!("hookrun test: {name}")).into();
            return Ok(Arc::new(ed25519_dalek::SigningKey::from_bytes(&seed)));
        }
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Loaded { key, stamp: None }) = loaded.get(name) {
            return Ok(key.clone());
        }
        let stamp = stamp(name, file)?;
        if let Some(Loaded { key, .. }) =
            loaded.get(name).filter(|loaded| loaded.stamp == Some(stamp))
        {
            return Ok(key.clone());
        }
        let key = Arc::new(read(name, file)?);
        loaded.insert(name.to_owned(), Loaded { key: key.clone(), stamp: Some(stamp) });
        Ok(key)
    }

    /// Reads and keeps the key `name` now, because this process is about to lose the right to read
    /// its file.
    ///
    /// # Errors
    /// Returns `refused` if the key cannot be used.
    pub fn hold(&self, name: &str) -> Result<(), CapabilityError> {
        self.key(name)?;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = loaded.get_mut(name) {
            loaded.stamp = None;
        }
        Ok(())
    }
}

fn wrong(name: &str, file: &Path, what: &str) -> CapabilityError {
    CapabilityError::refused(format!("signing key `{name}`: {} {what}", file.display()))
}

fn unreadable(name: &str, file: &Path, error: &std::io::Error) -> CapabilityError {
    let uid = rustix::process::geteuid().as_raw();
    wrong(
        name,
        file,
        &format!(
            "cannot be read ({error}); it must exist and be readable only for uid {uid}, which runs the plugins"
        ),
    )
}

fn stamp(name: &str, file: &Path) -> Result<KeyFileStamp, CapabilityError> {
    let metadata = std::fs::metadata(file).map_err(|error| unreadable(name, file, &error))?;
    Ok((metadata.dev(), metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

fn read(name: &str, file: &Path) -> Result<ed25519_dalek::SigningKey, CapabilityError> {
    let io = |error: std::io::Error| unreadable(name, file, &error);
    // Allocate all of it at once, because a buffer that grows leaves copies in memory.
    let mut text =
        Zeroizing::new(Vec::with_capacity(usize::try_from(MAX_FILE).unwrap_or_default() + 1));
    std::fs::File::open(file).map_err(io)?.take(MAX_FILE).read_to_end(&mut text).map_err(io)?;
    parse(name, &text).map_err(|what| wrong(name, file, &what))
}

/// Parses the text of a key file, `name:base64`. Error messages do not contain any part of it.
fn parse(name: &str, text: &[u8]) -> Result<ed25519_dalek::SigningKey, String> {
    let form = || "is not a Nix signing key; make one with `nix-store --generate-binary-cache-key NAME secret-file public-file`";
    let text = std::str::from_utf8(text).map_err(|_| form())?.trim();
    let (found, encoded) =
        text.split_once(':').filter(|(found, _)| !found.is_empty()).ok_or_else(form)?;
    let mut bytes = Zeroizing::new([0; SECRET_KEY_LENGTH + 2]);
    let length = BASE64.decode_slice(encoded, &mut *bytes).map_err(|_| form())?;
    if length == ed25519_dalek::PUBLIC_KEY_LENGTH {
        return Err("holds a public key; name the secret file of the pair".to_owned());
    }
    let secret: &[u8; SECRET_KEY_LENGTH] =
        bytes.get(..length).and_then(|bytes| bytes.try_into().ok()).ok_or_else(form)?;
    let key = ed25519_dalek::SigningKey::from_keypair_bytes(secret).map_err(|_| {
        "holds a secret and a public half that do not belong together; make a new pair".to_owned()
    })?;
    if found != name {
        // The name of a key is not secret, because every signature contains it.
        let found = found.escape_debug();
        return Err(format!(
            "holds the key `{found}`; write its table as [signing-keys.\"{found}\"], and grant that name"
        ));
    }
    Ok(key)
}

/// Returns the signed text (Nix `ValidPathInfo::fingerprint`):
/// `1;path;sha256:base32;size;reference,reference`.
fn fingerprint(store_dir: &str, info: &PathInfo) -> Result<String, CapabilityError> {
    let odd = |what: String| {
        CapabilityError::permanent(format!(
            "{} cannot be signed: {what}; run `nix-store --verify`",
            info.path
        ))
    };
    let store_dir = StoreDir::new(store_dir).map_err(|error| odd(error.to_string()))?;
    let parse = |path: &String| {
        store_dir.parse_path(path.as_bytes()).map_err(|error| odd(format!("`{path}`: {error}")))
    };
    let path: StorePath = parse(&info.path)?;
    let references: Vec<StorePath> = info.references.iter().map(parse).collect::<Result<_, _>>()?;
    let nar_hash = NixHash::parse(&info.nar_hash).map_err(|error| odd(error.to_string()))?;
    let record = NarInfo::builder_in(store_dir.clone(), path, "nar", nar_hash, info.nar_size)
        .references(references);
    record
        .build()
        .map(|record| record.fingerprint(&store_dir))
        .map_err(|error| odd(error.to_string()))
}

#[cfg(test)]
mod tests;
