//! Guests that call the host too often, and with arguments of any size.

use toml::toml;

use super::{Row, act};

/// Every host function that takes a list or a string.
const GIANTS: [&str; 26] = [
    "log.write",
    "log.write-fields",
    "state.get",
    "state.set",
    "state.delete",
    "state.keys",
    "nix-store.path-infos",
    "nix-store.closure",
    "nix-store.read-derivation",
    "nix-store.list-directory",
    "nix-store.read-file",
    "nix-store.open-nar",
    "object-store.exists",
    "object-store.get",
    "object-store.put",
    "object-store.put-all-objects",
    "object-store.put-all-body",
    "object-store.put-nar",
    "binary-cache.push-paths",
    "binary-cache.push-key",
    "object-store.list",
    "signing.sign-path",
    "signing.sign-paths",
    "signing.public-key",
    "mail.send-recipients",
    "mail.send-text",
];

pub(super) fn rows() -> Vec<Row> {
    let giants = GIANTS.iter().map(|call| {
        let name = format!("giant-{}", call.replace('.', "-"));
        act(&name, toml! { act = "giant" call = (*call) })
            .limit("memory", "512MiB")
            .ends("limit", "`call-bytes`")
    });
    let floods = [
        act("host-calls", toml! { act = "host-calls" }).ends("limit", "`host-calls`"),
        act("mail-flood", toml! { act = "mail-flood" recipient = "ann@example.org" })
            .limit("host-calls", 20)
            .ends("limit", "`host-calls`"),
    ];
    giants.chain(floods).collect()
}
