//! `hookrun cache info`.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use super::super::output::{self, Format, printable};
use super::super::{CliError, Context};
use super::place::{self, CacheArg, PARALLEL};
use super::progress::Bar;
use hookrun_cache::cache::now;
use hookrun_cache::inventory::{Kind, Listing};
use hookrun_cache::plan::Amount;
use hookrun_cache::{Cache, CacheError};
use hookrun_nix::exit_code::Exit;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Reads the list of the cache and every narinfo. With --quick, narinfos are not read.

Examples:
  hookrun cache info cache
  hookrun cache info s3://bucket?region=eu-west-1 --quick --format json")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    cache: CacheArg,
    /// Do not read the narinfos: no compressions and no signatures
    #[arg(long)]
    quick: bool,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    place: String,
    cache_info: BTreeMap<String, String>,
    /// Whether the store can be listed. If not, all numbers are zero.
    listed: bool,
    narinfos: Amount,
    nars: Amount,
    listings: Amount,
    logs: Amount,
    debug_info: Amount,
    realisations: Amount,
    other: Amount,
    oldest: Option<u64>,
    newest: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    contents: Option<Contents>,
    pins: u64,
    condemned: u64,
    sweep_until: Option<u64>,
    incomplete_uploads: Option<u64>,
}

/// What the narinfos say.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Contents {
    /// The bytes of all NARs without compression.
    nar_bytes: u64,
    compressions: BTreeMap<String, Amount>,
    signatures: BTreeMap<String, u64>,
    unsigned: u64,
    malformed: u64,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let cache = place::open(context, &args.cache.cache).await?;
    let report = {
        let bar = Bar::new();
        report(&cache, args.quick, &bar).await?
    };
    match args.format {
        Format::Json => output::json(&report)?,
        Format::Text => output::print(&text(&report))?,
    }
    Ok(Exit::Done)
}

async fn report(cache: &Cache, quick: bool, bar: &Bar) -> Result<Report, CacheError> {
    let mut report = Report {
        place: cache.bucket().place().to_owned(),
        cache_info: cache.fields().clone(),
        listed: cache.bucket().can_list(),
        ..Report::default()
    };
    if !report.listed {
        return Ok(report);
    }
    let listing = Listing::of(cache, |count| bar.show("objects listed", count, 0)).await?;
    for entry in &listing.narinfos {
        report.narinfos.add(entry.size);
    }
    for object in &listing.objects {
        let amount = match object.kind {
            Kind::Nar => &mut report.nars,
            Kind::Listing(_) => &mut report.listings,
            Kind::Log => &mut report.logs,
            Kind::DebugInfo => &mut report.debug_info,
            Kind::Realisation => &mut report.realisations,
            Kind::Narinfo(_) | Kind::Own | Kind::CacheInfo => continue,
            Kind::Other => &mut report.other,
        };
        amount.add(object.size);
    }
    let times = || listing.narinfos.iter().map(|entry| entry.modified);
    (report.oldest, report.newest) = (times().min(), times().max());
    report.pins = listing.pins().count() as u64;
    let (condemned, _) = cache.condemned().await?;
    report.condemned = condemned.len() as u64;
    report.sweep_until = condemned.sweeping_until(now());
    report.incomplete_uploads =
        cache.bucket().incomplete().await?.map(|uploads| uploads.len() as u64);
    if !quick {
        report.contents = Some(contents(cache, &listing, bar).await?);
    }
    Ok(report)
}

async fn contents(cache: &Cache, listing: &Listing, bar: &Bar) -> Result<Contents, CacheError> {
    let mut contents = Contents::default();
    let of = listing.narinfos.len() as u64;
    let mut done = 0;
    let mut reading = stream::iter(listing.narinfos.iter().map(|entry| entry.hash))
        .map(|hash| async move { cache.narinfo(hash.as_str()).await })
        .buffer_unordered(PARALLEL);
    while let Some(stored) = reading.try_next().await? {
        done += 1;
        bar.show("narinfos read", done, of);
        match stored.map(|stored| stored.narinfo) {
            None => {}
            Some(Err(_)) => contents.malformed += 1,
            Some(Ok(narinfo)) => {
                contents.nar_bytes = contents.nar_bytes.saturating_add(narinfo.nar_size());
                let compression = narinfo.compression().to_owned();
                let amount = contents.compressions.entry(compression).or_default();
                amount.add(narinfo.file_size().unwrap_or_default());
                let mut is_signed = false;
                for signature in narinfo.signatures() {
                    let name = signature.split(':').next().unwrap_or_default().to_owned();
                    *contents.signatures.entry(name).or_default() += 1;
                    is_signed = true;
                }
                contents.unsigned += u64::from(!is_signed);
            }
        }
    }
    Ok(contents)
}

fn text(report: &Report) -> String {
    let mut rows = vec![vec!["place".to_owned(), printable(&report.place)]];
    for (name, value) in &report.cache_info {
        rows.push(vec![printable(name), printable(value)]);
    }
    if !report.listed {
        return format!(
            "{}The store cannot be listed, so nothing is known about its paths. `hookrun cache verify` \
             checks paths that are named.\n",
            output::table(&rows)
        );
    }
    let amount = |amount: &Amount| format!("{}, {}", amount.count, output::bytes(amount.bytes));
    let kinds = [
        ("narinfos", &report.narinfos),
        ("NARs", &report.nars),
        ("listings", &report.listings),
        ("logs", &report.logs),
        ("debug information", &report.debug_info),
        ("realisations", &report.realisations),
        ("other objects", &report.other),
    ];
    for (name, found) in kinds {
        if found.count > 0 || name == "narinfos" || name == "NARs" {
            rows.push(vec![name.to_owned(), amount(found)]);
        }
    }
    if let Some(contents) = &report.contents {
        rows.push(vec!["uncompressed".to_owned(), output::bytes(contents.nar_bytes)]);
        for (name, found) in &contents.compressions {
            rows.push(vec![format!("compressed by {}", printable(name)), amount(found)]);
        }
        for (name, count) in &contents.signatures {
            rows.push(vec![format!("signed by {}", printable(name)), count.to_string()]);
        }
        rows.push(vec!["unsigned".to_owned(), contents.unsigned.to_string()]);
        if contents.malformed > 0 {
            rows.push(vec!["malformed narinfos".to_owned(), contents.malformed.to_string()]);
        }
    }
    let time = |seconds: u64| output::time(seconds.saturating_mul(1000));
    if let (Some(oldest), Some(newest)) = (report.oldest, report.newest) {
        rows.push(vec!["oldest narinfo".to_owned(), time(oldest)]);
        rows.push(vec!["newest narinfo".to_owned(), time(newest)]);
    }
    rows.push(vec!["pins".to_owned(), report.pins.to_string()]);
    rows.push(vec!["condemned objects".to_owned(), report.condemned.to_string()]);
    if let Some(until) = report.sweep_until {
        rows.push(vec!["removal under way until".to_owned(), time(until)]);
    }
    rows.push(vec![
        "incomplete uploads".to_owned(),
        report.incomplete_uploads.map_or_else(|| "unknown".to_owned(), |count| count.to_string()),
    ]);
    output::table(&rows)
}
