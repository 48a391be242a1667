//! Converts a finding into the contents of a mail, as text without mark-up. [`crate::text`] and
//! [`crate::html`] only lay it out, so both parts of a mail have the same contents.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cause::{self, Cause};
use crate::finding::{Difference, Finding};
use crate::format::{counted, duration, number, shell_word, size, time, visible};
use crate::groups::{Group, Kind, groups};
use crate::history::Reason;
use crate::value::{Row, Value, rows};

/// The longest name, word or sentence of a build in a mail, in characters.
const MAX_WORD: usize = 240;
/// The longest path, which is that of Linux.
const MAX_PATH: usize = 4096;
/// The longest value on one line, in characters.
const MAX_VALUE: usize = 160;
/// The longest name in the subject: the host refuses headers of 500 bytes, and readers cut at about
/// 70 characters.
const MAX_SUBJECT_NAME: usize = 80;
/// The longest command, in characters.
const MAX_COMMAND: usize = 320;
/// The maximum number of characters for file names in one mail.
const MAX_NAMES: usize = 60_000;
/// The number of examples for a group whose files are alike.
const EXAMPLES: usize = 1;
/// The number of examples for a group whose files may be unlike.
const EXAMPLES_OF_UNLIKE: usize = 3;

/// The contents of a mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The subject without the prefix.
    pub subject: String,
    /// The summary, in one sentence.
    pub summary: String,
    /// The reason why the mail is sent again, if it is.
    pub note: Option<String>,
    /// Names and values.
    pub facts: Vec<(&'static str, String)>,
    /// The heading, such as `3 files differ`.
    pub heading: String,
    /// How much differs in total, and how much was compared.
    pub compared: Vec<String>,
    /// The files, grouped by the kind of their differences.
    pub sections: Vec<Section>,
    /// Suggested next steps.
    pub steps: Vec<Step>,
    /// Limits of the information in this mail.
    pub caveats: Vec<String>,
    /// The reason why the reader gets this mail.
    pub footer: String,
}

/// A group of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// The title, such as `38 files: a number that changes`.
    pub title: String,
    /// What usually helps.
    pub advice: Option<&'static str>,
    /// The files that are shown.
    pub examples: Vec<Example>,
    /// The names of all files of the section by directory, unless all of them are shown.
    pub names: Vec<(String, Vec<String>)>,
    /// The number of files that are not named, as text.
    pub more: Option<String>,
}

/// One file that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The path relative to the output.
    pub path: String,
    /// How much of it differs.
    pub extent: Option<String>,
    /// How it differs.
    pub changes: Vec<Change>,
}

/// One way in which a file differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What differs, such as `line 2`, `byte 708 (0x2c4)` and `mode: 0444 -> 0555`.
    pub what: String,
    /// The rows of both sides.
    pub rows: Vec<Row>,
}

/// A suggested step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The purpose.
    pub what: String,
    /// The command.
    pub command: String,
}

/// Returns the contents of a mail about `finding`, with at most `max_examples` files shown.
pub fn report(
    finding: &Finding,
    reason: &Reason,
    repeat_after: Duration,
    max_examples: usize,
) -> Report {
    let name = visible(&finding.name, MAX_WORD);
    let total = count(finding.files().len());
    let at_least = finding.incomplete.is_some();
    let output = if finding.output.is_empty() {
        "an output".to_owned()
    } else {
        format!("output `{}`", visible(&finding.output, MAX_WORD))
    };
    Report {
        subject: format!("not reproducible: {}", visible(&finding.title(), MAX_SUBJECT_NAME)),
        summary: format!(
            "{name} is not reproducible: two builds of {output} had different results."
        ),
        note: note(reason),
        facts: facts(finding),
        heading: match (total, at_least) {
            (0, _) => "No difference was found".to_owned(),
            (1, false) => "1 file differs".to_owned(),
            (1, true) => "At least 1 file differs".to_owned(),
            (total, false) => format!("{} files differ", number(total)),
            (total, true) => format!("At least {} files differ", number(total)),
        },
        compared: extent_of_all(finding).into_iter().chain([compared(finding)]).collect(),
        sections: sections(finding, max_examples),
        steps: steps(finding),
        caveats: caveats(finding),
        footer: footer(reason, repeat_after),
    }
}

fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn sections(finding: &Finding, max_examples: usize) -> Vec<Section> {
    let mut examples_left = max_examples;
    let mut names_left = MAX_NAMES;
    groups(finding)
        .into_iter()
        .map(|group| section(&group, finding, &mut examples_left, &mut names_left))
        .collect()
}

fn section(
    group: &Group<'_>,
    finding: &Finding,
    examples_left: &mut usize,
    names_left: &mut usize,
) -> Section {
    let files = group.files.len();
    let wanted = match group.kind {
        // These files are only named.
        Kind::Unseen => 0,
        Kind::Cause(Cause::Presence) if files > 1 => 0,
        Kind::Cause(_) | Kind::Mode => EXAMPLES,
        _ => EXAMPLES_OF_UNLIKE,
    };
    let wanted = wanted.min(*examples_left);
    let examples: Vec<Example> = group
        .examples
        .iter()
        .filter(|(_, differences)| !differences.is_empty())
        .take(wanted)
        .map(|(path, differences)| example(path, differences, finding))
        .collect();
    *examples_left -= examples.len();
    let (names, hidden) =
        if examples.len() == files { (Vec::new(), 0) } else { names(group, finding, names_left) };
    let (what, advice) = described(group.kind);
    Section {
        title: format!("{}: {what}", counted(count(files), "file", "files")),
        advice,
        examples,
        names,
        more: (hidden > 0).then(|| format!("and {} more", number(count(hidden)))),
    }
}

/// Returns what the files of a group have in common, and the advice.
const fn described(kind: Kind) -> (&'static str, Option<&'static str>) {
    match kind {
        Kind::Cause(cause) => (cause.looks_like(), Some(cause.advice())),
        Kind::Contents => ("contents that match no known pattern", None),
        Kind::LinkTarget => ("the target of a symbolic link", None),
        Kind::Mode => (
            "the executable bit",
            Some(
                "Set the mode in the build (`install -m`, `chmod`), so that it does not depend on the umask or the order of steps.",
            ),
        ),
        Kind::Type => ("the type of file", None),
        Kind::Other => ("something else", None),
        Kind::Unseen => {
            ("contents that are not shown, because there are too many differences", None)
        }
    }
}

fn shown_path(path: &str) -> String {
    if path.is_empty() { "(the output itself)".to_owned() } else { visible(path, MAX_PATH) }
}

/// Returns the names of a group's files by directory, and the number of files that are left out.
fn names(
    group: &Group<'_>,
    finding: &Finding,
    left: &mut usize,
) -> (Vec<(String, Vec<String>)>, usize) {
    let mut named: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut hidden = 0;
    for path in &group.files {
        if path.len() > *left {
            hidden += 1;
            continue;
        }
        *left -= path.len();
        let (directory, name) =
            path.rsplit_once('/').map_or(("", *path), |(directory, name)| (directory, name));
        let side = match finding.only_in(path) {
            Some(side) if group.kind == Kind::Cause(Cause::Presence) => format!(" ({side})"),
            _ => String::new(),
        };
        let name =
            if name.is_empty() { shown_path("") } else { shell_word(&visible(name, MAX_PATH)) };
        let directory = if directory.is_empty() {
            String::new()
        } else {
            format!("{}/", visible(directory, MAX_PATH))
        };
        named.entry(directory).or_default().push(format!("{name}{side}"));
    }
    (named.into_iter().collect(), hidden)
}

fn example(path: &str, differences: &[&Difference], finding: &Finding) -> Example {
    let all = finding.files().remove(path).unwrap_or_default();
    let mut changes: Vec<Change> =
        differences.iter().map(|difference| change(difference)).collect();
    let sizes = all.iter().filter(|difference| difference.kind == "size");
    // Other kinds of difference have their own section.
    if !differences.iter().any(|difference| difference.kind == "size") {
        changes.extend(sizes.map(|difference| change(difference)));
    }
    for difference in &all {
        if cause::of_difference(difference, finding).contains(&Cause::BuildId)
            && !differences.contains(difference)
        {
            let place = change(difference).what;
            let what = format!("{place}: {}", Cause::BuildId.looks_like());
            changes.push(Change { what, rows: Vec::new() });
        }
    }
    Example { path: shown_path(path), extent: extent(&all), changes }
}

