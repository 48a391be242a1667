//! Decides which plugin's tasks run next. Pure.

use std::collections::BTreeMap;

/// A plugin with tasks that are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ready<'a> {
    /// The name of the plugin.
    pub(super) plugin: &'a str,
    /// Its runs at once, as the configuration and its breaker have it.
    pub(super) most: usize,
}

/// The plugin that may start a run now: of those with a due task the one with the fewest runs in
/// flight, so that a slow or busy plugin does not keep the others waiting. Where more than one may
/// run at once, no plugin takes the last free place but one that has none: so a plugin whose runs
/// all hang leaves one place to the others.
pub(super) fn next_plugin<'a>(
    due: impl Iterator<Item = Ready<'a>>,
    running: &BTreeMap<String, usize>,
    concurrency: usize,
) -> Option<&'a str> {
    let in_flight = |plugin: &str| running.get(plugin).copied().unwrap_or(0);
    let most = concurrency.saturating_sub(1).max(1);
    due.filter(|ready| in_flight(ready.plugin) < most.min(ready.most))
        .map(|ready| ready.plugin)
        .min_by_key(|plugin| in_flight(plugin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_slots_are_shared_between_plugins() {
        let next = |due: &[(&'static str, usize)], running: &[(&str, usize)], concurrency| {
            let due = due.iter().map(|(plugin, most)| Ready { plugin, most: *most });
            let running =
                running.iter().map(|(plugin, count)| ((*plugin).to_owned(), *count)).collect();
            next_plugin(due, &running, concurrency)
        };
        let (a, b) = (("a", usize::MAX), ("b", usize::MAX));
        assert_eq!(next(&[], &[], 4), None);
        assert_eq!(next(&[a, b], &[], 4), Some("a"));
        assert_eq!(next(&[a, b], &[("a", 1)], 4), Some("b"));
        assert_eq!(next(&[a], &[("a", 2)], 4), Some("a"));
        assert_eq!(next(&[a], &[("a", 3)], 4), None, "the last place is for others");
        assert_eq!(next(&[a, b], &[("a", 3)], 4), Some("b"));
        assert_eq!(next(&[a], &[], 1), Some("a"));
        assert_eq!(next(&[a], &[("a", 1)], 2), None);
        assert_eq!(next(&[("a", 1)], &[("a", 1)], 9), None, "its own bound");
        assert_eq!(next(&[("a", 0), b], &[("b", 2)], 9), Some("b"), "its breaker is open");
    }
}
