//! `[builders.machine-resources]`, `[builders.feature-resources]` and
//! `[builders.shared-resources]`: what builds take besides a slot, such as memory, GPUs and
//! licences, and how much of it there is.
//!
//! Amounts are whole numbers in whatever unit the configuration uses throughout; a size such as
//! `"64GiB"` is its bytes. What is counted against them is in `hookrun_builders::resources`.

use std::collections::BTreeMap;
use std::fmt;

use super::{Limit, suggestion};
use hookrun_nix::machines::full_uri;

/// How much of what, by the name of the resource.
#[derive(
    Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Amounts(pub BTreeMap<String, u64>);

impl Amounts {
    /// Of one resource; none: it is not named.
    pub fn get(&self, resource: &str) -> Option<u64> {
        self.0.get(resource).copied()
    }

    /// Is nothing named?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// By name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }
}

impl FromIterator<(String, u64)> for Amounts {
    fn from_iter<I: IntoIterator<Item = (String, u64)>>(amounts: I) -> Self {
        Self(amounts.into_iter().collect())
    }
}

/// `gpu 1, memory 8.0 GiB`
impl fmt::Display for Amounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, amount)) in self.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{name} {}", show(amount))?;
        }
        Ok(())
    }
}

/// An amount as people write it. From a mebibyte on it is taken for a size: nobody has a million
/// GPUs.
pub fn show(amount: u64) -> String {
    const SIZE_FROM: u64 = 1 << 20;
    if amount < SIZE_FROM { amount.to_string() } else { Limit::Memory.show(amount) }
}

/// The feature whose amounts hold for what no required feature says anything of.
pub const ANY_FEATURE: &str = "*";

/// Resources that builds consume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// What each machine has, by store URI. Of what is not named here a machine has enough.
    pub machines: BTreeMap<String, Amounts>,
    /// What a build takes that requires a feature, by feature, or [`ANY_FEATURE`].
    pub features: BTreeMap<String, Amounts>,
    /// What all machines have together.
    pub shared: Amounts,
}

/// As serde reads it.
#[derive(Debug, Default)]
pub(super) struct RawResources {
    pub(super) machines: BTreeMap<String, toml::Table>,
    pub(super) features: BTreeMap<String, toml::Table>,
    pub(super) shared: toml::Table,
}

/// What is wrong with a key, and where it is below `[builders]`.
pub(super) type Wrong = (Vec<String>, String);

/// The table of what machines have.
const MACHINES: &str = "machine-resources";
/// The table of what builds take.
const FEATURES: &str = "feature-resources";
/// The table of what is shared.
const SHARED: &str = "shared-resources";

impl RawResources {
    pub(super) fn checked(self) -> Result<Resources, Wrong> {
        let shared = amounts(&[SHARED], &self.shared)?;
        let mut resources = Resources { shared, ..Resources::default() };
        for (machine, table) in &self.machines {
            let amounts = amounts(&[MACHINES, machine], table)?;
            if let Some((name, _)) =
                amounts.iter().find(|(name, _)| resources.shared.get(name).is_some())
            {
                let message = format!(
                    "`{name}` is a resource of this machine and in [builders.{SHARED}] too; remove one of them"
                );
                return Err((keys(&[MACHINES, machine, name]), message));
            }
            let uri = full_uri(machine);
            if resources.machines.insert(uri.to_string(), amounts).is_some() {
                let message =
                    format!("{uri} has two tables; join them in [builders.{MACHINES}.\"{uri}\"]");
                return Err((keys(&[MACHINES, machine]), message));
            }
        }
        for (feature, table) in &self.features {
            let amounts = amounts(&[FEATURES, feature], table)?;
            for (name, amount) in amounts.iter() {
                resources
                    .check_use(name, amount)
                    .map_err(|message| (keys(&[FEATURES, feature, name]), message))?;
            }
            resources.features.insert(feature.clone(), amounts);
        }
        Ok(resources)
    }
}

impl Resources {
    fn check_use(&self, name: &str, amount: u64) -> Result<(), String> {
        let mut of_machines =
            self.machines.values().filter_map(|amounts| amounts.get(name)).peekable();
        if let Some(all) = self.shared.get(name) {
            if amount > all {
                let (amount, all) = (show(amount), show(all));
                return Err(format!(
                    "a build takes {amount} of `{name}`, and [builders.{SHARED}] has {all} in all, so none can ever be built; raise that"
                ));
            }
        } else if of_machines.peek().is_none() {
            let known = self
                .machines
                .values()
                .flat_map(|amounts| amounts.0.keys())
                .chain(self.shared.0.keys());
            let known: std::collections::BTreeSet<&str> = known.map(String::as_str).collect();
            let hint = if known.is_empty() {
                format!("write `{name} = 1` below `[builders.{MACHINES}.\"ssh://HOST\"]`")
            } else {
                suggestion(name, known)
            };
            return Err(format!("no machine has `{name}`; {hint}"));
        }
        Ok(())
    }

    /// Is nothing limited?
    pub fn is_empty(&self) -> bool {
        self.features.is_empty()
    }

    /// What a build takes that requires `features`: the sum of what these say, and [`ANY_FEATURE`]
    /// for what they do not name.
    pub fn takes(&self, features: &[String]) -> Amounts {
        let mut takes = Amounts::default();
        for feature in features {
            for (name, amount) in self.features.get(feature).into_iter().flat_map(Amounts::iter) {
                let sum = takes.0.entry(name.to_owned()).or_default();
                *sum = sum.saturating_add(amount);
            }
        }
        for (name, amount) in self.features.get(ANY_FEATURE).into_iter().flat_map(Amounts::iter) {
            takes.0.entry(name.to_owned()).or_insert(amount);
        }
        takes
    }

    /// The part of `takes` that is limited on `machine`, with how much there is in all. The flag
    /// says whether all machines share it.
    pub fn limited<'a>(
        &'a self,
        machine: &str,
        takes: &'a Amounts,
    ) -> impl Iterator<Item = (&'a str, u64, u64, bool)> + use<'a> {
        let own = self.machines.get(machine);
        takes.iter().filter_map(move |(name, amount)| {
            let (total, shared) = match own.and_then(|own| own.get(name)) {
                Some(total) => (total, false),
                None => (self.shared.get(name)?, true),
            };
            Some((name, amount, total, shared))
        })
    }

    /// Why a build that takes so much can never be on `machine`, if so.
    pub fn never(&self, machine: &str, takes: &Amounts) -> Option<String> {
        let (name, amount, total, shared) =
            self.limited(machine, takes).find(|(_, amount, total, _)| amount > total)?;
        let who = if shared { "there is" } else { "it has" };
        Some(format!("{who} {name} {} in all, and the build takes {}", show(total), show(amount)))
    }
}

fn keys(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

fn amounts(at: &[&str], table: &toml::Table) -> Result<Amounts, Wrong> {
    let amount = |(name, value): (&String, &toml::Value)| {
        let wrong = |message: String| {
            let mut keys = keys(at);
            keys.push(name.clone());
            (keys, message)
        };
        if name.is_empty()
            || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        {
            return Err(wrong(format!(
                "the name of a resource, `{name}`, may have letters, digits, `-`, `_` and `.` only; rename it"
            )));
        }
        Limit::Memory.parse(value).map(|amount| (name.clone(), amount)).map_err(|_| {
            wrong(format!("{value} is no amount of `{name}`; write a whole number from 1 on, or a size such as \"64GiB\""))
        })
    };
    table.iter().map(amount).collect()
}
