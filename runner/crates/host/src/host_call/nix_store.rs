//! The host functions of `nix-store`: arguments in, one call at the choke point, results out.

use std::sync::Arc;

use wasmtime::Result;
use wasmtime::component::Resource;

use super::{Crossing, HostCall, Inside, RunState};
use crate::bindings::hookrun::host::nix_store::{
    Derivation, Entry, Error, Host, HostNar, PathInfo,
};
use hookrun_capability::grants::Need;
use hookrun_capability::nix_store::{Budget, Nar, Reach, blocking};
use hookrun_config::Limit;
use hookrun_nix::database::PathInfo as Info;
use hookrun_nix::nar::Expected;

fn reach(inside: &Inside<'_>) -> Reach {
    Reach::new(inside.services().nix_stores(), inside.plugin(), inside.scope())
}

impl Host for RunState {
    async fn path_infos(
        &mut self,
        paths: Vec<String>,
    ) -> Result<Result<Vec<Option<PathInfo>>, Error>> {
        let call = HostCall::new(Need::NixStore, "path-infos", paths.crossing()).items(paths.len());
        self.call(call, |inside| {
            let reach = reach(&inside);
            let mut budget = Budget::new(inside.plugin(), "nix-store.path-infos");
            Box::pin(blocking(move || {
                reach.check(&paths)?;
                let mut infos = Vec::with_capacity(paths.len());
                reach.backend().each_info(&paths, &mut |info| {
                    let info = info.map(path_info);
                    // What the list of them counts for each, too.
                    budget.take(8 + info.crossing())?;
                    infos.push(info);
                    Ok(())
                })?;
                Ok(infos)
            }))
        })
        .await
    }

    async fn closure(&mut self, paths: Vec<String>) -> Result<Result<Vec<String>, Error>> {
        let call = HostCall::new(Need::NixStore, "closure", paths.crossing()).items(paths.len());
        self.call(call, |inside| {
            let reach = reach(&inside);
            Box::pin(blocking(move || {
                reach.check_closure(&paths)?;
                reach.backend().closure(&paths)
            }))
        })
        .await
    }

    async fn read_derivation(&mut self, path: String) -> Result<Result<Derivation, Error>> {
        let call = HostCall::new(Need::NixStore, "read-derivation", path.crossing());
        self.call(call, |inside| {
            let reach = reach(&inside);
            let mut budget = Budget::new(inside.plugin(), "nix-store.read-derivation");
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
        let call =
            HostCall::new(Need::NixStore, "list-directory", path.crossing() + relative.crossing());
        self.call(call, |inside| {
            let reach = reach(&inside);
            let mut budget = Budget::new(inside.plugin(), "nix-store.list-directory");
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
        let call =
            HostCall::new(Need::NixStore, "read-file", path.crossing() + relative.crossing());
        self.call(call, |inside| {
            let reach = reach(&inside);
            // One byte more than may cross is enough for the choke point to see that it is too
            // much.
            let most = inside.plugin().plugin.limits.get(Limit::CallBytes).saturating_add(1);
            Box::pin(blocking(move || {
                reach.check(std::slice::from_ref(&path))?;
                reach.backend().read_file(&path, &relative, offset, u64::from(length).min(most))
            }))
        })
        .await
    }

    async fn open_nar(&mut self, path: String) -> Result<Result<Resource<Nar>, Error>> {
        let call = HostCall::new(Need::NixStore, "open-nar", path.crossing());
        self.call(call, |mut inside| {
            let reach = Arc::new(reach(&inside));
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
                inside.open(nar)
            })
        })
        .await
    }
}

impl HostNar for RunState {
    async fn path(&mut self, nar: Resource<Nar>) -> Result<String> {
        let call = HostCall::new(Need::NixStore, "nar.path", 0);
        self.call_without_error(call, |inside| {
            Box::pin(async move { inside.resolve(&nar).map(|nar| nar.expected.path.clone()) })
        })
        .await
    }

    async fn size(&mut self, nar: Resource<Nar>) -> Result<u64> {
        let call = HostCall::new(Need::NixStore, "nar.size", 0);
        self.call_without_error(call, |inside| {
            Box::pin(async move { inside.resolve(&nar).map(|nar| nar.expected.nar_size) })
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

fn entry(entry: hookrun_capability::nix_store::Entry) -> Entry {
    let hookrun_capability::nix_store::Entry { name, kind, size, executable, target } = entry;
    Entry { name, kind: kind.to_owned(), size, executable, target }
}

impl Crossing for PathInfo {
    fn crossing(&self) -> u64 {
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
        path.crossing()
            + nar_hash.crossing()
            + references.crossing()
            + deriver.crossing()
            + signatures.crossing()
            + ca.crossing()
    }
}

impl Crossing for Derivation {
    fn crossing(&self) -> u64 {
        let Self { name, system, builder, outputs, env } = self;
        name.crossing()
            + system.crossing()
            + builder.crossing()
            + outputs.crossing()
            + env.crossing()
    }
}

impl Crossing for Entry {
    fn crossing(&self) -> u64 {
        let Self { name, kind, target, size: _, executable: _ } = self;
        name.crossing() + kind.crossing() + target.crossing()
    }
}
