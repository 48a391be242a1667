//! `hookrun cache verify`.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::super::output::{self, Format, Style, printable, styled};
use super::super::{CliError, Context};
use super::place::{self, CacheArg, KeyArgs, PARALLEL};
use super::progress::Bar;
use super::{paths, sign};
use hookrun_cache::cache::now;
use hookrun_cache::inventory::{HashPart, Listing};
use hookrun_cache::progress::{MAX_FINDINGS, Progress};
use hookrun_cache::repair::{self, Repaired, Tools};
use hookrun_cache::sign::Signer;
use hookrun_cache::verify::{self, Checked, Finding, Options};
use hookrun_cache::{Cache, CacheError};
use hookrun_capability::signing::SigningKeys;
use hookrun_nix::exit_code::Exit;
use hookrun_nix::layout;
use hookrun_nix::narinfo::PublicKeys;

/// NARs that are read at the same time.
const PARALLEL_CONTENT: usize = 8;
/// How often the progress is saved.
const SAVE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Checks that each narinfo can be parsed and is of the path of its name, that a trusted key signed it,
that its NAR is there with the right size, and that its references are there. --content also reads
every NAR and compares both hashes. An interrupted run is continued by the next one with the same
options.

With --repair, a NAR or narinfo that is missing or wrong is uploaded again from the local store or
from the cache of --from. Wrong contents get a new name, and the narinfo is pointed to it. A path is
signed with --key only if a trusted key signed it, or if the local store has the same path.

Exit code 0: no damage, or all of it was repaired. 1: damage. 2: usage. 3: configuration. 4: the
cache cannot be read.

Examples:
  hookrun cache verify cache
  hookrun cache verify cache --content --repair --from https://cache.example.org
  hookrun cache verify https://cache.example.org /nix/store/...-hello-2.12")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    cache: CacheArg,
    /// Verify only the closures of these paths
    paths: Vec<OsString>,
    /// Read every NAR, and compare its hashes
    #[arg(long)]
    content: bool,
    /// Repair what is damaged
    #[arg(long)]
    repair: bool,
    /// Another cache to repair from
    #[arg(long, value_name = "CACHE", requires = "repair")]
    from: Option<String>,
    /// Do not repair from the local store
    #[arg(long, requires = "repair")]
    no_local_store: bool,
    /// Sign repaired paths with this key of [signing-keys]; repeatable
    #[arg(long, value_name = "NAME", requires = "repair")]
    key: Vec<String>,
    /// Remove narinfos that cannot be repaired
    #[arg(long, requires = "repair")]
    remove_broken: bool,
    #[command(flatten)]
    keys: KeyArgs,
    /// Start from the beginning
    #[arg(long)]
    restart: bool,
    /// Narinfos that are checked at the same time [default: 32, with --content 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    parallel: Option<u16>,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    place: String,
    checked: u64,
    /// Narinfos that an interrupted run had checked.
    resumed: u64,
    nar_bytes_read: u64,
    unchecked_compressions: u64,
    signatures_checked: bool,
    damaged: u64,
    findings: Vec<Finding>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    repaired: Vec<Repaired>,
    /// Incomplete uploads; none if the service cannot list them.
    incomplete_uploads: Option<u64>,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let config = context.config()?;
    let cache = place::open(context, &args.cache.cache).await?;
    let keys = args.keys.trusted(&config)?;
    sign::check_names(&config, &args.key)?;
    let from = match &args.from {
        Some(from) => Some(place::open(context, from).await?),
        None => None,
    };
    let paths = paths::resolve(&cache, &args.paths)?;
    if paths.is_empty() && !cache.bucket().can_list() {
        return Err(CliError::usage(format!(
            "{} cannot be listed; name the store paths to verify",
            cache.bucket().place()
        )));
    }
    let bar = Bar::new();
    let default = if args.content { PARALLEL_CONTENT } else { PARALLEL };
    let options = Options {
        keys: &keys,
        content: args.content,
        parallel: args.parallel.map_or(default, usize::from),
    };
    let progress = if paths.is_empty() {
        all(context, &cache, args, &options, &bar).await?
    } else {
        let mut progress = Progress::new("", now());
        let mut each = |_, checked| {
            add(&mut progress, checked);
            bar.show("paths verified", progress.checked, 0);
            Ok(())
        };
        verify::closure(&cache, &paths, &options, &mut each).await?;
        progress
    };
    let mut report = Report {
        place: cache.bucket().place().to_owned(),
        checked: progress.checked,
        resumed: 0,
        nar_bytes_read: progress.bytes,
        unchecked_compressions: progress.unchecked,
        signatures_checked: !keys.is_empty(),
        damaged: damaged(&progress.findings),
        findings: progress.findings,
        repaired: Vec::new(),
        incomplete_uploads: None,
    };
    if paths.is_empty() {
        let uploads = cache.bucket().incomplete().await.map_err(CacheError::from)?;
        report.incomplete_uploads = uploads.map(|uploads| uploads.len() as u64);
    }
    if args.repair && !report.findings.is_empty() {
        let signing = SigningKeys::new(&config);
        let tools = Tools {
            from: from.as_ref(),
            local: !args.no_local_store,
            signer: Signer {
                signing: &signing,
                names: args.key.clone(),
                trusted: &keys,
                unverified: false,
            },
            remove_broken: args.remove_broken,
        };
        let mut each = |done, of| bar.show("paths repaired", done, of);
        report.repaired = repair::repair(&cache, &report.findings, &tools, &mut each).await?;
    }
    drop(bar);
    let remaining = if args.repair {
        report.repaired.iter().filter(|repaired| !repaired.done).count() as u64
    } else {
        report.damaged
    };
    match args.format {
        Format::Json => output::json(&report)?,
        Format::Text => output::print(&text(&report, args, &keys))?,
    }
    Ok(if remaining == 0 { Exit::Done } else { Exit::Failed })
}

