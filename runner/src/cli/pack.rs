//! `hookrun pack`: adds the metadata of a plugin to a component.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::output::{self, printable};
use super::{CliError, Context};
use hookrun_config::PluginSource;
use hookrun_host::pack::{self, PackError};
use hookrun_host::{Compiler, Component, Host};
use hookrun_nix::exit_code::Exit;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A component that was built with the Rust SDK has its metadata already. For other languages they are
written in TOML: `name`, `version`, `description`, `hooks`, `wants` (a table of capabilities), `order`
and `config-schema` (a JSON schema). docs/languages.md describes them.

Example:
  hookrun pack build/notify.wasm --metadata plugin.toml --output notify.wasm")]
pub(super) struct Args {
    /// The component
    component: PathBuf,
    /// The file with the metadata
    #[arg(long, value_name = "FILE", default_value = "plugin.toml")]
    metadata: PathBuf,
    /// The file to write [default: the component itself]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(_context: &Context, args: &Args) -> Result<Exit, CliError> {
    let Args { component, metadata, output } = args;
    let text = std::fs::read_to_string(metadata).map_err(|error| unreadable(metadata, &error))?;
    let wasm = std::fs::read(component).map_err(|error| unreadable(component, &error))?;
    let packed = pack::pack(&wasm, &text).map_err(|error| match error {
        PackError::Component(what) => failed(format!("{} {what}", component.display())),
        PackError::Metadata(what) => CliError {
            exit: Exit::Configuration,
            source: anyhow::anyhow!("{}: {what}", metadata.display()),
        },
    })?;
    let output = output.as_ref().unwrap_or(component);
    write(output, &packed).map_err(|error| {
        CliError::environment(anyhow::anyhow!("{} cannot be written ({error})", output.display()))
    })?;
    // The component is untrusted bytes also here, so a contained process looks at it.
    let host = Host::for_tests(Compiler::Contained(None));
    let path = std::path::absolute(output).map_err(CliError::environment)?;
    let read = Component::read(&PluginSource::File(path)).map_err(failed)?;
    let examined = host
        .examine(&read, &serde_json::json!({}))
        .map_err(|error| failed(format!("{} {error}", output.display())))?;
    let examination =
        examined.map_err(|reason| failed(format!("{} {reason}", output.display())))?;
    if let Some(problem) = examination.schema_problem {
        return Err(failed(format!("{} {problem}", metadata.display())));
    }
    let metadata = examination.description.metadata;
    output::print(&format!(
        "{}: {} {}, {} bytes\n",
        printable(&output.display().to_string()),
        printable(&metadata.name),
        printable(&metadata.version),
        packed.len()
    ))?;
    Ok(Exit::Done)
}

/// Replaces a file as a whole.
fn write(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(directory.unwrap_or(Path::new(".")))?;
    file.write_all(content)?;
    file.persist(path).map(|_| ()).map_err(|error| error.error)
}

fn unreadable(path: &Path, error: &std::io::Error) -> CliError {
    CliError {
        exit: Exit::Usage,
        source: anyhow::anyhow!("{} cannot be read ({error}); correct the path", path.display()),
    }
}

fn failed(message: String) -> CliError {
    CliError { exit: Exit::Failed, source: anyhow::Error::msg(message) }
}
