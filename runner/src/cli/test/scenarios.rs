//! Scenarios of `hookrun test`: finds the plugins and their scenarios, plays them, and writes the
//! result as text, JSON, JUnit XML or TAP.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::{ALL, Args, TestFormat, print_notes, subject_error};
use crate::cli::output::{self, Style, printable, styled};
use crate::cli::{CliError, Context, runtime};
use crate::testing::play::{self, Played, Prepared};
use crate::testing::{self, Changes, ScenarioFile, Subject, Variant};
use hookrun_config::{Capability, Want, Wants};
use hookrun_host::{Compiler, Host};
use hookrun_nix::exit_code::Exit;

/// Lines of the log that are shown of a scenario that failed.
const SHOWN_LINES: usize = 10;

/// The results of one plugin.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct PluginResults {
    plugin: String,
    configuration: String,
    passed: bool,
    scenarios: Vec<Played>,
}

/// A plugin and the scenarios that follow it on the command line.
struct Group<'a> {
    plugin: &'a str,
    scenarios: Vec<&'a str>,
}

pub(super) fn run(
    context: &Context,
    args: &Args,
    is_scenario: impl Fn(&String) -> bool,
) -> Result<Exit, CliError> {
    let groups = groups(&args.targets, is_scenario)?;
    let faults: Vec<Variant> = args
        .fault
        .iter()
        .map(|fault| Variant::parse_fault(fault).map_err(CliError::usage))
        .collect::<Result<_, _>>()?;
    let host = Host::for_tests(Compiler::Contained(None));
    let changes = Changes { set: &args.set, deny: &[], limits: &args.limit };
    let mut results = Vec::new();
    let mut prepared: Vec<Prepared> = Vec::new();
    // The plugin of each element of `prepared`, and the file to update.
    let mut origins: Vec<(usize, Option<(ScenarioFile, File)>)> = Vec::new();
    let mut filtered_out = 0;
    for (number, Group { plugin, scenarios }) in groups.iter().enumerate() {
        let subject =
            Subject::find(plugin, &context.files(), &host, &changes).map_err(subject_error)?;
        print_notes(&subject);
        let wants = subject.examine(&host).map_err(subject_error)?.1.description.metadata.wants;
        let is_wanted = |variant: &&Variant| {
            variant.capability().is_none_or(|capability| wants.of(capability) != Want::No)
        };
        let deny = denied(args, &wants)?;
        let all: Vec<Variant> =
            deny.into_iter().map(Variant::Denied).chain(faults.iter().cloned()).collect();
        let mut variants = vec![Variant::Usual];
        variants.extend(all.iter().filter(is_wanted).cloned());
        if let (Some(unwanted), [_]) =
            (all.iter().find(|variant| !is_wanted(variant)), groups.as_slice())
        {
            return Err(CliError::usage(format!(
                "`{unwanted}` changes nothing: plugin `{}` does not want that capability; remove the option",
                subject.plugin.name
            )));
        }
        let failed = |message: String| invalid(&message);
        if scenarios.is_empty() {
            let all = play::prepare(&subject, &host, None, &variants).map_err(|message| {
                CliError { exit: Exit::Failed, source: anyhow::Error::msg(message) }
            })?;
            origins.extend(all.iter().map(|_| (number, None)));
            prepared.extend(all);
        }
        for path in scenarios {
            if args.filter.as_ref().is_some_and(|text| !path.contains(text.as_str())) {
                filtered_out += 1;
                continue;
            }
            let file = ScenarioFile::read(Path::new(path)).map_err(failed)?;
            let all = play::prepare(&subject, &host, Some(&file), &variants).map_err(failed)?;
            for one in all {
                // The sandbox takes the right to open files.
                let update = if args.update {
                    let opened = File::options().write(true).open(&file.path).map_err(|error| {
                        let shown = file.path.display();
                        invalid(&format!("{shown} cannot be written ({error})"))
                    })?;
                    Some((file.clone(), opened))
                } else {
                    None
                };
                origins.push((number, update));
                prepared.push(one);
            }
        }
        results.push(PluginResults {
            plugin: (*plugin).to_owned(),
            configuration: subject.configuration(),
            passed: true,
            scenarios: Vec::new(),
        });
    }
    if prepared.is_empty() {
        return Err(CliError::usage(format!(
            "no scenario is left: `--filter` leaves out all {filtered_out}; correct it"
        )));
    }
    host.prune(&[] as &[hookrun_host::ReadyPlugin], hookrun_host::compiled_cache::OF_TESTS);
    // Services are in memory, so from here on this process needs nothing but its native code.
    testing::wall().raise().map_err(CliError::environment)?;
    let jobs = args.jobs.or_else(|| std::thread::available_parallelism().ok().map(Into::into));
    let begun = std::time::Instant::now();
    let played = runtime()?.block_on(play::play(prepared, &context.dirs, jobs.unwrap_or(1)));
    let time = begun.elapsed();
    let mut updated = 0;
    for (all, (number, update)) in played.into_iter().zip(origins) {
        if let (Some((file, mut opened)), [played]) = (update, all.as_slice()) {
            let text = testing::updated(&file, played).map_err(|message| invalid(&message))?;
            if text != file.text {
                let written = opened
                    .set_len(0)
                    .and_then(|()| opened.write_all(text.as_bytes()))
                    .and_then(|()| opened.sync_all());
                written.map_err(CliError::environment)?;
                updated += 1;
            }
        }
        if let Some(plugin) = results.get_mut(number) {
            plugin.passed &= all.iter().all(|played| played.passed);
            plugin.scenarios.extend(all);
        }
    }
    let passed = results.iter().all(|plugin| plugin.passed);
    let text = match args.format {
        TestFormat::Json => {
            output::json(&results)?;
            String::new()
        }
        TestFormat::Text => text(&results, time),
        TestFormat::Junit => junit(&results, time),
        TestFormat::Tap => tap(&results),
    };
    output::print(&text)?;
    if args.update {
        output::print(&format!("{updated} scenarios were updated\n"))?;
        return Ok(Exit::Done);
    }
    Ok(if passed { Exit::Done } else { Exit::Failed })
}

