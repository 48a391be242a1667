//! The host functions of `nix-store`.

use std::sync::Arc;

use wasmtime::Result;
use wasmtime::component::Resource;

use super::{CallContext, HostCall, RunState, WireSize};
use crate::bindings::hookrun::host::nix_store::{
    Derivation, Entry, Error, Host, HostNar, PathInfo,
};
use hookrun_capability::grants::Need;
use hookrun_capability::nix_store::{Budget, Nar, StoreScopeCheck, blocking};
use hookrun_config::Capability;
use hookrun_config::Limit;
use hookrun_nix::database::PathInfo as Info;
use hookrun_nix::nar::Expected;

fn reach(context: &CallContext<'_>) -> StoreScopeCheck {
    StoreScopeCheck::new(context.services().nix_stores(), context.plugin(), context.scope())
}

impl Host for RunState {
    async fn path_infos(
        &mut self,
        paths: Vec<String>,
    ) -> Result<Result<Vec<Option<PathInfo>>, Error>> {
        self.trace(&[&paths]);
        let call =
            HostCall::new(Need::Granted(Capability::NixStore), "path-infos", paths.wire_size())
                .items(paths.len());
        self.call(call, |context| {
            let reach = reach(&context);
            let mut budget = Budget::new(context.plugin(), "nix-store.path-infos");
            Box::pin(blocking(move || {
                reach.check(&paths)?;
                let mut infos = Vec::with_capacity(paths.len());
                reach.backend().each_info(&paths, &mut |info| {
                    let info = info.map(path_info);
                    // The returned list takes these bytes for each item too.
                    budget.take(8 + info.wire_size())?;
                    infos.push(info);
                    Ok(())
                })?;
                Ok(infos)
            }))
        })
        .await
    }

    async fn closure(&mut self, paths: Vec<String>) -> Result<Result<Vec<String>, Error>> {
        self.trace(&[&paths]);
        let call = HostCall::new(Need::Granted(Capability::NixStore), "closure", paths.wire_size())
            .items(paths.len());
        self.call(call, |context| {
            let reach = reach(&context);
            Box::pin(blocking(move || {
                reach.check_closure(&paths)?;
                reach.backend().closure(&paths)
            }))
        })
        .await
    }

    async fn read_derivation(&mut self, path: String) -> Result<Result<Derivation, Error>> {
        self.trace(&[&path]);
        let call =
            HostCall::new(Need::Granted(Capability::NixStore), "read-derivation", path.wire_size());
        self.call(call, |context| {
            let reach = reach(&context);
            let mut budget = Budget::new(context.plugin(), "nix-store.read-derivation");
            Box::pin(blocking(move || {
                reach.check(std::slice::from_ref(&path))?;
                let derivation = reach.backend().derivation(&path, &mut budget)?;
                Ok(Derivation {
                    name: derivation.name,
                    system: derivation.system,
                    builder: derivation.builder,
                    outputs: derivation
                        .outputs
                        .into_iter()
                        .map(|output| (output.name, output.path))
                        .collect(),
                    env: derivation.env,
                })
            }))
        })
        .await
    }

    async fn list_directory(
        &mut self,
        path: String,
        relative: String,
    ) -> Result<Result<Vec<Entry>, Error>> {
        self.trace(&[&path, &relative]);
        let call = HostCall::new(
            Need::Granted(Capability::NixStore),
            "list-directory",
            path.wire_size() + relative.wire_size(),
        );
        self.call(call, |context| {
            let reach = reach(&context);
            let mut budget = Budget::new(context.plugin(), "nix-store.list-directory");
            Box::pin(blocking(move || {
                reach.check(std::slice::from_ref(&path))?;
                Ok(reach
                    .backend()
                    .list_directory(&path, &relative, &mut budget)?
                    .into_iter()
                    .map(entry)
                    .collect())
            }))
        })
        .await
    }

