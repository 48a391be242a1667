//! Notifications for a service manager: ready, alive, stopping.

use std::time::Duration;

use tokio::time::Instant;

use super::SAFETY_POLL;

/// What systemd wants to know of a service (sd_notify(3)); nothing where nobody asks.
#[derive(Debug)]
pub(super) struct Service {
    /// Whether this is the service's main process.
    on: bool,
    watchdog: Option<Duration>,
    said: Option<(Instant, usize)>,
}

impl Service {
    /// `on`: this process is the service.
    pub(super) fn new(on: bool) -> Self {
        Self { on, watchdog: sd_notify::watchdog_enabled().filter(|_| on), said: None }
    }

    fn say(&self, state: &[sd_notify::NotifyState<'_>]) {
        if self.on {
            // A manager that does not listen has to do without.
            let _said = sd_notify::notify(state);
        }
    }

    /// It works from here.
    pub(super) fn ready(&self) {
        self.say(&[sd_notify::NotifyState::Ready]);
    }

    /// It was asked to end.
    pub(super) fn stopping(&self) {
        self.say(&[sd_notify::NotifyState::Stopping]);
    }

    /// How often the watchdog wants to hear something: twice within its time, as systemd advises.
    pub(super) fn interval(&self) -> Duration {
        self.watchdog.map_or(SAFETY_POLL, |watchdog| watchdog / 2)
    }

    /// The worker's loop turns, and so many tasks run.
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
