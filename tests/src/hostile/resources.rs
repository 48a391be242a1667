//! Guests that use more than they may: time, memory, stack, tables, handles, log, output, state.

use super::made::crafted;
use super::{Guest, Hook, Row, act, bytes};

/// Short, and long enough that a guest has begun.
const SECOND: &str = "wall-time = \"1s\"";

pub(super) fn rows() -> Vec<Row> {
    [in_hooks(), at_start(), by_hand(), selections()].concat()
}

fn in_hooks() -> Vec<Row> {
    vec![
        act("loop", r#"act = "loop""#).limits(SECOND).ends("limit", "`wall-time`"),
        act("loop-diff", r#"act = "loop""#)
            .hook(Hook::Diff)
            .limits(SECOND)
            .ends("limit", "`wall-time`"),
        act("sleep", r#"act = "sleep""#).limits(SECOND).ends("limit", "`wall-time`"),
        // The store accepts connections and never says a word.
        act("host-call-that-hangs", r#"act = "get", store = "tarpit", key = "key""#)
            .limits(SECOND)
            .ends("transient", "no answer in time (waited 500ms)"),
        act("trap", r#"act = "trap""#).ends("trapped", "told to trap"),
        act("trap-diff", r#"act = "trap""#).hook(Hook::Diff).ends("trapped", "told to trap"),
        act("exit-0", r#"act = "exit", code = 0"#)
            .ends("trapped", "called exit(0) instead of returning"),
        act("exit-0-diff", r#"act = "exit", code = 0"#)
            .hook(Hook::Diff)
            .ends("trapped", "called exit(0) instead of returning"),
        act("exit-3", r#"act = "exit", code = 3"#)
            .ends("trapped", "called exit(1) instead of returning"),
        act("recursion", r#"act = "recursion""#).ends("limit", "`stack`"),
        act("memory", r#"act = "memory""#).ends("limit", "`memory`"),
        act("memory-diff", r#"act = "memory""#).hook(Hook::Diff).ends("limit", "`memory`"),
        act("one-allocation", r#"act = "one-allocation""#).ends("limit", "`memory`"),
        act("strings", r#"act = "strings""#).ends("limit", "`memory`"),
        act("handles", r#"act = "handles""#).ends("permanent", "`handles`"),
        act("trap-holding-a-handle", r#"act = "trap-holding""#).ends("trapped", "told to trap"),
        act("drop-twice", r#"act = "drop-twice""#).ends("trapped", "unknown handle index"),
        act("use-after-drop", r#"act = "use-dropped""#).ends("trapped", "unknown handle index"),
        act("forged-handle", r#"act = "forged-handle""#).ends("trapped", "unknown handle index"),
        act("log-flood", r#"act = "log""#).ends("done", "`log-bytes`"),
        act("log-fields-flood", r#"act = "log-fields""#).ends("done", "`log-bytes`"),
        act("stdout-flood", r#"act = "stdout""#).ends("done", "`log-bytes`"),
        act("output-flood", r#"act = "output""#).ends("limit", "`output-bytes`"),
        act("details-flood", r#"act = "details""#).ends("limit", "`output-bytes`"),
        act("state-keys-flood", r#"act = "state""#)
            .limits("state-bytes = \"8KiB\"")
            .ends("permanent", "`state-bytes`"),
        act("state-value-flood", r#"act = "state-value""#).ends("permanent", "`state-bytes`"),
        act("random-flood", r#"act = "random""#).ends("done", "a million hash maps"),
    ]
}

fn at_start() -> Vec<Row> {
    let constructor = |name: &str, choice| Row {
        guest: Guest::Constructor(choice),
        ..act(name, r#"act = "nothing""#)
    };
    vec![
        constructor("constructor-loop", b'1').limits(SECOND).ends("limit", "`wall-time`"),
        constructor("constructor-loop-diff", b'1')
            .hook(Hook::Diff)
            .limits(SECOND)
            .ends("limit", "`wall-time`"),
        constructor("constructor-memory", b'2').ends("limit", "`memory`"),
        constructor("constructor-exit", b'3')
            .ends("trapped", "called exit(0) instead of returning"),
        bytes("start-loop", || {
            crafted().with("(func $start (loop (br 0))) (start $start)").build()
        })
        .limits(SECOND)
        .ends("limit", "`wall-time`"),
        bytes("start-trap", || crafted().with("(func $start unreachable) (start $start)").build())
            .ends("trapped", "unreachable"),
        bytes("start-recursion", || {
            crafted().with("(func $start (call $start) (nop)) (start $start)").build()
        })
        .ends("limit", "`stack`"),
    ]
}

fn by_hand() -> Vec<Row> {
    vec![
        bytes("declared-memory", || crafted().memory("65536").build()).ends("limit", "`memory`"),
        bytes("declared-table", || crafted().with("(table 10000000 funcref)").build()).ends("limit", "`table-elements`"),
        bytes("memory-grow", || crafted().hook("(loop (drop (memory.grow (i32.const 16))) (br 0)) unreachable").build())
            .ends("limit", "`memory`"),
        bytes("table-grow", || {
            let grow = "(loop (drop (table.grow $t (ref.null func) (i32.const 1000))) (br 0)) unreachable";
            crafted().with("(table $t 1 funcref)").hook(grow).build()
        })
        .ends("limit", "`table-elements`"),
        act("instances", r#"act = "nothing""#).limits("instances = 1").ends("limit", "`instances`"),
        bytes("allocator-loop", || crafted().allocator("(loop (br 0)) unreachable").build())
            .limits(SECOND)
            .ends("limit", "`wall-time`"),
        bytes("post-return-loop", || {
            let after = "(func (export \"cabi_post_hookrun:post-build/post-build@0.1.0#handle\") (param i32) (loop (br 0)))";
            crafted().with(after).build()
        })
        .limits(SECOND)
        .ends("limit", "`wall-time`"),
        // 8000 pairs of strings, each of which is the same 60,000 bytes: a gigabyte out of 128 KiB.
        bytes("amplified-details", || {
            let fill = "(local $i i32) (loop
                (i32.store (i32.add (i32.const 3072) (i32.mul (local.get $i) (i32.const 8))) (i32.const 0))
                (i32.store (i32.add (i32.const 3076) (i32.mul (local.get $i) (i32.const 8))) (i32.const 1000))
                (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br_if 0 (i32.lt_u (local.get $i) (i32.const 15000))))
                (i32.const 1024)";
            let answer = r"\00\00\00\00\00\00\00\00\00\08\00\00\07\00\00\00\00\0c\00\00\40\1d\00\00";
            crafted().hook(fill).answer(answer).build()
        })
        .ends("limit", "`output-bytes`"),
        bytes("pollables", || {
            let subscribe = "(loop (drop (call $subscribe (i64.const 1))) (br 0)) unreachable";
            crafted()
                .package("package wasi:io@0.2.0; interface poll { resource pollable; }")
                .package(
                    "package wasi:clocks@0.2.0; interface monotonic-clock { use wasi:io/poll@0.2.0.{pollable}; \
                     subscribe-duration: func(when: u64) -> pollable; }",
                )
                .world("import wasi:clocks/monotonic-clock@0.2.0; export hookrun:post-build/post-build@0.1.0;")
                .with(
                    "(import \"wasi:clocks/monotonic-clock@0.2.0\" \"subscribe-duration\" \
                     (func $subscribe (param i64) (result i32)))",
                )
                .hook(subscribe)
                .build()
        })
        .ends("limit", "`handles`"),
    ]
}

/// Asked where to build. The answer to Nix is the same for all of them; `class` is not looked at.
fn selections() -> Vec<Row> {
    let selection = |name: &str, config: &str| act(name, config).hook(Hook::BuilderSelection);
    vec![
        selection("select-loop", r#"act = "loop""#)
            .limits("selection-time = \"300ms\"")
            .ends("limit", "`selection-time`"),
        selection("select-sleep", r#"act = "sleep""#)
            .limits("selection-time = \"300ms\"")
            .ends("limit", "`selection-time`"),
        selection("select-trap", r#"act = "trap""#).ends("trapped", "trapped"),
        selection("select-exit-0", r#"act = "exit", code = 0"#).ends("trapped", "called exit(0)"),
        selection("select-memory", r#"act = "memory""#).ends("limit", "`memory`"),
        selection("select-recursion", r#"act = "recursion""#).ends("limit", "`stack`"),
        selection("select-host-calls", r#"act = "host-calls""#)
            .limits("host-calls = 10000")
            .ends("limit", "`host-calls`"),
        selection(
            "select-machine-of-its-own",
            r#"act = "choose", uri = "ssh://mallory", times = 1"#,
        )
        .ends("permanent", "`ssh://mallory` was not offered"),
        selection(
            "select-one-machine-often",
            r#"act = "choose", uri = "ssh://fast", times = 200000"#,
        )
        .ends("limit", "`output-bytes`"),
        selection("select-fails-with-escapes", r#"act = "fail-escapes""#).ends("permanent", ""),
        Row {
            guest: Guest::Constructor(b'1'),
            ..selection("select-constructor-loop", r#"act = "nothing""#)
                .limits("selection-time = \"300ms\"")
                .ends("limit", "`selection-time`")
        },
    ]
}
