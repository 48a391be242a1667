//! Decides which files are read next.
//!
//! Every user may add files to the spool of a system installation. So files of root and of the
//! worker's own user come first, and build users share the rest of the time, one file of each in
//! turn: a user who adds ten thousand files delays only their own. All files that cannot be events
//! share one turn as well. For each user the oldest files come first, because ids sort by time.
//!
//! Only a limited number of names is kept for each user; the next listing finds the others. Pure:
//! it reads no directory.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// The number of names kept of trusted users. Names have at most 255 bytes (`NAME_MAX`), and those
/// of events 36, so this is 8 MiB for events and 20 MiB at most.
pub(super) const MOST: usize = 65_536;
/// The number of names kept of each other user, which is more than are read between two listings.
pub(super) const MOST_EACH: usize = 2048;
/// The number of users whose names are kept.
const MOST_USERS: usize = 256;
/// One in this many files belongs to another user, if both trusted and other users have files.
const TURNS: u32 = 4;

/// A name found in a directory. Ids come first and sort by time, so the oldest is the smallest,
/// whatever its directory is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listed {
    /// The file's name.
    pub(super) name: Vec<u8>,
    /// The index of the directory in the reader.
    pub(super) directory: usize,
}

/// The names to read.
#[derive(Debug)]
pub(super) struct Queue {
    most: usize,
    most_each: usize,
    trusted: BTreeSet<Listed>,
    others: BTreeMap<u32, BTreeSet<Listed>>,
    /// The user who had the last turn.
    last: u32,
    turn: u32,
    /// Whether there were more names than are kept.
    more: bool,
}

impl Queue {
    /// Returns a queue that keeps `most` names of trusted users, and `most_each` of each other
    /// user.
    pub(super) fn new(most: usize, most_each: usize) -> Self {
        let (trusted, others) = (BTreeSet::new(), BTreeMap::new());
        Self { most, most_each, trusted, others, last: 0, turn: 0, more: false }
    }

    /// Adds a name; `user` is none for trusted users.
    pub(super) fn add(&mut self, listed: Listed, user: Option<u32>) {
        let (names, most) = match user {
            None => (&mut self.trusted, self.most),
            Some(user) => {
                if self.others.len() >= MOST_USERS && !self.others.contains_key(&user) {
                    self.more = true;
                    return;
                }
                (self.others.entry(user).or_default(), self.most_each)
            }
        };
        names.insert(listed);
        if names.len() > most {
            names.pop_last();
            self.more = true;
        }
    }

    /// Removes and returns the next name.
    pub(super) fn pop(&mut self) -> Option<Listed> {
        self.turn = (self.turn + 1) % TURNS;
        let trusted_first = self.turn != 0 || self.others.is_empty();
        if trusted_first && let Some(listed) = self.trusted.pop_first() {
            return Some(listed);
        }
        self.pop_other().or_else(|| self.trusted.pop_first())
    }

    /// Removes and returns the next name of a trusted user.
    pub(super) fn pop_trusted(&mut self) -> Option<Listed> {
        self.trusted.pop_first()
    }

    fn pop_other(&mut self) -> Option<Listed> {
        let after = (Bound::Excluded(self.last), Bound::Unbounded);
        let next = self.others.range(after).next().or_else(|| self.others.iter().next());
        let user = *next?.0;
        self.last = user;
        let names = self.others.get_mut(&user)?;
        let listed = names.pop_first();
        if names.is_empty() {
            self.others.remove(&user);
        }
        listed
    }

    /// Removes the names of a user.
    pub(super) fn forget(&mut self, user: u32) {
        self.others.remove(&user);
    }

    /// Returns whether it is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.trusted.is_empty() && self.others.is_empty()
    }

    /// Returns whether there were more names than are kept since the last call.
    pub(super) fn take_more(&mut self) -> bool {
        std::mem::take(&mut self.more)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn listed(name: &str) -> Listed {
        Listed { name: name.into(), directory: 0 }
    }

    fn drain(queue: &mut Queue) -> Vec<String> {
        std::iter::from_fn(|| queue.pop())
            .map(|listed| String::from_utf8(listed.name).unwrap())
            .collect()
    }

    #[test]
    fn trusted_files_come_first_and_other_users_take_turns() {
        let mut queue = Queue::new(100, 100);
        for name in ["1", "2", "3", "4", "5", "6"] {
            queue.add(listed(name), None);
        }
        for name in ["!a", "!b", "!c"] {
            queue.add(listed(name), Some(4242));
        }
        queue.add(listed("7"), Some(30001));
        assert_eq!(drain(&mut queue), ["1", "2", "3", "!a", "4", "5", "6", "7", "!b", "!c"]);
    }

    #[test]
    fn a_user_with_many_names_does_not_displace_others() {
        let mut queue = Queue::new(100, 2);
        for number in 0..50 {
            queue.add(listed(&format!("!{number:02}")), Some(4242));
        }
        queue.add(listed("7"), Some(30001));
        assert!(queue.take_more() && !queue.take_more());
        assert_eq!(drain(&mut queue), ["!00", "7", "!01"]);
    }

    proptest! {
        #[test]
        fn the_oldest_names_of_a_user_are_kept_and_come_first(
            names in proptest::collection::btree_set("[a-z]{1,3}", 0..40),
            most in 1..30_usize,
        ) {
            let mut queue = Queue::new(most, 1);
            names.iter().rev().for_each(|name| queue.add(listed(name), None));
            let expected: Vec<String> = names.iter().take(most).cloned().collect();
            prop_assert_eq!(queue.take_more(), names.len() > most);
            prop_assert_eq!(drain(&mut queue), expected);
        }
    }
}