    async fn read_file(
        &mut self,
        path: String,
        relative: String,
        offset: u64,
        length: u32,
    ) -> Result<Result<Vec<u8>, Error>> {
        self.trace(&[&path, &relative, &offset, &length]);
        let call = HostCall::new(
            Need::Granted(Capability::NixStore),
            "read-file",
            path.wire_size() + relative.wire_size(),
        );
        self.call(call, |context| {
            let reach = reach(&context);
            // One byte more than the limit is enough for the check of the call to detect an excess.
            let most = context.plugin().plugin.limits.get(Limit::CallBytes).saturating_add(1);
            Box::pin(blocking(move || {
                reach.check(std::slice::from_ref(&path))?;
                reach.backend().read_file(&path, &relative, offset, u64::from(length).min(most))
            }))
        })
        .await
    }

    async fn open_nar(&mut self, path: String) -> Result<Result<Resource<Nar>, Error>> {
        self.trace(&[&path]);
        let call = HostCall::new(Need::Granted(Capability::NixStore), "open-nar", path.wire_size());
        self.call(call, |mut context| {
            let reach = Arc::new(reach(&context));
            Box::pin(async move {
                let nar = blocking(move || {
                    let info = reach.valid(&path)?;
                    let source = reach.backend().nar_source(&path);
                    Ok(Nar {
                        source,
                        expected: Expected {
                            path,
                            nar_hash: info.nar_hash,
                            nar_size: info.nar_size,
                        },
                    })
                })
                .await?;
                context.open(nar)
            })
        })
        .await
    }
}

impl HostNar for RunState {
    async fn path(&mut self, nar: Resource<Nar>) -> Result<String> {
        let call = HostCall::new(Need::Granted(Capability::NixStore), "nar.path", 0);
        self.call_without_error(call, |context| {
            Box::pin(async move { context.resolve(&nar).map(|nar| nar.expected.path.clone()) })
        })
        .await
    }

    async fn size(&mut self, nar: Resource<Nar>) -> Result<u64> {
        let call = HostCall::new(Need::Granted(Capability::NixStore), "nar.size", 0);
        self.call_without_error(call, |context| {
            Box::pin(async move { context.resolve(&nar).map(|nar| nar.expected.nar_size) })
        })
        .await
    }

    async fn drop(&mut self, nar: Resource<Nar>) -> Result<()> {
        self.close(nar)
    }
}

fn path_info(info: Info) -> PathInfo {
    let Info {
        path,
        nar_hash,
        nar_size,
        references,
        deriver,
        signatures,
        ca,
        ultimate,
        registration_time,
    } = info;
    PathInfo {
        path,
        nar_hash,
        nar_size,
        references,
        deriver,
        signatures,
        ca,
        ultimate,
        registration_time,
    }
}

fn entry(entry: hookrun_capability::nix_store::DirectoryEntry) -> Entry {
    let hookrun_capability::nix_store::DirectoryEntry { name, kind, size, executable, target } =
        entry;
    Entry { name, kind: kind.to_owned(), size, executable, target }
}

impl WireSize for PathInfo {
    fn wire_size(&self) -> u64 {
        let Self {
            path,
            nar_hash,
            references,
            deriver,
            signatures,
            ca,
            nar_size: _,
            ultimate: _,
            registration_time: _,
        } = self;
        path.wire_size()
            + nar_hash.wire_size()
            + references.wire_size()
            + deriver.wire_size()
            + signatures.wire_size()
            + ca.wire_size()
    }
}

impl WireSize for Derivation {
    fn wire_size(&self) -> u64 {
        let Self { name, system, builder, outputs, env } = self;
        name.wire_size()
            + system.wire_size()
            + builder.wire_size()
            + outputs.wire_size()
            + env.wire_size()
    }
}

impl WireSize for Entry {
    fn wire_size(&self) -> u64 {
        let Self { name, kind, target, size: _, executable: _ } = self;
        name.wire_size() + kind.wire_size() + target.wire_size()
    }
}
