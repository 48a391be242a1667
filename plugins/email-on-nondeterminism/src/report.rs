//! A finding -> what is to be said about it, in words and without any mark-up. [`crate::text`] and
//! [`crate::html`] only lay it out, so both parts of a mail say the same.

use std::time::Duration;

use crate::cause::{self, Cause};
use crate::finding::{Difference, Finding};
use crate::history::Reason;
use crate::shown::{counted, duration, number, shell_word, size, time, visible};

/// Longest path in a mail, in characters.
const MAX_PATH: usize = 240;
/// Longest value; the bytes around a difference have at most about 100.
const MAX_VALUE: usize = 160;
/// Longest name in the subject: the host refuses headers of 500 bytes, and readers cut at about 70.
const MAX_SUBJECT_NAME: usize = 80;

/// All that a mail says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The subject without prefix.
    pub subject: String,
    /// What happened, in one sentence.
    pub summary: String,
    /// What to know besides: why this mail comes now.
    pub note: Option<String>,
    /// Names and values.
    pub facts: Vec<(&'static str, String)>,
    /// `3 files differ`.
    pub heading: String,
    /// How far the comparison went.
    pub compared: String,
    /// The files, as many as are shown.
    pub files: Vec<File>,
    /// What is not shown.
    pub more: Option<String>,
    /// What it looks like, with advice.
    pub causes: Vec<(String, &'static str)>,
    /// What to do next.
    pub steps: Vec<Step>,
    /// What the reader must not conclude.
    pub caveats: Vec<String>,
    /// Why this mail came.
    pub footer: String,
}

/// One file that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Relative to the output.
    pub path: String,
    /// How it differs.
    pub changes: Vec<Change>,
    /// `looks like an embedded date or time`.
    pub hint: Option<String>,
}

/// One way in which a file differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What differs.
    pub what: String,
    /// The two values, where there are any.
    pub values: Option<(String, String)>,
    /// Are they long enough to stand under each other?
    pub stacked: bool,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What it gives.
    pub what: String,
    /// The command.
    pub command: String,
}

