//! The host functions of `log`.

use wasmtime::Result;

use super::{Crossing, HostCall, RunState};
use crate::bindings::hookrun::host::log::{Field, Host, Level};
use hookrun_capability::grants::Need;
use hookrun_nix::outcome::LogLine;

impl Crossing for Field {
    fn crossing(&self) -> u64 {
        self.key.crossing() + self.value.crossing()
    }
}

impl Host for RunState {
    async fn write(&mut self, level: Level, message: String, fields: Vec<Field>) -> Result<()> {
        let sent = message.crossing() + fields.crossing();
        let call = HostCall::new(Need::Log, "write", sent).items(fields.len());
        let level = match level {
            Level::Trace => "trace",
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        };
        let fields = fields.into_iter().map(|Field { key, value }| (key, value)).collect();
        let line = LogLine { level: level.to_owned(), message, fields };
        self.call_without_error(call, |inside| {
            Box::pin(async move {
                inside.log().push(line);
                Ok(())
            })
        })
        .await
    }
}
