//! Plans the events for valid paths. This module is pure.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use super::enqueue::{PathSelection, SyncReport};
use hookrun_config::Filter;
use hookrun_nix::database::Registered;
use hookrun_nix::event::derivation_name;
use hookrun_nix::is_store_path;

/// A plugin that takes post-build events, and the outputs that it already has.
pub(super) struct PluginPaths {
    pub(super) name: String,
    pub(super) filter: Filter,
    pub(super) known: BTreeSet<String>,
}

/// An event to be written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PlannedEvent {
    pub(super) drv_path: String,
    pub(super) paths: Vec<String>,
    /// The plugins that it is for; empty for all that want it.
    pub(super) plugins: Vec<String>,
}

/// Returns the events, in the order in which their first outputs became valid. Outputs of one
/// derivation that are for the same plugins form one event.
pub(super) fn plan(
    registered: Vec<Registered>,
    wanted: &PathSelection,
    takers: &[PluginPaths],
    store: &str,
    report: &mut SyncReport,
) -> Vec<PlannedEvent> {
    let filter = Filter { name: wanted.name.clone(), max_nar_size: None };
    let mut plan: Vec<PlannedEvent> = Vec::new();
    let mut positions: HashMap<(String, Vec<String>), usize> = HashMap::new();
    for Registered { path, deriver, ultimate } in registered {
        let PathSelection { since_ms: _, name: _, built, only, plugin: _ } = wanted;
        let meant = filter.admits_name(derivation_name(&path))
            && (ultimate || !built)
            && only.as_ref().is_none_or(|only| only.contains(&path))
            // A derivation is not an output.
            && !is_derivation(&path);
        if !meant {
            continue;
        }
        let Some(deriver) =
            deriver.filter(|deriver| is_store_path(store, deriver) && is_derivation(deriver))
        else {
            report.without_derivation += 1;
            continue;
        };
        // The plugins whose filters admit the path, and those of them that do not have it.
        let admitting: Vec<&PluginPaths> = takers
            .iter()
            .filter(|taker| taker.filter.admits_name(derivation_name(&deriver)))
            .collect();
        let lacking: Vec<String> = admitting
            .iter()
            .filter(|taker| !taker.known.contains(&path))
            .map(|taker| taker.name.clone())
            .collect();
        if admitting.is_empty() {
            report.unwanted += 1;
            continue;
        }
        if lacking.is_empty() {
            report.known += 1;
            continue;
        }
        let all = wanted.plugin.is_none() && lacking.len() == admitting.len();
        let plugins = if all { Vec::new() } else { lacking };
        let position = *positions.entry((deriver.clone(), plugins.clone())).or_insert(plan.len());
        match plan.get_mut(position) {
            Some(planned) => planned.paths.push(path),
            None => plan.push(PlannedEvent { drv_path: deriver, paths: vec![path], plugins }),
        }
    }
    plan
}

pub(super) fn is_derivation(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|extension| extension == "drv")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";

    fn path(name: &str) -> String {
        format!("/nix/store/{HASH}-{name}")
    }

    fn row(name: &str, deriver: Option<&str>, ultimate: bool) -> Registered {
        Registered {
            path: path(name),
            deriver: deriver.map(|name| path(&format!("{name}.drv"))),
            ultimate,
        }
    }

    fn planned(wanted: &PathSelection, known: &[&str]) -> (Vec<String>, SyncReport) {
        planned_for(wanted, &[taker("cache", None, known)])
    }

    fn taker(name: &str, filter: Option<&str>, known: &[&str]) -> PluginPaths {
        PluginPaths {
            name: name.to_owned(),
            filter: Filter { name: filter.map(str::to_owned), max_nar_size: None },
            known: known.iter().map(|name| path(name)).collect(),
        }
    }

    fn planned_for(wanted: &PathSelection, takers: &[PluginPaths]) -> (Vec<String>, SyncReport) {
        let registered = vec![
            row("a", Some("a"), true),
            row("a-dev", Some("a"), true),
            row("b", Some("b"), false),
            row("a.drv", None, true),
            row("source", None, true),
        ];
        let mut report = SyncReport::default();
        let plan = plan(registered, wanted, takers, "/nix/store", &mut report);
        let shown = |PlannedEvent { drv_path, paths, plugins }: PlannedEvent| {
            let plugins = if plugins.is_empty() { "all".to_owned() } else { plugins.join("+") };
            format!("{} {} {plugins}", derivation_name(&drv_path), paths.len())
        };
        (plan.into_iter().map(shown).collect(), report)
    }

    #[test]
    fn each_derivation_becomes_one_event() {
        let (plan, report) = planned(&PathSelection::default(), &[]);
        assert_eq!(plan, ["a 2 all", "b 1 all"]);
        assert_eq!(report.without_derivation, 1, "the source; derivations are not reported");
    }

    #[test]
    fn unselected_and_known_paths_are_left_out() {
        let plan = |wanted: PathSelection, known: &[&str]| planned(&wanted, known).0;
        assert_eq!(
            plan(PathSelection::default(), &["a", "b"]),
            ["a 1 all"],
            "an output that was not reported"
        );
        assert_eq!(
            plan(PathSelection { built: true, ..PathSelection::default() }, &[]),
            ["a 2 all"]
        );
        assert_eq!(
            plan(PathSelection { name: Some("!*-dev".into()), ..PathSelection::default() }, &[]),
            ["a 1 all", "b 1 all"]
        );
        assert_eq!(
            plan(PathSelection { only: Some([path("b")].into()), ..PathSelection::default() }, &[]),
            ["b 1 all"]
        );
    }

    #[test]
    fn each_plugin_gets_the_paths_that_it_lacks() {
        let takers = [
            taker("first", None, &["a", "a-dev"]),
            taker("second", None, &["a-dev"]),
            taker("third", Some("b"), &[]),
        ];
        let (plan, report) = planned_for(&PathSelection::default(), &takers);
        assert_eq!(plan, ["a 1 second", "b 1 all"]);
        assert_eq!((report.known, report.unwanted), (1, 0));
        let for_third = PathSelection { plugin: Some("third".into()), ..PathSelection::default() };
        let (plan, report) = planned_for(&for_third, &takers[2..]);
        assert_eq!(plan, ["b 1 third"], "also where it is the only one");
        assert_eq!(report.unwanted, 2);
    }
}
