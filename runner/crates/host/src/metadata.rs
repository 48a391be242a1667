//! The metadata section of a plugin, the hooks that it exports and its imports, read without
//! running it.
//!
//! The section `hookrun:metadata` is JSON. The SDK's macro writes it into the core module; tools
//! for other languages may put it on the component. It is untrusted data. A contained process
//! ([`super::examine`]) reads it, its size is limited, it is parsed strictly, and grants do not
//! depend on it alone ([`hookrun_capability::grants`]).

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use wasmparser::{Encoding, Parser, Payload};

use hookrun_capability::grants::Wants;
use hookrun_config::TaskOrder;
use hookrun_nix::event::HookKind;
use hookrun_nix::terminal::{obeyed, printable};

/// The name of the section.
pub const SECTION: &str = "hookrun:metadata";
/// The version of its format.
pub const FORMAT: u32 = 1;
/// Maximum size of the section in bytes. A schema of this size describes hundreds of keys.
const MAX_LENGTH: usize = 256 << 10;

/// The metadata of a plugin.
///
/// Keys that a later SDK adds are ignored, but unknown capabilities in `wants` are an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Metadata {
    /// [`FORMAT`].
    #[serde(default = "format")]
    pub format: u32,
    pub name: String,
    pub version: String,
    #[serde(default)]
    pub description: String,
    pub hooks: Vec<HookKind>,
    #[serde(default)]
    pub wants: Wants,
    /// The order of its tasks, unless the configuration sets another one.
    #[serde(default)]
    pub order: TaskOrder,
    /// The JSON schema of its `config` table.
    #[serde(default)]
    pub config_schema: Option<serde_json::Value>,
}

/// Returns the format of metadata that do not name it, which only a file for [`super::pack`] may
/// leave out.
fn format() -> u32 {
    FORMAT
}

/// The metadata, exports and imports of a component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Description {
    pub metadata: Metadata,
    pub exports: Vec<HookKind>,
    /// All its imports, such as `hookrun:host/log@0.1.0`: an upper bound of what it can use.
    pub imports: Vec<String>,
}

/// The version alone, so that a later format gets a message of its own.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Returns the interface that a component exports to serve `hook`.
pub const fn interface(hook: HookKind) -> &'static str {
    match hook {
        HookKind::PostBuild => "hookrun:post-build/post-build@0.1.0",
        HookKind::Diff => "hookrun:diff/diff@0.1.0",
        HookKind::BuilderSelection => "hookrun:builder-selection/builder-selection@0.1.0",
    }
}

/// Reads the description of a component.
///
/// # Errors
/// Returns a fragment with the problem and the fix for the plugin's author.
pub fn describe(wasm: &[u8]) -> Result<Description, String> {
    if !wasm.starts_with(b"\0asm") {
        return Err("is not WebAssembly; name a component, as `cargo build --target wasm32-wasip2` makes it".to_owned());
    }
    let mut depth = 0_usize;
    let (mut own, mut nested) = (None, None);
    let (mut exports, mut imports) = (Vec::new(), Vec::new());
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(|error| format!("is damaged ({error}); build it again"))? {
            Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => {
                return Err(core_module(wasm));
            }
            Payload::Version { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::CustomSection(section) if section.name() == SECTION => {
                let place = if depth == 1 { &mut own } else { &mut nested };
                place.get_or_insert(section.data());
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    let name = export
                        .map_err(|error| format!("is damaged ({error}); build it again"))?
                        .name
                        .name;
                    exports.push(name.to_owned());
                }
            }
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    let name = import
                        .map_err(|error| format!("is damaged ({error}); build it again"))?
                        .name
                        .name;
                    imports.push(name.to_owned());
                }
            }
            _ => {}
        }
    }
    if let Some(problem) = imports.iter().find_map(|import| not_offered(import)) {
        return Err(problem);
    }
    let Some(section) = own.or(nested) else {
        return Err(format!(
            "has no section `{SECTION}`; use `hookrun_sdk::plugin!`, or add it with `hookrun pack`"
        ));
    };
    let metadata = parse(section)?;
    let hooks: Vec<HookKind> = HookKind::ALL
        .into_iter()
        .filter(|hook| exports.iter().any(|export| export == interface(*hook)))
        .collect();
    if let Some(missing) = metadata.hooks.iter().find(|hook| !hooks.contains(hook)) {
        let near = exports.iter().find(|export| export.starts_with(&format!("hookrun:{missing}/")));
        let found =
            near.map_or_else(|| "it does not".to_owned(), |near| format!("it exports `{near}`"));
        return Err(format!(
            "names the hook `{missing}` in its metadata and must export `{}`; {found}: build it with the SDK of this release",
            interface(*missing)
        ));
    }
    if hooks.is_empty() {
        return Err(
            "exports no hook; implement `post-build`, `diff` or `builder-selection`".to_owned()
        );
    }
    Ok(Description { metadata, exports: hooks, imports })
}

