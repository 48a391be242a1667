//! Builder selection.
