//! Whose files are looked at next.
//!
//! Anybody may add to the spool of a system installation. So files of root and of the worker's own
//! user come first, and the rest of the time is shared by the build users, one file of each in
//! turn: whoever adds ten thousand waits for ten thousand, and others do not. Everything that
//! cannot be an event has one turn as well. Of one user's files the oldest come first, since ids
//! sort by time.
//!
//! Only so many names are kept of each user; the others are found by the next listing. Pure: it
//! reads no directory.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Names kept of those that are trusted. Names are at most 255 bytes (`NAME_MAX`), an event's 36:
/// this is 8 MiB for events and 20 MiB at worst.
pub(super) const MOST: usize = 65_536;
/// Names kept of each other user: more than are looked at between two listings.
pub(super) const MOST_EACH: usize = 2048;
/// Users whose names are kept.
const MOST_USERS: usize = 256;
/// Of so many files one is another user's, if both have some.
const TURNS: u32 = 4;

/// A name found in a directory. Ids sort by time and come first: the oldest is the least, in
/// whichever directory it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listed {
    /// The file's name.
    pub(super) name: Vec<u8>,
    /// The directory's place among the reader's.
    pub(super) directory: usize,
}

/// The names to look at.
#[derive(Debug)]
pub(super) struct Queue {
    most: usize,
    most_each: usize,
    trusted: BTreeSet<Listed>,
    others: BTreeMap<u32, BTreeSet<Listed>>,
    /// The user whose turn was last.
    last: u32,
    turn: u32,
    /// Whether there were more than are kept.
    more: bool,
}

impl Queue {
    /// Keeps `most` names of those that are trusted, and `most_each` of each other user.
    pub(super) fn new(most: usize, most_each: usize) -> Self {
        let (trusted, others) = (BTreeSet::new(), BTreeMap::new());
        Self { most, most_each, trusted, others, last: 0, turn: 0, more: false }
    }

    /// Adds a name; `user` is none for those that are trusted.
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

    /// The next name.
    pub(super) fn pop(&mut self) -> Option<Listed> {
        self.turn = (self.turn + 1) % TURNS;
        let trusted_first = self.turn != 0 || self.others.is_empty();
        if trusted_first && let Some(listed) = self.trusted.pop_first() {
            return Some(listed);
        }
        self.pop_other().or_else(|| self.trusted.pop_first())
    }

    /// The next name of those that are trusted.
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

    /// Forgets the names of a user.
    pub(super) fn forget(&mut self, user: u32) {
        self.others.remove(&user);
    }

    /// Returns whether it is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.trusted.is_empty() && self.others.is_empty()
    }

    /// Returns whether there were more than are kept since the last call.
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
    fn trusted_files_come_first_and_others_in_turn() {
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
    fn a_user_with_many_names_takes_no_others_place() {
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
        fn of_one_user_the_oldest_are_kept_and_come_first(
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
