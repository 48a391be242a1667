//! What the end-to-end tests share: [`lab`] makes a private Nix and runs hookrun in it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a library for tests only: what goes wrong has to fail the test"
)]

pub mod lab;
