//! The `config` interface, which returns the plugin's own table.

use wasmtime::Result;

use super::{HostCall, RunState};
use crate::bindings::hookrun::host::config::Host;
use hookrun_capability::grants::Need;

impl Host for RunState {
    async fn get(&mut self) -> Result<String> {
        self.trace(&[]);
        let call = HostCall::new(Need::Nothing("config"), "get", 0);
        self.call_without_error(call, |context| {
            Box::pin(async move { Ok(context.plugin().config_json.clone()) })
        })
        .await
    }
}
