//! The `config` interface: a plugin's own table.

use wasmtime::Result;

use crate::plugin::bindings::hookrun::host::config::Host;
use crate::plugin::grants::Need;
use crate::plugin::host_call::{HostCall, RunState};

impl Host for RunState {
    async fn get(&mut self) -> Result<String> {
        let call = HostCall::new(Need::Config, "get", 0);
        self.call_without_error(call, |inside| {
            Box::pin(async move { Ok(inside.plugin().config_json.clone()) })
        })
        .await
    }
}
