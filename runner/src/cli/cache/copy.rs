//! `hookrun cache copy`.

use std::ffi::OsString;
use std::fmt::Write as _;

use super::super::output::{self, Format, printable};
use super::super::{CliError, Context};
use super::place::{self, CacheArg, PARALLEL};
use super::{paths, progress::Bar};
use hookrun_cache::{Cache, copy};
use hookrun_nix::exit_code::Exit;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
NARs are copied first, then narinfos in the order of references, with all signatures. Between two
buckets of one S3 service, the service copies; otherwise the bytes pass through this machine. What
the other cache has is not copied again.

Exit code 1: a path was not copied.

Examples:
  hookrun cache copy cache --to archive /nix/store/...-hello-2.12
  hookrun cache copy s3://old?region=eu-west-1 --to file:///srv/cache")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    cache: CacheArg,
    /// Copy the closures of these paths; everything if there are none
    paths: Vec<OsString>,
    /// The other cache, as CACHE
    #[arg(long, value_name = "CACHE")]
    to: String,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let source = place::open(context, &args.cache.cache).await?;
    let paths = paths::resolve(&source, &args.paths)?;
    if paths.is_empty() && !source.bucket().can_list() {
        return Err(CliError::usage(format!(
            "{} cannot be listed; name the store paths to copy",
            source.bucket().place()
        )));
    }
    let target = Cache::open_or_create(place::bucket(context, &args.to)?, &source).await?;
    let bar = Bar::new();
    let mut each = |done, of| bar.show("paths copied", done, of);
    let report = copy::copy(&source, &target, &paths, PARALLEL, &mut each).await?;
    drop(bar);
    match args.format {
        Format::Json => output::json(&report)?,
        Format::Text => output::print(&text(&report))?,
    }
    Ok(if report.failed.is_empty() { Exit::Done } else { Exit::Failed })
}

fn text(report: &copy::Report) -> String {
    let mut text = String::new();
    for (path, reason) in &report.failed {
        let _ = writeln!(text, "{}  not copied: {}", printable(path), printable(reason));
    }
    let _ = writeln!(
        text,
        "{} paths copied, {} ({} inside the service), {} were there, {} not copied",
        report.copied.count,
        output::bytes(report.copied.bytes),
        report.server_side,
        report.present,
        report.failed.len()
    );
    text
}
