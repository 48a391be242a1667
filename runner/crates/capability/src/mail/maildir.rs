//! Delivers into a maildir as its author specifies (<https://cr.yp.to/proto/maildir.html>): a
//! message is written completely and synced under `tmp/`, then moved into `new/` by one rename,
//! under a unique name. A reader never sees an incomplete message, and no lock is needed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Composed;
use super::error::{current_user, file_error};
use crate::{CapabilityError, ErrorKind};

/// Only the owner may read mail.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// The number of deliveries of this process so far, which is part of the unique name.
static DELIVERIES: AtomicU64 = AtomicU64::new(0);

#[derive(Debug, Clone)]
pub(super) struct Maildir {
    pub(super) name: String,
    /// The directory. It is created with `tmp`, `new` and `cur` if it does not exist.
    pub(super) directory: PathBuf,
}

impl Maildir {
    pub(super) async fn deliver(
        &self,
        message: &Composed,
        host: &str,
    ) -> Result<(), CapabilityError> {
        let (maildir, text, host) = (self.clone(), message.unix_text(), host.to_owned());
        tokio::task::spawn_blocking(move || maildir.deliver_now(&text, &host)).await.unwrap_or_else(
            |error| {
                Err(CapabilityError::new(
                    ErrorKind::Transient,
                    format!("mail transport `{}`: delivery was cut short ({error})", self.name),
                ))
            },
        )
    }

    fn deliver_now(&self, text: &str, host: &str) -> Result<(), CapabilityError> {
        write(&self.directory, text, host).map_err(|error| {
            let shown = self.directory.display();
            let fix = format!(
                "make {shown} writable for user {}, or write another `directory` under [mail.{}]",
                current_user(),
                self.name
            );
            file_error(
                &self.name,
                &format!("cannot deliver into the maildir {shown}"),
                &error,
                &fix,
            )
        })
    }
}

fn write(directory: &Path, text: &str, host: &str) -> std::io::Result<()> {
    for part in ["tmp", "new", "cur"] {
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory.join(part))?;
    }
    let name = unique_name(host);
    let (temporary, target) =
        (directory.join("tmp").join(&name), directory.join("new").join(&name));
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&temporary)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&temporary, &target));
    if let Err(error) = written {
        // The incomplete file is useless; the first error is more important than a failure to
        // remove it.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    File::open(directory.join("new"))?.sync_all()
}

/// Returns `<seconds>.M<microseconds>P<process>Q<delivery>.<host>`, the form that the maildir page
/// recommends.
fn unique_name(host: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let delivery = DELIVERIES.fetch_add(1, Ordering::Relaxed);
    format!("{}.M{}P{}Q{delivery}.{host}", now.as_secs(), now.subsec_micros(), std::process::id())
}
