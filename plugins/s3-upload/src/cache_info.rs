//! `nix-cache-info`: for which store directory a cache is, and how it wants to be used.

use std::fmt::Write as _;

/// Its name.
pub(crate) const KEY: &str = "nix-cache-info";
/// As Nix writes it.
pub(crate) const CONTENT_TYPE: &str = "text/x-nix-cache-info";
/// It has three short lines.
pub(crate) const MAX_LENGTH: u64 = 64 << 10;

/// The text for a new cache.
pub(crate) fn new(store_dir: &str, priority: Option<u32>, want_mass_query: bool) -> String {
    let mut text = format!("StoreDir: {store_dir}\n");
    if want_mass_query {
        text.push_str("WantMassQuery: 1\n");
    }
    if let Some(priority) = priority {
        let _ = writeln!(text, "Priority: {priority}");
    }
    text
}

/// Is the cache with this text for `store_dir`? A cache that does not say is (Nix
/// `BinaryCacheStore::init`).
///
/// # Errors
/// A fragment that says what it is for.
pub(crate) fn check(text: &str, store_dir: &str) -> Result<(), String> {
    let said = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == "StoreDir");
    match said.map(|(_, value)| value.trim()) {
        Some(other) if other != store_dir => {
            Err(format!("its {KEY} says StoreDir `{other}`, and this Nix has `{store_dir}`"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_accepted() {
        let text = new("/nix/store", Some(30), true);
        assert_eq!(text, "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n");
        assert_eq!(check(&text, "/nix/store"), Ok(()));
        assert_eq!(new("/s", None, false), "StoreDir: /s\n");
    }

    #[test]
    fn another_store_directory_is_refused() {
        let error = check("WantMassQuery: 1\nStoreDir:/gnu/store\n", "/nix/store").unwrap_err();
        assert_eq!(
            error,
            "its nix-cache-info says StoreDir `/gnu/store`, and this Nix has `/nix/store`"
        );
        assert_eq!(check("", "/nix/store"), Ok(()));
        assert_eq!(check("\0:::\n:", "/nix/store"), Ok(()));
    }
}
