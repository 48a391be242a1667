#!/bin/sh
# Called by cargo in place of the compiler for this workspace's own crates
# (RUSTC_WORKSPACE_WRAPPER): adds the coverage that guides libFuzzer to hookrun's crates and the
# targets, with the flags of cargo-fuzz (its `project.rs`). Dependencies are not compiled again.
compiler="$1"
shift
case " $* " in
*" --crate-name hookrun "* | *" --crate-name hookrun_"*)
  exec "$compiler" "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Ccodegen-units=1
  ;;
*) exec "$compiler" "$@" ;;
esac
