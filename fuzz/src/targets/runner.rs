//! What a runner says to its supervisor: frames of JSON from a process that runs strangers' code.

use hookrun::supervise;

pub(crate) fn run(data: &[u8]) {
    let mut from = data;
    let messages = supervise::read_messages(&mut from);
    // Each message has a length of four bytes, so many messages need many bytes.
    let read = messages.unwrap_or_else(|error| {
        assert!(!error.to_string().is_empty());
        0
    });
    assert!(read <= data.len() / 4, "{read} messages of {} bytes", data.len());
}
