//! A bundled plugin: one readable mail when two builds of an output gave different results.
//!
//! The host calls it for each event of the diff hook. [`finding`] is what the hook found, [`history`] decides whether there is
//! anything new to say, [`report`] says it, [`text`] and [`html`] lay it out, [`react`] joins these. All of it is plain Rust,
//! tested without a host; only this file knows the SDK.

pub mod cause;
pub mod finding;
pub mod history;
pub mod html;
pub mod react;
pub mod report;
pub mod settings;
pub mod shown;
pub mod text;

#[cfg(test)]
mod tests;
