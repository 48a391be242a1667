//! Whose turn it is. Pure.

use std::collections::BTreeMap;

/// The plugin that may start a run now: of those with a due task the one with the fewest runs in flight, so that a slow or busy plugin
/// does not keep the others waiting. Where more than one may run at once, no plugin takes the last free place but one that has
/// none: so a plugin whose runs all hang leaves one place to the others.
pub(super) fn next_plugin<'a>(due: &'a [String], running: &BTreeMap<&str, usize>, concurrency: usize) -> Option<&'a str> {
    let in_flight = |plugin: &str| running.get(plugin).copied().unwrap_or(0);
    let most = concurrency.saturating_sub(1).max(1);
    due.iter().map(String::as_str).filter(|plugin| in_flight(plugin) < most).min_by_key(|plugin| in_flight(plugin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let next = |due: &[&str], running: &[(&'static str, usize)], concurrency| {
            let due: Vec<String> = due.iter().map(|plugin| (*plugin).to_owned()).collect();
            next_plugin(&due, &running.iter().copied().collect(), concurrency).map(ToOwned::to_owned)
        };
        assert_eq!(next(&[], &[], 4), None);
        assert_eq!(next(&["a", "b"], &[], 4).as_deref(), Some("a"));
        assert_eq!(next(&["a", "b"], &[("a", 1)], 4).as_deref(), Some("b"));
        assert_eq!(next(&["a"], &[("a", 2)], 4).as_deref(), Some("a"));
        assert_eq!(next(&["a"], &[("a", 3)], 4), None, "the last place is for others");
        assert_eq!(next(&["a", "b"], &[("a", 3)], 4).as_deref(), Some("b"));
        assert_eq!(next(&["a"], &[], 1).as_deref(), Some("a"));
        assert_eq!(next(&["a"], &[("a", 1)], 2), None);
    }
}
