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

impl Event {
    /// Returns an event for tests: a program of `greet-2.12` contains the time of the build.
    ///
    /// ```
    /// let event = hookrun_sdk::diff::Event::sample();
    /// assert_eq!(event.differences[0].path, "bin/greet");
    /// ```
    pub fn sample() -> Self {
        let path = "/nix/store/7yqz1aw5s3jr0vkxg2h9w4l6dqm8nfbc-greet-2.12";
        Self {
            id: "01941fd6-4c00-7000-8000-000000000001".into(),
            time_ms: 1_735_732_800_000,
            host: "builder.example.org".into(),
            store_dir: "/nix/store".into(),
            drv_path: "/nix/store/2c3k0d1bfkvzvmr9b4xv0yqsxl1a6z4w-greet-2.12.drv".into(),
            name: "greet-2.12".into(),
            output_name: "out".into(),
            previous_path: path.into(),
            current_path: format!("{path}.check"),
            differences: vec![Difference {
                path: "bin/greet".into(),
                kind: "content".into(),
                previous: "\"built on Jan 1 2025 11:58:02\\n\"".into(),
                current: "\"built on Jan 1 2025 12:00:00\\n\"".into(),
                offset: Some(5128),
                details: Vec::new(),
            }],
            complete: true,
            compared_files: 212,
            compared_bytes: 3_141_592,
            attempt: 1,
            details: Vec::new(),
        }
    }
}
