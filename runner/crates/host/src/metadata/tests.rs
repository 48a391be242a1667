use proptest::prelude::*;

use super::*;

/// Returns a component with a custom section and one exported instance of that name, which is all
/// that [`describe`] reads.
fn component(metadata: Option<&str>, export: Option<&str>) -> Vec<u8> {
    let mut wasm = b"\0asm\x0d\0\x01\0".to_vec();
    let mut section = |id: u8, content: &[u8]| {
        wasm.push(id);
        wasm.extend(leb(content.len()));
        wasm.extend(content);
    };
    if let Some(metadata) = metadata {
        section(0, &[&leb(SECTION.len()), SECTION.as_bytes(), metadata.as_bytes()].concat());
    }
    if let Some(export) = export {
        // Component model, binary format: an empty instance type, and an instance without items
        // that is exported by name.
        section(5, &[1, 1, 0]);
        section(11, &[&[1, 0][..], &leb(export.len()), export.as_bytes(), &[5, 0, 0]].concat());
    }
    wasm
}

fn leb(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(value & 0x7f).unwrap();
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

const METADATA: &str = r#"{"format":1,"name":"x","version":"1","hooks":["post-build"],"wants":{"nix-store":"closure","mail":"optional"}}"#;

#[test]
fn a_component_is_described_by_its_metadata_and_exports() {
    let description =
        describe(&component(Some(METADATA), Some(interface(HookKind::PostBuild)))).unwrap();
    assert_eq!(description.exports, [HookKind::PostBuild]);
    assert_eq!(description.metadata.wants.nix_store, hookrun_config::StoreScope::Closure);
    assert_eq!(description.metadata.wants.mail, hookrun_capability::grants::Want::Optional);
}

#[test]
fn keys_of_a_later_sdk_are_ignored() {
    let metadata = METADATA.replace("\"version\"", "\"colour\":\"red\",\"version\"");
    describe(&component(Some(&metadata), Some(interface(HookKind::PostBuild)))).unwrap();
}

#[test]
fn modules_and_imports_of_other_versions_name_the_fix() {
    // A module with one import of a function of type 0.
    let import = b"\x16wasi_snapshot_preview1\x09proc_exit\0\0";
    let length = u8::try_from(import.len() + 1).unwrap();
    let module =
        [&b"\0asm\x01\0\0\0\x01\x05\x01\x60\x01\x7f\0\x02"[..], &[length, 1], import].concat();
    insta::assert_snapshot!(describe(&module).unwrap_err(), @"is a core module of WASI preview 1, not a component; build with --target wasm32-wasip2, or make a component of it with `wasm-tools component new --adapt wasi_snapshot_preview1.reactor.wasm`");
    let problem = |import: &str| not_offered(import).unwrap();
    insta::assert_snapshot!(problem("wasi:cli/stdout@0.3.0"), @"imports `wasi:cli/stdout@0.3.0`, which is WASI 0.3, and hookrun offers WASI 0.2; build it for WASI 0.2, without async functions (with cargo: --target wasm32-wasip2)");
    insta::assert_snapshot!(problem("hookrun:host/log@0.2.0"), @"imports `hookrun:host/log@0.2.0`, and this hookrun offers `hookrun:host/log@0.1.0`; use the release of hookrun that belongs to the plugin's SDK, or build the plugin with hookrun-sdk 0.1");
    for import in ["wasi:cli/stdout@0.2.12", "hookrun:host/log@0.1.0", "acme:power/shell"] {
        assert_eq!(not_offered(import), None);
    }
}

#[test]
fn a_component_that_is_not_a_plugin_is_refused_with_the_reason() {
    let wrong = |wasm: &[u8]| describe(wasm).unwrap_err();
    insta::assert_snapshot!(wrong(b"#!/bin/sh"), @"is not WebAssembly; name a component, as `cargo build --target wasm32-wasip2` makes it");
    insta::assert_snapshot!(wrong(b"\0asm\x01\0\0\0"), @"is a core module, not a component; build with --target wasm32-wasip2, or make a component of it with `wasm-tools component new`");
    insta::assert_snapshot!(wrong(&component(None, None)), @"has no section `hookrun:metadata`; use `hookrun_sdk::plugin!`, or add it with `hookrun pack`");
    insta::assert_snapshot!(wrong(&component(Some(METADATA), None)), @"names the hook `post-build` in its metadata and must export `hookrun:post-build/post-build@0.1.0`; it does not: build it with the SDK of this release");
    insta::assert_snapshot!(wrong(&component(Some(METADATA), Some("hookrun:post-build/post-build@0.2.0"))), @"names the hook `post-build` in its metadata and must export `hookrun:post-build/post-build@0.1.0`; it exports `hookrun:post-build/post-build@0.2.0`: build it with the SDK of this release");
    insta::assert_snapshot!(wrong(&component(Some(r#"{"format":2,"future":1}"#), None)), @"has metadata of format 2, and this hookrun reads format 1; use a matching release");
    insta::assert_snapshot!(wrong(&component(Some(&format!("{METADATA}\n{METADATA}")), None)), @"has the metadata of more than one plugin; use `plugin!` once, with all hooks in its list");
    let schema = |schema: &str| {
        let metadata = METADATA.strip_suffix('}').unwrap();
        wrong(&component(Some(&format!("{metadata},\"config-schema\":{schema}}}")), None))
    };
    insta::assert_snapshot!(schema("{\n  type: \"object\"\n}"), @"has a `config_schema` that is not JSON (key must be a string, in its line 2); its author must correct it");
    insta::assert_snapshot!(schema(""), @"has a `config_schema` that is not JSON (expected value, in its line 1); its author must correct it");
    let unknown = wrong(&component(Some(&METADATA.replace("mail", "gpu")), None));
    assert!(
        unknown.starts_with("has metadata that this hookrun does not know (unknown field `gpu`, expected one of `nix-store`, ")
            && unknown.ends_with("); use the release of hookrun that belongs to the plugin's SDK, or build the plugin with the SDK of this release"),
        "{unknown}"
    );
    insta::assert_snapshot!(wrong(&component(Some("{\"format\":1,"), None)), @"has a metadata section that is not JSON (EOF while parsing a value); build it again");
    let large = format!(r#"{{"format":1,"name":"{}"}}"#, "x".repeat(MAX_LENGTH));
    insta::assert_snapshot!(wrong(&component(Some(&large), None)), @"has metadata of 262166 bytes; at most 262144 are read");
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = describe(&bytes);
        let _ = describe(&[&b"\0asm\x0d\0\x01\0"[..], &bytes].concat());
        let _ = parse(&bytes);
    }
}
