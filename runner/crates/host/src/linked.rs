//! The later stages of a plugin: with open native code ([`ReadyPlugin`]), and mapped and linked so
//! that it can run ([`LinkedPlugin`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::component::InstancePre;

use super::artifact::{Artifact, Component};
use super::bindings::exports::hookrun::{builder_selection, diff, post_build};
use super::compiled_cache::{Code, Origin};
use super::engine::{Allocation, Runtime};
use super::error::PluginError;
use super::host_call::RunState;
use super::metadata::Metadata;
use hookrun_capability::PluginContext;
use hookrun_capability::grants::Effective;
use hookrun_config::{Config, Limit};
use hookrun_nix::event::HookKind;

/// A plugin whose native code is open but not mapped yet.
pub struct ReadyPlugin {
    pub(crate) artifact: Artifact,
    pub(crate) code: Code,
    pub(crate) runtime: Arc<Runtime>,
    /// The duration of reading and compiling.
    pub(crate) time: Duration,
}

impl ReadyPlugin {
    pub fn artifact(&self) -> &Artifact {
        &self.artifact
    }

    /// Returns the origin of the native code.
    pub fn origin(&self) -> &Origin {
        &self.code.origin
    }

    /// Maps and links the native code.
    ///
    /// # Errors
    /// Returns an error if the component imports a function that this release does not offer, or
    /// exports a hook of another type.
    pub fn link(self, config: &Config) -> Result<LinkedPlugin, PluginError> {
        let begun = Instant::now();
        let ReadyPlugin {
            artifact:
                Artifact { component: Component { digest, .. }, description, hooks, context, .. },
            code,
            mut runtime,
            time,
        } = self;
        let name = context.plugin.name.as_str();
        let error = |what: &str, error: &wasmtime::Error| {
            let cause = format!("{error:#}").replace('\n', " ");
            let message = format!(
                "plugin `{name}`: {} {what} ({cause}); build it with the SDK of this release",
                context.plugin.source
            );
            PluginError::Config(config.error(&["plugins", name, "source"], message))
        };
        let engine = |cause: wasmtime::Error| PluginError::Engine(format!("{cause:#}"));
        let mut mapped = code.map(runtime.engine());
        if mapped.is_err() && runtime.is_pooled() {
            // The component may have more memories or tables than a slot.
            let stack = context.plugin.limits.get(Limit::Stack);
            runtime = Arc::new(Runtime::new(stack, Allocation::OnDemand).map_err(engine)?);
            mapped = code.map(runtime.engine());
        }
        let component = mapped.map_err(|cause| error("cannot be mapped", &cause))?;
        runtime.start().map_err(engine)?;
        let instance = runtime
            .linker()
            .instantiate_pre(&component)
            .map_err(|cause| error("imports what this hookrun does not offer", &cause))?;
        let exports = Exports::find(&hooks, &instance)
            .map_err(|cause| error("exports a hook of another type", &cause))?;
        Ok(LinkedPlugin {
            digest,
            metadata: description.metadata,
            hooks,
            context,
            instance,
            exports,
            origin: code.origin,
            load_time: time + begun.elapsed(),
            runtime,
        })
    }
}

/// The exported hooks of an instance. Hooks that are not served are `None`.
pub(super) struct Exports {
    pub(super) post_build: Option<post_build::post_build::GuestIndices>,
    pub(super) diff: Option<diff::diff::GuestIndices>,
    pub(super) builder_selection: Option<builder_selection::builder_selection::GuestIndices>,
}

impl Exports {
    fn find(hooks: &[HookKind], instance: &InstancePre<RunState>) -> wasmtime::Result<Self> {
        let has = |hook| hooks.contains(&hook);
        Ok(Self {
            post_build: has(HookKind::PostBuild)
                .then(|| post_build::post_build::GuestIndices::new(instance))
                .transpose()?,
            diff: has(HookKind::Diff)
                .then(|| diff::diff::GuestIndices::new(instance))
                .transpose()?,
            builder_selection: has(HookKind::BuilderSelection)
                .then(|| builder_selection::builder_selection::GuestIndices::new(instance))
                .transpose()?,
        })
    }
}

/// A plugin that can run. Each run has a new instance; runs share only the code.
pub struct LinkedPlugin {
    pub(super) context: Arc<PluginContext>,
    pub(super) instance: InstancePre<RunState>,
    pub(super) exports: Exports,
    pub(super) load_time: Duration,
    metadata: Metadata,
    digest: String,
    hooks: Vec<HookKind>,
    origin: Origin,
    /// Keeps the engine and its epoch thread alive as long as the plugin can run.
    #[expect(dead_code, reason = "held, not read")]
    runtime: Arc<Runtime>,
}

impl std::fmt::Debug for LinkedPlugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkedPlugin")
            .field("name", &self.name())
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl LinkedPlugin {
    /// Returns its name in the configuration.
    pub fn name(&self) -> &str {
        &self.context.plugin.name
    }

    pub fn hooks(&self) -> &[HookKind] {
        &self.hooks
    }

    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Returns the SHA-256 digest of the component in hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns the origin of the native code.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Returns the duration of compiling or mapping, and linking.
    pub fn load_time(&self) -> Duration {
        self.load_time
    }

    /// Returns the capabilities that are both wanted and granted.
    pub fn effective(&self) -> &Effective {
        &self.context.effective
    }
}
