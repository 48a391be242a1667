//! The diff hook: a second build of an output had a different result.

pub use crate::bindings::diff::exports::hookrun::diff::diff::{Difference, Event};
use crate::{Failure, Outcome};

/// A plugin that handles the differences of outputs that are not reproducible.
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
    /// Handles an event. Called in the worker for every attempt. Must be idempotent, because the
    /// same event may be handled again.
    ///
    /// # Errors
    /// After a transient [`Failure`] the event is tried again later. After a permanent one the task
    /// becomes a dead letter, which `hookrun queue` shows.
    fn handle(event: Event) -> Result<Outcome, Failure>;
}