/// Verifies the whole cache, from where an interrupted run ended.
async fn all(
    context: &Context,
    cache: &Cache,
    args: &Args,
    options: &Options<'_>,
    bar: &Bar,
) -> Result<Progress, CliError> {
    let listing = Listing::of(cache, |count| bar.show("objects listed", count, 0)).await?;
    let settings = format!("content={} keys={:?}", args.content, options.keys.names());
    let file = progress_file(context, cache);
    let resumed =
        file.as_ref().filter(|_| !args.restart).and_then(|file| Progress::read(file, &settings));
    if let Some(resumed) = &resumed {
        bar.line(&format!(
            "continues a verification that began at {}, after {} narinfos; use --restart to start \
             again",
            output::time(resumed.started.saturating_mul(1000)),
            resumed.checked
        ));
    }
    let mut progress = resumed.unwrap_or_else(|| Progress::new(&settings, now()));
    let after = progress.after();
    let of = listing.narinfos.len() as u64;
    let mut saved = Instant::now();
    let mut each = |hash: HashPart, checked: Checked| {
        progress.after = Some(hash.as_str().to_owned());
        add(&mut progress, checked);
        bar.show("narinfos verified", progress.checked, of);
        if let Some(file) = &file
            && saved.elapsed() > SAVE
        {
            // Progress that cannot be saved costs only time.
            drop(progress.write(file));
            saved = Instant::now();
        }
        if progress.findings.len() >= MAX_FINDINGS {
            return Err(CacheError::Usage(format!(
                "more than {MAX_FINDINGS} problems were found; check that this is the right cache \
                 and that the trusted keys are complete"
            )));
        }
        Ok(())
    };
    let verified = verify::listed(cache, &listing, after, options, &mut each).await;
    if let Some(file) = &file {
        match &verified {
            Ok(()) => drop(std::fs::remove_file(file)),
            Err(_) => drop(progress.write(file)),
        }
    }
    verified?;
    Ok(progress)
}

/// Returns the file of the progress; none if its directory cannot be used.
fn progress_file(context: &Context, cache: &Cache) -> Option<PathBuf> {
    let directory = context.dirs.verifications();
    layout::make_own(&directory).ok()?;
    Some(Progress::file(&directory, cache.bucket().place()))
}

fn add(progress: &mut Progress, checked: Checked) {
    progress.checked += 1;
    progress.bytes = progress.bytes.saturating_add(checked.bytes);
    progress.unchecked += u64::from(checked.unchecked.is_some());
    progress.findings.extend(checked.findings);
}

fn damaged(findings: &[Finding]) -> u64 {
    findings.iter().map(|finding| &finding.hash).collect::<HashSet<_>>().len() as u64
}

fn text(report: &Report, args: &Args, keys: &PublicKeys) -> String {
    let colours = output::colours();
    let mut text = String::new();
    for finding in &report.findings {
        let _ = writeln!(
            text,
            "{}  {}: {}",
            printable(&finding.path),
            styled(finding.damage.as_str(), Style::Bad, colours),
            printable(&finding.detail)
        );
    }
    for repaired in &report.repaired {
        let (word, style) =
            if repaired.done { ("repaired", Style::Good) } else { ("not repaired", Style::Bad) };
        let word = styled(word, style, colours);
        let what = printable(&repaired.what);
        let _ = writeln!(text, "{}  {word}: {what}", printable(&repaired.path));
    }
    let narinfos = |count: u64| match count {
        1 => "1 narinfo".to_owned(),
        count => format!("{count} narinfos"),
    };
    let _ = write!(text, "{} verified", narinfos(report.checked));
    if args.content {
        let _ = write!(text, ", {} of NARs read", output::bytes(report.nar_bytes_read));
    }
    if report.damaged == 0 {
        let _ = write!(text, ", no damage");
    } else {
        let _ = write!(text, ", {} damaged", report.damaged);
        let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
        for finding in &report.findings {
            *kinds.entry(finding.damage.as_str()).or_default() += 1;
        }
        let kinds = kinds.iter().map(|(kind, count)| format!("{count} {kind}"));
        let _ = write!(text, " ({})", kinds.collect::<Vec<_>>().join(", "));
    }
    if args.repair {
        let done = report.repaired.iter().filter(|repaired| repaired.done).count();
        let _ = write!(text, ", {done} repaired");
    }
    text.push('\n');
    if keys.is_empty() {
        text.push_str(
            "Signatures were not verified: no key is trusted. Use --trusted-public-key, or add the \
             key to `trusted-public-keys` in nix.conf.\n",
        );
    }
    if report.unchecked_compressions > 0 {
        let _ = writeln!(
            text,
            "{} NARs have a compression that hookrun cannot read; only FileHash was compared.",
            report.unchecked_compressions
        );
    }
    if let Some(count) = report.incomplete_uploads.filter(|count| *count > 0) {
        let _ = writeln!(
            text,
            "Incomplete uploads: {count}. `hookrun cache gc` ends those that are older than its \
             grace period."
        );
    }
    if report.damaged > 0 && !args.repair {
        text.push_str("Use --repair to repair what the local store or another cache has.\n");
    }
    text
}
