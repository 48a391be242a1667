//! The corpus of the fuzz targets, replayed. What fuzzing ever found is a file of the corpus.

use hookrun_fuzz::{TARGETS, corpus};

/// Fewer seeds are no start.
const LEAST_SEEDS: usize = 3;

#[test]
fn every_target_takes_its_corpus() {
    for target in TARGETS {
        let corpus = corpus(target.name);
        assert!(corpus.len() >= LEAST_SEEDS, "{} has {} seeds", target.name, corpus.len());
        for (name, input) in corpus {
            // Shown by the test runner when the target fails.
            eprintln!("{} {name}", target.name);
            (target.run)(&input);
        }
    }
}