/// Returns how much of one file differs.
fn extent(all: &[&Difference]) -> Option<String> {
    let first =
        all.iter().find(|difference| difference.details.contains_key("differing-places"))?;
    let figure = |name: &str| first.details.get(name).and_then(|value| value.parse::<u64>().ok());
    let at_least = if first.details.contains_key("at-least") { "at least " } else { "" };
    let places = figure("differing-places").filter(|places| *places > 1);
    let places = places.map(|places| format!(" in {} places", number(places))).unwrap_or_default();
    if first.details.get("order").is_some_and(|order| order == "lines") {
        return Some("the same lines in another order".to_owned());
    }
    let amount = match (figure("differing-lines"), figure("differing-bytes")) {
        (Some(lines), _) => counted(lines, "line", "lines"),
        (_, Some(bytes)) => counted(bytes, "byte", "bytes"),
        _ => return None,
    };
    let verb = if amount.starts_with("1 ") { "differs" } else { "differ" };
    Some(format!("{at_least}{amount} {verb}{places}"))
}

/// Returns how much differs in all files together.
fn extent_of_all(finding: &Finding) -> Option<String> {
    let (mut lines, mut bytes, mut at_least) = (0_u64, 0_u64, finding.incomplete.is_some());
    for difference in &finding.differences {
        let figure = |name: &str| {
            difference.details.get(name).and_then(|value| value.parse::<u64>().ok()).unwrap_or(0)
        };
        lines = lines.saturating_add(figure("differing-lines"));
        bytes = bytes.saturating_add(figure("differing-bytes"));
        let uncounted = difference.kind == "content"
            && difference.previous.is_empty()
            && difference.current.is_empty();
        at_least |= difference.details.contains_key("at-least") || uncounted;
    }
    let parts: Vec<String> = [
        (lines, counted(lines, "line of text", "lines of text")),
        (bytes, counted(bytes, "byte of other files", "bytes of other files")),
    ]
    .into_iter()
    .filter(|(amount, _)| *amount > 0)
    .map(|(_, text)| text)
    .collect();
    let at_least = if at_least { "at least " } else { "" };
    (!parts.is_empty()).then(|| {
        let verb = if lines.saturating_add(bytes) == 1 { "differs" } else { "differ" };
        format!("In total, {at_least}{} {verb}.", parts.join(" and "))
    })
}

fn note(reason: &Reason) -> Option<String> {
    match reason {
        Reason::First | Reason::NoState => None,
        Reason::Changed => Some(
            "Other files differ than in the previous mail, or they differ in another way.".to_owned(),
        ),
        Reason::AnotherDerivation => Some(
            "The derivation has changed since the previous mail, but its result differs in the same way."
                .to_owned(),
        ),
        Reason::Again { unmailed: 0 } => {
            Some("It differs in the same way as in the previous mail.".to_owned())
        }
        Reason::Again { unmailed } => Some(format!(
            "It differs in the same way as in the previous mail; {} since then {} not mailed.",
            counted(*unmailed, "finding", "findings"),
            if *unmailed == 1 { "was" } else { "were" }
        )),
    }
}

fn facts(finding: &Finding) -> Vec<(&'static str, String)> {
    let mut facts = vec![("Derivation", visible(&finding.drv_path, MAX_PATH))];
    if !finding.output.is_empty() {
        facts.push(("Output", visible(&finding.output, MAX_WORD)));
    }
    facts.extend([
        ("Previous", visible(&finding.previous_path, MAX_PATH)),
        ("Current", visible(&finding.current_path, MAX_PATH)),
        ("Machine", visible(&finding.host, MAX_WORD)),
    ]);
    let known = [("Nix", &finding.nix), ("Built by", &finding.user), ("Command", &finding.command)];
    facts.extend(
        known
            .into_iter()
            .filter_map(|(name, value)| Some((name, visible(value.as_deref()?, MAX_COMMAND)))),
    );
    facts.push(("Time", time(finding.time_ms)));
    facts
}

fn compared(finding: &Finding) -> String {
    let seen = format!(
        "{} (files, directories, links) and {} of each result were compared",
        counted(finding.compared_files, "entry", "entries"),
        size(finding.compared_bytes)
    );
    match &finding.incomplete {
        None => format!("{seen}, which is everything."),
        Some(why) => format!(
            "{seen}, which is not everything: {}. There may be more differences.",
            visible(why, MAX_WORD)
        ),
    }
}

