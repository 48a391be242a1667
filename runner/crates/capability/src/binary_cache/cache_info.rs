//! The file `nix-cache-info`, which contains the store directory of a cache and hints for its use.

use std::fmt::Write as _;

/// The key of the object.
pub const KEY: &str = "nix-cache-info";
/// The content type that Nix uses.
pub const CONTENT_TYPE: &str = "text/x-nix-cache-info";
/// A limit for the file, which has three short lines.
pub const MAX_LENGTH: u64 = 64 << 10;

/// Returns the text for a new cache.
pub fn new(store_dir: &str, priority: Option<u32>, want_mass_query: bool) -> String {
    let mut text = format!("StoreDir: {store_dir}\n");
    if want_mass_query {
        text.push_str("WantMassQuery: 1\n");
    }
    if let Some(priority) = priority {
        let _ = writeln!(text, "Priority: {priority}");
    }
    text
}

/// Checks that the cache with this text is for `store_dir`. A cache without `StoreDir` is accepted
/// (Nix `BinaryCacheStore::init`).
///
/// # Errors
/// Returns a part of a message that names both directories.
pub fn check(text: &str, store_dir: &str) -> Result<(), String> {
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
    fn a_new_cache_info_is_accepted() {
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
