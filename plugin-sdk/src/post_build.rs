//! The post-build hook: a derivation was built.

pub use crate::bindings::post_build::exports::hookrun::post_build::post_build::{Event, Output};
use crate::{Failure, Outcome};

/// A plugin that handles every derivation that was built on this machine.
///
/// ```
/// use hookrun_sdk::{Failure, Outcome, PostBuild, post_build};
///
/// struct Count;
///
/// impl PostBuild for Count {
///     fn handle(event: post_build::Event) -> Result<Outcome, Failure> {
///         if event.outputs.is_empty() {
///             return Err(Failure::permanent(format!("{} has no outputs", event.drv_path)));
///         }
///         Ok(Outcome::new("counted").detail("outputs", event.outputs.len()))
///     }
/// }
/// ```
pub trait PostBuild {
    /// Handles an event. Called in the worker for every attempt. Must be idempotent, because the
    /// same event may be handled again. The outputs are valid and protected from the garbage
    /// collector.
    ///
    /// # Errors
    /// After a transient [`Failure`] the event is tried again later. After a permanent one the task
    /// becomes a dead letter, which `hookrun queue` shows.
    fn handle(event: Event) -> Result<Outcome, Failure>;
}

impl Event {
    /// Returns an event for tests: a build of `greet-2.12` with two outputs, as in `hookrun test`.
    ///
    /// ```
    /// let event = hookrun_sdk::post_build::Event::sample();
    /// assert_eq!(event.name, "greet-2.12");
    /// ```
    pub fn sample() -> Self {
        let output = |name: &str, path: &str| Output { name: name.into(), path: path.into() };
        Self {
            id: "01941fd6-4c00-7000-8000-000000000001".into(),
            time_ms: 1_735_732_800_000,
            host: "builder.example.org".into(),
            store_dir: "/nix/store".into(),
            drv_path: "/nix/store/2c3k0d1bfkvzvmr9b4xv0yqsxl1a6z4w-greet-2.12.drv".into(),
            name: "greet-2.12".into(),
            outputs: vec![
                output("dev", "/nix/store/9kd0nwv3q8x1c5hrb7y2jfz6a4lgsmpi-greet-2.12-dev"),
                output("out", "/nix/store/7yqz1aw5s3jr0vkxg2h9w4l6dqm8nfbc-greet-2.12"),
            ],
            attempt: 1,
            details: Vec::new(),
        }
    }
}
