//! The host functions of `state`.

use super::{HostCall, RunState, WireSize};
use crate::bindings::hookrun::host::state::{Error, Host};
use hookrun_capability::grants::Need;
use hookrun_config::Capability;

impl Host for RunState {
    async fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<Vec<u8>>, Error>> {
        self.trace(&[&key]);
        let call = HostCall::new(Need::Granted(Capability::State), "get", key.wire_size());
        self.call(call, |mut context| {
            Box::pin(async move {
                let plugin = context.plugin();
                context.state().get(&key, plugin).await
            })
        })
        .await
    }

    async fn set(&mut self, key: String, value: Vec<u8>) -> wasmtime::Result<Result<(), Error>> {
        self.trace(&[&key, &value]);
        let call = HostCall::new(
            Need::Granted(Capability::State),
            "set",
            key.wire_size() + value.wire_size(),
        );
        self.call(call, |mut context| {
            Box::pin(async move {
                let plugin = context.plugin();
                context.state().set(key, value, plugin).await
            })
        })
        .await
    }

    async fn delete(&mut self, key: String) -> wasmtime::Result<Result<(), Error>> {
        self.trace(&[&key]);
        let call = HostCall::new(Need::Granted(Capability::State), "delete", key.wire_size());
        self.call(call, |mut context| {
            Box::pin(async move {
                let plugin = context.plugin();
                context.state().delete(key, plugin).await
            })
        })
        .await
    }

    async fn keys(&mut self, prefix: String) -> wasmtime::Result<Result<Vec<String>, Error>> {
        self.trace(&[&prefix]);
        let call = HostCall::new(Need::Granted(Capability::State), "keys", prefix.wire_size());
        self.call(call, |mut context| Box::pin(async move { context.state().keys(&prefix).await }))
            .await
    }
}
