//! `hookrun inspect`: shows the identity of a plugin, the capabilities that it wants and has, and
//! the configuration lines that decide them.

use std::fmt::Write as _;

use serde::Serialize;

use super::output::{self, Format, Style, printable, styled};
use super::{CliError, Context};
use crate::testing::{Changes, Origin, Subject, SubjectError};
use hookrun_capability::grants::Effective;
use hookrun_config::limits::Unit;
use hookrun_config::{Capability, Config, Grant, Limit, Plugin, TaskOrder, Want, Wants};
use hookrun_host::examine::{ConfigKey, Examination};
use hookrun_host::{Compiler, Host};
use hookrun_nix::event::HookKind;
use hookrun_nix::exit_code::Exit;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
PLUGIN is the name of a plugin in the configuration, a file, or `bundled:NAME`. Reads the plugin;
does not run it.

Examples:
  hookrun inspect cache
  hookrun inspect bundled:email-on-nondeterminism --format json")]
pub(super) struct Args {
    /// The plugin to inspect
    plugin: String,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct InspectReport {
    name: String,
    version: String,
    description: String,
    source: String,
    /// The SHA-256 digest, in hexadecimal.
    digest: String,
    bytes: usize,
    /// The hooks that the plugin exports.
    hooks: Vec<String>,
    /// The hooks that the plugin serves; all of `hooks` unless the configuration lists some.
    serves: Vec<String>,
    /// The order in which its tasks run.
    order: TaskOrder,
    order_decided_by: DecisionSource,
    imports: Vec<String>,
    /// The line of the plugin's table; none for a plugin that is not configured.
    configured_in: Option<ConfigLine>,
    capabilities: Vec<CapabilityRow>,
    limits: Vec<LimitRow>,
    config_keys: Vec<ConfigKey>,
    /// The reason why the plugin does not load.
    problem: Option<String>,
}

/// A line of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct ConfigLine {
    file: String,
    line: Option<usize>,
}

impl std::fmt::Display for ConfigLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.file),
            None => f.write_str(&self.file),
        }
    }
}

/// The source of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
enum DecisionSource {
    /// Always granted, or the default.
    Hookrun,
    /// A line of the configuration.
    Configuration(ConfigLine),
    /// A table of the configuration that has no such line.
    NoLine(ConfigLine),
    /// The plugin, whose metadata does not want it.
    Plugin,
    /// Nothing, because the plugin is not configured.
    NotConfigured,
}

