//! Replays the corpus of the fuzz targets, which has every input that a fuzzer has found.

use hookrun_fuzz::{TARGETS, corpus};

/// The least number of seeds.
const LEAST_SEEDS: usize = 3;

#[test]
fn every_target_runs_its_corpus_without_a_panic() {
    for target in TARGETS {
        let corpus = corpus(target.name);
        assert!(corpus.len() >= LEAST_SEEDS, "{} has {} seeds", target.name, corpus.len());
        for (name, input) in corpus {
            // The test runner shows this when the target fails.
            eprintln!("{} {name}", target.name);
            (target.run)(&input);
        }
    }
}
