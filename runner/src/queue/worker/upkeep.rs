//! What a worker does now and then: old history goes, roots are bounded and swept, a clock that was set back is noticed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::config;
use crate::event::{Event, NixDirs};
use crate::nix::database::Database;
use crate::queue::journal::{Journal, JournalError, Rooted};
use crate::queue::roots;

/// How often.
pub(super) const INTERVAL: Duration = Duration::from_mins(10);
/// A root without an open event is left alone for so long: its hook may be about to hand the event over.
const ORPHAN_AGE: Duration = Duration::from_hours(1);
/// A clock that is behind what it showed before by more than this was set back.
pub(super) const CLOCK_SLACK_MS: u64 = 5_000;

/// Does all of it; gives what somebody should know.
pub(super) fn run(journal: &mut Journal, settings: &config::Worker, now_ms: u64) -> Result<Vec<String>, JournalError> {
    journal.forget(settings.keep, now_ms)?;
    measure(journal)?;
    let mut notices = bound_roots(journal, settings, now_ms)?;
    let swept = sweep(journal, settings.roots_max_age)?;
    if swept > 0 {
        notices.push(format!("the roots of {swept} events that nothing waits for any more were removed"));
    }
    Ok(notices)
}

/// Sizes of rooted outputs, from Nix's database.
fn measure(journal: &mut Journal) -> Result<(), JournalError> {
    let mut by_nix: BTreeMap<NixDirs, Vec<Event>> = BTreeMap::new();
    for rooted in journal.rooted()?.into_iter().filter(|rooted| rooted.nar_size.is_none()) {
        by_nix.entry(rooted.event.nix.clone()).or_default().push(rooted.event);
    }
    for (nix, events) in by_nix {
        // No database: the size stays unknown, and counts as nothing.
        let Ok(database) = Database::open(&nix) else { continue };
        let sizes: Vec<(String, u64)> = events
            .iter()
            .filter_map(|event| {
                let paths: Vec<String> = event.output_paths().into_iter().map(ToOwned::to_owned).collect();
                let infos = database.path_infos(&paths).ok()?;
                Some((event.id.clone(), infos.into_iter().flatten().map(|info| info.nar_size).sum()))
            })
            .collect();
        journal.measured(&sizes)?;
    }
    Ok(())
}

/// Roots beyond the bounds on age and size go, the oldest first. The tasks stay: what is not collected is still done.
fn bound_roots(journal: &mut Journal, settings: &config::Worker, now_ms: u64) -> Result<Vec<String>, JournalError> {
    let max_age = u64::try_from(settings.roots_max_age.as_millis()).unwrap_or(u64::MAX);
    let (too_old, too_large) = beyond(&journal.rooted()?, max_age, settings.roots_max_size, now_ms);
    let mut notices = Vec::new();
    for (events, key, why) in [(too_old, "roots-max-age", "too long"), (too_large, "roots-max-size", "too much")] {
        for event in &events {
            roots::remove(event);
            journal.unrooted(&event.id)?;
        }
        if !events.is_empty() {
            notices.push(format!(
                "the outputs of {} unfinished events were kept from the garbage collector for {why} and no longer are; raise `{key}` under \
                 [worker], or see with `hookrun queue list` what they wait for",
                events.len()
            ));
        }
    }
    Ok(notices)
}

/// Which of the rooted events (the newest first) are older than `max_age` milliseconds, and which are over `max_size` bytes together.
fn beyond(rooted: &[Rooted], max_age: u64, max_size: u64, now_ms: u64) -> (Vec<Event>, Vec<Event>) {
    let (mut too_old, mut too_large, mut size) = (Vec::new(), Vec::new(), 0_u64);
    for one in rooted {
        size = size.saturating_add(one.nar_size.unwrap_or(0));
        if now_ms.saturating_sub(one.taken_ms) > max_age {
            too_old.push(one.event.clone());
        } else if size > max_size {
            too_large.push(one.event.clone());
        }
    }
    (too_old, too_large)
}

/// Roots that a killed hook or a killed worker left.
fn sweep(journal: &Journal, max_age: Duration) -> Result<usize, JournalError> {
    let rooted = journal.rooted()?;
    let open: BTreeSet<String> = rooted.iter().map(|rooted| rooted.event.id.clone()).collect();
    let mut stores: BTreeSet<NixDirs> = rooted.iter().map(|rooted| rooted.event.nix.clone()).collect();
    stores.insert(NixDirs::from_env());
    let mut swept = 0;
    for nix in stores {
        let ancient = roots::ids(&nix.state, max_age);
        for id in roots::ids(&nix.state, ORPHAN_AGE).difference(&open) {
            // One that this journal does not know may be of a hook that is about to hand it over, or of another installation.
            if journal.knows(id)? || ancient.contains(id) {
                roots::remove_by_id(&nix.state, id);
                swept += 1;
            }
        }
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::tests::post_build;

    #[test]
    fn bounds_on_age_and_size() {
        let rooted = |name: &str, taken_ms, nar_size| Rooted { event: post_build(name), taken_ms, nar_size };
        let all = [
            rooted("new", 900, Some(60)),
            rooted("unknown", 800, None),
            rooted("mid", 700, Some(50)),
            rooted("old", 100, Some(1)),
        ];
        let names = |events: Vec<Event>| events.iter().map(|event| event.name().to_owned()).collect::<Vec<_>>();
        let of = |max_age, max_size| {
            let (old, large) = beyond(&all, max_age, max_size, 1000);
            (names(old), names(large))
        };
        assert_eq!(of(1000, 1000), (vec![], vec![]));
        assert_eq!(of(500, 1000), (vec!["old".to_owned()], vec![]));
        assert_eq!(of(500, 100), (vec!["old".to_owned()], vec!["mid".to_owned()]), "the newest are kept");
    }
}
