//! Narinfos and lists of condemned objects: read from a bucket that others may write.

use hookrun_capability::binary_cache::condemned::Condemned;
use hookrun_nix::narinfo::Narinfo;

pub(crate) fn run(data: &[u8]) {
    match Narinfo::parse("/nix/store", data) {
        Ok(narinfo) => {
            let printed = narinfo.to_string();
            let again = Narinfo::parse("/nix/store", printed.as_bytes());
            assert_eq!(again.as_ref(), Ok(&narinfo), "{printed}");
            assert_eq!(narinfo.merge(&narinfo).as_ref(), Ok(&narinfo));
            if let Ok(key) = narinfo.nar_key() {
                assert!(!key.starts_with('/') && key.split('/').all(|part| part != ".."));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(condemned) = Condemned::parse(data) {
        let printed = condemned.to_string();
        assert_eq!(Condemned::parse(printed.as_bytes()).as_ref(), Ok(&condemned), "{printed}");
    }
}
