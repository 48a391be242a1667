//! Multipart uploads that were begun and neither completed nor aborted, and copies inside a
//! service.

use std::io;
use std::path::{Path as FilePath, PathBuf};
use std::time::UNIX_EPOCH;

use ::object_store::ObjectStoreExt as _;
use ::object_store::path::Path;
use serde::Deserialize;

use super::super::error::explain;
use super::super::open::Open;
use super::super::requests::path;
use super::super::signed::{Signed, SignedError};
use crate::CapabilityError;

/// The largest object that one request copies (S3's `CopyObject`).
const MAX_COPY: u64 = 5 << 30;
/// Pages of a list of uploads, of 1,000 each.
const MAX_PAGES: usize = 100;
/// The maximum depth of directories of a cache.
const MAX_DEPTH: usize = 16;

/// A multipart upload that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incomplete {
    /// The key of the object that it would have made.
    pub key: String,
    /// When it was begun, in seconds since 1970.
    pub begun: u64,
    /// The service's name for it; the file, in a directory.
    id: String,
}

/// `ListMultipartUploadsResult`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_key_marker: String,
    #[serde(default)]
    next_upload_id_marker: String,
    #[serde(default, rename = "Upload")]
    uploads: Vec<BegunUpload>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BegunUpload {
    key: String,
    upload_id: String,
    initiated: String,
}

pub(super) async fn list(open: &Open) -> Result<Option<Vec<Incomplete>>, CapabilityError> {
    if let Some(directory) = &open.directory {
        let directory = directory.clone();
        let staged = tokio::task::spawn_blocking(move || staged(&directory)).await;
        return Ok(staged.ok());
    }
    let Some(signed) = &open.signed else { return Ok(None) };
    let (mut found, mut markers) = (Vec::new(), None);
    for _ in 0..MAX_PAGES {
        let mut query = vec![("uploads", String::new()), ("prefix", signed.prefix())];
        if let Some((key, id)) = markers.take() {
            query.push(("key-marker", key));
            query.push(("upload-id-marker", id));
        }
        let text = match signed.list(query).await {
            Ok(text) => text,
            // s3s-fs and others do not have this request, and a role may lack the permission.
            Err(SignedError::Status(403 | 404 | 405 | 501, _)) => return Ok(None),
            Err(error) => return Err(failed(open, "list the uploads of", "the bucket", &error)),
        };
        let Ok(page) = quick_xml::de::from_str::<Page>(&text) else { return Ok(None) };
        let prefix = signed.prefix();
        found.extend(page.uploads.into_iter().filter_map(|upload| {
            let begun = humantime::parse_rfc3339_weak(&upload.initiated).ok()?;
            Some(Incomplete {
                key: upload.key.strip_prefix(&prefix)?.to_owned(),
                begun: begun.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
                id: upload.upload_id,
            })
        }));
        if !page.is_truncated || page.next_key_marker.is_empty() {
            return Ok(Some(found));
        }
        markers = Some((page.next_key_marker, page.next_upload_id_marker));
    }
    Ok(Some(found))
}

pub(super) async fn abort(open: &Open, upload: &Incomplete) -> Result<(), CapabilityError> {
    if let Some(directory) = &open.directory {
        let file = directory.join(&upload.id);
        return match std::fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(CapabilityError::refused(format!("cannot delete {} ({error})", file.display())))
            }
            _ => Ok(()),
        };
    }
    let Some(parts) = &open.parts else { return Ok(()) };
    let key = parts.key(&path(&open.name, &upload.key)?);
    parts
        .store()
        .abort_multipart(&key, &upload.id)
        .await
        .map_err(|error| explain(open, "abort the upload of", &upload.key, &error))
}

/// Copies an object; returns false if the stores are not of one service, or it does not copy this
/// object.
pub(super) async fn copy_inside(
    source: &Open,
    target: &Open,
    key: &str,
    as_key: &str,
) -> Result<bool, CapabilityError> {
    let (Some(from), Some(to)) = (&source.signed, &target.signed) else { return Ok(false) };
    if !to.is_of_service_of(from) {
        return Ok(false);
    }
    let size = source.store.head(&path(&source.name, key)?).await;
    if !size.is_ok_and(|found| found.size <= MAX_COPY) {
        return Ok(false);
    }
    path(&target.name, as_key)?;
    match Signed::copy(to, from, key, as_key).await {
        Ok(_) => Ok(true),
        // The role of the target need not be able to read the source.
        Err(SignedError::Status(400..=499 | 501, _)) => Ok(false),
        Err(error) => Err(failed(target, "copy", key, &error)),
    }
}

fn failed(open: &Open, verb: &str, key: &str, error: &SignedError) -> CapabilityError {
    match error {
        SignedError::Library(error) => explain(open, verb, key, error),
        SignedError::Status(status, text) => {
            let source = format!("status code: {status} {text}").into();
            explain(open, verb, key, &::object_store::Error::Generic { store: "S3", source })
        }
    }
}

/// Returns the files in which the library gathers an object, `NAME#NUMBER`.
fn staged(root: &FilePath) -> Vec<Incomplete> {
    let mut found = Vec::new();
    let mut directories: Vec<(PathBuf, usize)> = vec![(root.to_owned(), 0)];
    while let Some((directory, depth)) = directories.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && depth < MAX_DEPTH {
                directories.push((entry.path(), depth + 1));
            }
            let path = entry.path();
            let Some(id) = path.strip_prefix(root).ok().and_then(FilePath::to_str) else {
                continue;
            };
            let Some((key, number)) = id.rsplit_once('#') else { continue };
            let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
            let Some(metadata) = entry.metadata().ok().filter(|_| kind.is_file() && is_number)
            else {
                continue;
            };
            let modified = metadata.modified().unwrap_or(UNIX_EPOCH);
            found.push(Incomplete {
                key: Path::from(key).to_string(),
                begun: modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
                id: id.to_owned(),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_uploads_is_parsed() {
        let text = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListMultipartUploadsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Bucket>b</Bucket>
<KeyMarker/><UploadIdMarker/><NextKeyMarker>nar/a</NextKeyMarker>
<NextUploadIdMarker>XX</NextUploadIdMarker><MaxUploads>1000</MaxUploads><IsTruncated>true</IsTruncated>
<Upload><Key>nar/a&amp;b</Key><UploadId>id1</UploadId><Initiator><ID>x</ID></Initiator>
<StorageClass>STANDARD</StorageClass><Initiated>2010-11-10T20:48:33.000Z</Initiated></Upload>
<Upload><Key>nar/c</Key><UploadId>id2</UploadId><Initiated>2010-11-10T20:49:33Z</Initiated></Upload>
</ListMultipartUploadsResult>"#;
        let page: Page = quick_xml::de::from_str(text).unwrap();
        let keys: Vec<&str> = page.uploads.iter().map(|upload| upload.key.as_str()).collect();
        assert_eq!(keys, ["nar/a&b", "nar/c"]);
        assert!(page.is_truncated && page.next_key_marker == "nar/a");
    }

    #[test]
    fn files_that_are_being_gathered_are_found() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("nar")).unwrap();
        for name in ["nar/a.nar#1", "nar/b.nar", "c#x", "d#12"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let mut found: Vec<_> = staged(dir.path()).into_iter().map(|found| found.key).collect();
        found.sort();
        assert_eq!(found, ["d", "nar/a.nar"]);
    }
}
