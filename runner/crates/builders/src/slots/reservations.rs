//! Resources that running builds use besides a slot, such as memory, GPUs and licences, as
//! configured by `[builders.machine-resources]` and related tables ([`hookrun_config::Resources`]).
//!
//! A session that gets a slot also reserves the resources of its build, in a file that is valid as
//! long as the session lives ([`crate::slots::live_file`]), while it holds the lock of the queue.
//! So nothing is assigned twice, and a session that dies frees its resources. Builds that Nix's own
//! hook starts without hookrun are not counted.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::slots::live_file::{self, LiveFile};
use crate::slots::slot_files::Slot;
use hookrun_config::{Amounts, Resources, resources::show};
use hookrun_nix::machines::MachineLine;

/// The directory of reservations, below [`Dirs::builders`](hookrun_nix::dirs::Dirs::builders).
const RESERVED: &str = "reserved";

/// The resources of one build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    /// The store URI.
    pub machine: String,
    /// The amounts of the resources that are limited there.
    pub takes: Amounts,
}

/// A slot with the resources of a build, held from before the session connects until the build
/// ends. They are freed when this is dropped.
#[derive(Debug)]
pub struct Allocation {
    /// Declared first so that it is dropped before `slot`: a session that is woken by the slot must
    /// find these resources free.
    _reserved: Option<LiveFile>,
    /// The slot; none if only Nix's own hook can take it.
    pub slot: Option<Slot>,
}

impl Allocation {
    /// Reserves the resources of a build on `machine` besides `slot`.
    ///
    /// # Errors
    /// The reason why they cannot be reserved, in lower case.
    pub fn of(
        slot: Option<Slot>,
        machine: &str,
        takes: &Amounts,
        limits: &Resources,
        builders: &Path,
    ) -> Result<Self, String> {
        let takes: Amounts = limits
            .limited(machine, takes)
            .map(|(name, amount, ..)| (name.to_owned(), amount))
            .collect();
        if takes.is_empty() {
            return Ok(Self { _reserved: None, slot });
        }
        let reserved = Reserved { machine: machine.to_owned(), takes };
        let held = LiveFile::make(&directory(builders), &reserved).map_err(|error: io::Error| {
            let directory = directory(builders);
            format!(
                "{} cannot be reserved there: {}: {error}; make the directory writable for the user that Nix builds as",
                reserved.takes,
                directory.display()
            )
        })?;
        Ok(Self { _reserved: Some(held), slot })
    }
}

/// Returns the directory of the reservations below `builders`.
pub fn directory(builders: &Path) -> PathBuf {
    builders.join(RESERVED)
}

/// The current state of one resource of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResourceUse {
    /// The name.
    pub name: String,
    /// The amount in use.
    pub taken: u64,
    /// The total amount.
    pub total: u64,
    /// Whether all machines share it.
    pub shared: bool,
}

/// The amounts in use of each limited resource.
#[derive(Debug, Clone)]
pub struct Account<'a> {
    limits: &'a Resources,
    machines: BTreeMap<String, BTreeMap<String, u64>>,
    shared: BTreeMap<String, u64>,
}

impl<'a> Account<'a> {
    /// Reads the reservations below `builders`.
    pub fn now(limits: &'a Resources, builders: &Path) -> Self {
        let reserved =
            if limits.is_empty() { Vec::new() } else { live_file::living(&directory(builders)) };
        Self::of(limits, reserved.into_iter().map(|(_, reserved)| reserved))
    }

    /// Counts these reservations.
    pub fn of(limits: &'a Resources, reserved: impl IntoIterator<Item = Reserved>) -> Self {
        let mut account = Self { limits, machines: BTreeMap::new(), shared: BTreeMap::new() };
        for Reserved { machine, takes } in reserved {
            account.take(&machine, &takes);
        }
        account
    }

    /// Returns the first resource of which `machine` has too little for such a build.
    pub fn short(&self, machine: &str, takes: &Amounts) -> Option<ResourceUse> {
        self.limits.limited(machine, takes).find_map(|(name, amount, total, shared)| {
            let taken = self.taken(machine, name, shared);
            (amount > total.saturating_sub(taken)).then(|| ResourceUse {
                name: name.to_owned(),
                taken,
                total,
                shared,
            })
        })
    }

