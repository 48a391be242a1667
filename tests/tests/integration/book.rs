//! The book in `docs/book`: its commands, its table of contents and its links.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use hookrun_tests::document::{self, Step, repository, steps};
use hookrun_tests::lab::{Need, require, require_nix};

use crate::documents::{shell, target_directory};

/// The address with which pages refer to other files of the repository, so that the links work in
/// the book too.
const REPOSITORY: &str = "https://github.com/hookrun/hookrun/";
/// A page whose commands are left to `cargo xtask author-languages` says so.
const DOWNLOADS: &str = "<!-- These commands download packages: `cargo xtask author-languages`";

fn source() -> PathBuf {
    repository().join("docs/book/src")
}

/// Returns the targets of the links in a page.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

/// Returns the pages in the order of the table of contents.
fn contents() -> Vec<String> {
    let summary = std::fs::read_to_string(source().join("SUMMARY.md")).unwrap();
    links(&summary).map(ToOwned::to_owned).collect()
}

fn pages_below(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(pages_below(&path));
        } else {
            found.insert(path);
        }
    }
    found
}

#[test]
fn every_command_of_the_book_works_as_printed() {
    if !require(Need::Program("cargo")) {
        return;
    }
    require_nix();
    let (mut run, mut left) = (0, 0);
    for page in contents() {
        let text = std::fs::read_to_string(source().join(&page)).unwrap();
        if text.contains(DOWNLOADS) {
            left += 1;
            continue;
        }
        let mut all = steps(&text);
        run += all.iter().filter(|step| matches!(step, Step::Command { .. })).count();
        // Dependencies are resolved as in the repository, from the crates that were downloaded for
        // it, and compiled once for all runs of this test.
        let enters =
            |step: &Step| matches!(step, Step::Command { line, .. } if line == "cd announce");
        if let Some(entered) = all.iter().position(enters) {
            let line = format!(
                "ln -s {} target && cp ../hookrun/Cargo.lock .",
                target_directory().display()
            );
            all.insert(entered + 1, Step::Command { line, output: Vec::new() });
        }
        let directory = tempfile::tempdir().unwrap();
        let work = directory.path().join("work");
        std::fs::create_dir(&work).unwrap();
        symlink(repository(), work.join("hookrun")).unwrap();
        document::run(&all, &mut shell(directory.path()), "");
    }
    assert!(run > 25, "{run} commands were run");
    assert_eq!(left, 2, "pages whose commands download packages");
}

#[test]
fn the_contents_list_every_page_once() {
    let listed = contents();
    let unique: BTreeSet<PathBuf> = listed.iter().map(|page| source().join(page)).collect();
    assert_eq!(listed.len(), unique.len());
    let mut pages = pages_below(&source());
    assert!(pages.remove(&source().join("SUMMARY.md")));
    assert_eq!(pages, unique);
}

/// Returns the anchor that GitHub and mdBook give a heading.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    heading.trim().to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
}

#[test]
fn links_of_the_book_lead_to_a_page_and_a_heading() {
    let mut checked = 0;
    for page in pages_below(&source()) {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in links(&text) {
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            let target = match file.strip_prefix(REPOSITORY) {
                Some(rest) => {
                    let rest = rest.strip_prefix("blob/main/").or(rest.strip_prefix("tree/main/"));
                    repository().join(rest.unwrap_or_else(|| panic!("{link}")))
                }
                None if file.contains("://") => continue,
                None if file.is_empty() => page.clone(),
                None => page.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: {link}", page.display());
            if !place.is_empty() {
                let target = std::fs::read_to_string(&target).unwrap();
                let headings = target.lines().filter(|line| line.starts_with('#'));
                let mut anchors = headings.map(|line| anchor(line.trim_start_matches('#')));
                assert!(anchors.any(|anchor| anchor == place), "{}: {link}", page.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked}");
}
