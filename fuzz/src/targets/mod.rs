//! One file for each target.

pub(crate) mod answers;
pub(crate) mod build_hook;
pub(crate) mod config;
pub(crate) mod derivation;
pub(crate) mod event;
pub(crate) mod host_calls;
pub(crate) mod http_grants;
pub(crate) mod journal;
pub(crate) mod locks;
pub(crate) mod machines;
pub(crate) mod metadata;
pub(crate) mod narinfo;
pub(crate) mod runner;
pub(crate) mod sessions;
pub(crate) mod smtp;
pub(crate) mod spool;
pub(crate) mod stock_output;
pub(crate) mod trace;