    /// Counts a build on `machine`.
    pub fn take(&mut self, machine: &str, takes: &Amounts) {
        for (name, amount, _, shared) in self.limits.limited(machine, takes) {
            let of = if shared {
                &mut self.shared
            } else {
                self.machines.entry(machine.to_owned()).or_default()
            };
            let taken = of.entry(name.to_owned()).or_default();
            *taken = taken.saturating_add(amount);
        }
    }

    /// Counts that a build has left `machine`.
    pub fn give_back(&mut self, machine: &str, takes: &Amounts) {
        for (name, amount, _, shared) in self.limits.limited(machine, takes) {
            let of = if shared { Some(&mut self.shared) } else { self.machines.get_mut(machine) };
            if let Some(taken) = of.and_then(|of| of.get_mut(name)) {
                *taken = taken.saturating_sub(amount);
            }
        }
    }

    /// Returns whether two such builds would use a common resource on `machine`.
    pub fn compete(&self, machine: &str, takes: &Amounts, others: &Amounts) -> bool {
        self.limits.limited(machine, takes).any(|(name, ..)| others.get(name).is_some())
    }

    /// Returns the resources of `machine` and the shared ones.
    pub fn of_machine(&self, machine: &str) -> Vec<ResourceUse> {
        let own = self.limits.machines.get(machine).into_iter().flat_map(Amounts::iter);
        let left = |name: &str, total: u64, shared: bool| ResourceUse {
            name: name.to_owned(),
            taken: self.taken(machine, name, shared),
            total,
            shared,
        };
        let own = own.map(|(name, total)| left(name, total, false));
        own.chain(self.limits.shared.iter().map(|(name, total)| left(name, total, true))).collect()
    }

    fn taken(&self, machine: &str, name: &str, shared: bool) -> u64 {
        let of = if shared { Some(&self.shared) } else { self.machines.get(machine) };
        of.and_then(|of| of.get(name)).copied().unwrap_or_default()
    }
}

impl ResourceUse {
    /// Formats the amounts, such as `1/2`.
    pub fn ratio(&self) -> String {
        format!("{}/{}", show(self.taken), show(self.total))
    }

    /// Returns why there is no room for another build, in lower case.
    pub fn why(&self) -> String {
        let place = if self.shared { "on all machines together" } else { "there" };
        format!("not enough {} is free {place} ({} taken)", self.name, self.ratio())
    }
}

