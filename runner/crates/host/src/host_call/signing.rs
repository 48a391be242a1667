//! The host functions of `signing`.

use wasmtime::Result;

use super::{HostCall, RunState, WireSize};
use crate::bindings::hookrun::host::signing::{Error, Host};
use hookrun_capability::grants::Need;
use hookrun_capability::nix_store::{StoreScopeCheck, blocking};
use hookrun_config::Capability;

impl Host for RunState {
    async fn keys(&mut self) -> Result<Result<Vec<String>, Error>> {
        self.trace(&[]);
        let call = HostCall::new(Need::Wanted(Capability::Signing), "keys", 0);
        self.call(call, |context| {
            Box::pin(async move { Ok(context.plugin().effective.signing.clone()) })
        })
        .await
    }

    async fn sign_path(&mut self, key: String, path: String) -> Result<Result<String, Error>> {
        self.trace(&[&key, &path]);
        let name = key.clone();
        let call = HostCall::new(
            Need::Named(Capability::Signing, &name),
            "sign-path",
            key.wire_size() + path.wire_size(),
        );
        self.call(call, |context| {
            let reach = StoreScopeCheck::new(
                context.services().nix_stores(),
                context.plugin(),
                context.scope(),
            );
            let keys = context.services().signing_keys().clone();
            let store_dir = context.scope().nix.store.to_string_lossy().into_owned();
            Box::pin(blocking(move || keys.sign(&key, &store_dir, &reach.valid(&path)?)))
        })
        .await
    }

    async fn sign_paths(
        &mut self,
        key: String,
        paths: Vec<String>,
    ) -> Result<Result<Vec<String>, Error>> {
        self.trace(&[&key, &paths]);
        let name = key.clone();
        let sent = key.wire_size() + paths.wire_size();
        let call = HostCall::new(Need::Named(Capability::Signing, &name), "sign-paths", sent)
            .items(paths.len());
        self.call(call, |context| {
            let reach = StoreScopeCheck::new(
                context.services().nix_stores(),
                context.plugin(),
                context.scope(),
            );
            let keys = context.services().signing_keys().clone();
            let store_dir = context.scope().nix.store.to_string_lossy().into_owned();
            Box::pin(blocking(move || {
                let mut signatures = Vec::with_capacity(paths.len());
                reach.each_valid(&paths, |info| {
                    signatures.push(keys.sign(&key, &store_dir, &info)?);
                    Ok(())
                })?;
                Ok(signatures)
            }))
        })
        .await
    }

    async fn public_key(&mut self, key: String) -> Result<Result<String, Error>> {
        self.trace(&[&key]);
        let name = key.clone();
        let call =
            HostCall::new(Need::Named(Capability::Signing, &name), "public-key", key.wire_size());
        self.call(call, |context| {
            let keys = context.services().signing_keys().clone();
            Box::pin(blocking(move || keys.public_key(&key)))
        })
        .await
    }
}
