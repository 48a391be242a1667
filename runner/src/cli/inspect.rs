//! `hookrun inspect`: who a plugin is, what it wants, what it has, and which line decides.

use std::fmt::Write as _;

use serde::Serialize;

use super::output::{self, Format, Style, printable, styled};
use super::{CliError, Context};
use crate::config::{Config, Limit, StoreScope};
use crate::exit_code::Exit;
use crate::plugin::{Artifact, metadata};
use crate::testing::Subject;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
PLUGIN is the name of a plugin in the configuration, a file, or `bundled:NAME`. Reads the plugin; does not run it.

Examples:
  hookrun inspect cache
  hookrun inspect bundled:email-on-nondeterminism --format json")]
pub(super) struct Args {
    /// What to look at
    plugin: String,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    name: String,
    version: String,
    description: String,
    source: String,
    digest: String,
    bytes: usize,
    hooks: Vec<String>,
    imports: Vec<String>,
    /// The configuration that decides; none for a plugin that is in no configuration.
    configured_in: Option<String>,
    capabilities: Vec<Capability>,
    limits: Vec<LimitRow>,
    config_keys: Vec<ConfigKey>,
    /// Why it would not load.
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Capability {
    name: &'static str,
    wanted: String,
    granted: String,
    effective: String,
    /// Such as `/etc/hookrun/hookrun.toml:12`.
    decided_by: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct LimitRow {
    key: &'static str,
    value: u64,
    shown: String,
    decided_by: String,
    bounds: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct ConfigKey {
    key: String,
    required: bool,
    default: Option<serde_json::Value>,
    description: String,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let subject = Subject::find(&args.plugin, &context.dirs.config, &[], &[]).map_err(super::test::subject_error)?;
    let configured = !std::path::Path::new(&args.plugin).is_file() && !args.plugin.starts_with("bundled:");
    let report = gather(&subject, configured)?;
    match args.format {
        Format::Json => output::json(&report)?,
        Format::Text => output::print(&text(&report, output::colours()))?,
    }
    Ok(if report.problem.is_some() { Exit::Configuration } else { Exit::Done })
}

fn gather(subject: &Subject, configured: bool) -> Result<Report, CliError> {
    let Subject { plugin, config } = subject;
    let wasm = subject.component().map_err(super::test::subject_error)?;
    let description = metadata::describe(&wasm)
        .map_err(|reason| CliError::configuration(format!("plugin `{}` ({}) {reason}", plugin.name, plugin.source)))?;
    let opened = Artifact::open(plugin, config);
    let metadata = &description.metadata;
    Ok(Report {
        name: metadata.name.clone(),
        version: metadata.version.clone(),
        description: metadata.description.clone(),
        source: plugin.source.to_string(),
        digest: crate::plugin::artifact::digest(&wasm),
        bytes: wasm.len(),
        hooks: description.exports.iter().map(ToString::to_string).collect(),
        imports: description.imports.clone(),
        configured_in: configured.then(|| config.path.display().to_string()),
        capabilities: capabilities(config, plugin, metadata, configured),
        limits: limits(config, plugin),
        config_keys: config_keys(metadata.config_schema.as_ref()),
        problem: opened.err().map(|error| error.to_string()),
    })
}

fn capabilities(
    config: &Config,
    plugin: &crate::config::Plugin,
    metadata: &metadata::Metadata,
    configured: bool,
) -> Vec<Capability> {
    use crate::plugin::grants::Want;
    let wants = &metadata.wants;
    let grant = &plugin.grant;
    let decided_by = |key: &str| {
        if !configured {
            return "nobody yet: not in a configuration".to_owned();
        }
        let keys = ["plugins", plugin.name.as_str(), "grant", key];
        match config.line_of(&keys) {
            Some(line) => format!("{}:{line}", config.path.display()),
            None => format!("{} (no such line)", config.path.display()),
        }
    };
    let word = |want: Want| match want {
        Want::No => "no",
        Want::Optional => "optional",
        Want::Required => "yes",
    };
    let scope = |scope: StoreScope| match scope {
        StoreScope::None => "no",
        StoreScope::Outputs => "outputs",
        StoreScope::Closure => "closure",
    };
    let names = |names: &[String]| if names.is_empty() { "no".to_owned() } else { names.join(", ") };
    let named = |name, key, want: Want, granted: &[String]| Capability {
        name,
        wanted: word(want).to_owned(),
        granted: names(granted),
        effective: if want == Want::No { "no".to_owned() } else { names(granted) },
        decided_by: decided_by(key),
    };
    let always = |name| Capability {
        name,
        wanted: "yes".to_owned(),
        granted: "always".to_owned(),
        effective: "yes".to_owned(),
        decided_by: "hookrun".to_owned(),
    };
    let reaches = if grant.nix_store == StoreScope::Closure || grant.nix_store == wants.nix_store {
        wants.nix_store
    } else {
        grant.nix_store
    };
    vec![
        always("log"),
        always("config"),
        Capability {
            name: "state",
            wanted: word(wants.state).to_owned(),
            granted: if grant.state { "yes" } else { "no" }.to_owned(),
            effective: if grant.state && wants.state != Want::No { "yes" } else { "no" }.to_owned(),
            decided_by: decided_by("state"),
        },
        Capability {
            name: "nix-store",
            wanted: scope(wants.nix_store).to_owned(),
            granted: scope(grant.nix_store).to_owned(),
            effective: if wants.nix_store == StoreScope::None { "no" } else { scope(reaches) }.to_owned(),
            decided_by: decided_by("nix-store"),
        },
        named("object-store", "object-store", wants.object_store, &grant.object_store),
        named("signing", "signing", wants.signing, &grant.signing),
        named("mail", "mail", wants.mail, &grant.mail),
    ]
}

fn limits(config: &Config, plugin: &crate::config::Plugin) -> Vec<LimitRow> {
    let row = |limit: &Limit| {
        let value = plugin.limits.get(*limit);
        let line = config.line_of(&["plugins", &plugin.name, "limits", limit.key()]);
        LimitRow {
            key: limit.key(),
            value,
            shown: limit.show(value),
            decided_by: match (plugin.limits.is_set(*limit), line) {
                (true, Some(line)) => format!("{}:{line}", config.path.display()),
                _ => "default".to_owned(),
            },
            bounds: limit.doc().trim(),
        }
    };
    Limit::ALL.iter().map(row).collect()
}

/// The properties of a JSON schema's object, one level deep, as a table can show them.
fn config_keys(schema: Option<&serde_json::Value>) -> Vec<ConfigKey> {
    let Some(properties) = schema.and_then(|schema| schema.get("properties")?.as_object()) else { return Vec::new() };
    let required = |key: &str| {
        let names = schema.and_then(|schema| schema.get("required")?.as_array());
        names.is_some_and(|names| names.iter().any(|name| name == key))
    };
    let row = |(key, property): (&String, &serde_json::Value)| ConfigKey {
        key: key.clone(),
        required: required(key),
        default: property.get("default").cloned(),
        description: property.get("description").and_then(|text| text.as_str()).unwrap_or_default().to_owned(),
    };
    properties.iter().map(row).collect()
}

fn text(report: &Report, colours: bool) -> String {
    let mut text = String::new();
    let heading = |words: &str| styled(words, Style::Strong, colours);
    let faint = |words: &str| styled(words, Style::Faint, colours);
    let _ = writeln!(
        text,
        "{} {}  {}",
        heading(&printable(&report.name)),
        printable(&report.version),
        printable(&report.description)
    );
    let mut rows = vec![
        vec![faint("source"), report.source.clone()],
        vec![faint("digest"), report.digest.clone()],
        vec![faint("size"), output::bytes(report.bytes as u64)],
        vec![faint("hooks"), report.hooks.join(", ")],
    ];
    if let Some(file) = &report.configured_in {
        rows.push(vec![faint("configured in"), file.clone()]);
    }
    text.push_str(&output::table(&rows));
    let head = |words: &[&str]| words.iter().map(|word| faint(word)).collect::<Vec<_>>();
    let _ = writeln!(text, "\n{}", heading("capabilities"));
    let mut rows = vec![head(&["", "wanted", "granted", "effective", "decided by"])];
    for Capability { name, wanted, granted, effective, decided_by } in &report.capabilities {
        let style = if effective == "no" { Style::Faint } else { Style::Good };
        rows.push(vec![
            (*name).to_owned(),
            wanted.clone(),
            granted.clone(),
            styled(effective, style, colours),
            decided_by.clone(),
        ]);
    }
    text.push_str(&output::table(&rows));
    let _ = writeln!(text, "\n{}", heading("limits"));
    let mut rows = vec![head(&["", "value", "decided by", "bounds"])];
    for LimitRow { key, value: _, shown, decided_by, bounds } in &report.limits {
        rows.push(vec![(*key).to_owned(), shown.clone(), decided_by.clone(), (*bounds).to_owned()]);
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
        let _ = writeln!(text, "\n{}: {}", styled("does not load", Style::Bad, colours), printable(problem));
    }
    text
}
