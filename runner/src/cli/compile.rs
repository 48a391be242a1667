//! `hookrun compile`: compiles every plugin of the configuration ahead of time.

use serde::Serialize;

use super::output::{self, Format};
use super::{CliError, Context};
use hookrun_config::Plugin;
use hookrun_host::compiled_cache::Origin;
use hookrun_host::{Compiler, Host};
use hookrun_nix::exit_code::Exit;
use hookrun_nix::layout::{self, Repaired};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A gate that is not compiled refuses the build. A builder selection policy is compiled while Nix
waits, for at most 1.5 s; until it is compiled, Nix's own rule is used. The worker and `hookrun
check` compile all plugins. Run this after a change of hookrun or of a plugin, for example when a
package is installed, as the user that Nix calls hookrun as (root for a daemon).

Exit code 0: all plugins are compiled. 3: a plugin does not load.

Examples:
  hookrun compile
  hookrun compile cache policy")]
pub(super) struct Args {
    /// Compile only these plugins of the configuration
    plugins: Vec<String>,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// The result for one plugin.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Compiled {
    plugin: String,
    /// One of `found`, `compiled`, `not-kept` and `failed`.
    result: &'static str,
    /// The reason why the result was not stored, or the error.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let config = context.config()?;
    let unknown = args.plugins.iter().find(|name| !config.plugins.contains_key(*name));
    if let Some(name) = unknown {
        let hint = hookrun_config::suggestion(name, config.plugins.keys().map(String::as_str));
        return Err(CliError::usage(format!(
            "there is no [plugins.{name}] in {}; {hint}",
            config.path.display()
        )));
    }
    for Repaired { message, .. } in layout::repair(&context.dirs) {
        eprintln!("warning: {}", output::printable(&message));
    }
    let host = Host::new(&context.dirs, Compiler::Contained(config.worker.user.clone()));
    let (plugins, prepared): (Vec<&Plugin>, Vec<_>) = if args.plugins.is_empty() {
        (config.plugins.values().collect(), host.prepare_all(&config))
    } else {
        let wanted = config.plugins.values().filter(|plugin| args.plugins.contains(&plugin.name));
        wanted.map(|plugin| (plugin, host.prepare(plugin, &config))).unzip()
    };
    let results: Vec<Compiled> = plugins
        .into_iter()
        .zip(prepared)
        .map(|(plugin, prepared)| {
            let (result, message) = match prepared {
                Ok(ready) => match ready.origin() {
                    Origin::Mapped => ("found", None),
                    Origin::Compiled => ("compiled", None),
                    Origin::NotKept(reason) => ("not-kept", Some(reason.clone())),
                },
                Err(error) => ("failed", Some(error.to_string())),
            };
            Compiled { plugin: plugin.name.clone(), result, message }
        })
        .collect();
    match args.format {
        Format::Json => output::json(&results)?,
        Format::Text => {
            for Compiled { plugin, result, message } in &results {
                match (*result, message) {
                    ("failed", Some(message)) => eprintln!("error: {message}"),
                    ("not-kept", Some(reason)) => {
                        eprintln!(
                            "plugin {plugin}: compiled, but the result cannot be stored: {reason}"
                        );
                    }
                    (result, _) => output::print(&format!("plugin {plugin}: {result}\n"))?,
                }
            }
        }
    }
    let failed =
        results.iter().any(|compiled| compiled.result == "failed" || compiled.result == "not-kept");
    Ok(if failed { Exit::Configuration } else { Exit::Done })
}
