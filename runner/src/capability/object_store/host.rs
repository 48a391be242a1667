//! The host functions of `object-store`.

use wasmtime::Result;
use wasmtime::component::Resource;

use crate::capability::CapabilityError;
use crate::capability::nix_store::Nar;
use crate::config::Limit;
use crate::nix::nar::Compression;
use crate::plugin::bindings::hookrun::host::object_store::{Error, Host, StoredNar};
use crate::plugin::grants::Need;
use crate::plugin::host_call::{Crossing, HostCall, RunState};

impl Host for RunState {
    async fn exists(
        &mut self,
        store: String,
        keys: Vec<String>,
    ) -> Result<Result<Vec<bool>, Error>> {
        let name = store.clone();
        let call =
            HostCall::new(Need::ObjectStore(&name), "exists", store.crossing() + keys.crossing())
                .items(keys.len());
        self.call(call, |inside| {
            Box::pin(async move { inside.services().object_stores().exists(&store, &keys).await })
        })
        .await
    }

    async fn get(
        &mut self,
        store: String,
        key: String,
        max_length: u64,
    ) -> Result<Result<Option<Vec<u8>>, Error>> {
        let name = store.clone();
        let call =
            HostCall::new(Need::ObjectStore(&name), "get", store.crossing() + key.crossing());
        self.call(call, |inside| {
            // What may not cross is not read first.
            let most = inside.plugin().plugin.limits.get(Limit::CallBytes).min(max_length);
            Box::pin(async move { inside.services().object_stores().get(&store, &key, most).await })
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
        let name = store.clone();
        let sent = store.crossing() + key.crossing() + content_type.crossing() + body.crossing();
        let call = HostCall::new(Need::ObjectStore(&name), "put", sent).lasting();
        self.call(call, |inside| {
            Box::pin(async move {
                inside.services().object_stores().put(&store, &key, &content_type, body).await
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
        let name = store.clone();
        let sent = store.crossing() + key.crossing() + compression.crossing();
        let call = HostCall::new(Need::ObjectStore(&name), "put-nar", sent).streaming().lasting();
        self.call(call, |inside| {
            Box::pin(async move {
                let compression =
                    Compression::parse(&compression, level).map_err(CapabilityError::invalid)?;
                let nar = inside.resolve(&nar)?.clone();
                let (nar_hash, nar_size) = (nar.expected.nar_hash.clone(), nar.expected.nar_size);
                let written = inside
                    .services()
                    .object_stores()
                    .put_nar(&store, &key, compression, nar)
                    .await?;
                Ok(StoredNar {
                    file_hash: written.file_hash,
                    file_size: written.file_size,
                    nar_hash,
                    nar_size,
                })
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
        let name = store.clone();
        let call =
            HostCall::new(Need::ObjectStore(&name), "list", store.crossing() + prefix.crossing());
        self.call(call, |inside| {
            let most = inside.plugin().plugin.limits.get(Limit::CallBytes);
            Box::pin(async move {
                inside.services().object_stores().list(&store, &prefix, max, most).await
            })
        })
        .await
    }
}

impl Crossing for StoredNar {
    fn crossing(&self) -> u64 {
        let Self { file_hash, nar_hash, file_size: _, nar_size: _ } = self;
        file_hash.crossing() + nar_hash.crossing()
    }
}
