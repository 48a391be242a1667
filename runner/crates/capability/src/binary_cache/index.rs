//! What a cache may have of a path besides its NAR: the listing of its files, and the index of its
//! debug information.
//!
//! The listing `HASH.ls` is JSON with names, sizes and positions in the NAR (Nix `listNar`). For
//! each file `lib/debug/.build-id/XX/YYY.debug` there is an object `debuginfo/XXYYY.debug` with the
//! key of the NAR and the name of the file, which dwarffs reads.

use serde_json::{Map, Value, json};

use super::push::Context;
use crate::CapabilityError;
use crate::nix_store::{Backend, Budget, DirectoryEntry, blocking};
use crate::object_store::ObjectAttributes;
use hookrun_nix::nar::Source;
use hookrun_nix::narinfo::hash_part;

/// The content type of listings and of the index.
const CONTENT_TYPE: &str = "application/json";
/// The maximum size of the names and targets in one path, in bytes.
const MAX_NAMES: u64 = 64 << 20;
/// The maximum depth of a tree with a listing.
const MAX_DEPTH: usize = 256;
/// The directory with the debug information of a path.
const BUILD_IDS: [&str; 3] = ["lib", "debug", ".build-id"];
/// The level of zstd for compressed listings.
const LEVEL: i32 = 9;

/// Writes the listing and the index of the path `path`, whose NAR is the object `nar_key`, as far
/// as the push wants them.
///
/// # Errors
/// The path cannot be read, or as the store has it.
pub(super) async fn write(
    context: &Context,
    path: &str,
    nar_key: &str,
) -> Result<(), CapabilityError> {
    let settings = &context.push.settings;
    if !settings.listings && !settings.debug_info {
        return Ok(());
    }
    let (nix, of) = (context.nix.clone(), path.to_owned());
    let Some(root) = blocking(move || listing(&*nix, &of)).await? else { return Ok(()) };
    let (stores, store) = (context.services.object_stores(), &context.push.store);
    if settings.debug_info {
        for (build_id, member) in build_ids(&root) {
            let body = json!({ "archive": format!("../{nar_key}"), "member": member }).to_string();
            let attributes = ObjectAttributes::content_type(CONTENT_TYPE);
            let key = format!("debuginfo/{build_id}");
            stores.put_with(store, &key, body.into_bytes(), &attributes).await?;
        }
    }
    if settings.listings {
        let body = json!({ "version": 1, "root": root }).to_string().into_bytes();
        let mut attributes = ObjectAttributes::content_type(CONTENT_TYPE);
        let compress = settings.compress_listings && stores.keeps_headers(store)?;
        let body = if compress {
            attributes.content_encoding = Some("zstd".to_owned());
            zstd::bulk::compress(&body, LEVEL).map_err(|error| {
                CapabilityError::transient(format!("the listing of {path}: {error}"))
            })?
        } else {
            body
        };
        stores.put_with(store, &format!("{}.ls", hash_part(path)), body, &attributes).await?;
    }
    Ok(())
}

/// Returns the listing of a path; none if JSON cannot express it, because a name is not UTF-8.
fn listing(nix: &dyn Backend, path: &str) -> Result<Option<Value>, CapabilityError> {
    let mut walk =
        Walk { nix, path, budget: Budget::of(MAX_NAMES), offset: token("nix-archive-1") };
    match root(nix, path)? {
        Some(entry) => walk.node(&entry, "", 0),
        None => Ok(None),
    }
}

/// Returns the root of a path as an entry of a directory.
fn root(nix: &dyn Backend, path: &str) -> Result<Option<DirectoryEntry>, CapabilityError> {
    use std::os::unix::fs::MetadataExt as _;
    let Source::Path(real) = nix.nar_source(path) else { return Ok(Some(directory())) };
    let failed = |error| CapabilityError::transient(format!("{path} cannot be read ({error})"));
    let found = std::fs::symlink_metadata(&real).map_err(failed)?;
    if found.is_dir() {
        return Ok(Some(directory()));
    }
    let target = if found.is_symlink() {
        let target = std::fs::read_link(&real).map_err(failed)?;
        match target.into_os_string().into_string() {
            Ok(target) => Some(target),
            Err(_) => return Ok(None),
        }
    } else {
        None
    };
    Ok(Some(DirectoryEntry {
        name: String::new(),
        kind: if target.is_some() { "symlink" } else { "regular" },
        size: found.len(),
        executable: found.mode() & 0o100 != 0,
        target,
    }))
}

fn directory() -> DirectoryEntry {
    let name = String::new();
    DirectoryEntry { name, kind: "directory", size: 0, executable: false, target: None }
}

/// Returns the size of a string in a NAR.
fn token(text: &str) -> u64 {
    8 + (text.len() as u64).next_multiple_of(8)
}

struct Walk<'a> {
    nix: &'a dyn Backend,
    path: &'a str,
    budget: Budget,
    /// The position in the NAR.
    offset: u64,
}

