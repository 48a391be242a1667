//! The host functions of `log`.

use wasmtime::Result;

use super::wire_size::wave_record;
use super::{HostCall, RunState, WireSize};
use crate::bindings::hookrun::host::log::{Field, Host, Level};
use hookrun_capability::grants::Need;
use hookrun_nix::outcome::LogLine;

impl WireSize for Field {
    fn wire_size(&self) -> u64 {
        self.key.wire_size() + self.value.wire_size()
    }

    fn wave(&self, text: &mut String) {
        wave_record(text, &[("key", &self.key), ("value", &self.value)]);
    }
}

impl Host for RunState {
    async fn write(&mut self, level: Level, message: String, fields: Vec<Field>) -> Result<()> {
        self.trace(&[&message, &fields]);
        let sent = message.wire_size() + fields.wire_size();
        let call = HostCall::new(Need::Nothing("log"), "write", sent).items(fields.len());
        let level = match level {
            Level::Trace => "trace",
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        };
        let fields = fields.into_iter().map(|Field { key, value }| (key, value)).collect();
        let line = LogLine { level: level.to_owned(), message, fields };
        self.call_without_error(call, |context| {
            Box::pin(async move {
                context.log().push(line);
                Ok(())
            })
        })
        .await
    }
}
