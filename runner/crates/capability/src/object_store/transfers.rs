//! The uploads under way, with path and progress, for commands that show them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hookrun_nix::event::now_ms;
use hookrun_nix::outcome::Transfer;

/// All of one process.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    under_way: Mutex<BTreeMap<u64, Transfer>>,
}

impl Transfers {
    /// Those that are under way now, oldest first.
    pub(super) fn list(&self) -> Vec<Transfer> {
        self.lock().values().cloned().collect()
    }

    /// One begins. It ends when the value is dropped.
    pub(super) fn begin(self: &Arc<Self>, store: &str, path: &str, nar_size: u64) -> UnderWay {
        let mut under_way = self.lock();
        let id = under_way.last_key_value().map_or(0, |(last, _)| last + 1);
        let (path, store) = (path.to_owned(), store.to_owned());
        let transfer = Transfer { path, store, bytes: 0, nar_size, since_ms: now_ms() };
        under_way.insert(id, transfer);
        UnderWay { transfers: Arc::clone(self), id }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Transfer>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A transfer, from its begin to its end.
#[derive(Debug)]
pub(super) struct UnderWay {
    transfers: Arc<Transfers>,
    id: u64,
}

impl UnderWay {
    /// The service has taken so many bytes more.
    pub(super) fn sent(&self, bytes: usize) {
        if let Some(transfer) = self.transfers.lock().get_mut(&self.id) {
            transfer.bytes = transfer.bytes.saturating_add(bytes as u64);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.transfers.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_are_listed_while_they_last() {
        let transfers = Arc::new(Transfers::default());
        let first = transfers.begin("cache", "/nix/store/a", 100);
        let second = transfers.begin("cache", "/nix/store/b", 200);
        second.sent(5);
        second.sent(7);
        drop(first);
        let listed = transfers.list();
        let [Transfer { path, bytes: 12, nar_size: 200, .. }] = listed.as_slice() else {
            unreachable!("{listed:?}")
        };
        assert_eq!(path, "/nix/store/b");
        let third = transfers.begin("cache", "/nix/store/c", 1);
        drop(second);
        assert_eq!(transfers.list().len(), 1);
        drop(third);
        assert!(transfers.list().is_empty());
    }
}