/// What is to be said about `finding`.
pub fn report(
    finding: &Finding,
    reason: &Reason,
    repeat_after: Duration,
    max_files: usize,
) -> Report {
    let name = visible(&finding.name, MAX_PATH);
    let files = finding.files();
    let total = files.len();
    let mut causes: Vec<(Cause, u64)> = Vec::new();
    let mut shown = Vec::new();
    for (index, (path, differences)) in files.iter().enumerate() {
        let cause = cause::of_file(differences, finding);
        if let Some(cause) = cause {
            match causes.iter_mut().find(|(known, _)| *known == cause) {
                Some((_, count)) => *count += 1,
                None => causes.push((cause, 1)),
            }
        }
        if index < max_files {
            shown.push(File {
                path: if path.is_empty() {
                    "(the output itself)".to_owned()
                } else {
                    visible(path, MAX_PATH)
                },
                changes: differences.iter().map(|difference| change(difference)).collect(),
                hint: cause.map(|cause| format!("looks like {}", cause.looks_like())),
            });
        }
    }
    causes.sort_by_key(|(cause, count)| (std::cmp::Reverse(*count), *cause));
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let at_least = if finding.incomplete.is_some() { "at least " } else { "" };
    let output = if finding.output.is_empty() {
        "an output".to_owned()
    } else {
        format!("output `{}`", visible(&finding.output, MAX_PATH))
    };
    Report {
        subject: format!("not reproducible: {}", visible(&finding.title(), MAX_SUBJECT_NAME)),
        summary: format!(
            "{name} is not reproducible: two builds of {output} gave different results."
        ),
        note: note(reason),
        facts: facts(finding),
        heading: match (total, at_least) {
            (0, _) => "No difference was found".to_owned(),
            (1, "") => "1 file differs".to_owned(),
            (1, _) => "At least 1 file differs".to_owned(),
            (total, "") => format!("{} files differ", number(count(total))),
            (total, _) => format!("At least {} files differ", number(count(total))),
        },
        compared: compared(finding),
        more: (total > max_files).then(|| {
            let hidden = count(total - max_files);
            format!("and {at_least}{} more", number(hidden))
        }),
        files: shown,
        causes: causes
            .into_iter()
            .map(|(cause, files)| {
                (
                    format!(
                        "{} in {}",
                        capitalised(cause.looks_like()),
                        counted(files, "file", "files")
                    ),
                    cause.advice(),
                )
            })
            .collect(),
        steps: steps(finding),
        caveats: caveats(finding),
        footer: footer(reason, repeat_after),
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn note(reason: &Reason) -> Option<String> {
    match reason {
        Reason::First | Reason::Forgetful => None,
        Reason::Changed => Some(
            "It differs in other files, or in another way, than in the mail before.".to_owned(),
        ),
        Reason::Again { unmailed: 0 } => {
            Some("It differs in the same way as in the mail before.".to_owned())
        }
        Reason::Again { unmailed } => Some(format!(
            "It differs in the same way as in the mail before; {} in between {} not mailed.",
            counted(*unmailed, "finding", "findings"),
            if *unmailed == 1 { "was" } else { "were" }
        )),
    }
}

fn facts(finding: &Finding) -> Vec<(&'static str, String)> {
    let mut facts = vec![("Derivation", visible(&finding.drv_path, MAX_PATH))];
    if !finding.output.is_empty() {
        facts.push(("Output", visible(&finding.output, MAX_PATH)));
    }
    facts.extend([
        ("Previous", visible(&finding.previous_path, MAX_PATH)),
        ("Current", visible(&finding.current_path, MAX_PATH)),
        ("Machine", visible(&finding.host, MAX_PATH)),
        ("Time", time(finding.time_ms)),
    ]);
    facts
}

fn compared(finding: &Finding) -> String {
    let seen = format!(
        "{} (files, directories, links) and {} of each result were compared",
        counted(finding.compared_files, "entry", "entries"),
        size(finding.compared_bytes)
    );
    match &finding.incomplete {
        None => format!("{seen}: everything there is."),
        Some(why) => format!(
            "{seen}, which is not everything: {}. There may be more.",
            visible(why, MAX_PATH)
        ),
    }
}

fn change(difference: &Difference) -> Change {
    let Difference { path: _, kind, previous, current, offset, .. } = difference;
    let values = |previous: String, current: String| {
        Some((visible(&previous, MAX_VALUE), visible(&current, MAX_VALUE)))
    };
    let plain = || values(previous.clone(), current.clone());
    let (what, values, stacked) = match kind.as_str() {
        "content" => {
            let what = match offset {
                Some(offset) => {
                    format!("contents, first at byte {} (0x{offset:x})", number(*offset))
                }
                None => "contents".to_owned(),
            };
            (what, if previous.is_empty() && current.is_empty() { None } else { plain() }, true)
        }
        "size" => ("size".to_owned(), values(bytes(previous), bytes(current)), false),
        "mode" | "type" => (kind.clone(), plain(), false),
        "link-target" => ("link target".to_owned(), plain(), true),
        "only-in-previous" => {
            (format!("only in the previous result{}", of_type(previous)), None, false)
        }
        "only-in-current" => {
            (format!("only in the current result{}", of_type(current)), None, false)
        }
        other => (visible(other, MAX_VALUE), plain(), true),
    };
    Change { what, values, stacked }
}

fn bytes(value: &str) -> String {
    value.parse().map_or_else(|_| value.to_owned(), |bytes| counted(bytes, "byte", "bytes"))
}

fn of_type(value: &str) -> String {
    if value.is_empty() { String::new() } else { format!(" ({})", visible(value, MAX_VALUE)) }
}

/// Is it the result that only the check has, and the next garbage collection takes?
fn is_check(path: &str) -> bool {
    path.strip_suffix(".check").is_some()
}

fn steps(finding: &Finding) -> Vec<Step> {
    let word = |path: &str| shell_word(&visible(path, MAX_PATH));
    let check =
        [&finding.current_path, &finding.previous_path].into_iter().find(|path| is_check(path));
    let mut steps = Vec::new();
    if let Some(check) = check {
        let keep = visible(check.rsplit('/').next().unwrap_or_default(), MAX_PATH);
        steps.push(Step {
            what: "Keep the second result: the next garbage collection deletes it.".to_owned(),
            command: format!("cp -a {} ./{}", word(check), shell_word(&keep)),
        });
    }
    steps.push(Step {
        what: "See what differs inside the files.".to_owned(),
        command: format!(
            "diffoscope {} {}",
            word(&finding.previous_path),
            word(&finding.current_path)
        ),
    });
    steps.push(Step {
        what: "Build it once more and compare, keeping the build directory if it differs."
            .to_owned(),
        command: format!("nix-build --check -K {}", word(&finding.drv_path)),
    });
    steps
}

fn caveats(finding: &Finding) -> Vec<String> {
    let mut caveats = vec![
        "Nix stops at the first output that differs, so other outputs of this derivation were perhaps not compared (Lix compares all)."
            .to_owned(),
    ];
    if finding.files().keys().len() == 0 {
        caveats.push(
            "Nix found that the two results have different hashes; what differs was not found here, within the bounds of the comparison."
                .to_owned(),
        );
    }
    caveats.push("What a difference looks like is a guess from a few bytes.".to_owned());
    caveats
}

fn footer(reason: &Reason, repeat_after: Duration) -> String {
    let repeat = match reason {
        Reason::Forgetful => {
            "Each finding is mailed; with `state = true` in the plugin's grant, the same finding is mailed once.".to_owned()
        }
        _ if repeat_after.is_zero() => "Each finding is mailed; `repeat-after` sets a pause.".to_owned(),
        _ => format!("The same finding is not mailed again for {} (`repeat-after`).", duration(repeat_after)),
    };
    format!(
        "Sent by hookrun's plugin email-on-nondeterminism, because its `to` names you. {repeat}"
    )
}
