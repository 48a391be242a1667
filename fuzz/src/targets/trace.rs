//! Build traces: files that people hand to each other.

use hookrun_simulate::trace::Trace;

pub(crate) fn run(data: &[u8]) {
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
