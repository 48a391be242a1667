//! Simulates builder selection on a trace of builds, with Nix's own rule and with policies and
//! hookrun's queue, and compares the results with a lower bound. `hookrun builders simulate` prints
//! the result, and `cargo xtask bench` uses it to check the bundled policy.
//!
//! * [`trace`]: the format. [`export`]: traces of recorded builds. [`generate`]: generated traces
//!   that resemble package builds.
//! * [`engine`]: the discrete events. [`rules`]: assign builds to machines with the data in
//!   [`view`]. [`bound`]: the lower bound.
//! * [`compare`]: several rules on several traces, as numbers. [`chart`], [`svg`]: as charts.
//!
//! Pure, except for the policy. A rule gets the data that a host can know, but not how long a build
//! will take.

pub mod bound;
pub mod chart;
pub mod compare;
pub mod engine;
pub mod export;
pub mod generate;
pub mod rules;
pub mod svg;
pub mod trace;
pub mod view;
