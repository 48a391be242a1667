//! `hookrun cache sign`.

use std::ffi::OsString;
use std::fmt::Write as _;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use super::super::output::{self, Format};
use super::super::{CliError, Context};
use super::place::{self, CacheArg, KeyArgs, PARALLEL};
use super::{paths, progress::Bar};
use hookrun_cache::inventory::{HashPart, Listing};
use hookrun_cache::sign::{Signed, Signer};
use hookrun_capability::signing::SigningKeys;
use hookrun_config::{Config, suggestion};
use hookrun_nix::exit_code::Exit;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A path is signed only if a trusted key signed it already, if it is named after its contents, or if
the local store has the same path. Other signatures are kept.

Exit code 1: a path was not signed.

Examples:
  hookrun cache sign cache --key cache.example.org-2
  hookrun cache sign cache --key cache.example.org-2 /nix/store/...-hello-2.12")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    cache: CacheArg,
    /// Store paths, links to them, or installables; all paths of the cache if there are none
    paths: Vec<OsString>,
    /// The key of [signing-keys] that signs; repeatable
    #[arg(long, value_name = "NAME", required = true)]
    key: Vec<String>,
    #[command(flatten)]
    keys: KeyArgs,
    /// Sign whatever the cache contains
    #[arg(long)]
    unverified: bool,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    signed: u64,
    /// Paths that have the signature already.
    present: u64,
    /// The hash parts of paths that nothing vouches for.
    not_vouched: Vec<String>,
    /// The hash parts of paths that are absent or damaged.
    unusable: Vec<String>,
}

/// Checks that the keys are configured.
pub(super) fn check_names(config: &Config, names: &[String]) -> Result<(), CliError> {
    let known = || config.signing_keys.keys().map(String::as_str);
    match names.iter().find(|name| !config.signing_keys.contains_key(*name)) {
        None => Ok(()),
        Some(name) => Err(CliError::usage(format!(
            "there is no signing key `{name}` in {}; {}",
            config.path.display(),
            suggestion(name, known())
        ))),
    }
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let config = context.config()?;
    check_names(&config, &args.key)?;
    let cache = place::open(context, &args.cache.cache).await?;
    let trusted = args.keys.trusted(&config)?;
    let signing = SigningKeys::new(&config);
    for name in &args.key {
        signing.public_key(name).map_err(CliError::environment)?;
    }
    let bar = Bar::new();
    let hashes: Vec<HashPart> = if args.paths.is_empty() {
        let listing = Listing::of(&cache, |count| bar.show("objects listed", count, 0)).await?;
        listing.narinfos.iter().map(|entry| entry.hash).collect()
    } else {
        let paths = paths::resolve(&cache, &args.paths)?;
        paths.iter().filter_map(|path| HashPart::of(path)).collect()
    };
    let signer = Signer {
        signing: &signing,
        names: args.key.clone(),
        trusted: &trusted,
        unverified: args.unverified,
    };
    let (of, mut done, mut report) = (hashes.len() as u64, 0, Report::default());
    let (signer, opened) = (&signer, &cache);
    let mut signing = stream::iter(hashes)
        .map(|hash| async move {
            let signed = signer.sign(opened, hash.as_str()).await?;
            Ok::<_, CliError>((hash, signed))
        })
        .buffered(PARALLEL);
    while let Some((hash, signed)) = signing.try_next().await? {
        done += 1;
        bar.show("narinfos signed", done, of);
        match signed {
            Signed::Added => report.signed += 1,
            Signed::Present => report.present += 1,
            Signed::NotVouched => report.not_vouched.push(hash.as_str().to_owned()),
            Signed::Unusable => report.unusable.push(hash.as_str().to_owned()),
        }
    }
    drop(bar);
    match args.format {
        Format::Json => output::json(&report)?,
        Format::Text => output::print(&text(&report))?,
    }
    let all = report.not_vouched.is_empty() && report.unusable.is_empty();
    Ok(if all { Exit::Done } else { Exit::Failed })
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for hash in &report.not_vouched {
        let _ = writeln!(
            text,
            "{hash}  not signed: no trusted key signed it, and the local store does not have it"
        );
    }
    for hash in &report.unusable {
        let _ = writeln!(text, "{hash}  not signed: it is absent or damaged");
    }
    let _ = writeln!(
        text,
        "{} signed, {} had the signature, {} not signed",
        report.signed,
        report.present,
        report.not_vouched.len() + report.unusable.len()
    );
    text
}
