//! Build traces: files that people hand to each other.

use hookrun_simulate::trace::Trace;

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "trace",
    about: "build traces for the simulator",
    dictionary: &[
        "{\"type\":\"trace\",\"version\":1}\n",
        "{\"type\":\"machine\",\"uri\":\"ssh://m\",",
        "{\"type\":\"drv\",\"drv\":\"",
        "\"speed-factor\":",
        "\"seconds\":",
        "\"inputs\":[\"",
        "1e308",
        "-1",
    ],
    run,
};

fn run(data: &[u8]) {
    let trace = match Trace::read(data) {
        Ok(trace) => trace,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let mut written = Vec::new();
    trace.write(&mut written).unwrap();
    let again = Trace::read(written.as_slice()).expect("what is written can be read");
    // Not the floats in them, which JSON rounds.
    assert_eq!(
        (again.machines.len(), again.derivations.len()),
        (trace.machines.len(), trace.derivations.len())
    );
}
