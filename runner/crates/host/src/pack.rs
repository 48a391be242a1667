//! Adds the metadata section to a component, for languages other than Rust.
//!
//! The metadata are written as TOML (`plugin.toml`), and stored as JSON in the custom section
//! [`SECTION`] at the end of the component. A section that is there already is replaced.
//! [`super::metadata`] reads it.

use super::metadata::{FORMAT, Metadata, SECTION};

/// The preamble of a component: magic number, version 13, layer 1.
const COMPONENT: [u8; 8] = *b"\0asm\x0d\0\x01\0";
/// The id of a custom section.
const CUSTOM: u8 = 0;

/// Returns the component with the metadata.
///
/// # Errors
/// A fragment that names the problem and the fix; the first part tells whether it is about the
/// component or about the metadata.
pub fn pack(wasm: &[u8], metadata: &str) -> Result<Vec<u8>, PackError> {
    let json = json(metadata).map_err(PackError::Metadata)?;
    let mut packed = without_section(wasm).map_err(PackError::Component)?;
    let mut section = leb(SECTION.len());
    section.extend(SECTION.as_bytes());
    section.extend(json.as_bytes());
    packed.push(CUSTOM);
    packed.extend(leb(section.len()));
    packed.extend(section);
    Ok(packed)
}

/// Why a component cannot be packed: a fragment with the fix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackError {
    /// The component is not one.
    Component(String),
    /// The metadata are not valid.
    Metadata(String),
}

/// Returns the metadata as JSON, checked.
fn json(text: &str) -> Result<String, String> {
    let problem = |error: &toml::de::Error| {
        let line = error
            .span()
            .map_or(1, |span| text.get(..span.start).unwrap_or_default().matches('\n').count() + 1);
        format!("line {line}: {}", error.message().replace('\n', " "))
    };
    let metadata: Metadata = toml::from_str(text).map_err(|error| problem(&error))?;
    if metadata.format != FORMAT {
        return Err(format!(
            "format {} is not {FORMAT}; write `format = {FORMAT}`",
            metadata.format
        ));
    }
    if metadata.hooks.is_empty() {
        return Err("`hooks` is empty; write for example `hooks = [\"post-build\"]`".to_owned());
    }
    serde_json::to_string(&metadata).map_err(|error| error.to_string())
}

/// Returns the component without its own metadata section.
fn without_section(wasm: &[u8]) -> Result<Vec<u8>, String> {
    if !wasm.starts_with(&COMPONENT) {
        return Err("is not a component; build it with the component tools of its language first"
            .to_owned());
    }
    let damaged = || "is damaged; build it again".to_owned();
    let mut kept = COMPONENT.to_vec();
    let mut rest = wasm.get(COMPONENT.len()..).unwrap_or_default();
    while let Some((id, after)) = rest.split_first() {
        let (length, body) = read_leb(after).ok_or_else(damaged)?;
        let content = body.get(..length).ok_or_else(damaged)?;
        let whole = rest.len() - body.len() + length;
        let is_ours = *id == CUSTOM
            && read_leb(content).and_then(|(length, name)| name.get(..length))
                == Some(SECTION.as_bytes());
        if !is_ours {
            kept.extend(rest.get(..whole).unwrap_or_default());
        }
        rest = rest.get(whole..).unwrap_or_default();
    }
    Ok(kept)
}

/// Writes an unsigned number in LEB128.
fn leb(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or_default();
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// Reads an unsigned number of at most 32 bits in LEB128, and returns the rest.
fn read_leb(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0_u64;
    for (place, byte) in bytes.iter().enumerate().take(5) {
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((usize::try_from(value).ok()?, bytes.get(place + 1..)?));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata;

    const PLUGIN: &str = "name = \"x\"\nversion = \"1\"\nhooks = [\"post-build\"]\nwants = { http = \"required\" }\n[config-schema]\ntype = \"object\"\n";

    #[test]
    fn a_component_gets_its_metadata_and_a_second_time_others() {
        let custom = b"\0\x03\x01xy";
        let component = [&COMPONENT[..], custom].concat();
        let once = pack(&component, PLUGIN).unwrap();
        assert!(once.starts_with(&component));
        // It has no hook yet, so its metadata were read.
        let problem = metadata::describe(&once).unwrap_err();
        assert!(problem.contains("must export `hookrun:post-build/post-build@0.1.0`"), "{problem}");
        let again = pack(&once, &PLUGIN.replace("\"x\"", "\"other\"")).unwrap();
        assert_eq!(again.len(), once.len() + 4);
        assert!(again.starts_with(&component));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let wrong = |wasm: &[u8], text: &str| match pack(wasm, text).unwrap_err() {
            PackError::Component(what) => format!("component {what}"),
            PackError::Metadata(what) => format!("metadata {what}"),
        };
        insta::assert_snapshot!(wrong(b"\0asm\x01\0\0\0", PLUGIN), @"component is not a component; build it with the component tools of its language first");
        insta::assert_snapshot!(wrong(b"\0asm\x0d\0\x01\0\x01\x05", PLUGIN), @"component is damaged; build it again");
        insta::assert_snapshot!(wrong(&COMPONENT, "name = \"x\"\nversion = 1"), @"metadata line 2: invalid type: integer `1`, expected a string");
        insta::assert_snapshot!(wrong(&COMPONENT, "name = \"x\""), @"metadata line 1: missing field `version`");
        insta::assert_snapshot!(wrong(&COMPONENT, &PLUGIN.replace("post-build", "postbuild")), @"metadata line 3: unknown variant `postbuild`, expected one of `post-build`, `diff`, `builder-selection`");
        insta::assert_snapshot!(wrong(&COMPONENT, &PLUGIN.replace("\"post-build\"", "")), @r#"metadata `hooks` is empty; write for example `hooks = ["post-build"]`"#);
    }
}
