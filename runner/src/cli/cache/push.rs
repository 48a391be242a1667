//! `hookrun cache push`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::super::output::{self, Format, printable};
use super::super::{CliError, Context, sync};
use super::place::{self, CacheArg};
use super::{progress::Bar, sign};
use hookrun_capability::Services;
use hookrun_capability::binary_cache::{Form, Group, Progress, Push, Report, Settings};
use hookrun_capability::nix_store::real::Real;
use hookrun_nix::database::Database;
use hookrun_nix::event::NixDirs;
use hookrun_nix::exit_code::Exit;
use hookrun_nix::is_store_path;
use hookrun_nix::nar::Compression;
use hookrun_system::process::describe_end;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Uploads the closures of the paths: what is in the cache is not sent again, and a path that is there
gets missing signatures. An installable is built by the `nix` of this user first.

Exit code 1: a path was not uploaded.

Examples:
  hookrun cache push cache ./result
  hookrun cache push cache nixpkgs#hello --key cache.example.org-1
  hookrun cache push file:///srv/cache /nix/store/...-hello-2.12 --compression xz")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    cache: CacheArg,
    /// Store paths, links to them, or installables
    #[arg(required = true)]
    paths: Vec<OsString>,
    /// Sign with this key of [signing-keys]; repeatable [default: all of them]
    #[arg(long, value_name = "NAME")]
    key: Vec<String>,
    /// Upload paths without a signature, too
    #[arg(long)]
    allow_unsigned: bool,
    /// The compression of NARs
    #[arg(long, default_value = "zstd", value_parser = ["zstd", "xz", "none"])]
    compression: String,
    /// The level of the compression
    #[arg(long, value_name = "N")]
    level: Option<i32>,
    /// Look up every path, also those that are known to be present
    #[arg(long)]
    check_presence: bool,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Output {
    paths: u64,
    uploaded: u64,
    file_bytes: u64,
    nar_bytes: u64,
    present: u64,
    signed: u64,
    different: u64,
    failed: Vec<(String, String)>,
}

pub(in crate::cli) async fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let mut config = context.config()?;
    sign::check_names(&config, &args.key)?;
    // Opens the store, so that a wrong argument is found before anything is built.
    place::bucket(context, &args.cache.cache)?;
    if !config.object_stores.contains_key(&args.cache.cache) {
        let settings = hookrun_capability::object_store::settings_of_url(&args.cache.cache)
            .map_err(|error| CliError::usage(error.message))?;
        config.object_stores.insert(args.cache.cache.clone(), settings);
    }
    let compression = Compression::parse(&args.compression, args.level).map_err(CliError::usage)?;
    let nix = NixDirs::from_env();
    let roots = valid_paths(&args.paths, &nix)?;
    let database = Database::open(&nix).map_err(CliError::environment)?;
    let paths = database.closure(&roots).map_err(CliError::environment)?;
    let keys = match args.key.as_slice() {
        [] => config.signing_keys.keys().cloned().collect(),
        keys => keys.to_vec(),
    };
    let push = Push {
        store: args.cache.cache.clone(),
        groups: vec![Group { paths, form: Form::compressed(compression) }],
        elsewhere: Vec::new(),
        settings: Settings {
            keys,
            allow_unsigned: args.allow_unsigned,
            unsigned_fix: "name a key of [signing-keys] with --key, or use --allow-unsigned"
                .to_owned(),
            trust_presence: !args.check_presence,
            ..Settings::default()
        },
    };
    let services = Services::new(&config, &context.dirs);
    let bar = Bar::new();
    let (done, of) = (AtomicU64::new(0), AtomicU64::new(0));
    let progress = |event: &Progress<'_>| {
        match event {
            Progress::Begun { paths, .. } => of.store(*paths, Ordering::Relaxed),
            Progress::Present { .. } | Progress::Published { .. } | Progress::Failed { .. } => {
                done.fetch_add(1, Ordering::Relaxed);
            }
            Progress::Stored { .. } => {}
        }
        bar.show("paths", done.load(Ordering::Relaxed), of.load(Ordering::Relaxed));
    };
    let backend = Arc::new(Real::new(nix.clone()));
    let report = services
        .binary_caches()
        .push(&services, backend, &nix, push, &progress)
        .await
        .map_err(CliError::environment)?;
    drop(bar);
    let output = output_of(&report);
    match args.format {
        Format::Json => output::json(&output)?,
        Format::Text => output::print(&text(&output))?,
    }
    Ok(if report.not_uploaded() == 0 { Exit::Done } else { Exit::Failed })
}

