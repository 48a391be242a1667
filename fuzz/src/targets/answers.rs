//! What an object store answers when it refuses.

use hookrun_capability::object_store;

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "answers",
    about: "refusals of object stores",
    dictionary: &[
        "status code: 403 ",
        "status code: 999",
        "<Error><Code>",
        "</Code><Message>",
        "</Message></Error>",
        "NoSuchBucket",
        "ExpiredToken",
        "\u{1b}[2J",
        "\u{202e}",
    ],
    run,
};

fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let error = object_store::explain_text(&text);
    assert!(error.message.starts_with("object store `cache`"), "{error:?}");
    assert!(error.message.len() <= text.len() + 1000, "{} bytes", error.message.len());
}
