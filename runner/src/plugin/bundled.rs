//! The plugins compiled into this binary. `build.rs` builds them from `plugins/`.

/// Their names, as in `source = "bundled:NAME"`.
pub const NAMES: &[&str] = &["email-on-nondeterminism", "s3-upload", "speed-factor"];

/// The component of a bundled plugin.
pub fn component(name: &str) -> Option<&'static [u8]> {
    match name {
        "email-on-nondeterminism" => {
            Some(include_bytes!(concat!(env!("OUT_DIR"), "/email-on-nondeterminism.wasm")))
        }
        "s3-upload" => Some(include_bytes!(concat!(env!("OUT_DIR"), "/s3-upload.wasm"))),
        "speed-factor" => Some(include_bytes!(concat!(env!("OUT_DIR"), "/speed-factor.wasm"))),
        _ => None,
    }
}
