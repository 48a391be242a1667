//! Notifications for a service manager: ready, alive, stopping.

use std::time::Duration;

use tokio::time::Instant;

use super::SAFETY_POLL;

/// Notifies systemd about the service (sd_notify(3)). Does nothing if there is no service manager.
#[derive(Debug)]
pub(super) struct Service {
    /// Whether this is the service's main process.
    on: bool,
    watchdog: Option<Duration>,
    said: Option<(Instant, usize)>,
}

impl Service {
    /// Returns a notifier; `on` is whether this process is the service.
    pub(super) fn new(on: bool) -> Self {
        Self { on, watchdog: sd_notify::watchdog_enabled().filter(|_| on), said: None }
    }

    fn say(&self, state: &[sd_notify::NotifyState<'_>]) {
        if self.on {
            // If the manager does not listen, the notification is dropped.
            let _said = sd_notify::notify(state);
        }
    }

    /// Reports that the service is ready.
    pub(super) fn ready(&self) {
        self.say(&[sd_notify::NotifyState::Ready]);
    }

    /// Reports that the service is stopping.
    pub(super) fn stopping(&self) {
        self.say(&[sd_notify::NotifyState::Stopping]);
    }

    /// Returns the interval of watchdog notifications: half of the watchdog's time, as systemd
    /// recommends.
    pub(super) fn interval(&self) -> Duration {
        self.watchdog.map_or(SAFETY_POLL, |watchdog| watchdog / 2)
    }

    /// Reports that the worker's loop is alive, and the number of running tasks.
    pub(super) fn alive(&mut self, running: usize) {
        let half = self.interval() / 2;
        let due = self
            .said
            .is_none_or(|(when, said)| when.elapsed() >= half || (said == 0) != (running == 0));
        if self.on && due {
            let status =
                if running == 0 { "idle".to_owned() } else { format!("{running} tasks run") };
            self.say(&[sd_notify::NotifyState::Watchdog, sd_notify::NotifyState::Status(&status)]);
            self.said = Some((Instant::now(), running));
        }
    }
}
