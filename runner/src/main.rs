//! The `hookrun` binary: argv and environment -> role -> exit code. Everything else is in the
//! library.

use std::process::ExitCode;

fn main() -> ExitCode {
    hookrun::main()
}
