//! Which waiting build gets which free slot. Pure: every session computes the same from the same files, and takes what is its own.
//!
//! The command with the fewest builds running comes first; within a command the build with the most behind it, then the one that is
//! expected to take longest (one that is not known may be the longest), then the oldest. [`crate::builders::simulate`] plays the same order.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::builders::lease::{Command, Wanted};

/// A build that waits.
#[derive(Debug, Clone, PartialEq)]
pub struct Ticket {
    /// No other ticket has it.
    pub name: std::ffi::OsString,
    /// Which Nix process asked.
    pub command: Command,
    /// Where it may go, the best first.
    pub wanted: Vec<Wanted>,
    /// How many derivations stand one after another behind it.
    pub depth: Option<u32>,
    /// How long it should take at speed factor 1.
    pub expected_seconds: Option<f64>,
    /// Since when it waits, in milliseconds since 1970.
    pub since_ms: u64,
}

/// Shares out `free` slots (by machine) between `tickets`; `running` builds (by command) count for fairness. Pairs of ticket and
/// machine, in the order of the sharing.
pub fn shared_out(
    tickets: &[Ticket],
    mut free: BTreeMap<String, u32>,
    mut running: BTreeMap<Command, u32>,
) -> Vec<(usize, String)> {
    let mut order: Vec<(usize, &Ticket)> = tickets.iter().enumerate().collect();
    order.sort_by(|(_, a), (_, b)| compare(a, b));
    let mut shares = Vec::new();
    loop {
        let has_slot = |wanted: &&Wanted| free.get(&wanted.machine).is_some_and(|slots| *slots > 0);
        let placeable = order.iter().enumerate().filter_map(|(place, (index, ticket))| {
            let machine = ticket.wanted.iter().find(has_slot)?.machine.clone();
            Some((running.get(&ticket.command).copied().unwrap_or(0), place, *index, machine))
        });
        // The first by order among the commands with the fewest.
        let Some((_, place, index, machine)) = placeable.min_by_key(|(count, place, ..)| (*count, *place)) else {
            return shares;
        };
        let (_, ticket) = order.remove(place);
        *running.entry(ticket.command).or_default() += 1;
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

    fn ticket(name: &str, command: u32, machines: &[&str]) -> Ticket {
        Ticket {
            name: name.into(),
            command: Command { pid: command, started: 0 },
            wanted: machines.iter().map(|machine| Wanted { machine: (*machine).to_owned(), slots: 9 }).collect(),
            depth: None,
            expected_seconds: None,
            since_ms: 0,
        }
    }

    fn free(slots: &[(&str, u32)]) -> BTreeMap<String, u32> {
        slots.iter().map(|(machine, slots)| ((*machine).to_owned(), *slots)).collect()
    }

    /// `name machine` of each share.
    fn shares(tickets: &[Ticket], slots: &[(&str, u32)]) -> Vec<String> {
        let shares = shared_out(tickets, free(slots), BTreeMap::new());
        shares.iter().map(|(index, machine)| format!("{} {machine}", tickets[*index].name.display())).collect()
    }

    #[test]
    fn what_waits_behind_it_then_the_longest_then_the_oldest() {
        let tickets = [
            Ticket { since_ms: 5, ..ticket("old", 1, &["m"]) },
            Ticket { since_ms: 6, expected_seconds: Some(9.0), ..ticket("long", 1, &["m"]) },
            Ticket { since_ms: 7, expected_seconds: Some(1.0), depth: Some(4), ..ticket("deep", 1, &["m"]) },
            Ticket { since_ms: 8, expected_seconds: Some(1.0), ..ticket("short", 1, &["m"]) },
            Ticket { since_ms: 9, expected_seconds: Some(5.0), ..ticket("middling", 1, &["m"]) },
        ];
        assert_eq!(shares(&tickets, &[("m", 9)]), ["deep m", "old m", "long m", "middling m", "short m"]);
    }

    #[test]
    fn the_first_machine_with_a_slot() {
        let tickets = [ticket("a", 1, &["full", "m"]), ticket("b", 1, &["m", "n"]), ticket("c", 1, &["m"])];
        assert_eq!(shares(&tickets, &[("full", 0), ("m", 1), ("n", 1)]), ["a m", "b n"]);
    }

    #[test]
    fn commands_share_fairly() {
        let mut tickets: Vec<Ticket> =
            (0..4).map(|number| Ticket { since_ms: number, ..ticket(&format!("big{number}"), 1, &["m"]) }).collect();
        tickets.push(Ticket { since_ms: 50, ..ticket("small", 2, &["m"]) });
        assert_eq!(shares(&tickets, &[("m", 3)]), ["big0 m", "small m", "big1 m"]);
        let running = BTreeMap::from([(Command { pid: 2, started: 0 }, 2)]);
        let first = shared_out(&tickets, free(&[("m", 1)]), running);
        assert_eq!(first, [(0, "m".to_owned())]);
    }

    proptest! {
        #[test]
        fn no_slot_twice_and_none_left_over(
            tickets in prop::collection::vec(
                (0u32..4, prop::collection::vec(0usize..4, 0..4), prop::option::of(0u32..5), prop::option::of(0.0f64..9.0), 0u64..9),
                0..12,
            ),
            slots in prop::collection::vec(0u32..4, 4),
        ) {
            const MACHINES: [&str; 4] = ["a", "b", "c", "d"];
            let tickets: Vec<Ticket> = tickets
                .into_iter()
                .enumerate()
                .map(|(index, (command, machines, depth, expected_seconds, since_ms))| {
                    let machines: Vec<&str> = machines.into_iter().map(|machine| MACHINES[machine]).collect();
                    Ticket { depth, expected_seconds, since_ms, ..ticket(&index.to_string(), command, &machines) }
                })
                .collect();
            let all: BTreeMap<String, u32> = MACHINES.iter().map(|m| (*m).to_owned()).zip(slots).collect();
            let mut left = all.clone();
            let shares = shared_out(&tickets, all, BTreeMap::new());
            let mut given = std::collections::BTreeSet::new();
            for (index, machine) in shares {
                prop_assert!(given.insert(index), "twice");
                prop_assert!(tickets[index].wanted.iter().any(|wanted| wanted.machine == machine));
                let slots = left.get_mut(&machine).unwrap();
                prop_assert!(*slots > 0, "over-committed");
                *slots -= 1;
            }
            for (index, ticket) in tickets.iter().enumerate() {
                prop_assert!(given.contains(&index) || ticket.wanted.iter().all(|wanted| left[&wanted.machine] == 0), "left over");
            }
        }
    }
}
