//! The host functions of `object-store`.

use wasmtime::Result;
use wasmtime::component::Resource;

use super::wire_size::wave_record;
use super::{HostCall, RunState, WireSize};
use crate::bindings::hookrun::host::object_store::{Error, Host, Object, StoredNar};
use hookrun_capability::CapabilityError;
use hookrun_capability::grants::Need;
use hookrun_capability::nix_store::Nar;
use hookrun_capability::object_store::Object as ToWrite;
use hookrun_config::Capability;
use hookrun_config::Limit;
use hookrun_nix::nar::{Compression, Expected, Written};

impl Host for RunState {
    async fn exists(
        &mut self,
        store: String,
        keys: Vec<String>,
    ) -> Result<Result<Vec<bool>, Error>> {
        self.trace(&[&store, &keys]);
        let name = store.clone();
        let call = HostCall::new(
            Need::Named(Capability::ObjectStore, &name),
            "exists",
            store.wire_size() + keys.wire_size(),
        )
        .items(keys.len())
        .waiting();
        self.call(call, |context| {
            Box::pin(async move { context.services().object_stores().exists(&store, &keys).await })
        })
        .await
    }

    async fn get(
        &mut self,
        store: String,
        key: String,
        max_length: u64,
    ) -> Result<Result<Option<Vec<u8>>, Error>> {
        self.trace(&[&store, &key, &max_length]);
        let name = store.clone();
        let call = HostCall::new(
            Need::Named(Capability::ObjectStore, &name),
            "get",
            store.wire_size() + key.wire_size(),
        )
        .waiting();
        self.call(call, |context| {
            // Bytes that may not be returned to the guest are not read first.
            let most = context.plugin().plugin.limits.get(Limit::CallBytes).min(max_length);
            Box::pin(
                async move { context.services().object_stores().get(&store, &key, most).await },
            )
        })
        .await
    }

    async fn put(
        &mut self,
        store: String,
        key: String,
        content_type: String,
        body: Vec<u8>,
    ) -> Result<Result<(), Error>> {
        self.trace(&[&store, &key, &content_type, &body]);
        let name = store.clone();
        let sent =
            store.wire_size() + key.wire_size() + content_type.wire_size() + body.wire_size();
        let call = HostCall::new(Need::Named(Capability::ObjectStore, &name), "put", sent)
            .waiting()
            .lasting();
        self.call(call, |context| {
            Box::pin(async move {
                context.services().object_stores().put(&store, &key, &content_type, body).await
            })
        })
        .await
    }

    async fn put_all(&mut self, store: String, objects: Vec<Object>) -> Result<Result<(), Error>> {
        self.trace(&[&store, &objects]);
        let name = store.clone();
        let sent = store.wire_size() + objects.wire_size();
        let call = HostCall::new(Need::Named(Capability::ObjectStore, &name), "put-all", sent)
            .items(objects.len())
            .waiting()
            .lasting();
        self.call(call, |context| {
            Box::pin(async move {
                let objects = objects.into_iter().map(|object| {
                    let Object { key, content_type, body } = object;
                    ToWrite { key, content_type, body }
                });
                context.services().object_stores().put_all(&store, objects.collect()).await
            })
        })
        .await
    }

    async fn put_nar(
        &mut self,
        store: String,
        key: String,
        compression: String,
        level: Option<i32>,
        nar: Resource<Nar>,
    ) -> Result<Result<StoredNar, Error>> {
        self.trace(&[&store, &key, &compression, &level, &nar]);
        let name = store.clone();
        let sent = store.wire_size() + key.wire_size() + compression.wire_size();
        let call = HostCall::new(Need::Named(Capability::ObjectStore, &name), "put-nar", sent)
            .waiting()
            .lasting();
        self.call(call, |context| {
            Box::pin(async move {
                let compression =
                    Compression::parse(&compression, level).map_err(CapabilityError::invalid)?;
                let nar = context.resolve(&nar)?.clone();
                let expected = nar.expected.clone();
                let stores = context.services().object_stores();
                let written = stores.put_nar(&store, &key, compression, nar).await?;
                Ok(stored_nar(key, written, expected))
            })
        })
        .await
    }

    async fn list(
        &mut self,
        store: String,
        prefix: String,
        max: u32,
    ) -> Result<Result<Vec<String>, Error>> {
        self.trace(&[&store, &prefix, &max]);
        let name = store.clone();
        let call = HostCall::new(
            Need::Named(Capability::ObjectStore, &name),
            "list",
            store.wire_size() + prefix.wire_size(),
        )
        .waiting();
        self.call(call, |context| {
            let most = context.plugin().plugin.limits.get(Limit::CallBytes);
            Box::pin(async move {
                context.services().object_stores().list(&store, &prefix, max, most).await
            })
        })
        .await
    }
}

fn stored_nar(key: String, written: Written, expected: Expected) -> StoredNar {
    let Written { file_hash, file_size } = written;
    let Expected { path: _, nar_hash, nar_size } = expected;
    StoredNar { key, file_hash, file_size, nar_hash, nar_size }
}

impl WireSize for StoredNar {
    fn wire_size(&self) -> u64 {
        let Self { key, file_hash, nar_hash, file_size: _, nar_size: _ } = self;
        key.wire_size() + file_hash.wire_size() + nar_hash.wire_size()
    }
}

impl WireSize for Object {
    fn wire_size(&self) -> u64 {
        let Self { key, content_type, body } = self;
        key.wire_size() + content_type.wire_size() + body.wire_size()
    }

    fn wave(&self, text: &mut String) {
        let Self { key, content_type, body } = self;
        wave_record(text, &[("key", key), ("content-type", content_type), ("body", body)]);
    }
}
