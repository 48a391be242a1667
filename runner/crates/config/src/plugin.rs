//! `[plugins.NAME]`: where a plugin comes from, which hooks it serves, what it may do and how it is
//! retried.

use std::path::PathBuf;
use std::time::Duration;

use super::http::HttpGrant;
use super::limits::Limits;
use hookrun_nix::event::HookKind;

/// One plugin of the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Plugin {
    /// The name in the configuration.
    pub name: String,
    /// Where the component is.
    pub source: PluginSource,
    /// The hooks it serves; empty: all that it exports.
    pub hooks: Vec<HookKind>,
    /// Which events it gets.
    pub filter: Filter,
    /// How it is retried.
    pub retry: Retry,
    /// Runs of it at once; none: as many as the worker has places for it.
    pub concurrency: Option<usize>,
    /// In which order its tasks run; none: as it asks for itself.
    pub order: Option<TaskOrder>,
    /// May its failure fail the build? It then runs inside the hook. Only for post-build.
    pub gate: bool,
    /// Its own table, as JSON.
    pub config: serde_json::Value,
    /// What it may do.
    pub grant: Grant,
    /// Its limits.
    pub limits: Limits,
}

/// Where a component is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PluginSource {
    /// Compiled into this binary: `bundled:s3-upload`.
    Bundled(String),
    /// A file; relative paths are taken from the configuration's directory.
    File(PathBuf),
}

impl std::fmt::Display for PluginSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bundled(name) => write!(f, "bundled:{name}"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// How much of the Nix store a plugin may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreScope {
    /// Nothing.
    #[default]
    None,
    /// The event's derivation and outputs.
    Outputs,
    /// Everything they reach.
    Closure,
}

/// What a plugin may do. The default is nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Grant {
    /// How much of the Nix store it may read.
    pub nix_store: StoreScope,
    /// Names of `[object-stores]`.
    pub object_store: Vec<String>,
    /// Names of `[signing-keys]`.
    pub signing: Vec<String>,
    /// Names of `[mail]` transports.
    pub mail: Vec<String>,
    /// A durable key-value store of its own?
    pub state: bool,
    /// Where it may send HTTP requests.
    pub http: Vec<HttpGrant>,
}

/// Which events a plugin gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// A pattern for the derivation's name, `*` and `?`; a leading `!` turns it round.
    pub name: Option<String>,
    /// Outputs whose NARs are larger together are not handed over, in bytes.
    pub max_nar_size: Option<u64>,
}

impl Filter {
    /// Does the name pass?
    pub fn admits_name(&self, name: &str) -> bool {
        match self.name.as_deref() {
            None => true,
            Some(pattern) => match pattern.strip_prefix('!') {
                Some(excluded) => !glob(excluded, name),
                None => glob(pattern, name),
            },
        }
    }
}

/// `*` for any run of characters, `?` for one.
fn glob(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    // The classic two-pointer match: on a mismatch go back to the last `*` and let it take one
    // character more.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(wanted) if *wanted == '?' || text.get(t) == Some(wanted) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((star_p, star_t)) => {
                    p = star_p + 1;
                    t = star_t + 1;
                    star = Some((star_p, star_t + 1));
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).is_some_and(|rest| rest.iter().all(|c| *c == '*'))
}

/// In which order a plugin's tasks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskOrder {
    /// As they come, several at once, a failed one later.
    #[default]
    Any,
    /// What a build depends on has ended before the build's own task begins.
    DependenciesFirst,
}

impl std::fmt::Display for TaskOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Any => "any",
            Self::DependenciesFirst => "dependencies-first",
        })
    }
}

/// How a plugin's tasks are retried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all before a task becomes a dead letter.
    pub attempts: u32,
    /// Delay before the second attempt; doubles from there.
    pub min_delay: Duration,
    /// The longest delay.
    pub max_delay: Duration,
    /// A task whose attempts fail transiently for so long is given up, whatever number is left:
    /// while a service is down for all of a plugin's tasks, attempts are not counted.
    pub give_up_after: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        // 20 attempts with delays up to 15 minutes last about 3.5 hours.
        Self {
            attempts: 20,
            min_delay: Duration::from_secs(1),
            max_delay: Duration::from_mins(15),
            give_up_after: Duration::from_hours(7 * 24),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_filter() {
        let filter = |pattern: &str| Filter { name: Some(pattern.into()), max_nar_size: None };
        assert!(filter("!*-iso").admits_name("hello-2.12"));
        assert!(!filter("!*-iso").admits_name("nixos-iso"));
        assert!(filter("linux-*.?").admits_name("linux-6.1.2"));
        assert!(!filter("linux-*").admits_name("linu"));
        assert!(filter("*a*b*").admits_name("xxaxxbxx"));
        assert!(Filter::default().admits_name("anything"));
    }
}
