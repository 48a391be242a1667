//! Messages for the operator: `hookrun log` shows them with the run. Always granted; limited per
//! run.

use crate::bindings::imports::hookrun::host::log;
pub use log::Level;

/// Writes a message with named values.
///
/// ```
/// use hookrun_sdk::log::{self, Level};
///
/// log::write(Level::Info, "uploaded", &[("bytes", "1024")]);
/// ```
pub fn write(level: Level, message: impl AsRef<str>, fields: &[(&str, &str)]) {
    let message = message.as_ref();
    if cfg!(target_arch = "wasm32") {
        let fields: Vec<log::Field> = fields
            .iter()
            .map(|(key, value)| log::Field { key: (*key).to_owned(), value: (*value).to_owned() })
            .collect();
        log::write(level, message, &fields);
    } else {
        let level = match level {
            Level::Trace => "trace",
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        };
        crate::testing::log(level, message, fields);
    }
}

/// Writes a message for the author of the plugin, in detail.
pub fn trace(message: impl AsRef<str>) {
    write(Level::Trace, message, &[]);
}

/// Writes a message for the author of the plugin.
pub fn debug(message: impl AsRef<str>) {
    write(Level::Debug, message, &[]);
}

/// Writes a message about normal operation.
pub fn info(message: impl AsRef<str>) {
    write(Level::Info, message, &[]);
}

/// Writes a message about a problem that does not stop the run.
pub fn warn(message: impl AsRef<str>) {
    write(Level::Warn, message, &[]);
}

/// Writes a message about an error.
pub fn error(message: impl AsRef<str>) {
    write(Level::Error, message, &[]);
}
