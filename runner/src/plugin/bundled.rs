//! The plugins compiled into this binary.

/// Their names, as in `source = "bundled:NAME"`.
pub const NAMES: &[&str] = &["email-on-nondeterminism", "s3-upload", "speed-factor"];
