//! What would have been: a trace of builds, played by Nix's own rule, by policies with hookrun's
//! queue behind them, and held against what no rule can beat. `hookrun builders simulate` shows it,
//! and `cargo xtask bench` holds the bundled policy to its figures.
//!
//! * [`trace`]: what is read and written. [`export`]: traces of what was really built.
//!   [`generate`]: traces that look like building packages.
//! * [`engine`]: the discrete events. [`rules`]: who places, by what they [`view`]. [`bound`]: the
//!   lower bound.
//! * [`compare`]: several rules on several traces, in figures; [`chart`]: in a terminal; [`svg`]:
//!   as a picture.
//!
//! Pure, but for the policy that is asked. A rule sees what a host could know, and never how long a
//! build really takes.

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
