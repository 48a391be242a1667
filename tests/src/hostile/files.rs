//! Files that are not components, damaged files, and metadata that is wrong, asks for everything or
//! takes many resources to read.

use toml::toml;

use super::made::{METADATA, crafted, custom_section, nested};
use super::{Row, bytes};

pub(super) fn rows() -> Vec<Row> {
    [damaged(), metadata(), schemas()].concat()
}

fn damaged() -> Vec<Row> {
    vec![
        bytes("file-empty", Vec::new).ends("refused", "is not WebAssembly"),
        bytes("file-text", || b"#!/bin/sh\nrm -rf /\n".to_vec())
            .ends("refused", "is not WebAssembly"),
        bytes("file-header", || b"\0asm".to_vec()).ends("refused", "is damaged"),
        bytes("file-core-module", || {
            wat::parse_str("(module (func (export \"handle\")))").unwrap()
        })
        .ends("refused", "is a core module"),
        bytes("file-cut-short", || {
            let mut component = crafted().build();
            component.truncate(component.len() / 2);
            component
        })
        .ends("refused", "is damaged"),
        bytes("file-with-a-later-version", || {
            let mut component = crafted().build();
            component.splice(4..6, [0x77, 0x77]);
            component
        })
        .ends("refused", "is damaged"),
        // A section that says it is longer than the file.
        bytes("file-with-an-endless-section", || {
            [crafted().build(), b"\0\xff\xff\xff\xff\x0f".to_vec()].concat()
        })
        .ends("refused", "is damaged"),
        bytes("file-nested", || {
            let mut component = nested(2_000);
            component.extend(custom_section("hookrun:metadata", METADATA.as_bytes()));
            component
        })
        .ends("refused", ""),
        // Valid, and harmless: 32 MiB of nothing, and a hundred thousand empty sections.
        bytes("section-huge", || crafted().section("padding", vec![0; 32 << 20]).build())
            .ends("done", "crafted"),
        bytes("sections-many", || {
            let mut component = crafted().build();
            component.extend(custom_section("x", b"").repeat(100_000));
            component
        })
        .ends("done", "crafted"),
        // Code that the validator, not the parser, has to refuse.
        bytes("file-with-invalid-code", || {
            let mut component = crafted().with("(func (result i32) (i32.const 0x1234567))").build();
            let constant = [0x41, 0xe7, 0x8a, 0x8d, 0x09];
            let place =
                component.windows(constant.len()).position(|window| window == constant).unwrap();
            // `local.get 0`, and there is no local; `nop` to fill.
            component.splice(place..place + constant.len(), [0x20, 0x00, 0x01, 0x01, 0x01]);
            component
        })
        .ends("refused", "does not compile"),
    ]
}

