//! Components with invalid values at the component interface: pointers, lengths and discriminants,
//! and exports and imports with other types than those of their names.

use super::made::crafted;
use super::{Row, bytes};

pub(super) fn rows() -> Vec<Row> {
    [answers(), types()].concat()
}

/// The hook returns what the canonical ABI does not allow.
fn answers() -> Vec<Row> {
    vec![
        bytes("allocator-wild", || crafted().allocator("(i32.const 0x7fffff00)").build())
            .ends("trapped", "beyond end of memory"),
        bytes("allocator-unaligned", || crafted().allocator("(i32.const 4097)").build()).ends("trapped", "not aligned"),
        bytes("allocator-trap", || crafted().allocator("unreachable").build()).ends("trapped", "unreachable"),
        // Calls the host while the host calls it.
        bytes("allocator-reenters", || {
            crafted()
                .world("import hookrun:host/config@0.1.0; export hookrun:post-build/post-build@0.1.0;")
                .with("(import \"hookrun:host/config@0.1.0\" \"get\" (func $config (param i32)))")
                .allocator("(call $config (i32.const 512)) (i32.const 4096)")
                .build()
        })
        .ends("trapped", "cannot leave component instance"),
        bytes("answer-wild", || crafted().hook("(i32.const 0x7fffff00)").build()).ends("trapped", "out of bounds"),
        bytes("answer-unaligned", || crafted().hook("(i32.const 1025)").build()).ends("trapped", "aligned"),
        bytes("answer-discriminant", || crafted().answer(r"\09").build()).ends("trapped", "discriminant"),
        bytes("message-wild", || {
            let answer = r"\00\00\00\00\00\00\00\00\00\ff\ff\7f\00\10\00\00\00\00\00\00\00\00\00\00";
            crafted().answer(answer).build()
        })
        .ends("trapped", "out of bounds"),
        bytes("message-endless", || {
            let answer = r"\00\00\00\00\00\00\00\00\00\08\00\00\ff\ff\ff\ff\00\00\00\00\00\00\00\00";
            crafted().answer(answer).build()
        })
        .ends("trapped", "out of bounds"),
        bytes("message-not-utf8", || {
            // 4 bytes at 1048, behind the answer.
            let answer = r"\00\00\00\00\00\00\00\00\18\04\00\00\04\00\00\00\00\00\00\00\00\00\00\00\ff\fe\c0\80";
            crafted().answer(answer).build()
        })
        .ends("trapped", "utf-8"),
        bytes("details-endless", || {
            let answer = r"\00\00\00\00\00\00\00\00\00\08\00\00\07\00\00\00\00\0c\00\00\ff\ff\ff\0f";
            crafted().answer(answer).build()
        })
        .ends("trapped", "out of bounds"),
    ]
}

/// The names are right, but the types are wrong.
fn types() -> Vec<Row> {
    const WRONG_EXPORT: &str =
        "package hookrun:post-build@0.1.0; interface post-build { handle: func(event: string); }";
    vec![
        bytes("export-of-another-type", || {
            crafted()
                .package(WRONG_EXPORT)
                .with("(func (export \"hookrun:post-build/post-build@0.1.0#handle\") (param i32 i32))")
                .build()
        })
        .ends("trapped", "expected `record` found `string`"),
        bytes("export-of-another-name", || {
            crafted()
                .package("package hookrun:post-build@0.1.0; interface post-build { manage: func(); }")
                .with("(func (export \"hookrun:post-build/post-build@0.1.0#manage\"))")
                .build()
        })
        .ends("refused", "exports a hook of another type"),
        // The metadata names post-build, but the component exports diff.
        bytes("export-swapped", || {
            crafted()
                .world("export hookrun:diff/diff@0.1.0;")
                .with("(func (export \"hookrun:diff/diff@0.1.0#handle\") (param i32) (result i32) (i32.const 1024))")
                .build()
        })
        .ends("refused", "must export `hookrun:post-build/post-build@0.1.0`"),
        bytes("import-that-is-none", || {
            crafted()
                .package("package evil:host@0.1.0; interface secrets { read: func() -> u32; }")
                .world("import evil:host/secrets@0.1.0; export hookrun:post-build/post-build@0.1.0;")
                .with("(import \"evil:host/secrets@0.1.0\" \"read\" (func $read (result i32)))")
                .hook("(call $read)")
                .build()
        })
        .ends("refused", "imports what this hookrun does not offer"),
        bytes("import-of-another-type", || {
            crafted()
                .package("package hookrun:host@0.1.0; interface config { get: func() -> u32; }")
                .world("import hookrun:host/config@0.1.0; export hookrun:post-build/post-build@0.1.0;")
                .with("(import \"hookrun:host/config@0.1.0\" \"get\" (func $get (result i32)))")
                .hook("(call $get)")
                .build()
        })
        .ends("refused", "imports what this hookrun does not offer"),
    ]
}
