//! Guests that use too much of a resource: time, memory, stack, tables, handles, log, output,
//! state.

use toml::{Table, toml};

use super::made::crafted;
use super::{Guest, GuestHook, Row, act, bytes};

/// A wall time that is short, but long enough for a guest to start.
const SECOND: &str = "1s";

pub(super) fn rows() -> Vec<Row> {
    [in_hooks(), at_start(), by_hand(), selections()].concat()
}

fn in_hooks() -> Vec<Row> {
    vec![
        act("loop", toml! { act = "loop" }).limit("wall-time", SECOND).ends("limit", "`wall-time`"),
        act("loop-diff", toml! { act = "loop" })
            .hook(GuestHook::Diff)
            .limit("wall-time", SECOND)
            .ends("limit", "`wall-time`"),
        act("sleep", toml! { act = "sleep" })
            .limit("wall-time", SECOND)
            .ends("limit", "`wall-time`"),
        // The server accepts connections and never answers.
        act("host-call-that-hangs", toml! { act = "get" store = "tarpit" key = "key" })
            .limit("wall-time", SECOND)
            .ends("transient", "no answer in time (waited 500ms)"),
        act("trap", toml! { act = "trap" }).ends("trapped", "told to trap"),
        act("trap-diff", toml! { act = "trap" })
            .hook(GuestHook::Diff)
            .ends("trapped", "told to trap"),
        act("exit-0", toml! { act = "exit" code = 0 })
            .ends("trapped", "called exit(0) instead of returning"),
        act("exit-0-diff", toml! { act = "exit" code = 0 })
            .hook(GuestHook::Diff)
            .ends("trapped", "called exit(0) instead of returning"),
        act("exit-3", toml! { act = "exit" code = 3 })
            .ends("trapped", "called exit(1) instead of returning"),
        act("recursion", toml! { act = "recursion" }).ends("limit", "`stack`"),
        act("memory", toml! { act = "memory" }).ends("limit", "`memory`"),
        act("memory-diff", toml! { act = "memory" })
            .hook(GuestHook::Diff)
            .ends("limit", "`memory`"),
        act("one-allocation", toml! { act = "one-allocation" }).ends("limit", "`memory`"),
        act("strings", toml! { act = "strings" }).ends("limit", "`memory`"),
        act("handles", toml! { act = "handles" }).ends("permanent", "`handles`"),
        act("trap-holding-a-handle", toml! { act = "trap-holding" })
            .ends("trapped", "told to trap"),
        act("drop-twice", toml! { act = "drop-twice" }).ends("trapped", "unknown handle index"),
        act("use-after-drop", toml! { act = "use-dropped" })
            .ends("trapped", "unknown handle index"),
        act("forged-handle", toml! { act = "forged-handle" })
            .ends("trapped", "unknown handle index"),
        act("log-flood", toml! { act = "log" }).ends("done", "`log-bytes`"),
        act("log-fields-flood", toml! { act = "log-fields" }).ends("done", "`log-bytes`"),
        act("stdout-flood", toml! { act = "stdout" }).ends("done", "`log-bytes`"),
        act("output-flood", toml! { act = "output" }).ends("limit", "`output-bytes`"),
        act("details-flood", toml! { act = "details" }).ends("limit", "`output-bytes`"),
        act("state-keys-flood", toml! { act = "state" })
            .limit("state-bytes", "8KiB")
            .ends("permanent", "`state-bytes`"),
        act("state-value-flood", toml! { act = "state-value" }).ends("permanent", "`state-bytes`"),
        act("random-flood", toml! { act = "random" }).ends("done", "a million hash maps"),
    ]
}

fn at_start() -> Vec<Row> {
    let constructor = |name: &str, choice| Row {
        guest: Guest::Constructor(choice),
        ..act(name, toml! { act = "nothing" })
    };
    vec![
        constructor("constructor-loop", b'1')
            .limit("wall-time", SECOND)
            .ends("limit", "`wall-time`"),
        constructor("constructor-loop-diff", b'1')
            .hook(GuestHook::Diff)
            .limit("wall-time", SECOND)
            .ends("limit", "`wall-time`"),
        constructor("constructor-memory", b'2').ends("limit", "`memory`"),
        constructor("constructor-exit", b'3')
            .ends("trapped", "called exit(0) instead of returning"),
        bytes("start-loop", || {
            crafted().with("(func $start (loop (br 0))) (start $start)").build()
        })
        .limit("wall-time", SECOND)
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
        act("instances", toml! { act = "nothing" }).limit("instances", 1).ends("limit", "`instances`"),
        bytes("allocator-loop", || crafted().allocator("(loop (br 0)) unreachable").build())
            .limit("wall-time", SECOND)
            .ends("limit", "`wall-time`"),
        bytes("post-return-loop", || {
            let after = "(func (export \"cabi_post_hookrun:post-build/post-build@0.1.0#handle\") (param i32) (loop (br 0)))";
            crafted().with(after).build()
        })
        .limit("wall-time", SECOND)
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

/// Policies of builder selection.
fn selections() -> Vec<Row> {
    let selection = |name: &str, config: Table| act(name, config).hook(GuestHook::BuilderSelection);
    vec![
        selection("select-loop", toml! { act = "loop" })
            .limit("selection-time", "300ms")
            .ends("limit", "`selection-time`"),
        selection("select-sleep", toml! { act = "sleep" })
            .limit("selection-time", "300ms")
            .ends("limit", "`selection-time`"),
        selection("select-trap", toml! { act = "trap" }).ends("trapped", "trapped"),
        selection("select-exit-0", toml! { act = "exit" code = 0 })
            .ends("trapped", "called exit(0)"),
        selection("select-memory", toml! { act = "memory" }).ends("limit", "`memory`"),
        selection("select-recursion", toml! { act = "recursion" }).ends("limit", "`stack`"),
        selection("select-host-calls", toml! { act = "host-calls" })
            .limit("host-calls", 10000)
            .ends("limit", "`host-calls`"),
        selection(
            "select-machine-of-its-own",
            toml! { act = "choose" uri = "ssh://mallory" times = 1 },
        )
        .ends("permanent", "`ssh://mallory` was not offered"),
        selection(
            "select-one-machine-often",
            toml! { act = "choose" uri = "ssh://fast" times = 200_000 },
        )
        .ends("limit", "`output-bytes`"),
        selection("select-fails-with-escapes", toml! { act = "fail-escapes" })
            .ends("permanent", ""),
        Row {
            guest: Guest::Constructor(b'1'),
            ..selection("select-constructor-loop", toml! { act = "nothing" })
                .limit("selection-time", "300ms")
                .ends("limit", "`selection-time`")
        },
    ]
}
