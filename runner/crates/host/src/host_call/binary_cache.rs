//! The host function of `binary-cache`.

use wasmtime::Result;

use super::wire_size::wave_record;
use super::{HostCall, RunState, WireSize, wit_error};
use crate::bindings::hookrun::host::binary_cache::{Error, Failure, Group, Host, Report, Settings};
use hookrun_capability::CapabilityError;
use hookrun_capability::binary_cache::{self, Failed, Form, Push};
use hookrun_capability::grants::Need;
use hookrun_capability::nix_store::{StoreScopeCheck, blocking};
use hookrun_config::Capability;
use hookrun_nix::nar::Compression;

impl Host for RunState {
    async fn push(
        &mut self,
        store: String,
        settings: Settings,
        groups: Vec<Group>,
        elsewhere: Vec<String>,
    ) -> Result<Result<Report, Error>> {
        self.trace(&[&store, &settings, &groups, &elsewhere]);
        let (name, keys) = (store.clone(), settings.keys.clone());
        let mut also = vec![Need::Granted(Capability::NixStore)];
        also.extend(keys.iter().map(|key| Need::Named(Capability::Signing, key)));
        let items = groups.iter().map(|group| group.paths.len()).sum::<usize>();
        let sent = store.wire_size() + settings.wire_size() + groups.wire_size();
        let call = HostCall::new(
            Need::Named(Capability::ObjectStore, &name),
            "push",
            sent + elsewhere.wire_size(),
        )
        .of("binary-cache")
        .also(&also)
        .items(items.max(elsewhere.len()).max(groups.len()))
        .waiting();
        let reported = self
            .call(call, |context| {
                let services = context.services().clone();
                let scope =
                    StoreScopeCheck::new(services.nix_stores(), context.plugin(), context.scope());
                let nix = services.nix_stores().at(&context.scope().nix);
                let dirs = context.scope().nix.clone();
                let unsigned_fix = format!(
                    "write `signing = [\"NAME\"]` under [plugins.{plugin}.grant] in {file}, or \
                     `allow-unsigned = true` in the plugin's config",
                    plugin = context.plugin().plugin.name,
                    file = context.plugin().config_file.display(),
                );
                Box::pin(async move {
                    let groups = groups.into_iter().map(group).collect::<Result<Vec<_>, _>>()?;
                    let groups = blocking(move || {
                        groups.iter().try_for_each(|group| scope.check(&group.paths))?;
                        Ok(groups)
                    })
                    .await?;
                    let settings = self::settings(settings, unsigned_fix)?;
                    let push = Push { store, groups, elsewhere, settings };
                    let caches = services.binary_caches();
                    let report = caches.push(&services, nix, &dirs, push, &|_| {}).await?;
                    Ok(self::report(report))
                })
            })
            .await?;
        if let Ok(report) = &reported {
            if report.uploaded > 0 || report.signed > 0 {
                self.progressed();
            }
            if let Some(failure) = report.failures.first() {
                self.failed(&failure.error);
            }
        }
        Ok(reported)
    }
}

fn group(group: Group) -> Result<binary_cache::Group, CapabilityError> {
    let Group { paths, compression, level, storage_class, tags } = group;
    let compression = Compression::parse(&compression, level).map_err(CapabilityError::invalid)?;
    Ok(binary_cache::Group { paths, form: Form { compression, storage_class, tags } })
}

fn settings(
    settings: Settings,
    unsigned_fix: String,
) -> Result<binary_cache::Settings, CapabilityError> {
    let Settings {
        keys,
        allow_unsigned,
        missing_references,
        cache_control,
        listings,
        debug_info,
        listing_compression,
        priority,
        want_mass_query,
    } = settings;
    let compress_listings = match listing_compression.as_str() {
        "none" => false,
        "zstd" => true,
        other => {
            return Err(CapabilityError::invalid(format!(
                "`{other}` is not a compression of listings; write `zstd` or `none`"
            )));
        }
    };
    Ok(binary_cache::Settings {
        keys,
        allow_unsigned,
        unsigned_fix,
        missing_references,
        cache_control,
        listings,
        debug_info,
        compress_listings,
        priority,
        want_mass_query,
        trust_presence: true,
    })
}

fn report(report: binary_cache::Report) -> Report {
    let binary_cache::Report {
        paths,
        uploaded,
        file_bytes,
        nar_bytes,
        present,
        signed,
        unsigned,
        different,
        failures,
    } = report;
    let failures = failures
        .into_iter()
        .map(|Failed { path, error }| Failure { path, error: wit_error(error) })
        .collect();
    Report {
        paths,
        uploaded,
        file_bytes,
        nar_bytes,
        present,
        signed,
        unsigned,
        different,
        failures,
    }
}

impl WireSize for Group {
    fn wire_size(&self) -> u64 {
        let Self { paths, compression, storage_class, tags, level: _ } = self;
        paths.wire_size() + compression.wire_size() + storage_class.wire_size() + tags.wire_size()
    }

    fn wave(&self, text: &mut String) {
        let Self { paths, compression, level, storage_class, tags } = self;
        wave_record(
            text,
            &[
                ("paths", paths),
                ("compression", compression),
                ("level", level),
                ("storage-class", storage_class),
                ("tags", tags),
            ],
        );
    }
}

impl WireSize for Settings {
    fn wire_size(&self) -> u64 {
        let Self {
            keys,
            cache_control,
            listing_compression,
            allow_unsigned: _,
            missing_references: _,
            listings: _,
            debug_info: _,
            priority: _,
            want_mass_query: _,
        } = self;
        keys.wire_size() + cache_control.wire_size() + listing_compression.wire_size()
    }

    fn wave(&self, text: &mut String) {
        let Self {
            keys,
            allow_unsigned,
            missing_references,
            cache_control,
            listings,
            debug_info,
            listing_compression,
            priority,
            want_mass_query,
        } = self;
        wave_record(
            text,
            &[
                ("keys", keys),
                ("allow-unsigned", allow_unsigned),
                ("missing-references", missing_references),
                ("cache-control", cache_control),
                ("listings", listings),
                ("debug-info", debug_info),
                ("listing-compression", listing_compression),
                ("priority", priority),
                ("want-mass-query", want_mass_query),
            ],
        );
    }
}

impl WireSize for Failure {
    fn wire_size(&self) -> u64 {
        let Self { path, error } = self;
        path.wire_size() + error.message.wire_size()
    }

    fn wave(&self, text: &mut String) {
        let Self { path, error } = self;
        wave_record(text, &[("path", path), ("message", &error.message)]);
    }
}

impl WireSize for Report {
    fn wire_size(&self) -> u64 {
        self.failures.wire_size()
    }

    fn wave(&self, text: &mut String) {
        let Self {
            paths,
            uploaded,
            file_bytes,
            nar_bytes,
            present,
            signed,
            unsigned,
            different,
            failures,
        } = self;
        wave_record(
            text,
            &[
                ("paths", paths),
                ("uploaded", uploaded),
                ("file-bytes", file_bytes),
                ("nar-bytes", nar_bytes),
                ("present", present),
                ("signed", signed),
                ("unsigned", unsigned),
                ("different", different),
                ("failures", failures),
            ],
        );
    }
}
