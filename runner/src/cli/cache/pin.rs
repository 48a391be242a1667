//! `hookrun cache pin`, `pins` and `unpin`.

use std::ffi::OsString;

use super::super::output::{self, Format, printable};
use super::super::{CliError, Context};
use super::place::{self, CacheArg};
use super::{paths, progress::Bar};
use hookrun_cache::pins;
use hookrun_nix::exit_code::Exit;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
`hookrun cache gc` keeps the closure of the paths. A pin that exists is replaced. The command checks
that the whole closure is in the cache.

Examples:
  hookrun cache pin cache release-24.05 ./result
  hookrun cache pin cache docs /nix/store/...-manual-1.0 /nix/store/...-man-pages-1.0")]
pub(in crate::cli) struct PinArgs {
    #[command(flatten)]
    cache: CacheArg,
    /// The name of the pin
    name: String,
    /// Store paths, links to them, or installables
    #[arg(required = true)]
    paths: Vec<OsString>,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ListArgs {
    #[command(flatten)]
    cache: CacheArg,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code 1: a pin does not exist.")]
pub(in crate::cli) struct UnpinArgs {
    #[command(flatten)]
    cache: CacheArg,
    /// The names of pins
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

pub(super) async fn pin(context: &Context, args: &PinArgs) -> Result<Exit, CliError> {
    let cache = place::open(context, &args.cache.cache).await?;
    pins::check_name(&args.name)?;
    let paths = paths::resolve(&cache, &args.paths)?;
    let bar = Bar::new();
    let mut told = false;
    let waiting = |until: u64| {
        if !std::mem::replace(&mut told, true) {
            bar.line(&format!(
                "waits for a removal that ends at {} at the latest",
                output::time(until.saturating_mul(1000))
            ));
        }
    };
    let set = pins::set(&cache, &args.name, paths, waiting).await;
    drop(bar);
    let (pin, count) = set?;
    match args.format {
        Format::Json => output::json(&pin)?,
        Format::Text => output::print(&format!(
            "{} keeps {count} paths: {} and what they refer to\n",
            pin.name,
            pin.paths.len()
        ))?,
    }
    Ok(Exit::Done)
}

pub(super) async fn list(context: &Context, args: &ListArgs) -> Result<Exit, CliError> {
    let cache = place::open(context, &args.cache.cache).await?;
    let pins = pins::list(&cache).await?;
    match args.format {
        Format::Json => output::json(&pins)?,
        Format::Text => {
            let rows = pins.iter().flat_map(|pin| {
                pin.paths.iter().map(|path| {
                    let time = output::time(pin.time.saturating_mul(1000));
                    vec![printable(&pin.name), time, printable(path)]
                })
            });
            output::print(&output::table(&rows.collect::<Vec<_>>()))?;
        }
    }
    Ok(Exit::Done)
}

pub(super) async fn unpin(context: &Context, args: &UnpinArgs) -> Result<Exit, CliError> {
    let cache = place::open(context, &args.cache.cache).await?;
    let mut exit = Exit::Done;
    for name in &args.names {
        if pins::remove(&cache, name).await? {
            output::print(&format!("{name} removed\n"))?;
        } else {
            hookrun_nix::terminal::say(&format!(
                "there is no pin `{name}`; `hookrun cache pins {}` lists them",
                args.cache.cache
            ));
            exit = Exit::Failed;
        }
    }
    Ok(exit)
}
