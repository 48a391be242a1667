//! `hookrun test`: runs a plugin on sample events, or on scenarios ([`scenarios`]).

mod scenarios;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::log::level_style;
use super::output::{self, Style, printable, style_of, styled};
use super::{CliError, Context};
use crate::testing::{self, Changes, Subject, SubjectError, TestRun};
use hookrun_config::{Capability, Limit, Limits};
use hookrun_host::{Compiler, Host};
use hookrun_nix::event::HookKind;
use hookrun_nix::exit_code::Exit;
use hookrun_nix::outcome::Usage;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
PLUGIN is a file, `bundled:NAME`, or the name of a configured plugin. The configuration is that of
--config or HOOKRUN_CONFIG, else `hookrun.toml` in the working directory, else (for a name) that of
the system. A configuration that has the file as a `source` gives the plugin its `config`, grants
and limits. A plugin that is not configured is granted everything that it wants: the object store
`cache`, the signing key `cache.example.org-1`, the mail transport `default`, all HTTP requests; its
`config` comes from the examples of its schema. All services are in memory: nothing is sent and
nothing is kept.

SCENARIO is a file that ends in `.toml`. It belongs to the plugin before it. It has events, what the
services hold and answer, and what is expected; docs/scenarios.md describes it. Without a scenario
the plugin runs on samples.

Exit code 0: every scenario was as expected (or every hook succeeded on its samples). 1: one was
not, or the plugin does not load. 2: an option is wrong. 3: the configuration or a scenario is not
valid.

