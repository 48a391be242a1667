//! The `config` interface: a plugin's own table.

use wasmtime::Result;

use super::{HostCall, RunState};
use crate::capability::grants::Need;
use crate::plugin::bindings::hookrun::host::config::Host;

impl Host for RunState {
    async fn get(&mut self) -> Result<String> {
        let call = HostCall::new(Need::Config, "get", 0);
        self.call_without_error(call, |inside| {
            Box::pin(async move { Ok(inside.plugin().config_json.clone()) })
        })
        .await
    }
}