/// Describes what the author of a core module does about it.
fn core_module(wasm: &[u8]) -> String {
    let is_preview1 = Parser::new(0).parse_all(wasm).filter_map(Result::ok).any(|payload| {
        let Payload::ImportSection(section) = payload else { return false };
        section
            .into_imports()
            .filter_map(Result::ok)
            .any(|import| import.module == "wasi_snapshot_preview1")
    });
    if is_preview1 {
        return "is a core module of WASI preview 1, not a component; build with --target wasm32-wasip2, or make a \
                component of it with `wasm-tools component new --adapt wasi_snapshot_preview1.reactor.wasm`"
            .to_owned();
    }
    "is a core module, not a component; build with --target wasm32-wasip2, or make a component of it with \
     `wasm-tools component new`"
        .to_owned()
}

/// Describes an import of a version that this hookrun does not offer; none if it may be offered.
fn not_offered(import: &str) -> Option<String> {
    let (interface, version) = import.split_once('@')?;
    if interface.starts_with("wasi:") && version.starts_with("0.3") {
        return Some(format!(
            "imports `{import}`, which is WASI 0.3, and hookrun offers WASI 0.2; build it for WASI 0.2, without async functions \
             (with cargo: --target wasm32-wasip2)"
        ));
    }
    let package = interface.split('/').next().unwrap_or_default();
    if package == "hookrun:host" && !version.starts_with("0.1.") {
        return Some(format!(
            "imports `{import}`, and this hookrun offers `{interface}@0.1.0`; use the release of hookrun that belongs to the plugin's \
             SDK, or build the plugin with hookrun-sdk 0.1"
        ));
    }
    None
}

fn parse(section: &[u8]) -> Result<Metadata, String> {
    if section.len() > MAX_LENGTH {
        return Err(format!(
            "has metadata of {} bytes; at most {MAX_LENGTH} are read",
            section.len()
        ));
    }
    let wrong = |error: serde_json::Error| unreadable(section, &error);
    let Format { format } = serde_json::from_slice(section).map_err(wrong)?;
    if format != FORMAT {
        return Err(format!(
            "has metadata of format {format}, and this hookrun reads format {FORMAT}; use a matching release"
        ));
    }
    let metadata: Metadata = serde_json::from_slice(section).map_err(wrong)?;
    let Metadata {
        name,
        version,
        description,
        format: _,
        hooks: _,
        wants: _,
        order: _,
        config_schema: _,
    } = &metadata;
    for (key, text) in [("name", name), ("version", version), ("description", description)] {
        if text.chars().any(obeyed) {
            let shown = printable(text);
            return Err(format!(
                "has metadata whose `{key}` holds control characters (`{shown}`); its author must write plain text"
            ));
        }
    }
    Ok(metadata)
}

/// Returns the reason why the section cannot be read, and the fix for the plugin's author.
fn unreadable(section: &[u8], error: &serde_json::Error) -> String {
    let mut values = serde_json::Deserializer::from_slice(section).into_iter::<IgnoredAny>();
    if matches!(values.next(), Some(Ok(_))) {
        let rest = section.get(values.byte_offset()..).unwrap_or_default();
        if !rest.trim_ascii().is_empty() {
            return "has the metadata of more than one plugin; use `plugin!` once, with all hooks in its list"
                .to_owned();
        }
    }
    // serde_json counts lines from the beginning of the section, which the author does not see.
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    if error.is_data() {
        return format!(
            "has metadata that this hookrun does not know ({what}); use the release of hookrun that belongs to the plugin's SDK, or build \
             the plugin with the SDK of this release"
        );
    }
    match schema_before(section, error) {
        Some(schema) => {
            let line = schema.split(|byte| *byte == b'\n').count();
            format!(
                "has a `config_schema` that is not JSON ({what}, in its line {line}); its author must correct it"
            )
        }
        None => format!("has a metadata section that is not JSON ({what}); build it again"),
    }
}

/// Returns the part of the configuration schema before the error, if the error is inside the
/// schema.
fn schema_before<'a>(section: &'a [u8], error: &serde_json::Error) -> Option<&'a [u8]> {
    const KEY: &[u8] = b",\"config-schema\":";
    let start = section.windows(KEY.len()).position(|part| part == KEY)? + KEY.len();
    let lines = section.split_inclusive(|byte| *byte == b'\n').take(error.line().saturating_sub(1));
    let end = lines.map(<[u8]>::len).sum::<usize>() + error.column();
    section.get(start..end.min(section.len()))
}

#[cfg(test)]
mod tests;
