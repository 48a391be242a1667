//! Error messages about mail transports.

use crate::{CapabilityError, ErrorKind};

/// From an operation on a file of transport `name`. What may pass by itself (a full disk, too many
/// open files) is worth a retry; what the configuration or the permissions forbid is not.
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

/// The longest text of another program or server that is quoted in a message, in characters.
const QUOTED_LENGTH: usize = 300;

/// Text from outside, made fit for one line: bounded, control characters replaced by blanks.
pub(super) fn quoted(text: &str) -> String {
    let line: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(QUOTED_LENGTH)
        .collect();
    if line.is_empty() { "no further text".to_owned() } else { line }
}

/// The user this process runs as, for messages about permissions: `hookrun (uid 997)`.
pub(super) fn current_user() -> String {
    let uid = uzers::get_effective_uid();
    uzers::get_user_by_uid(uid).map_or_else(
        || format!("uid {uid}"),
        |user| format!("{} (uid {uid})", user.name().to_string_lossy()),
    )
}