/// Returns which entries of the tables have no effect with these machines, one sentence each, with
/// the URI of the machine if it is about one.
pub fn useless(limits: &Resources, machines: &[MachineLine]) -> Vec<(Option<String>, String)> {
    let mut found = Vec::new();
    for uri in limits.machines.keys().filter(|uri| !machines.iter().any(|line| line.uri == **uri)) {
        let known: Vec<&str> = machines.iter().map(|line| line.uri.as_str()).collect();
        let hint = hookrun_config::nearest(uri, known.iter().copied())
            .map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
        found.push((
            None,
            format!("[builders.machine-resources.\"{uri}\"] has no effect: no machine has this store URI{hint}"),
        ));
    }
    for feature in limits
        .features
        .keys()
        .filter(|feature| feature.as_str() != hookrun_config::resources::ANY_FEATURE)
    {
        let mut having = machines
            .iter()
            .filter(|line| {
                line.supported_features.contains(feature)
                    || line.mandatory_features.contains(feature)
            })
            .peekable();
        if having.peek().is_none() {
            found.push((
                None,
                format!("[builders.feature-resources.{feature}] has no effect: no machine has the feature `{feature}`"),
            ));
        }
        for line in having {
            let takes = limits.takes(std::slice::from_ref(feature));
            if let Some(why) = limits.never(&line.uri, &takes) {
                found.push((
                    Some(line.uri.clone()),
                    format!(
                        "no build that requires `{feature}` can go there: {why}; raise the amount, or remove the feature from its line"
                    ),
                ));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Resources {
        let text = "
            [builders.machine-resources.m]
            gpu = 2
            memory = \"8GiB\"
            [builders.feature-resources.cuda]
            gpu = 1
            [builders.feature-resources.big]
            gpu = 1
            memory = \"6GiB\"
            [builders.feature-resources.\"*\"]
            memory = \"1GiB\"
            [builders.feature-resources.matlab]
            licence = 1
            [builders.shared-resources]
            licence = 1";
        hookrun_config::Config::parse(Path::new("/etc/hookrun.toml"), text)
            .unwrap()
            .builders
            .resources
    }

    fn takes(features: &[&str]) -> Amounts {
        limits().takes(&features.iter().map(|feature| (*feature).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn amounts_of_features_are_added() {
        assert_eq!(takes(&[]).to_string(), "memory 1.0 GiB");
        assert_eq!(takes(&["cuda"]).to_string(), "gpu 1, memory 1.0 GiB");
        assert_eq!(takes(&["big", "cuda", "unknown"]).to_string(), "gpu 2, memory 6.0 GiB");
    }

    #[test]
    fn used_resources_are_not_assigned_again() {
        let limits = limits();
        let mut account = Account::of(&limits, []);
        let big = takes(&["big"]);
        assert_eq!(account.short("ssh://m", &big), None);
        account.take("ssh://m", &big);
        assert_eq!(account.short("ssh://m", &takes(&["cuda"])), None);
        assert_eq!(
            account.short("ssh://m", &big).unwrap().why(),
            "not enough memory is free there (6.0 GiB/8.0 GiB taken)"
        );
        assert_eq!(
            account.short("ssh://other", &big),
            None,
            "it has enough of what is not limited"
        );
        account.take("ssh://other", &takes(&["matlab"]));
        let why = account.short("ssh://m", &takes(&["matlab"])).unwrap().why();
        assert_eq!(why, "not enough licence is free on all machines together (1/1 taken)");
        assert!(
            account.compete("ssh://m", &takes(&[]), &big)
                && !account.compete("ssh://other", &takes(&[]), &big)
        );
        let before = account.clone();
        account.take("ssh://m", &takes(&["cuda"]));
        account.give_back("ssh://m", &takes(&["cuda"]));
        let ratios: Vec<String> = account
            .of_machine("ssh://m")
            .iter()
            .map(|left| format!("{} {}", left.name, left.ratio()))
            .collect();
        assert_eq!(ratios, ["gpu 1/2", "memory 6.0 GiB/8.0 GiB", "licence 1/1"]);
        assert_eq!(account.of_machine("ssh://m"), before.of_machine("ssh://m"));
    }

    #[test]
    fn a_reservation_is_valid_while_it_is_held() {
        let (limits, directory) = (limits(), tempfile::tempdir().unwrap());
        let hold = || Allocation::of(None, "ssh://m", &takes(&["big"]), &limits, directory.path());
        let short =
            || Account::now(&limits, directory.path()).short("ssh://m", &takes(&["big"])).is_some();
        let held = hold().unwrap();
        assert!(short());
        drop(held);
        assert!(!short());
        // Resources without a limit create no file.
        let _held =
            Allocation::of(None, "ssh://other", &takes(&["big"]), &limits, directory.path())
                .unwrap();
        assert_eq!(std::fs::read_dir(super::directory(directory.path())).unwrap().count(), 0);
        let refused =
            Allocation::of(None, "ssh://m", &takes(&["big"]), &limits, Path::new("/proc/nowhere"))
                .unwrap_err();
        assert!(
            refused.starts_with(
                "gpu 1, memory 6.0 GiB cannot be reserved there: /proc/nowhere/reserved: "
            ),
            "{refused}"
        );
    }

    #[test]
    fn tables_without_effect_are_reported() {
        let machines =
            hookrun_nix::machines::parse("ssh://n - - 4 1 matlab", "x86_64-linux").machines;
        let mut found = useless(&limits(), &machines);
        let machines =
            hookrun_nix::machines::parse("ssh://m - - 4 1 big,cuda,matlab", "x86_64-linux")
                .machines;
        let mut small = limits();
        small.machines.get_mut("ssh://m").unwrap().0.insert("memory".to_owned(), 1);
        found.extend(useless(&small, &machines));
        let lines: Vec<String> = found
            .into_iter()
            .map(|(machine, text)| format!("{}: {text}", machine.unwrap_or_default()))
            .collect();
        insta::assert_snapshot!(lines.join("\n"));
    }
}
