//! Assigns free slots to waiting builds. Pure: every session computes the same result from the same
//! files, and takes its own slot.
//!
//! The command with the fewest running builds comes first. Within a command it is the build with
//! the longest chain of dependents, then the one with the longest expected duration (an unknown one
//! may be the longest), then the oldest. `hookrun_simulate` uses the same order.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::slots::reservations::Account;
use crate::slots::sessions::{Command, WantedMachine};
use hookrun_config::Amounts;

/// The time in milliseconds after which resources are kept free for a build that waits for them, so
/// that younger builds that need the same resources go elsewhere or wait. With a shorter time, each
/// large build would idle a machine; without it, small builds would overtake a large one for ever.
const KEPT_FREE_AFTER_MS: u64 = 5 * 60 * 1000;

/// A build that waits.
#[derive(Debug, Clone, PartialEq)]
pub struct Ticket {
    /// The name, which is unique among the tickets.
    pub name: std::ffi::OsString,
    /// The Nix process that asked.
    pub command: Command,
    /// The machines that it may go to, best first.
    pub wanted: Vec<WantedMachine>,
    /// The length of the longest chain of derivations that depend on it.
    pub depth: Option<u32>,
    /// The expected duration at speed factor 1.
    pub expected_seconds: Option<f64>,
    /// The start of the wait, in milliseconds since 1970.
    pub since_ms: u64,
    /// The resources that it needs besides a slot.
    pub takes: Amounts,
}

impl Ticket {
    fn wants(&self, machine: &str) -> bool {
        self.wanted.iter().any(|wanted| wanted.machine == machine)
    }

    /// Returns whether it waits only for resources, and has done so for long.
    fn is_kept_for(
        &self,
        free: &BTreeMap<String, u32>,
        account: &Account<'_>,
        now_ms: u64,
    ) -> bool {
        let has_slot =
            |wanted: &&WantedMachine| free.get(&wanted.machine).is_some_and(|slots| *slots > 0);
        let with_slot = self.wanted.iter().filter(has_slot).map(|wanted| wanted.machine.as_str());
        waits_for_resources(&self.takes, now_ms.saturating_sub(self.since_ms), with_slot, account)
    }

    /// Returns whether the resources that it needs on `machine` are kept free for `older`.
    fn gives_way(&self, older: &Self, machine: &str, account: &Account<'_>) -> bool {
        (older.since_ms, &older.name) < (self.since_ms, &self.name)
            && older.wants(machine)
            && account.compete(machine, &self.takes, &older.takes)
    }
}

/// Returns whether a build that needs these resources has waited for them only, and for a long
/// time. `with_slot` are its machines that have a free slot.
pub fn waits_for_resources<'m>(
    takes: &Amounts,
    waited_ms: u64,
    with_slot: impl Iterator<Item = &'m str>,
    account: &Account<'_>,
) -> bool {
    let mut with_slot = with_slot.peekable();
    !takes.is_empty()
        && waited_ms >= KEPT_FREE_AFTER_MS
        && with_slot.peek().is_some()
        && with_slot.all(|machine| account.short(machine, takes).is_some())
}

/// Assigns `free` slots (by machine), and the resources that `account` has left, to `tickets`.
/// `running` builds (by command) count for fairness. Returns pairs of ticket and machine, in the
/// order of assignment.
pub fn assign(
    tickets: &[Ticket],
    mut free: BTreeMap<String, u32>,
    mut account: Account<'_>,
    mut running: BTreeMap<Command, u32>,
    now_ms: u64,
) -> Vec<(usize, String)> {
    let mut order: Vec<(usize, &Ticket)> = tickets.iter().enumerate().collect();
    order.sort_by(|(_, a), (_, b)| compare(a, b));
    let mut shares = Vec::new();
    loop {
        let kept_for: Vec<&Ticket> = order
            .iter()
            .map(|(_, ticket)| *ticket)
            .filter(|ticket| ticket.is_kept_for(&free, &account, now_ms))
            .collect();
        let placeable = order.iter().enumerate().filter_map(|(place, (index, ticket))| {
            let has_room = |wanted: &&WantedMachine| {
                let WantedMachine { machine, .. } = wanted;
                free.get(machine).is_some_and(|slots| *slots > 0)
                    && account.short(machine, &ticket.takes).is_none()
                    && !kept_for.iter().any(|older| ticket.gives_way(older, machine, &account))
            };
            let machine = ticket.wanted.iter().find(has_room)?.machine.clone();
            Some((running.get(&ticket.command).copied().unwrap_or(0), place, *index, machine))
        });
        // The first ticket in order among those of the commands with the fewest builds.
        let Some((_, place, index, machine)) =
            placeable.min_by_key(|(count, place, ..)| (*count, *place))
        else {
            return shares;
        };
        let (_, ticket) = order.remove(place);
        *running.entry(ticket.command).or_default() += 1;
        account.take(&machine, &ticket.takes);
        if let Some(slots) = free.get_mut(&machine) {
            *slots -= 1;
        }
        shares.push((index, machine));
    }
}

