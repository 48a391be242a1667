//! Binary caches in object stores: what uploads and the commands of `hookrun cache` agree on.

pub mod condemned;
