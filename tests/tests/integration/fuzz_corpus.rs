//! The corpus of the fuzz targets, replayed; and the driver, on a target with a planted defect.
//! What fuzzing ever found is a file of the corpus.

use std::path::PathBuf;
use std::process::Command;

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
            target.run(&input);
        }
    }
}

/// The driver, which the workspace's build puts beside `hookrun`.
fn driver() -> PathBuf {
    let program = hookrun_tests::lab::hookrun_program().with_file_name("hookrun-fuzz");
    assert!(program.exists(), "run `cargo build --workspace` first");
    program
}

#[test]
fn the_driver_finds_a_planted_defect_and_shows_it_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(driver());
    command
        .args(["all", "--seconds", "20", "--seed", "1", "--artifacts"])
        .arg(directory.path())
        .arg("planted");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("not guided by coverage") && text.contains("FOUND"), "{text}");
    let found = std::fs::read_dir(directory.path().join("planted"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    assert!(text.contains(&found.display().to_string()), "{text}");
    let reproduce = |file: &std::path::Path| {
        Command::new(driver()).args(["reproduce", "planted"]).arg(file).output().unwrap()
    };
    assert_eq!(reproduce(&found).status.code(), Some(1));
    std::fs::write(&found, "harmless").unwrap();
    assert_eq!(reproduce(&found).status.code(), Some(0));
}
