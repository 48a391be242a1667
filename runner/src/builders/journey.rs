//! Where an accepted build may still go. Pure.
//!
//! A machine that refuses is not asked again. One that was lost after it had begun may be asked
//! again when no other is left, since it may have been restarted; but a build that has lost
//! [`MOST_LOST`] machines is taken for the reason itself (it may well exhaust their memory), and is
//! not let loose on a further one.

use crate::shared::Text;

/// Machines that one build may lose.
pub const MOST_LOST: usize = 3;

/// The machines of one build, by URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journey {
    /// Not tried yet, the best first.
    left: Vec<Text>,
    /// Lost once.
    again: Vec<Text>,
    lost: usize,
}

impl Journey {
    /// It may go to these, the best first.
    pub const fn to(machines: Vec<Text>) -> Self {
        Self { left: machines, again: Vec::new(), lost: 0 }
    }

    /// Where it may go now; empty: nowhere any more.
    pub fn open(&self) -> &[Text] {
        match (self.lost >= MOST_LOST, self.left.is_empty()) {
            (true, _) => &[],
            (false, true) => &self.again,
            (false, false) => &self.left,
        }
    }

    /// Other machines take the place of those that were not tried yet.
    pub fn instead(&mut self, machines: Vec<Text>) {
        self.left = machines;
    }

    /// The machine did not take it.
    pub fn refused(&mut self, machine: &str) {
        self.left.retain(|known| **known != *machine);
        self.again.retain(|known| **known != *machine);
    }

    /// The machine was lost while it had it.
    pub fn lost(&mut self, machine: &str) {
        let first_time = !self.again.iter().any(|known| **known == *machine);
        self.refused(machine);
        if first_time {
            self.again.push(machine.into());
        }
        self.lost += 1;
    }

    /// Is it the build that loses its machines?
    pub const fn is_the_build(&self) -> bool {
        self.lost >= MOST_LOST
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn journey(machines: &[&str]) -> Journey {
        Journey::to(machines.iter().map(|machine| Text::from(*machine)).collect())
    }

    #[test]
    fn others_first_then_once_again() {
        let mut journey = journey(&["a", "b"]);
        journey.lost("a");
        assert_eq!(journey.open(), ["b"]);
        journey.refused("b");
        assert_eq!(journey.open(), ["a"]);
        journey.lost("a");
        assert_eq!(journey.open(), [""; 0], "not a third time");
        assert!(!journey.is_the_build());
    }

    #[test]
    fn a_build_that_kills_machines_is_stopped() {
        let mut journey = journey(&["a", "b", "c", "d"]);
        for machine in ["a", "b", "c"] {
            assert!(!journey.is_the_build());
            journey.lost(machine);
        }
        assert!(journey.is_the_build() && journey.open().is_empty());
    }

    proptest! {
        #[test]
        fn every_journey_ends(machines in 0usize..6, refusals in prop::collection::vec(any::<bool>(), 64)) {
            let names: Vec<Text> = (0..machines).map(|number| number.to_string().into()).collect();
            let mut journey = Journey::to(names);
            let mut steps = 0;
            for refused in refusals {
                let Some(machine) = journey.open().first().cloned() else { break };
                if refused { journey.refused(&machine) } else { journey.lost(&machine) }
                steps += 1;
            }
            prop_assert!(journey.open().is_empty());
            prop_assert!(steps <= machines + MOST_LOST);
        }
    }
}
