//! Regular maintenance by the worker: removes old history, limits and sweeps roots, and notices
//! that the clock was set back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::journal::{Journal, JournalError};
use crate::roots;
use hookrun_config as config;
use hookrun_nix::database::Database;
use hookrun_nix::event::{Event, NixDirs};

/// The interval of maintenance.
pub(super) const INTERVAL: Duration = Duration::from_mins(10);
/// The number of events that are measured in one step.
const BATCH: usize = 1000;
/// The age up to which a root without an open event is kept, because its hook may be about to hand
/// over the event.
const ORPHAN_AGE: Duration = Duration::from_hours(1);
/// The clock was set back if it is behind an earlier time by more than this.
pub(super) const CLOCK_SLACK_MS: u64 = 5_000;

/// Performs all maintenance; returns messages for the log.
pub(super) fn run(
    journal: &mut Journal,
    settings: &config::Worker,
    now_ms: u64,
) -> Result<Vec<String>, JournalError> {
    journal.forget(settings.keep, now_ms)?;
    let own = rustix::process::geteuid().as_raw();
    journal.forget_beyond(settings.max_events_per_user, own)?;
    measure(journal)?;
    let mut notices = bound_roots(journal, settings, now_ms)?;
    let swept = sweep(journal, settings.roots_max_age)?;
    if swept > 0 {
        notices.push(format!("the roots of {swept} events without open tasks were removed"));
    }
    Ok(notices)
}

/// Stores the sizes of rooted outputs, from Nix's database.
fn measure(journal: &mut Journal) -> Result<(), JournalError> {
    loop {
        let events = journal.unmeasured(BATCH)?;
        if events.is_empty() {
            return Ok(());
        }
        let mut by_nix: BTreeMap<NixDirs, Vec<Event>> = BTreeMap::new();
        for event in events {
            by_nix.entry(event.nix.clone()).or_default().push(event);
        }
        for (nix, events) in by_nix {
            let database = Database::open(&nix).ok();
            let size = |event: &Event| {
                let paths: Vec<String> =
                    event.output_paths().into_iter().map(ToOwned::to_owned).collect();
                let infos = database.as_ref()?.path_infos(&paths).ok()?;
                Some(infos.into_iter().flatten().map(|info| info.nar_size).sum())
            };
            // Unknown sizes count as 0.
            let sizes: Vec<(String, u64)> =
                events.iter().map(|event| (event.id.clone(), size(event).unwrap_or(0))).collect();
            journal.measured(&sizes)?;
        }
    }
}

/// Removes roots beyond the limits on age and size, the oldest first. The tasks stay, and run if
/// their outputs are not collected.
fn bound_roots(
    journal: &mut Journal,
    settings: &config::Worker,
    now_ms: u64,
) -> Result<Vec<String>, JournalError> {
    let max_age = u64::try_from(settings.roots_max_age.as_millis()).unwrap_or(u64::MAX);
    let beyond = journal.rooted_beyond(now_ms.saturating_sub(max_age), settings.roots_max_size)?;
    for (_, event) in &beyond {
        roots::remove(event);
        journal.unrooted(&event.id)?;
    }
    let old = beyond.iter().filter(|(too_old, _)| *too_old).count();
    let counts = [
        (old, "roots-max-age", "they are too old"),
        (beyond.len() - old, "roots-max-size", "they are too large"),
    ];
    let notice = |(count, key, why): (usize, &str, &str)| {
        format!(
            "the outputs of {count} unfinished events are no longer protected from the garbage collector ({why}); raise `{key}` under [worker], or run `hookrun queue list` to see why they wait"
        )
    };
    Ok(counts.into_iter().filter(|(count, ..)| *count > 0).map(notice).collect())
}

/// Removes roots that a killed hook or worker has left.
fn sweep(journal: &Journal, max_age: Duration) -> Result<usize, JournalError> {
    let mut stores: BTreeSet<NixDirs> = journal.rooted_stores()?.into_iter().collect();
    stores.insert(NixDirs::from_env());
    let mut swept = 0;
    for nix in stores {
        let ancient = roots::ids(&nix.state, max_age);
        for id in roots::ids(&nix.state, ORPHAN_AGE) {
            let orphan = match journal.is_rooted(&id)? {
                Some(rooted) => !rooted,
                // The root belongs to a hook that is about to hand over the event, or to another
                // installation.
                None => ancient.contains(&id),
            };
            if orphan {
                roots::remove_by_id(&nix.state, &id);
                swept += 1;
            }
        }
    }
    Ok(swept)
}