impl std::fmt::Display for DecisionSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hookrun => f.write_str("default"),
            Self::Configuration(place) => place.fmt(f),
            Self::NoLine(place) => write!(f, "no line at {place}"),
            Self::Plugin => f.write_str("its metadata"),
            Self::NotConfigured => f.write_str("not in a configuration"),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct CapabilityRow {
    name: &'static str,
    /// `no`, `optional`, `required`, or a scope.
    wanted: &'static str,
    /// Names, a scope, or `yes`; empty if it is not granted.
    granted: Vec<String>,
    effective: Vec<String>,
    decided_by: DecisionSource,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct LimitRow {
    key: &'static str,
    /// The unit: bytes, milliseconds or items.
    unit: &'static str,
    value: u64,
    default: u64,
    #[serde(skip)]
    limit: Limit,
    decided_by: DecisionSource,
    bounds: &'static str,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let host = Host::for_tests(Compiler::Contained(None));
    let subject = Subject::find(&args.plugin, &context.files(), &host, &Changes::default())
        .map_err(super::test::subject_error)?;
    super::test::print_notes(&subject);
    let report = gather(&subject, &host)?;
    match args.format {
        Format::Json => output::json(&report)?,
        Format::Text => output::print(&text(&report, output::colours()))?,
    }
    Ok(if report.problem.is_some() { Exit::Configuration } else { Exit::Done })
}

fn gather(subject: &Subject, host: &Host) -> Result<InspectReport, CliError> {
    let Subject { plugin, config, .. } = subject;
    let configured = subject.origin == Origin::Configured;
    let (component, examination) = subject.examine(host).map_err(|error| match error {
        SubjectError::NoPlugin { .. } => CliError::configuration(error.to_string()),
        error => super::test::subject_error(error),
    })?;
    let opened = host.open(plugin, config);
    let Examination { description, keys, .. } = examination;
    let metadata = &description.metadata;
    let hooks = |hooks: &[HookKind]| hooks.iter().map(ToString::to_string).collect::<Vec<_>>();
    Ok(InspectReport {
        name: metadata.name.clone(),
        version: metadata.version.clone(),
        description: metadata.description.clone(),
        source: plugin.source.to_string(),
        digest: component.digest().to_owned(),
        bytes: component.length(),
        hooks: hooks(&description.exports),
        serves: hooks(if plugin.hooks.is_empty() { &description.exports } else { &plugin.hooks }),
        order: plugin.order.unwrap_or(metadata.order),
        order_decided_by: match plugin.order {
            Some(_) => {
                DecisionSource::Configuration(place(config, &["plugins", &plugin.name, "order"]))
            }
            None => DecisionSource::Plugin,
        },
        imports: description.imports.clone(),
        configured_in: configured.then(|| place(config, &["plugins", &plugin.name])),
        capabilities: capabilities(config, plugin, &metadata.wants, configured),
        limits: limits(config, plugin),
        config_keys: keys,
        problem: opened.err().map(|error| subject.explain(error)),
    })
}

/// Returns the line of `keys`, or of the nearest table above.
fn place(config: &Config, keys: &[&str]) -> ConfigLine {
    ConfigLine { file: config.path.display().to_string(), line: config.line_of(keys) }
}

fn capabilities(
    config: &Config,
    plugin: &Plugin,
    wants: &Wants,
    configured: bool,
) -> Vec<CapabilityRow> {
    // A plugin that is not configured gets what it wants, only to find out whether it loads. The
    // report shows no grants for it.
    let grant = if configured { plugin.grant.clone() } else { Grant::default() };
    let effective = Effective::of(wants, &grant);
    let always = |name| CapabilityRow {
        name,
        wanted: "always",
        granted: vec!["yes".to_owned()],
        effective: vec!["yes".to_owned()],
        decided_by: DecisionSource::Hookrun,
    };
    let row = |capability: Capability| {
        let keys = ["plugins", plugin.name.as_str(), "grant", capability.name()];
        let decided_by = if wants.of(capability) == Want::No {
            DecisionSource::Plugin
        } else if !configured {
            DecisionSource::NotConfigured
        } else if config.exact_line_of(&keys).is_some() {
            DecisionSource::Configuration(place(config, &keys))
        } else {
            DecisionSource::NoLine(place(config, &keys))
        };
        CapabilityRow {
            name: capability.name(),
            wanted: match (capability, wants.of(capability)) {
                (Capability::NixStore, Want::Required) => wants.nix_store.as_str(),
                (_, want) => want.as_str(),
            },
            granted: capability.granted(&grant),
            effective: capability.granted(&effective),
            decided_by,
        }
    };
    [always("log"), always("config")].into_iter().chain(Capability::ALL.map(row)).collect()
}

fn limits(config: &Config, plugin: &Plugin) -> Vec<LimitRow> {
    let row = |limit: &Limit| LimitRow {
        key: limit.key(),
        unit: match limit.unit() {
            Unit::Bytes => "bytes",
            Unit::Time => "milliseconds",
            Unit::Count => "count",
        },
        value: plugin.limits.get(*limit),
        default: limit.default(),
        limit: *limit,
        decided_by: if plugin.limits.is_set(*limit) {
            DecisionSource::Configuration(place(
                config,
                &["plugins", &plugin.name, "limits", limit.key()],
            ))
        } else {
            DecisionSource::Hookrun
        },
        bounds: limit.doc().trim(),
    };
    Limit::ALL.iter().map(row).collect()
}

fn text(report: &InspectReport, colours: bool) -> String {
    let mut text = String::new();
    let heading = |words: &str| styled(words, Style::Strong, colours);
    let faint = |words: &str| styled(words, Style::Faint, colours);
    let identity = format!("{} {}", heading(&printable(&report.name)), printable(&report.version));
    let _ =
        writeln!(text, "{}", format!("{identity}  {}", printable(&report.description)).trim_end());
    let mut rows = vec![
        vec![faint("source"), report.source.clone()],
        vec![faint("digest"), report.digest.clone()],
        vec![faint("size"), output::bytes(report.bytes as u64)],
        vec![faint("hooks"), hooks(report)],
    ];
    if report.order != TaskOrder::Any {
        rows.push(vec![
            faint("order"),
            format!("{}, by {}", report.order, report.order_decided_by),
        ]);
    }
    if let Some(place) = &report.configured_in {
        rows.push(vec![faint("configured in"), place.to_string()]);
    }
    text.push_str(&output::table(&rows));
    let head = |words: &[&str]| words.iter().map(|word| faint(word)).collect::<Vec<_>>();
    let _ = writeln!(text, "\n{}", heading("capabilities"));
    let mut rows = vec![head(&["", "wanted", "granted", "effective", "decided by"])];
    let names = |names: &[String]| {
        if names.is_empty() { "no".to_owned() } else { printable(&names.join(", ")) }
    };
    for CapabilityRow { name, wanted, granted, effective, decided_by } in &report.capabilities {
        let style = if effective.is_empty() { Style::Faint } else { Style::Good };
        rows.push(vec![
            (*name).to_owned(),
            (*wanted).to_owned(),
            names(granted),
            styled(&names(effective), style, colours),
            decided_by.to_string(),
        ]);
    }
    text.push_str(&output::table(&rows));
    let _ = writeln!(text, "\n{}", heading("limits"));
    let mut rows = vec![head(&["", "value", "decided by", "bounds"])];
    for LimitRow { key, unit: _, value, default, limit, decided_by, bounds } in &report.limits {
        let decided_by = match decided_by {
            DecisionSource::Hookrun => decided_by.to_string(),
            _ => format!("{decided_by} (default {})", limit.show(*default)),
        };
        rows.push(vec![(*key).to_owned(), limit.show(*value), decided_by, (*bounds).to_owned()]);
    }
    text.push_str(&output::table(&rows));
    if !report.config_keys.is_empty() {
        let _ = writeln!(text, "\n{}", heading("its configuration"));
        let mut rows = vec![head(&["", "default", "meaning"])];
        for ConfigKey { key, required, default, description } in &report.config_keys {
            let default = match (required, default) {
                (true, _) => "required".to_owned(),
                (false, Some(default)) => default.to_string(),
                (false, None) => String::new(),
            };
            rows.push(vec![printable(key), printable(&default), printable(description)]);
        }
        text.push_str(&output::table(&rows));
    }
    if let Some(problem) = &report.problem {
        let _ = writeln!(
            text,
            "\n{}: {}",
            styled("does not load", Style::Bad, colours),
            printable(problem)
        );
    }
    text
}

/// Formats the exported hooks, and the served ones if they are fewer.
fn hooks(report: &InspectReport) -> String {
    let all = report.hooks.join(", ");
    if report.serves == report.hooks {
        all
    } else {
        format!("{all}; serves {} only", report.serves.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Files;
    use hookrun_nix::dirs::Dirs;

    const CONFIGURATION: &str = r#"
[plugins.cache]
source = "bundled:s3-upload"
config = { bucket = "cache" }
[plugins.cache.grant]
nix-store = "closure"
object-store = ["cache"]
mail = ["default"]
[plugins.cache.limits]
memory = "64MiB"
[plugins.bare]
source = "bundled:email-on-nondeterminism"
hooks = ["diff"]
[object-stores.cache]
[mail.default]
"#;

    fn report(name: &str) -> InspectReport {
        let file = std::path::Path::new("/etc/hookrun/hookrun.toml");
        let config = Config::parse(file, CONFIGURATION).unwrap();
        let empty = tempfile::tempdir().unwrap();
        let dirs = Dirs { config: file.to_owned(), state: empty.path().to_owned() };
        let host = Host::new(&dirs, Compiler::InProcess);
        let subject = match config.plugins.get(name).cloned() {
            Some(plugin) => {
                Subject { plugin, config, origin: Origin::Configured, notes: Vec::new() }
            }
            None => {
                let directory = tempfile::tempdir().unwrap();
                let files = Files { config: file, chosen: false, directory: directory.path() };
                Subject::find(name, &files, &host, &Changes::default()).unwrap()
            }
        };
        let report = gather(&subject, &host).unwrap();
        // The digest changes with every build of the plugin.
        assert_eq!(report.digest.len(), 64);
        InspectReport {
            digest: "DIGEST".to_owned(),
            bytes: 200 << 10,
            imports: vec!["wasi:io/poll@0.2.12".to_owned()],
            ..report
        }
    }

    #[test]
    fn the_text_report_is_complete() {
        for name in ["cache", "bare", "bundled:speed-factor"] {
            let snapshot = format!("text_of_{}", name.replace(':', "_"));
            insta::assert_snapshot!(snapshot, text(&report(name), false));
        }
    }

    #[test]
    fn the_json_report_is_complete() {
        insta::assert_json_snapshot!(report("cache"));
    }
}
