//! Files of the spool, which any user may write.

use std::sync::LazyLock;

use hookrun_queue::envelope;
use hookrun_queue::trust::{Owner, Trust};
use sha2::{Digest as _, Sha256};

pub(crate) fn run(data: &[u8]) {
    open(data);
    // With a correct checksum, as a malicious build user would write it.
    let digest =
        Sha256::digest(data).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    let sealed = [format!("hookrun-event 1 sha256:{digest}\n").as_bytes(), data].concat();
    open(&sealed);
}

fn open(bytes: &[u8]) {
    static TRUST: LazyLock<Trust> = LazyLock::new(Trust::from_env);
    let event = match envelope::open(bytes) {
        Ok(event) => event,
        Err(error) => return drop(error.to_string()),
    };
    // What was read is written and read again as the same.
    let again = envelope::seal(&event).expect("what came from JSON goes into JSON");
    assert_eq!(envelope::open(&again).as_ref(), Ok(&event));
    let _ = (event.name().len(), event.drv_path().len(), event.kind());
    for owner in [Owner::Trusted, Owner::BuildUser] {
        match TRUST.admit(owner, &event) {
            // Files are named after the id, and the store's paths go to plugins.
            Ok(()) => assert!(
                event.id.len() == 36
                    && !event.id.contains('/')
                    && event.drv_path().starts_with('/')
            ),
            Err(reason) => assert!(!reason.is_empty()),
        }
    }
}
