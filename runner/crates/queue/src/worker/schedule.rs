//! Decides which plugin's tasks run next. Pure.

use std::collections::BTreeMap;

/// A plugin with due tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ready<'a> {
    /// The name of the plugin.
    pub(super) plugin: &'a str,
    /// The maximum number of its concurrent runs, from the configuration and its breaker.
    pub(super) most: usize,
}

/// Returns the plugin that may start a run now: of those with a due task the one with the fewest
/// runs, so that a slow plugin does not delay others. If several runs are allowed, only a plugin
/// without a run may take the last free slot, so that a plugin whose runs all hang leaves one slot
/// for others.
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
        assert_eq!(next(&[a], &[("a", 3)], 4), None, "the last slot is for others");
        assert_eq!(next(&[a, b], &[("a", 3)], 4), Some("b"));
        assert_eq!(next(&[a], &[], 1), Some("a"));
        assert_eq!(next(&[a], &[("a", 1)], 2), None);
        assert_eq!(next(&[("a", 1)], &[("a", 1)], 9), None, "its own limit");
        assert_eq!(next(&[("a", 0), b], &[("b", 2)], 9), Some("b"), "its breaker is open");
    }
}
