//! Workers that run beside a test, and functions that wait for their effects.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hookrun_queue::lock;

use super::Scene;

/// A time limit that exceeds all waits of tests, including the worker's check of its files every
/// half minute, on a machine under load.
const PATIENCE: Duration = Duration::from_mins(2);

/// A worker that runs until the end of the test.
pub struct Worker(pub Child);

impl Scene {
    /// Starts `hookrun daemon` and waits until it is the worker of this scene.
    #[track_caller]
    pub fn start_daemon(&self) -> Worker {
        Worker::start(self, self.hookrun_command(&["daemon"]))
    }
}

impl Worker {
    /// Starts a worker by this command and waits until it has its lock.
    #[track_caller]
    pub fn start(scene: &Scene, mut command: Command) -> Self {
        let worker = Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let lock = scene.state_dir().join("worker.lock");
        wait_for("the worker takes its lock", || lock::is_held(&lock));
        worker
    }

    /// Returns the id of the process.
    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until the condition holds.
///
/// # Panics
/// If it does not hold within two minutes.
#[track_caller]
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    wait_until(what, || holds().then_some(()));
}

/// Waits until there is a value, and returns it.
///
/// # Panics
/// If there is none within two minutes.
#[track_caller]
pub fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "two minutes passed without: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
