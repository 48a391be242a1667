//! Error messages about mail transports.

use crate::{CapabilityError, ErrorKind};

/// Returns the error of an operation on a file of transport `name`. Errors that may pass (a full
/// disk, too many open files) are transient; errors of the configuration or of permissions are not.
pub(super) fn file_error(
    name: &str,
    what: &str,
    error: &std::io::Error,
    fix: &str,
) -> CapabilityError {
    use std::io::ErrorKind as Io;
    let kind = match error.kind() {
        Io::PermissionDenied
        | Io::NotFound
        | Io::NotADirectory
        | Io::ReadOnlyFilesystem
        | Io::IsADirectory => ErrorKind::Refused,
        _ => ErrorKind::Transient,
    };
    CapabilityError::new(kind, format!("mail transport `{name}`: {what} ({error}); {fix}"))
}

/// Maximum length in characters of text that is quoted from another program or server.
const QUOTED_LENGTH: usize = 300;

/// Returns external text as one line of limited length, with control characters replaced by blanks.
pub(super) fn quoted(text: &str) -> String {
    let line: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(QUOTED_LENGTH)
        .collect();
    if line.is_empty() { "no further text".to_owned() } else { line }
}

/// Returns the user of this process for messages about permissions: `hookrun (uid 997)`.
pub(super) fn current_user() -> String {
    let uid = uzers::get_effective_uid();
    uzers::get_user_by_uid(uid).map_or_else(
        || format!("uid {uid}"),
        |user| format!("{} (uid {uid})", user.name().to_string_lossy()),
    )
}
