//! `[builders]`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::KeyError;
use super::quantity::duration;
use super::resources::{Amounts, Resources, amounts, amounts_by_name};

/// The section `[builders]`: how a chosen machine is used.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Builders {
    /// How long a machine may take to accept a build before the next machine is tried.
    #[serde(deserialize_with = "duration")]
    pub connect_timeout: Duration,
    /// How long a machine is not used after a failure. It doubles with each further failure in a
    /// row.
    #[serde(deserialize_with = "duration")]
    pub retry_after: Duration,
    /// Whether a build is accepted before its machine has answered, or while the build waits for a
    /// slot.
    pub early_accept: bool,
    /// Maximum number of builds that may wait in hookrun for a slot. Nix keeps a process and some
    /// file descriptors for each.
    pub max_waiting: u32,
    /// Whether builds on the same machine share an ssh connection.
    pub share_connections: bool,
    /// `[builders.machine-resources]`: the resources of each machine, by its store URI as written.
    #[serde(deserialize_with = "amounts_by_name")]
    pub machine_resources: BTreeMap<String, Amounts>,
    /// `[builders.feature-resources]`: the resources that a build takes if it requires the feature.
    #[serde(deserialize_with = "amounts_by_name")]
    pub feature_resources: BTreeMap<String, Amounts>,
    /// `[builders.shared-resources]`: the resources that all machines share.
    #[serde(deserialize_with = "amounts")]
    pub shared_resources: Amounts,
    /// These three tables after they were checked.
    #[serde(skip)]
    pub resources: Resources,
}

impl Default for Builders {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            retry_after: Duration::from_secs(15),
            early_accept: true,
            max_waiting: 64,
            share_connections: false,
            machine_resources: BTreeMap::new(),
            feature_resources: BTreeMap::new(),
            shared_resources: Amounts::default(),
            resources: Resources::default(),
        }
    }
}

impl Builders {
    /// Creates `resources` from the three tables.
    pub(super) fn check(&mut self) -> Result<(), KeyError> {
        self.resources = Resources::checked(
            &self.machine_resources,
            &self.feature_resources,
            &self.shared_resources,
        )?;
        Ok(())
    }
}
