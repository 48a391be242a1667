//! The metadata section of a plugin, its configuration schema, and the component around it: a
//! stranger's.

use hookrun_capability::grants::Effective;
use hookrun_host::config_schema;
use hookrun_host::metadata::{self, Metadata};

/// The header of a component, and a custom section of the metadata's name up to its content.
const HEADER: &[u8] = b"\0asm\x0d\0\x01\0";
const NAME: &[u8] = b"\x10hookrun:metadata";

pub(crate) fn run(data: &[u8]) {
    describe(data);
    let length = NAME.len() + data.len();
    // LEB128 of 5 bytes, so that any length has the same form.
    let leb: Vec<u8> = (0..5_usize)
        .map(|part| {
            u8::try_from((length >> (7 * part)) & 0x7f).unwrap_or_default()
                | if part < 4 { 0x80 } else { 0 }
        })
        .collect();
    describe(&[HEADER, b"\0", &leb, NAME, data].concat());
    let Ok(metadata) = serde_json::from_slice::<Metadata>(data) else { return };
    let effective = Effective::decide(
        &metadata.wants,
        &hookrun_config::Grant::default(),
        &hookrun_config::Config::default(),
    );
    if let Ok(effective) = effective {
        assert!(effective == Effective::default(), "an empty grant");
    }
    let Some(schema) = &metadata.config_schema else { return };
    for table in [
        serde_json::json!({}),
        serde_json::json!({ "word": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!", "list": [1, {}] }),
    ] {
        match config_schema::violation(schema, &table) {
            Ok(Some((_, message))) => assert!(!message.contains('\n'), "{message:?}"),
            Ok(None) => {}
            Err(reason) => assert!(!reason.is_empty()),
        }
    }
}

fn describe(component: &[u8]) {
    match metadata::describe(component) {
        Ok(description) => {
            assert!(
                description.metadata.hooks.iter().all(|hook| description.exports.contains(hook)),
                "hooks are exported"
            );
        }
        Err(reason) => assert!(!reason.is_empty()),
    }
}