fn metadata() -> Vec<Row> {
    let with = |name: &str, guest: fn() -> Vec<u8>| bytes(name, guest);
    vec![
        with("metadata-missing", || crafted().without_metadata().build())
            .ends("refused", "has no section"),
        with("metadata-empty", || crafted().metadata("").build()).ends("refused", "is not JSON"),
        with("metadata-no-json", || crafted().metadata(b"\xff\xfe\0{".to_vec()).build())
            .ends("refused", "is not JSON"),
        with("metadata-later-format", || {
            crafted().metadata(METADATA.replace(":1,", ":99,")).build()
        })
        .ends("refused", "has metadata of format 99"),
        with("metadata-huge", || crafted().metadata(" ".repeat(300 << 10)).build())
            .ends("refused", "at most 262144 are read"),
        with("metadata-deep", || crafted().metadata("[".repeat(200_000)).build())
            .ends("refused", "this hookrun does not know"),
        with("metadata-deep-schema", || {
            let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
            crafted()
                .metadata(METADATA.replace('}', &format!(",\"config-schema\":{deep}}}")))
                .build()
        })
        .ends("refused", "`config_schema` that is not JSON"),
        with("metadata-forged-hook", || {
            crafted().metadata(METADATA.replace("post-build\"", "diff\"")).build()
        })
        .ends("refused", "must export `hookrun:diff/diff@0.1.0`"),
        with("metadata-unknown-hook", || {
            crafted().metadata(METADATA.replace("post-build\"", "root-shell\"")).build()
        })
        .ends("refused", "this hookrun does not know"),
        with("metadata-unknown-want", || {
            crafted().metadata(METADATA.replace('}', ",\"wants\":{\"root\":\"required\"}}")).build()
        })
        .ends("refused", "this hookrun does not know"),
        with("metadata-greedy", || {
            crafted()
                .metadata(
                    METADATA.replace(
                        '}',
                        ",\"wants\":{\"nix-store\":\"closure\",\"mail\":\"required\"}}",
                    ),
                )
                .build()
        })
        .ends("refused", "it wants `nix-store` and has no grant for that"),
        // The first of two counts; the second does not make the plugin ask for less.
        with("metadata-twice", || {
            let greedy = METADATA.replace('}', ",\"wants\":{\"nix-store\":\"closure\"}}");
            crafted().metadata(greedy).section("hookrun:metadata", METADATA).build()
        })
        .ends("refused", "it wants `nix-store` and has no grant for that"),
        with("metadata-name-with-escapes", || {
            crafted().metadata(METADATA.replace("crafted", "\\u001b[2J\\nforged")).build()
        })
        .ends("refused", "`name` holds control characters"),
        with("metadata-hook-with-escapes", || {
            crafted().metadata(METADATA.replace("post-build\"", "\\u001b[2Jforged\"")).build()
        })
        .ends("refused", "this hookrun does not know"),
        with("metadata-repeated-key", || {
            crafted().metadata(METADATA.replace('}', ",\"name\":\"other\"}")).build()
        })
        .ends("refused", "this hookrun does not know"),
    ]
}

/// Schemas, which plugins provide and the host runs.
fn schemas() -> Vec<Row> {
    fn with(schema: &str) -> Vec<u8> {
        crafted().metadata(METADATA.replace('}', &format!(",\"config-schema\":{schema}}}"))).build()
    }
    /// The text that the patterns are matched with.
    const WORD: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!";
    vec![
        bytes("schema-none", || with("7")).ends("refused", "is not a valid JSON schema"),
        bytes("schema-of-a-bad-type", || with(r#"{"type":"root"}"#)).ends("refused", "is not a valid JSON schema"),
        bytes("schema-backtracking", || with(r#"{"properties":{"word":{"pattern":"^(?=a)(a+)+(a+)+$"}}}"#))
            .config(toml! { word = WORD })
            .ends("refused", "is not a valid JSON schema"),
        bytes("schema-large-pattern", || with(r#"{"properties":{"word":{"pattern":"((a{1000}){1000}){1000}"}}}"#))
            .config(toml! { word = WORD })
            .ends("refused", "is not a valid JSON schema"),
        bytes("schema-recursion", || with(r##"{"allOf":[{"$ref":"#"}]}"##)).config(toml! { word = WORD }).ends("refused", "do not end"),
        bytes("schema-recursion-by-definitions", || {
            with(r##"{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}"##)
        })
        .config(toml! { word = WORD })
        .ends("refused", "do not end"),
        bytes("schema-growth", || {
            let mut definitions: Vec<String> = (1..40)
                .map(|level| {
                    let below = level - 1;
                    format!(r##""l{level}":{{"allOf":[{{"$ref":"#/$defs/l{below}"}},{{"$ref":"#/$defs/l{below}"}}]}}"##)
                })
                .collect();
            definitions.push(r#""l0":{"type":"object"}"#.to_owned());
            with(&format!(r##"{{"$defs":{{{}}},"$ref":"#/$defs/l39"}}"##, definitions.join(",")))
        })
        .config(toml! { word = WORD })
        .ends("refused", "do not end"),
        bytes("schema-of-a-file", || with(r#"{"$ref":"file:///etc/passwd"}"#))
            .ends("refused", "refers to `file:///etc/passwd`"),
        bytes("schema-of-a-server", || with(r#"{"$ref":"http://127.0.0.1:9/schema.json"}"#))
            .ends("refused", "refers to `http://127.0.0.1:9/schema.json`"),
    ]
}
