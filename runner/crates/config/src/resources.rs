//! `[builders.machine-resources]`, `[builders.feature-resources]` and
//! `[builders.shared-resources]`: the resources that builds take in addition to a slot, such as
//! memory, GPUs and licences, and their total amounts.
//!
//! Amounts are whole numbers in any unit that the configuration uses consistently; a size such as
//! `"64GiB"` is a number of bytes. `hookrun_builders::slots::reservations` reserves them.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{KeyError, Limit, suggestion};
use hookrun_nix::machines::full_uri;

/// Amounts by the name of the resource.
#[derive(
    Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Amounts(pub BTreeMap<String, u64>);

impl Amounts {
    /// Returns the amount of one resource, if it is named.
    pub fn get(&self, resource: &str) -> Option<u64> {
        self.0.get(resource).copied()
    }

    /// Returns whether no resource is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the amounts, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }
}

/// Reads one table of amounts of the configuration.
pub(super) fn amounts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Amounts, D::Error> {
    deserializer.deserialize_map(AmountsVisitor)
}

/// Reads a table of such tables.
pub(super) fn amounts_by_name<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Amounts>, D::Error> {
    #[derive(Deserialize)]
    struct Table(#[serde(deserialize_with = "amounts")] Amounts);
    let tables = BTreeMap::<String, Table>::deserialize(deserializer)?;
    Ok(tables.into_iter().map(|(name, Table(amounts))| (name, amounts)).collect())
}

struct AmountsVisitor;

impl<'de> Visitor<'de> for AmountsVisitor {
    type Value = Amounts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of amounts")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Amounts, M::Error> {
        let mut amounts = BTreeMap::new();
        while let Some(ResourceName(name)) = map.next_key()? {
            let amount = map.next_value_seed(Amount(&name))?;
            amounts.insert(name, amount);
        }
        Ok(Amounts(amounts))
    }
}

struct ResourceName(String);

impl<'de> Deserialize<'de> for ResourceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || !name.chars().all(allowed) {
            return Err(D::Error::custom(format!(
                "the name of a resource, `{name}`, may have letters, digits, `-`, `_` and `.` \
                 only; rename it"
            )));
        }
        Ok(Self(name))
    }
}

/// Reads the amount of the resource with this name.
struct Amount<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Amount<'_> {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        let value = toml::Value::deserialize(deserializer)?;
        Limit::Memory.parse(&value).map_err(|_| {
            let name = self.0;
            D::Error::custom(format!(
                "{value} is not a valid amount of `{name}`; write a whole number of at least 1, \
                 or a size such as \"64GiB\""
            ))
        })
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

/// Formats an amount. An amount of at least one mebibyte is shown as a size, because nobody has a
/// million GPUs.
pub fn show(amount: u64) -> String {
    const SIZE_FROM: u64 = 1 << 20;
    if amount < SIZE_FROM { amount.to_string() } else { Limit::Memory.show(amount) }
}

/// Stands for every feature in `feature-resources`, for resources that no required feature names.
pub const ANY_FEATURE: &str = "*";

/// Resources that builds consume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// The resources of each machine, by store URI. A machine has an unlimited amount of other
    /// resources.
    pub machines: BTreeMap<String, Amounts>,
    /// The resources that a build takes if it requires a feature, by feature, or [`ANY_FEATURE`].
    pub features: BTreeMap<String, Amounts>,
    /// The resources that all machines share.
    pub shared: Amounts,
}

/// The table of the machines' resources.
const MACHINES: &str = "machine-resources";
/// The table of the resources that builds take.
const FEATURES: &str = "feature-resources";
/// The table of shared resources.
const SHARED: &str = "shared-resources";

impl Resources {
    /// Checks the three tables against each other.
    pub(super) fn checked(
        machines: &BTreeMap<String, Amounts>,
        features: &BTreeMap<String, Amounts>,
        shared: &Amounts,
    ) -> Result<Self, KeyError> {
        let mut resources = Self { shared: shared.clone(), ..Self::default() };
        for (machine, amounts) in machines {
            if let Some((name, _)) = amounts.iter().find(|(name, _)| shared.get(name).is_some()) {
                return Err(KeyError::new(
                    &[MACHINES, machine, name],
                    format!(
                        "`{name}` is a resource of this machine and in [builders.{SHARED}] too; \
                         remove one of them"
                    ),
                ));
            }
            let uri = full_uri(machine);
            if resources.machines.insert(uri.clone(), amounts.clone()).is_some() {
                return Err(KeyError::new(
                    &[MACHINES, machine],
                    format!("{uri} has two tables; join them in [builders.{MACHINES}.\"{uri}\"]"),
                ));
            }
        }
        for (feature, amounts) in features {
            for (name, amount) in amounts.iter() {
                resources
                    .check_use(name, amount)
                    .map_err(|message| KeyError::new(&[FEATURES, feature, name], message))?;
            }
            resources.features.insert(feature.clone(), amounts.clone());
        }
        Ok(resources)
    }

    fn check_use(&self, name: &str, amount: u64) -> Result<(), String> {
        let mut of_machines =
            self.machines.values().filter_map(|amounts| amounts.get(name)).peekable();
        if let Some(all) = self.shared.get(name) {
            if amount > all {
                let (amount, all) = (show(amount), show(all));
                return Err(format!(
                    "a build takes {amount} of `{name}`, but [builders.{SHARED}] has only {all}, so it can never run; increase the amount there"
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

    /// Returns whether no resource is limited.
    pub fn is_empty(&self) -> bool {
        self.features.is_empty()
    }

    /// Returns the resources that a build with these required features takes: the sum of their
    /// amounts, and those of [`ANY_FEATURE`] for resources that they do not name.
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

    /// Returns the part of `takes` that is limited on `machine`, with the total amount. The flag
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

    /// Returns the reason why a build that takes these amounts can never run on `machine`, if there
    /// is one.
    pub fn never(&self, machine: &str, takes: &Amounts) -> Option<String> {
        let (name, amount, total, shared) =
            self.limited(machine, takes).find(|(_, amount, total, _)| amount > total)?;
        let who = if shared { "there is" } else { "it has" };
        Some(format!("{who} only {name} {}, and the build takes {}", show(total), show(amount)))
    }
}
