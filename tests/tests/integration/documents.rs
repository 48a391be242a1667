//! What the documents print is true: their commands and listings are run.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use hookrun_tests::document::{self, Step, repository, steps};
use hookrun_tests::lab::{Need, hookrun_program, require};

/// Where compiled dependencies of the documents' crates stay from one run to the next.
fn target_directory() -> PathBuf {
    let directory = hookrun_program().ancestors().nth(2).unwrap().join("documents");
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

/// A shell in an empty directory, with `hookrun` and with the toolchain of this repository.
fn shell(directory: &Path) -> Command {
    let bin = directory.join("bin");
    std::fs::create_dir(&bin).unwrap();
    symlink(hookrun_program(), bin.join("hookrun")).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let toolchain = std::fs::read_to_string(repository().join("rust-toolchain.toml")).unwrap();
    let toolchain = toolchain.split('"').nth(1).unwrap().to_owned();
    let mut shell = Command::new("sh");
    shell
        .current_dir(directory.join("work"))
        .env("PATH", format!("{}:{path}", bin.display()))
        .env("RUSTUP_TOOLCHAIN", toolchain)
        // Whatever this test was started by, cargo in the shell is a user's.
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CARGO_MANIFEST_DIR")
        // What the repository needs was downloaded to build it.
        .env("CARGO_NET_OFFLINE", "true")
        .env("HOOKRUN_STATE_DIR", directory.join("state"))
        .env_remove("HOOKRUN_CONFIG");
    shell
}

#[test]
fn every_command_of_the_sdks_readme_works_as_printed() {
    if !require(Need::Program("cargo")) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let work = directory.path().join("work");
    std::fs::create_dir(&work).unwrap();
    // The clone that the page speaks of.
    symlink(repository(), work.join("hookrun")).unwrap();
    let mut steps = steps(&document::read("plugin-sdk/README.md"));
    // Dependencies are resolved as in the repository, from what was downloaded for it, and compiled
    // once for all runs of this test.
    let entered = steps
        .iter()
        .position(|step| matches!(step, Step::Command { line, .. } if line == "cd announce"))
        .expect("the page enters the crate");
    let link =
        format!("ln -s {} target && cp ../hookrun/Cargo.lock .", target_directory().display());
    steps.insert(entered + 1, Step::Command { line: link, output: Vec::new() });
    document::run(&steps, &mut shell(directory.path()), "");
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let pages = pages(repository());
    assert!(pages.len() > 8, "{pages:?}");
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            assert!(page.parent().unwrap().join(file).exists(), "{}: {link}", page.display());
        }
    }
}

#[test]
fn the_readme_has_a_row_for_every_command() {
    let help = hookrun_tests::lab::Ran::of(Command::new(hookrun_program()).arg("--help"));
    let commands = help.stdout.split("Commands:").nth(1).unwrap().split("\n\n").next().unwrap();
    let mut commands: Vec<&str> = commands
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    let readme = document::read("README.md");
    let mut rows: Vec<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `hookrun ")?.split('`').next())
        .collect();
    commands.sort_unstable();
    rows.sort_unstable();
    assert_eq!(rows, commands);
}

/// The Markdown files of the repository.
fn pages(directory: &Path) -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            pages.extend(self::pages(&path));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    pages
}