fn invalid(message: &str) -> CliError {
    CliError { exit: Exit::Configuration, source: anyhow::Error::msg(message.to_owned()) }
}

fn groups<'a>(
    targets: &'a [String],
    is_scenario: impl Fn(&String) -> bool,
) -> Result<Vec<Group<'a>>, CliError> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for target in targets {
        if is_scenario(target) {
            let Some(group) = groups.last_mut() else {
                return Err(CliError::usage(format!(
                    "the scenario `{target}` has no plugin; write the plugin before it: `hookrun test PLUGIN {target}`"
                )));
            };
            group.scenarios.push(target);
        } else {
            groups.push(Group { plugin: target, scenarios: Vec::new() });
        }
    }
    Ok(groups)
}

/// Returns the capabilities that are denied; `all` means those that the plugin wants.
fn denied(args: &Args, wants: &Wants) -> Result<Vec<Capability>, CliError> {
    if args.deny.iter().any(|name| name == ALL) {
        let wanted = Capability::ALL.into_iter().filter(|it| wants.of(*it) != Want::No);
        return Ok(wanted.collect());
    }
    args.deny.iter().map(|name| testing::capability_of(name).map_err(CliError::usage)).collect()
}

/// Returns the name of a scenario and its variant.
fn name(played: &Played) -> String {
    if played.variant.is_empty() {
        played.name.clone()
    } else {
        format!("{} [{}]", played.name, played.variant)
    }
}

/// Returns the reasons why a scenario failed, a line each.
fn reasons(played: &Played) -> Vec<String> {
    let steps = played.steps.iter().enumerate();
    let mut lines = Vec::new();
    for (number, step) in steps {
        for difference in &step.differences {
            lines.push(format!("step {} ({}): {difference}", number + 1, step.hook));
        }
    }
    lines
}

