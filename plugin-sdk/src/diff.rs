//! The diff hook: a second build of an output gave another result.

pub use crate::bindings::diff::exports::hookrun::diff::diff::{Difference, Event};
use crate::{Failure, Outcome};

/// A plugin that is told of outputs that are not reproducible.
///
/// ```
/// use hookrun_sdk::{Diff, Failure, Outcome, diff, log};
///
/// struct Report;
///
/// impl Diff for Report {
///     fn handle(event: diff::Event) -> Result<Outcome, Failure> {
///         for difference in &event.differences {
///             log::warn(format!("{}: {} differs", difference.path, difference.kind));
///         }
///         Ok(Outcome::new(format!("{} files of {} differ", event.differences.len(), event.name)))
///     }
/// }
/// ```
pub trait Diff {
    /// Called in the worker for every attempt at one event; at least once per event, so it must be
    /// idempotent.
    ///
    /// # Errors
    /// A transient [`Failure`] is tried again later, a permanent one becomes a dead letter that
    /// `hookrun queue` shows.
    fn handle(event: Event) -> Result<Outcome, Failure>;
}
