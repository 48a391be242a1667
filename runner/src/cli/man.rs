//! Writes the manual pages. Each contains the help of a command and its examples; hookrun(1) also
//! has sections that no help text contains.

use std::io;
use std::path::Path;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::help::{self, Block, blocks};

/// Additional sections of hookrun(1): headings, each followed by paragraphs or verbatim lines.
const MORE: &[(&str, &str)] = &[
    (
        "HOOKS",
        "\
Nix runs the program that a setting in nix.conf names, without a shell. The links
hookrun-post-build and hookrun-diff to the program hookrun-hook, and hookrun-build-hook to hookrun,
determine the hook by their names; `hookrun hook NAME` does the same if the setting can contain
arguments. hookrun-hook is small, because every build waits for these two hooks, and needs hookrun
in its directory. A link to hookrun works for all three.

post-build-hook: called after each successful build, by the Nix that builds: as root with a daemon,
otherwise as the caller. There are no arguments. The environment contains DRV_PATH (the store path
of the derivation) and OUT_PATHS (those of its outputs, separated by blanks; empty in Nix 2.8.0,
where hookrun reads them from the derivation). The exit code is 0, unless a plugin with `gate =
true` fails the build.

diff-hook: called as the build user when a build differs from the previous one (`nix-build
--check`), if `run-diff-hook = true`. There are four arguments: the previous result, the current
result, the derivation, and the build directory. The hook writes one line to standard output, which
Nix shows. The exit code is 0.

build-hook: called once for each Nix command or client that builds. The only argument is Nix's
verbosity. Standard input contains Nix's settings, and then for each derivation a line `try WILLING
SYSTEM DRV-PATH FEATURES`. The answer on standard error is one of `# accept`, `# decline`, `#
postpone` and `# decline-permanently`. After `# accept` hookrun writes the machine's store URI,
reads the inputs and outputs to copy, and runs Nix's own build-remote for that machine.",
    ),
    (
        "FILES",
        "  /etc/hookrun/hookrun.toml                the configuration of a system installation
  $XDG_CONFIG_HOME/hookrun/hookrun.toml    the configuration of a user without root
  /var/lib/hookrun                         queue and journal of a system installation
  $XDG_STATE_HOME/hookrun                  queue and journal of a user without root
  worker.log                               below these: messages of a worker that a hook started",
    ),
    (
        "ENVIRONMENT",
        "  HOOKRUN_CONFIG       the configuration file, as --config
  HOOKRUN_STATE_DIR    the directory of queue and journal, as --state-dir
  NO_COLOR             if set, no colours
  TMPDIR               the parent of the directories of `hookrun ci` and `hookrun demo`
  NIX_CONFIG, NIX_STORE_DIR, NIX_STATE_DIR, NIX_CONF_DIR, NIX_REMOTE    as Nix uses them",
    ),
];

/// Writes the pages of all commands into `directory`.
pub(super) fn write(directory: &Path) -> io::Result<()> {
    let mut command = help::command().disable_help_subcommand(true);
    command.build();
    write_all(&command, directory, true)
}

fn write_all(command: &Command, directory: &Path, is_root: bool) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write_all(below, directory, false)?;
    }
    let man = Man::new(command.clone());
    std::fs::write(directory.join(man.get_filename()), page(command, &man, is_root)?)
}

fn page(command: &Command, man: &Man, is_root: bool) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    let sections = Sections::of(command);
    body(&sections.description).to_writer(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.get_subcommands().any(|below| !below.is_hide_set()) {
        man.render_subcommands_section(&mut page)?;
    }
    if is_root {
        for (heading, text) in MORE {
            section(heading, &blocks(text)).to_writer(&mut page)?;
        }
    }
    section("EXIT STATUS", &sections.exit).to_writer(&mut page)?;
    section("EXAMPLES", &sections.examples).to_writer(&mut page)?;
    if !is_root {
        section("SEE ALSO", &[Block::Paragraph("hookrun(1)".to_owned())]).to_writer(&mut page)?;
    }
    Ok(page)
}

/// The text after the options of a command's help, sorted into sections of a manual page
/// (man-pages(7)).
#[derive(Debug, Default, PartialEq, Eq)]
struct Sections {
    description: Vec<Block>,
    exit: Vec<Block>,
    examples: Vec<Block>,
}

impl Sections {
    fn of(command: &Command) -> Self {
        let mut sections = Self::default();
        let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let mut in_examples = false;
        for block in blocks(&text) {
            let is_heading =
                matches!(&block, Block::Paragraph(text) if text.trim_end().ends_with(':'));
            let is_exit = matches!(&block, Block::Paragraph(text) if text.starts_with("Exit code"));
            in_examples = is_heading || (in_examples && matches!(block, Block::Verbatim(_)));
            match block {
                // The heading of the section replaces this one.
                Block::Paragraph(text) if text == "Example:" || text == "Examples:" => {}
                block if in_examples => sections.examples.push(block),
                block if is_exit => sections.exit.push(block),
                block => sections.description.push(block),
            }
        }
        sections
    }
}

fn section(heading: &str, blocks: &[Block]) -> Roff {
    let mut roff = Roff::default();
    if !blocks.is_empty() {
        roff.control("SH", [heading]);
        roff.extend([body(blocks)]);
    }
    roff
}

fn body(blocks: &[Block]) -> Roff {
    let mut roff = Roff::default();
    for block in blocks {
        roff.control("PP", []);
        match block {
            // Writes `name: description` with the name in bold.
            Block::Paragraph(text) => match text.split_once(": ") {
                Some((name, rest)) if !name.contains(' ') => {
                    roff.text([bold(name), roman(format!(": {rest}"))]);
                }
                _ => {
                    roff.text([roman(text.as_str())]);
                }
            },
            Block::Verbatim(lines) => {
                roff.control("nf", []);
                for line in lines {
                    roff.text([roman(line.as_str())]);
                }
                roff.control("fi", []);
            }
        }
    }
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> (tempfile::TempDir, Vec<String>) {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path()).unwrap();
        let mut names: Vec<String> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        (directory, names)
    }

    #[test]
    fn every_command_has_a_page_with_the_usual_sections() {
        let (directory, names) = written();
        for name in ["hookrun.1", "hookrun-queue-list.1", "hookrun-builders-explain.1"] {
            assert!(names.iter().any(|known| known == name), "{names:?}");
        }
        for name in &names {
            let text = std::fs::read_to_string(directory.path().join(name)).unwrap();
            assert!(!text.contains("EXTRA"), "{name}");
            assert!(text.starts_with(".ie"), "{name}: {text}");
        }
        let main = std::fs::read_to_string(directory.path().join("hookrun.1")).unwrap();
        for part in [
            ".SH HOOKS",
            ".SH FILES",
            ".SH ENVIRONMENT",
            ".SH \"EXIT STATUS\"",
            ".SH EXAMPLES",
            "DRV_PATH",
            "OUT_PATHS",
            "four arguments",
            "decline\\-permanently",
        ] {
            assert!(main.contains(part), "`{part}` is not in\n{main}");
        }
        let examples = main.split_once(".SH EXAMPLES").unwrap().1;
        assert!(examples.contains(".nf\n  hookrun demo"), "{examples}");
    }
}
