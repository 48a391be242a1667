//! Large amounts of log messages, output and state.

use hookrun_sdk::log::{self, Level};
use hookrun_sdk::mail::{self, Message};
use hookrun_sdk::{Failure, Outcome, state};

const MIB: usize = 1 << 20;
const MANY: usize = 100_000;

pub(crate) fn host_calls() -> ! {
    loop {
        log::trace("again");
    }
}

pub(crate) fn log() -> Result<Outcome, Failure> {
    for _ in 0..1000 {
        log::info("x".repeat(10_000));
    }
    Ok(Outcome::new("logged"))
}

pub(crate) fn log_fields() -> Result<Outcome, Failure> {
    for _ in 0..100 {
        log::write(Level::Info, "", &vec![("", ""); MANY / 10]);
    }
    Ok(Outcome::new("logged"))
}

/// Prints 100 MiB without a line break.
pub(crate) fn stdout() -> Result<Outcome, Failure> {
    use std::io::Write as _;
    let chunk = vec![b'x'; MIB];
    for _ in 0..100 {
        std::io::stdout()
            .write_all(&chunk)
            .map_err(|error| Failure::permanent(error.to_string()))?;
    }
    Ok(Outcome::new("printed"))
}

pub(crate) fn output() -> Result<Outcome, Failure> {
    Ok(Outcome::new("x".repeat(8 * MIB)))
}

pub(crate) fn details() -> Result<Outcome, Failure> {
    let mut outcome = Outcome::new("many details");
    outcome.details = vec![(String::new(), String::new()); MANY];
    Ok(outcome)
}

pub(crate) fn state() -> Result<Outcome, Failure> {
    for number in 0..MANY {
        state::set(&format!("key-{number}"), b"value")?;
    }
    crate::escaped("wrote a hundred thousand keys")
}

pub(crate) fn state_value() -> Result<Outcome, Failure> {
    state::set("large", &vec![0; 2 * MIB])?;
    crate::escaped("wrote 2 MiB")
}

pub(crate) fn mail(to: &str) -> Result<Outcome, Failure> {
    let mut sent = 0;
    for number in 0..MANY {
        let message = Message { subject: format!("number {number}"), ..Message::default() };
        match mail::send("default", &[to.to_owned()], message) {
            Ok(_) => sent += 1,
            Err(error) => return Err(error.context(format!("after {sent} mails")).into()),
        }
    }
    crate::escaped(format!("sent {sent} mails"))
}