fn change(difference: &Difference) -> Change {
    let Difference { path: _, kind, previous, current, offset, details } = difference;
    let short = |value: &str| visible(value, MAX_VALUE);
    let plain = |what: &str| Change {
        what: format!("{what}: {} -> {}", short(previous), short(current)),
        rows: Vec::new(),
    };
    let stacked = |what: String, from: u64| Change {
        what,
        rows: rows(&Value::parse(previous), &Value::parse(current), from),
    };
    let detail = |name: &str| details.get(name).and_then(|value| value.parse::<u64>().ok());
    match kind.as_str() {
        "content" => {
            let place = match (detail("line"), offset) {
                (Some(line), _) => format!("line {}", number(line)),
                (None, Some(offset)) => format!("byte {} (0x{offset:x})", number(*offset)),
                (None, None) => "contents".to_owned(),
            };
            if previous.is_empty() && current.is_empty() {
                Change { what: place, rows: Vec::new() }
            } else {
                stacked(place, detail("from").or(*offset).unwrap_or(0))
            }
        }
        "size" => Change {
            what: format!("size: {} -> {}", bytes(previous), bytes(current)),
            rows: Vec::new(),
        },
        "mode" | "type" => plain(kind),
        "link-target" => Change {
            what: "link target".to_owned(),
            rows: rows(&Value::Other(previous.clone()), &Value::Other(current.clone()), 0),
        },
        "only-in-previous" | "only-in-current" => {
            let (side, of) = if kind == "only-in-previous" {
                ("previous", previous)
            } else {
                ("current", current)
            };
            Change { what: format!("only in the {side} result{}", of_type(of)), rows: Vec::new() }
        }
        other => stacked(short(other), 0),
    }
}

fn bytes(value: &str) -> String {
    value
        .parse()
        .map_or_else(|_| visible(value, MAX_VALUE), |bytes| counted(bytes, "byte", "bytes"))
}

fn of_type(value: &str) -> String {
    if value.is_empty() { String::new() } else { format!(" ({})", visible(value, MAX_VALUE)) }
}

/// Returns whether the path is the result of `--check`, which the next garbage collection removes.
fn is_check(path: &str) -> bool {
    path.strip_suffix(".check").is_some()
}

fn steps(finding: &Finding) -> Vec<Step> {
    // A command that is cut off is useless.
    let word = |path: &str| shell_word(&visible(path, usize::MAX));
    let check =
        [&finding.current_path, &finding.previous_path].into_iter().find(|path| is_check(path));
    let mut steps = Vec::new();
    if let Some(check) = check {
        let keep = visible(check.rsplit('/').next().unwrap_or_default(), usize::MAX);
        steps.push(Step {
            what: "Keep the second result: the next garbage collection deletes it.".to_owned(),
            command: format!("cp -a {} ./{}", word(check), shell_word(&keep)),
        });
    }
    steps.push(Step {
        what: "Compare the contents of the files.".to_owned(),
        command: format!(
            "diffoscope {} {}",
            word(&finding.previous_path),
            word(&finding.current_path)
        ),
    });
    steps.push(Step {
        what: "Build it again and compare. `-K` keeps the build directory if the results differ."
            .to_owned(),
        command: format!("nix-build --check -K {}", word(&finding.drv_path)),
    });
    steps
}

fn caveats(finding: &Finding) -> Vec<String> {
    let mut caveats = vec![
        "Nix stops at the first output that differs, so other outputs of this derivation may differ as well (Lix compares all outputs)."
            .to_owned(),
    ];
    if finding.files().keys().len() == 0 {
        caveats.push(
            "Nix found different hashes for the two results. hookrun found no difference within the limits of its comparison."
                .to_owned(),
        );
    }
    caveats.push("The kind of each difference is a guess from a few lines or bytes.".to_owned());
    caveats
}

fn footer(reason: &Reason, repeat_after: Duration) -> String {
    let repeat = match reason {
        Reason::NoState => {
            "Every finding is mailed; with `state = true` in the plugin's grant, the same finding is mailed once.".to_owned()
        }
        _ if repeat_after.is_zero() => "Every finding is mailed; set `repeat-after` to a longer time to change this.".to_owned(),
        _ => format!("The same finding is not mailed again for {} (`repeat-after`).", duration(repeat_after)),
    };
    format!(
        "Sent by hookrun's plugin email-on-nondeterminism, because you are listed in its `to`. {repeat}"
    )
}
