//! A subscriber of trace events that searches the memory of guests for secrets.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hookrun_tests::canary::guest_memories;

use super::SecretScene;

/// Searches the memory of all guests at every host call. The host traces each call while its guest
/// is suspended.
#[derive(Clone)]
pub(super) struct MemorySearch {
    pub(super) secrets_scene: Arc<SecretScene>,
    /// The number of searches for each plugin, and of those that found the control text.
    pub(super) seen: Arc<Mutex<BTreeMap<String, (usize, usize)>>>,
    /// A text that every guest has in its memory, which shows that the search works.
    pub(super) control: Arc<str>,
}

/// The name of the plugin in a trace event of a host call.
#[derive(Default)]
struct PluginField(Option<String>);

impl tracing::field::Visit for PluginField {
    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        if field.name() == "plugin" {
            self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "plugin" {
            self.0 = Some(format!("{value:?}"));
        }
    }
}

impl tracing::Subscriber for MemorySearch {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("hookrun")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut plugin = PluginField::default();
        event.record(&mut plugin);
        let Some(plugin) = plugin.0 else { return };
        let mut control = 0;
        for memory in guest_memories() {
            self.secrets_scene.expect_none(&format!("the memory of plugin `{plugin}`"), &memory);
            control +=
                usize::from(memchr::memmem::find(&memory, self.control.as_bytes()).is_some());
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (looks, found) = seen.entry(plugin).or_default();
        *looks += 1;
        *found += control;
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
