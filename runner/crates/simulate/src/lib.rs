//! Simulates builder selection on a trace of builds: by Nix's own rule, and by policies with
//! hookrun's queue; and compares the results with a lower bound. `hookrun builders simulate` prints
//! it, and `cargo xtask bench` checks the bundled policy with it.
//!
//! * [`trace`]: the format. [`export`]: traces of recorded builds. [`generate`]: generated traces
//!   that resemble package builds.
//! * [`engine`]: the discrete events. [`rules`]: place builds with what [`view`] shows. [`bound`]:
//!   the lower bound.
//! * [`compare`]: several rules on several traces, as numbers. [`chart`], [`svg`]: as charts.
//!
//! Pure, except for the policy that is asked. A rule sees what a host could know, but not how long
//! a build will take.

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
