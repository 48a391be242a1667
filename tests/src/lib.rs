//! The shared code of the end-to-end tests: [`lab`] creates a private Nix and runs hookrun in it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::return_self_not_must_use,
    reason = "a library for tests only: what goes wrong has to fail the test, and an expectation may be the last word"
)]

pub mod canary;
pub mod document;
pub mod guests;
pub mod hostile;
pub mod lab;
pub mod sandbox;
pub mod smtp;
pub mod web;