fn compare(a: &Ticket, b: &Ticket) -> Ordering {
    let depth = |ticket: &Ticket| ticket.depth.unwrap_or(0);
    let seconds = |ticket: &Ticket| ticket.expected_seconds.unwrap_or(f64::INFINITY);
    depth(b)
        .cmp(&depth(a))
        .then(seconds(b).total_cmp(&seconds(a)))
        .then(a.since_ms.cmp(&b.since_ms))
        .then(a.name.cmp(&b.name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::slots::reservations::Reserved;
    use hookrun_config::Resources;

    fn ticket(name: &str, command: u32, machines: &[&str]) -> Ticket {
        Ticket {
            name: name.into(),
            command: Command { pid: command, started: 0 },
            wanted: machines
                .iter()
                .map(|machine| WantedMachine { machine: (*machine).into(), slots: 9 })
                .collect(),
            depth: None,
            expected_seconds: None,
            since_ms: 0,
            takes: Amounts::default(),
        }
    }

    fn free(slots: &[(&str, u32)]) -> BTreeMap<String, u32> {
        slots.iter().map(|(machine, slots)| ((*machine).into(), *slots)).collect()
    }

    /// Formats each assignment as `name machine`.
    fn shares(tickets: &[Ticket], slots: &[(&str, u32)]) -> Vec<String> {
        let none = Resources::default();
        let shares = assign(tickets, free(slots), Account::of(&none, []), BTreeMap::new(), 0);
        shares
            .iter()
            .map(|(index, machine)| format!("{} {machine}", tickets[*index].name.display()))
            .collect()
    }

    #[test]
    fn builds_are_sorted_by_dependents_then_duration_then_age() {
        let tickets = [
            Ticket { since_ms: 5, ..ticket("old", 1, &["m"]) },
            Ticket { since_ms: 6, expected_seconds: Some(9.0), ..ticket("long", 1, &["m"]) },
            Ticket {
                since_ms: 7,
                expected_seconds: Some(1.0),
                depth: Some(4),
                ..ticket("deep", 1, &["m"])
            },
            Ticket { since_ms: 8, expected_seconds: Some(1.0), ..ticket("short", 1, &["m"]) },
            Ticket { since_ms: 9, expected_seconds: Some(5.0), ..ticket("middling", 1, &["m"]) },
        ];
        assert_eq!(
            shares(&tickets, &[("m", 9)]),
            ["deep m", "old m", "long m", "middling m", "short m"]
        );
    }

    #[test]
    fn the_first_machine_with_a_free_slot_is_used() {
        let tickets =
            [ticket("a", 1, &["full", "m"]), ticket("b", 1, &["m", "n"]), ticket("c", 1, &["m"])];
        assert_eq!(shares(&tickets, &[("full", 0), ("m", 1), ("n", 1)]), ["a m", "b n"]);
    }

    #[test]
    fn commands_share_fairly() {
        let mut tickets: Vec<Ticket> = (0..4)
            .map(|number| Ticket { since_ms: number, ..ticket(&format!("big{number}"), 1, &["m"]) })
            .collect();
        tickets.push(Ticket { since_ms: 50, ..ticket("small", 2, &["m"]) });
        assert_eq!(shares(&tickets, &[("m", 3)]), ["big0 m", "small m", "big1 m"]);
        let running = BTreeMap::from([(Command { pid: 2, started: 0 }, 2)]);
        let none = Resources::default();
        let first = assign(&tickets, free(&[("m", 1)]), Account::of(&none, []), running, 0);
        assert_eq!(first, [(0, "m".into())]);
    }

    #[test]
    fn a_large_build_is_not_overtaken_for_ever() {
        let amounts = |gpus: u64| Amounts::from_iter([("gpu".to_owned(), gpus)]);
        let limits = Resources {
            machines: BTreeMap::from([("m".to_owned(), amounts(4))]),
            features: BTreeMap::from([("cuda".to_owned(), amounts(1))]),
            shared: Amounts::default(),
        };
        let running =
            || Account::of(&limits, [Reserved { machine: "m".to_owned(), takes: amounts(2) }]);
        let large = Ticket { takes: amounts(3), ..ticket("large", 1, &["m"]) };
        let small =
            Ticket { takes: amounts(1), since_ms: 1, depth: Some(9), ..ticket("small", 1, &["m"]) };
        let plain = Ticket { since_ms: 1, ..ticket("plain", 1, &["m"]) };
        let tickets = [large, small, plain];
        let at = |now_ms| assign(&tickets, free(&[("m", 9)]), running(), BTreeMap::new(), now_ms);
        let names = |shares: Vec<(usize, String)>| -> Vec<String> {
            shares.iter().map(|(index, _)| tickets[*index].name.display().to_string()).collect()
        };
        assert_eq!(names(at(1000)), ["small", "plain"]);
        assert_eq!(
            names(at(KEPT_FREE_AFTER_MS)),
            ["plain"],
            "builds that need none of it continue"
        );
        let idle = assign(
            &tickets,
            free(&[("m", 9)]),
            Account::of(&limits, []),
            BTreeMap::new(),
            KEPT_FREE_AFTER_MS,
        );
        assert_eq!(names(idle), ["small", "large", "plain"]);
    }

    proptest! {
        #[test]
        fn each_slot_is_assigned_once_and_none_is_left(
            tickets in prop::collection::vec(
                (0u32..4, prop::collection::vec(0usize..4, 0..4), prop::option::of(0u32..5), prop::option::of(0.0f64..9.0), 0u64..3),
                0..12,
            ),
            slots in prop::collection::vec(0u32..4, 4),
            gpus in prop::collection::vec(0u64..4, 4),
        ) {
            const MACHINES: [&str; 4] = ["a", "b", "c", "d"];
            let tickets: Vec<Ticket> = tickets
                .into_iter()
                .enumerate()
                .map(|(index, (command, machines, depth, expected_seconds, takes))| {
                    let machines: Vec<&str> = machines.into_iter().map(|machine| MACHINES[machine]).collect();
                    let takes = [("gpu".to_owned(), takes)].into_iter().filter(|(_, amount)| *amount > 0).collect();
                    Ticket { depth, expected_seconds, takes, ..ticket(&index.to_string(), command, &machines) }
                })
                .collect();
            let gpus: BTreeMap<&str, u64> = MACHINES.into_iter().zip(gpus).collect();
            let of_machine = |(machine, gpus): (&&str, &u64)| ((*machine).to_owned(), Amounts::from_iter([("gpu".to_owned(), *gpus)]));
            let limits = Resources {
                machines: gpus.iter().map(of_machine).collect(),
                features: BTreeMap::from([("cuda".to_owned(), Amounts::default())]),
                shared: Amounts::default(),
            };
            let all: BTreeMap<String, u32> = MACHINES.iter().map(|m| String::from(*m)).zip(slots).collect();
            let mut left = all.clone();
            let mut resources_left = gpus.clone();
            let shares = assign(&tickets, all, Account::of(&limits, []), BTreeMap::new(), 0);
            let mut given = std::collections::BTreeSet::new();
            for (index, machine) in shares {
                prop_assert!(given.insert(index), "twice");
                prop_assert!(tickets[index].wanted.iter().any(|wanted| wanted.machine == machine));
                let slots = left.get_mut(&machine).unwrap();
                prop_assert!(*slots > 0, "over-committed");
                *slots -= 1;
                let takes = tickets[index].takes.get("gpu").unwrap_or(0);
                let gpus = resources_left.get_mut(machine.as_str()).unwrap();
                prop_assert!(*gpus >= takes, "over-committed");
                *gpus -= takes;
            }
            for (index, ticket) in tickets.iter().enumerate() {
                let takes = ticket.takes.get("gpu").unwrap_or(0);
                let no_room = |wanted: &WantedMachine| left[&wanted.machine] == 0 || resources_left[wanted.machine.as_str()] < takes;
                prop_assert!(given.contains(&index) || ticket.wanted.iter().all(no_room), "left over");
            }
        }
    }
}