impl Walk<'_> {
    /// Returns the listing of an entry at `relative`, and moves behind it.
    fn node(
        &mut self,
        entry: &DirectoryEntry,
        relative: &str,
        depth: usize,
    ) -> Result<Option<Value>, CapabilityError> {
        let is_shown = |text: &str| !text.contains(char::REPLACEMENT_CHARACTER);
        let target = entry.target.as_deref().unwrap_or_default();
        if depth > MAX_DEPTH || !is_shown(&entry.name) || !is_shown(target) {
            return Ok(None);
        }
        self.offset += token("(") + token("type") + token(entry.kind);
        let node = match entry.kind {
            "regular" => {
                if entry.executable {
                    self.offset += token("executable") + token("");
                }
                self.offset += token("contents") + 8;
                let at = self.offset;
                self.offset += entry.size.next_multiple_of(8);
                json!({
                    "type": "regular", "size": entry.size, "executable": entry.executable,
                    "narOffset": at,
                })
            }
            "symlink" => {
                self.offset += token("target") + token(target);
                json!({ "type": "symlink", "target": target })
            }
            _ => {
                let found = self.nix.list_directory(self.path, relative, &mut self.budget)?;
                let mut entries = Map::new();
                for child in found {
                    self.offset += token("entry") + token("(") + token("name");
                    self.offset += token(&child.name) + token("node");
                    let below = match relative {
                        "" => child.name.clone(),
                        _ => format!("{relative}/{}", child.name),
                    };
                    let Some(node) = self.node(&child, &below, depth + 1)? else { return Ok(None) };
                    entries.insert(child.name, node);
                    self.offset += token(")");
                }
                json!({ "type": "directory", "entries": entries })
            }
        };
        self.offset += token(")");
        Ok(Some(node))
    }
}

/// Returns the build ids in a listing, with the files that have their debug information.
fn build_ids(root: &Value) -> Vec<(String, String)> {
    let entries = |node: &Value| node.get("entries").and_then(Value::as_object).cloned();
    let mut node = Some(root.clone());
    for name in BUILD_IDS {
        node = node.and_then(|node| node.get("entries")?.get(name).cloned());
    }
    let is_hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let mut found = Vec::new();
    for (first, directory) in node.as_ref().and_then(entries).unwrap_or_default() {
        for (second, file) in entries(&directory).unwrap_or_default() {
            let is_regular = file.get("type").and_then(Value::as_str) == Some("regular");
            let rest = second.strip_suffix(".debug").unwrap_or_default();
            if is_regular && is_hex(&first, 2) && is_hex(rest, 38) {
                let member = format!("{}/{first}/{second}", BUILD_IDS.join("/"));
                found.push((format!("{first}{second}"), member));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix_store::real::Real;
    use hookrun_nix::event::NixDirs;

    /// A path on disk, and its listing.
    fn listed(make: impl Fn(&std::path::Path)) -> (Vec<u8>, Option<Value>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("path");
        make(&path);
        let mut nar = Vec::new();
        let case_hack = nix_archive::nar::CaseHack::Disabled;
        nix_archive::nar::encode_path(&mut nar, &path, case_hack).unwrap();
        let nix = Real::new(NixDirs::new(dir.path(), dir.path(), dir.path()));
        (nar, listing(&nix, path.to_str().unwrap()).unwrap())
    }

    #[test]
    fn a_listing_has_names_sizes_and_positions_in_the_nar() {
        use std::os::unix::fs::PermissionsExt as _;
        let id = "lib/debug/.build-id/ab";
        let file = format!("{id}/{}.debug", "0".repeat(38));
        let (nar, root) = listed(|path| {
            std::fs::create_dir_all(path.join(id)).unwrap();
            std::fs::create_dir(path.join("bin")).unwrap();
            std::fs::write(path.join("bin/run"), "#!/bin/sh\n").unwrap();
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(path.join("bin/run"), mode).unwrap();
            std::fs::write(path.join(&file), "debug information").unwrap();
            std::os::unix::fs::symlink("bin/run", path.join("start")).unwrap();
        });
        let root = root.unwrap();
        let run = &root["entries"]["bin"]["entries"]["run"];
        assert_eq!((&run["size"], &run["executable"]), (&json!(10), &json!(true)));
        let at = usize::try_from(run["narOffset"].as_u64().unwrap()).unwrap();
        assert_eq!(&nar[at..at + 10], b"#!/bin/sh\n");
        assert_eq!(root["entries"]["start"], json!({ "type": "symlink", "target": "bin/run" }));
        let ids = build_ids(&root);
        assert_eq!(ids, [(format!("ab{}.debug", "0".repeat(38)), file.clone())]);
        let debug = root["entries"]["lib"]["entries"]["debug"]["entries"][".build-id"]["entries"]
            ["ab"]["entries"]
            .as_object()
            .unwrap()
            .values()
            .next()
            .unwrap()
            .clone();
        let at = usize::try_from(debug["narOffset"].as_u64().unwrap()).unwrap();
        assert_eq!(&nar[at..at + 17], b"debug information");
    }

    #[test]
    fn a_single_file_has_a_listing_and_a_name_that_is_not_utf_8_has_none() {
        use std::os::unix::ffi::OsStrExt as _;
        let (nar, root) = listed(|path| std::fs::write(path, "hello").unwrap());
        let root = root.unwrap();
        let at = usize::try_from(root["narOffset"].as_u64().unwrap()).unwrap();
        assert_eq!(&nar[at..at + 5], b"hello");
        let (_, root) = listed(|path| {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap();
        });
        assert_eq!(root, None);
    }
}
