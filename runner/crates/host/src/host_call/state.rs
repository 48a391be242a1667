//! The host functions of `state`.

use super::{Crossing, HostCall, RunState};
use crate::bindings::hookrun::host::state::{Error, Host};
use hookrun_capability::grants::Need;

impl Host for RunState {
    async fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<Vec<u8>>, Error>> {
        let call = HostCall::new(Need::State, "get", key.crossing());
        self.call(call, |mut inside| {
            Box::pin(async move {
                let plugin = inside.plugin();
                inside.state().get(&key, plugin).await
            })
        })
        .await
    }

    async fn set(&mut self, key: String, value: Vec<u8>) -> wasmtime::Result<Result<(), Error>> {
        let call = HostCall::new(Need::State, "set", key.crossing() + value.crossing());
        self.call(call, |mut inside| {
            Box::pin(async move {
                let plugin = inside.plugin();
                inside.state().set(key, value, plugin).await
            })
        })
        .await
    }

    async fn delete(&mut self, key: String) -> wasmtime::Result<Result<(), Error>> {
        let call = HostCall::new(Need::State, "delete", key.crossing());
        self.call(call, |mut inside| {
            Box::pin(async move {
                let plugin = inside.plugin();
                inside.state().delete(key, plugin).await
            })
        })
        .await
    }

    async fn keys(&mut self, prefix: String) -> wasmtime::Result<Result<Vec<String>, Error>> {
        let call = HostCall::new(Need::State, "keys", prefix.crossing());
        self.call(call, |mut inside| Box::pin(async move { inside.state().keys(&prefix).await }))
            .await
    }
}