fn text(results: &[PluginResults], time: Duration) -> String {
    let colours = output::colours();
    let mut text = String::new();
    let (mut all, mut good) = (0, 0);
    for PluginResults { plugin, configuration, scenarios, .. } in results {
        let _ = writeln!(
            text,
            "{}  {}",
            styled(&printable(plugin), Style::Strong, colours),
            styled(&printable(configuration), Style::Faint, colours)
        );
        for played in scenarios {
            all += 1;
            let verdict = if played.passed {
                good += 1;
                styled("pass", Style::Good, colours)
            } else {
                styled("FAIL", Style::Bad, colours)
            };
            let note = played.note.as_ref().map(|note| format!("  ({note})")).unwrap_or_default();
            let _ = writeln!(text, "  {verdict}  {}{}", printable(&name(played)), printable(&note));
            if played.passed {
                continue;
            }
            for reason in reasons(played) {
                let _ = writeln!(text, "        {}", printable(&reason));
            }
            for step in played.steps.iter().filter(|step| !step.differences.is_empty()) {
                let log = &step.observed.report.log;
                let left = log.len().saturating_sub(SHOWN_LINES);
                if left > 0 {
                    let _ = writeln!(text, "        ... {left} lines of the log are not shown");
                }
                for line in log.iter().skip(left) {
                    let _ = writeln!(
                        text,
                        "        logged {}: {}",
                        printable(&line.level),
                        printable(&line.message)
                    );
                }
            }
        }
    }
    let verdict = if good == all {
        styled("passed", Style::Good, colours)
    } else {
        styled("failed", Style::Bad, colours)
    };
    let ms = time.as_millis();
    let _ = writeln!(text, "\n{verdict}: {good} of {all} scenarios were as expected, in {ms} ms");
    text
}

fn junit(results: &[PluginResults], time: Duration) -> String {
    let count =
        |results: &[PluginResults]| results.iter().map(|it| it.scenarios.len()).sum::<usize>();
    let failures = |plugin: &PluginResults| plugin.scenarios.iter().filter(|it| !it.passed).count();
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(
        text,
        "<testsuites name=\"hookrun test\" tests=\"{}\" failures=\"{}\" time=\"{:.3}\">",
        count(results),
        results.iter().map(failures).sum::<usize>(),
        time.as_secs_f64()
    );
    for plugin in results {
        let _ = writeln!(
            text,
            "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\">",
            xml(&plugin.plugin),
            plugin.scenarios.len(),
            failures(plugin)
        );
        for played in &plugin.scenarios {
            let _ = write!(
                text,
                "    <testcase classname=\"{}\" name=\"{}\" time=\"{:.4}\"",
                xml(&plugin.plugin),
                xml(&name(played)),
                played.time.as_secs_f64()
            );
            if played.passed {
                text.push_str("/>\n");
                continue;
            }
            let reasons = reasons(played);
            let first = reasons.first().map(String::as_str).unwrap_or_default();
            let _ = writeln!(
                text,
                ">\n      <failure message=\"{}\">{}</failure>\n    </testcase>",
                xml(first),
                xml(&reasons.join("\n"))
            );
        }
        text.push_str("  </testsuite>\n");
    }
    text.push_str("</testsuites>\n");
    text
}

/// Returns text for XML 1.0, which has no control characters but tab and line ends.
fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(character),
            _ if character.is_control() || matches!(character, '\u{fffe}' | '\u{ffff}') => {
                escaped.push('\u{fffd}');
            }
            _ => escaped.push(character),
        }
    }
    escaped
}

fn tap(results: &[PluginResults]) -> String {
    let mut text = String::from("TAP version 14\n");
    let all = results.iter().flat_map(|plugin| plugin.scenarios.iter().map(move |it| (plugin, it)));
    let all: Vec<_> = all.collect();
    let _ = writeln!(text, "1..{}", all.len());
    for (number, (plugin, played)) in all.into_iter().enumerate() {
        let verdict = if played.passed { "ok" } else { "not ok" };
        // A `#` begins a directive.
        let name = format!("{} {}", plugin.plugin, name(played)).replace('#', "\\#");
        let _ = writeln!(text, "{verdict} {} - {}", number + 1, printable(&name));
        for reason in reasons(played) {
            let _ = writeln!(text, "# {}", printable(&reason));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_in_xml_is_escaped() {
        assert_eq!(xml("a<b> & \"c\"\u{1}\n"), "a&lt;b&gt; &amp; &quot;c&quot;\u{fffd}\n");
    }
}
