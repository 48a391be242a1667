//! The host functions of `signing`.

use wasmtime::Result;

use super::{Crossing, HostCall, RunState};
use crate::bindings::hookrun::host::signing::{Error, Host};
use hookrun_capability::grants::Need;
use hookrun_capability::nix_store::{Reach, blocking};

impl Host for RunState {
    async fn keys(&mut self) -> Result<Result<Vec<String>, Error>> {
        let call = HostCall::new(Need::SigningKeys, "keys", 0);
        self.call(call, |inside| {
            Box::pin(async move { Ok(inside.plugin().effective.signing.clone()) })
        })
        .await
    }

    async fn sign_path(&mut self, key: String, path: String) -> Result<Result<String, Error>> {
        let name = key.clone();
        let call =
            HostCall::new(Need::Signing(&name), "sign-path", key.crossing() + path.crossing());
        self.call(call, |inside| {
            let reach = Reach::new(inside.services().nix_stores(), inside.plugin(), inside.scope());
            let keys = inside.services().signing_keys().clone();
            let store_dir = inside.scope().nix.store.to_string_lossy().into_owned();
            Box::pin(blocking(move || keys.sign(&key, &store_dir, &reach.valid(&path)?)))
        })
        .await
    }

    async fn sign_paths(
        &mut self,
        key: String,
        paths: Vec<String>,
    ) -> Result<Result<Vec<String>, Error>> {
        let name = key.clone();
        let sent = key.crossing() + paths.crossing();
        let call = HostCall::new(Need::Signing(&name), "sign-paths", sent).items(paths.len());
        self.call(call, |inside| {
            let reach = Reach::new(inside.services().nix_stores(), inside.plugin(), inside.scope());
            let keys = inside.services().signing_keys().clone();
            let store_dir = inside.scope().nix.store.to_string_lossy().into_owned();
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
        let name = key.clone();
        let call = HostCall::new(Need::Signing(&name), "public-key", key.crossing());
        self.call(call, |inside| {
            let keys = inside.services().signing_keys().clone();
            Box::pin(blocking(move || keys.public_key(&key)))
        })
        .await
    }
}
