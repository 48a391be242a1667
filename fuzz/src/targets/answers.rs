//! What an object store answers when it refuses.

use hookrun_capability::object_store;

pub(crate) fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let error = object_store::explain_text(&text);
    assert!(error.message.starts_with("object store `cache`"), "{error:?}");
    assert!(error.message.len() <= text.len() + 1000, "{} bytes", error.message.len());
}