Examples:
  hookrun test target/wasm32-wasip2/release/announce.wasm
  hookrun test target/wasm32-wasip2/release/announce.wasm scenarios/*.toml
  hookrun test ./announce.wasm scenarios/*.toml --deny all --fault http=503 --fault http=timeout
  hookrun test ./announce.wasm scenarios/first.toml --update
  hookrun test ./announce.wasm --fuzz 10
  hookrun test bundled:s3-upload --set 'compression = \"xz\"'
  hookrun test ./announce.wasm --deny mail --limit wall-time=2s
  hookrun test cache --format json")]
pub(super) struct Args {
    /// The plugins to test, each followed by its scenarios
    #[arg(value_name = "PLUGIN|SCENARIO", required = true)]
    targets: Vec<String>,
    /// Set a key of the plugin's configuration, as TOML
    #[arg(long, value_name = "KEY = VALUE")]
    set: Vec<String>,
    /// Set a limit of the plugin, such as wall-time=2s
    #[arg(long, value_name = "LIMIT=VALUE")]
    limit: Vec<String>,
    /// Do not grant a capability; with `all` or scenarios, run everything again without it
    #[arg(long, value_name = "CAPABILITY", value_parser = testing_capabilities())]
    deny: Vec<String>,
    /// Run everything again while a service fails: refuse, timeout, garbage, slow or an HTTP status
    #[arg(long, value_name = "CAPABILITY=FAULT")]
    fault: Vec<String>,
    /// Run the plugin for so many seconds on samples that are changed at random
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["deny", "fault", "update"])]
    fuzz: Option<u64>,
    /// The seed of --fuzz
    #[arg(long, value_name = "NUMBER", default_value_t = 0, requires = "fuzz")]
    seed: u64,
    /// Run only scenarios whose file name contains this text
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Write what each scenario did into its file as what it expects
    #[arg(long, conflicts_with_all = ["deny", "fault"])]
    update: bool,
    /// The number of scenarios that run at once [default: the number of processors]
    #[arg(long, value_name = "NUMBER")]
    jobs: Option<usize>,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: TestFormat,
}

/// The output formats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum TestFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object
    Json,
    /// JUnit's XML, for continuous integration
    Junit,
    /// Test Anything Protocol, version 14
    Tap,
}

/// The word of `--deny` for each capability that the plugin wants.
const ALL: &str = "all";

fn testing_capabilities() -> clap::builder::PossibleValuesParser {
    Capability::ALL.map(Capability::name).into_iter().chain([ALL]).collect::<Vec<_>>().into()
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report<'a> {
    plugin: &'a str,
    version: &'a str,
    digest: &'a str,
    configuration: String,
    passed: bool,
    runs: &'a [TestRun],
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let is_scenario =
        |target: &String| Path::new(target).extension().is_some_and(|it| it == "toml");
    let is_simple = args.targets.len() == 1
        && args.fault.is_empty()
        && !args.update
        && !args.deny.iter().any(|name| name == ALL)
        && matches!(args.format, TestFormat::Text | TestFormat::Json);
    match args.targets.as_slice() {
        [plugin] if args.fuzz.is_some() && !is_scenario(plugin) => fuzz(context, args, plugin),
        _ if args.fuzz.is_some() => Err(CliError::usage(
            "`--fuzz` takes one plugin and no scenario; write `hookrun test PLUGIN --fuzz 10`",
        )),
        [plugin] if is_simple && !is_scenario(plugin) => samples(context, args, plugin),
        _ => scenarios::run(context, args, is_scenario),
    }
}

/// Runs one plugin on changed samples, and shows the scenario of the first defect.
fn fuzz(context: &Context, args: &Args, plugin: &str) -> Result<Exit, CliError> {
    let changes = Changes { set: &args.set, deny: &[], limits: &args.limit };
    let host = Host::for_tests(Compiler::Contained(None));
    let subject =
        Subject::find(plugin, &context.files(), &host, &changes).map_err(subject_error)?;
    print_notes(&subject);
    let failed =
        |message: String| CliError { exit: Exit::Failed, source: anyhow::Error::msg(message) };
    let ready = testing::prepare(&subject, &host).map_err(failed)?;
    testing::wall().raise().map_err(CliError::environment)?;
    let time = Duration::from_secs(args.fuzz.unwrap_or_default());
    let fuzzed = testing::play::fuzz(&subject, ready, &context.dirs, args.seed, time);
    let fuzzed = super::runtime()?.block_on(fuzzed).map_err(failed)?;
    match (args.format, &fuzzed.finding) {
        (TestFormat::Json, _) => output::json(&fuzzed)?,
        (_, None) => output::print(&format!(
            "passed: {} runs with seed {} neither trapped nor reached a limit\n",
            fuzzed.runs, fuzzed.seed
        ))?,
        (_, Some(finding)) => output::print(&format!(
            "failed after {} runs with seed {}: {}: {}\nthis scenario shows it:\n\n{}",
            fuzzed.runs,
            fuzzed.seed,
            finding.hook,
            printable(&finding.message),
            finding.scenario
        ))?,
    }
    Ok(if fuzzed.finding.is_none() { Exit::Done } else { Exit::Failed })
}

/// Runs one plugin on its samples and shows everything that it did.
fn samples(context: &Context, args: &Args, plugin: &str) -> Result<Exit, CliError> {
    let changes = Changes { set: &args.set, deny: &args.deny, limits: &args.limit };
    let host = Host::for_tests(Compiler::Contained(None));
    let subject =
        Subject::find(plugin, &context.files(), &host, &changes).map_err(subject_error)?;
    print_notes(&subject);
    let failed =
        |message: String| CliError { exit: Exit::Failed, source: anyhow::Error::msg(message) };
    let ready = testing::prepare(&subject, &host).map_err(failed)?;
    // Services are in memory, so from here on this process needs nothing but its native code.
    testing::wall().raise().map_err(CliError::environment)?;
    let (plugin, runs) =
        super::runtime()?.block_on(testing::run(&subject, ready, &context.dirs)).map_err(failed)?;
    let passed = runs.iter().all(TestRun::passed);
    let metadata = plugin.metadata();
    match args.format {
        TestFormat::Json => output::json(&Report {
            plugin: &metadata.name,
            version: &metadata.version,
            digest: plugin.digest(),
            configuration: subject.configuration(),
            passed,
            runs: &runs,
        })?,
        _ => {
            let colours = output::colours();
            let title =
                styled(&format!("{} {}", metadata.name, metadata.version), Style::Strong, colours);
            let mut text = format!("{title}  {}\n", styled(plugin.digest(), Style::Faint, colours));
            let _ = writeln!(text, "configuration: {}", printable(&subject.configuration()));
            for run in &runs {
                text.push_str(&show(run, &subject.plugin.limits, colours));
            }
            let count = runs.iter().filter(|run| run.passed()).count();
            let verdict = if passed {
                styled("passed", Style::Good, colours)
            } else {
                styled("failed", Style::Bad, colours)
            };
            let _ = writeln!(text, "\n{verdict}: {count} of {} runs succeeded", runs.len());
            output::print(&text)?;
        }
    }
    Ok(if passed { Exit::Done } else { Exit::Failed })
}

/// Prints the configurations that were not used, and the reason.
pub(super) fn print_notes(subject: &Subject) {
    for note in &subject.notes {
        // Nothing can be reported if standard error is closed.
        let _ = writeln!(std::io::stderr(), "note: {}", printable(note));
    }
}

/// Returns the exit code for a plugin that cannot be found.
pub(super) fn subject_error(error: SubjectError) -> CliError {
    let exit = match &error {
        SubjectError::Missing { .. } | SubjectError::NoFile(_) | SubjectError::Option(_) => {
            Exit::Usage
        }
        SubjectError::Unreadable { .. } => Exit::Environment,
        SubjectError::NoPlugin { .. } | SubjectError::DeniedRequired { .. } => Exit::Failed,
        SubjectError::Config(_) => Exit::Configuration,
    };
    CliError { exit, source: error.into() }
}

/// The number of lines at the beginning and at the end of a log that are shown.
const SHOWN_LINES: usize = 20;

fn show(run: &TestRun, limits: &Limits, colours: bool) -> String {
    let TestRun { hook, sample, report, effects } = run;
    let class = report.outcome.class().as_str();
    let mut text = format!("\n{hook}: {sample}\n");
    let _ = writeln!(
        text,
        "  {}  {}",
        styled(class, style_of(class), colours),
        printable(report.outcome.message())
    );
    let lines = &report.log;
    let cut = lines.len() > 2 * SHOWN_LINES + 1;
    for (number, line) in lines.iter().enumerate() {
        if cut && number >= SHOWN_LINES && number < lines.len() - SHOWN_LINES {
            if number == SHOWN_LINES {
                let left = lines.len() - 2 * SHOWN_LINES;
                let _ = writeln!(text, "  ... {left} lines of the log are not shown");
            }
            continue;
        }
        let fields = output::fields(&line.fields);
        let level = styled(&line.level, level_style(&line.level), colours);
        let _ = writeln!(text, "  logged {level}: {}{fields}", printable(&line.message));
    }
    if cut {
        // The first line of the run is no longer on the screen.
        let message = printable(report.outcome.message());
        let _ = writeln!(text, "  {}  {message}", styled(class, style_of(class), colours));
    }
    for effect in effects {
        let _ = writeln!(text, "  did    {}", printable(effect));
    }
    for (call, count) in &report.usage.denied {
        let _ = writeln!(
            text,
            "  {}",
            styled(&format!("denied {call} ({count}x)"), Style::Warning, colours)
        );
    }
    for line in card(*hook, &report.usage, limits) {
        let _ = writeln!(text, "  {}", styled(&format!("used   {line}"), Style::Faint, colours));
    }
    text
}

/// Formats the resources that a run used, with their limits.
fn card(hook: HookKind, usage: &Usage, limits: &Limits) -> Vec<String> {
    let Usage {
        wall,
        start,
        memory,
        host_calls,
        wasi_calls,
        host_bytes,
        log_bytes,
        calls,
        denied: _,
    } = usage;
    let micros = |time: &Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
    let of = |limit: Limit, used: String| format!("{used} of {}", limit.show(limits.get(limit)));
    let time =
        if hook == HookKind::BuilderSelection { Limit::SelectionTime } else { Limit::WallTime };
    // Calls of WASI come from the language runtime and tell the author little.
    let calls = calls.iter().filter(|(name, _)| !name.starts_with("wasi:"));
    let calls: Vec<String> = calls.map(|(name, count)| format!("{name} {count}x")).collect();
    let mut card = vec![
        format!("{} (started in {})", of(time, micros(wall)), micros(start)),
        format!(
            "memory {}, host calls {}, WASI calls {}, transferred {}, log {}",
            of(Limit::Memory, output::bytes(*memory)),
            of(Limit::HostCalls, host_calls.to_string()),
            of(Limit::WasiCalls, wasi_calls.to_string()),
            of(Limit::HostBytes, output::bytes(*host_bytes)),
            of(Limit::LogBytes, output::bytes(*log_bytes)),
        ),
    ];
    if !calls.is_empty() {
        card.push(format!("calls {}", calls.join(", ")));
    }
    card
}