fn output_of(report: &Report) -> Output {
    let failed = report.failures.iter();
    Output {
        paths: report.paths,
        uploaded: report.uploaded,
        file_bytes: report.file_bytes,
        nar_bytes: report.nar_bytes,
        present: report.present,
        signed: report.signed,
        different: report.different,
        failed: failed.map(|failed| (failed.path.clone(), failed.error.to_string())).collect(),
    }
}

fn text(output: &Output) -> String {
    let mut text = String::new();
    for (path, reason) in &output.failed {
        let _ = writeln!(text, "{}  not uploaded: {}", printable(path), printable(reason));
    }
    let _ = write!(
        text,
        "{} paths uploaded, {} of {} of NARs, {} were there",
        output.uploaded,
        output::bytes(output.file_bytes),
        output::bytes(output.nar_bytes),
        output.present
    );
    if output.signed > 0 {
        let _ = write!(text, ", {} of them got a signature", output.signed);
    }
    if output.different > 0 {
        let _ = write!(text, ", {} of them have other contents in the cache", output.different);
    }
    text.push('\n');
    text
}

/// Returns the valid store paths that the arguments name; builds installables.
fn valid_paths(arguments: &[OsString], nix: &NixDirs) -> Result<Vec<String>, CliError> {
    let database = Database::open(nix).map_err(CliError::environment)?;
    let mut found = Vec::new();
    for argument in arguments {
        let paths = match sync::store_path(argument, nix) {
            Some(path) => vec![path],
            None => built(argument)?,
        };
        let infos = database.path_infos(&paths).map_err(CliError::environment)?;
        for (path, info) in paths.into_iter().zip(infos) {
            if info.is_none() {
                return Err(CliError::usage(format!(
                    "`{}` is not valid in {}; build it first",
                    printable(&path),
                    nix.store.display()
                )));
            }
            found.push(path);
        }
    }
    Ok(found)
}

/// What `nix build --json` says of a derivation (Nix 2.3 to 2.35).
#[derive(Debug, Deserialize)]
struct Built {
    #[serde(default)]
    outputs: BTreeMap<String, String>,
}

/// Builds an installable with the Nix of this user.
fn built(argument: &OsString) -> Result<Vec<String>, CliError> {
    let output = hookrun_nix::command("nix")
        .args(["--extra-experimental-features", "nix-command flakes", "build", "--no-link"])
        .arg("--json")
        .arg(argument)
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .output()
        .map_err(|error| {
            CliError::environment(anyhow::anyhow!(
                "`nix` cannot be started ({error}); install Nix, or name existing store paths"
            ))
        })?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(CliError::usage(format!(
            "`{}` is neither a store path nor an installable that can be built: `nix build` {}",
            printable(&argument.to_string_lossy()),
            describe_end(output.status, &said)
        )));
    }
    let store = NixDirs::from_env().store.to_string_lossy().into_owned();
    let built: Vec<Built> = serde_json::from_slice(&output.stdout).map_err(|error| {
        CliError::environment(anyhow::anyhow!("the answer of `nix build --json`: {error}"))
    })?;
    let paths = built.into_iter().flat_map(|built| built.outputs.into_values());
    Ok(paths.filter(|path| is_store_path(&store, path)).collect())
}
