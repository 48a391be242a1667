//! `hookrun new`: creates the project of a plugin, with code, tests and a scenario that pass.

use std::path::{Path, PathBuf};

use super::output::{self, printable};
use super::{CliError, Context};
use hookrun_nix::event::HookKind;
use hookrun_nix::exit_code::Exit;

/// The interfaces that a plugin is built against, at their places below `wit/`.
const WIT: [(&str, &str); 4] = [
    ("wit/deps/hookrun-host/host.wit", include_str!("../../../plugin-sdk/wit/host-0.1.0/host.wit")),
    (
        "wit/deps/hookrun-post-build/post-build.wit",
        include_str!("../../../plugin-sdk/wit/post-build-0.1.0/post-build.wit"),
    ),
    ("wit/deps/hookrun-diff/diff.wit", include_str!("../../../plugin-sdk/wit/diff-0.1.0/diff.wit")),
    (
        "wit/deps/hookrun-builder-selection/builder-selection.wit",
        include_str!("../../../plugin-sdk/wit/builder-selection-0.1.0/builder-selection.wit"),
    ),
];

/// The source of the SDK as long as it is not published.
const REPOSITORY: &str = env!("CARGO_PKG_REPOSITORY");

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The project has the code, a scenario, `hookrun.toml`, a file for continuous integration and a README
with the commands that build and test it.

Examples:
  hookrun new announce --lang rust --hook post-build
  hookrun new announce --lang rust --sdk ../hookrun/plugin-sdk
  hookrun new notify --lang javascript --hook diff
  hookrun new pick --lang python --hook builder-selection")]
pub(super) struct Args {
    /// The plugin's name, in lower case; the directory gets the same name
    name: String,
    /// The language
    #[arg(long, value_enum, default_value_t)]
    lang: Language,
    /// The hook
    #[arg(long, default_value = "post-build", value_parser = hook)]
    hook: HookKind,
    /// For Rust: the directory of hookrun-sdk in a clone of the repository [default: a git
    /// dependency]
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
}

/// The languages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Language {
    /// Rust, with hookrun-sdk
    #[default]
    Rust,
    /// JavaScript, with componentize-qjs
    Javascript,
    /// Python, with componentize-py
    Python,
}

fn hook(word: &str) -> Result<HookKind, String> {
    HookKind::ALL.into_iter().find(|hook| hook.as_str() == word).ok_or_else(|| {
        let known = HookKind::ALL.map(HookKind::as_str).join(", ");
        format!("known: {known}")
    })
}

/// A file of a project: its path and its text before names are filled in.
type Template = (&'static str, &'static str);

macro_rules! template {
    ($path:literal) => {
        include_str!(concat!("new/", $path))
    };
}

impl Language {
    const fn word(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Javascript => "javascript",
            Self::Python => "python",
        }
    }

    fn files(self, hook: HookKind) -> Vec<Template> {
        let code = |path, [post_build, diff, selection]: [&'static str; 3]| {
            let code = match hook {
                HookKind::PostBuild => post_build,
                HookKind::Diff => diff,
                HookKind::BuilderSelection => selection,
            };
            (path, code)
        };
        match self {
            Self::Rust => vec![
                ("Cargo.toml", template!("rust/Cargo.toml")),
                code(
                    "src/lib.rs",
                    [
                        template!("rust/post-build.rs"),
                        template!("rust/diff.rs"),
                        template!("rust/builder-selection.rs"),
                    ],
                ),
                (".gitignore", "/target\n"),
                (".github/workflows/test.yml", template!("rust/test.yml")),
                ("README.md", template!("rust/README.in")),
            ],
            Self::Javascript => vec![
                ("package.json", template!("javascript/package.json")),
                ("hookrun.js", template!("javascript/hookrun.js")),
                code(
                    "plugin.js",
                    [
                        template!("javascript/post-build.js"),
                        template!("javascript/diff.js"),
                        template!("javascript/builder-selection.js"),
                    ],
                ),
                (".gitignore", "/node_modules\n*.wasm\n"),
                (".github/workflows/test.yml", template!("javascript/test.yml")),
                ("README.md", template!("javascript/README.in")),
            ],
            Self::Python => vec![
                ("requirements.txt", template!("python/requirements.txt")),
                ("Makefile", template!("python/Makefile")),
                ("hookrun.py", template!("python/hookrun.py")),
                code(
                    "app.py",
                    [
                        template!("python/post-build.py"),
                        template!("python/diff.py"),
                        template!("python/builder-selection.py"),
                    ],
                ),
                (".gitignore", "/venv\n/__pycache__\n*.wasm\n"),
                (".github/workflows/test.yml", template!("python/test.yml")),
                ("README.md", template!("python/README.in")),
            ],
        }
    }
}

pub(super) fn run(_context: &Context, args: &Args) -> Result<Exit, CliError> {
    let Args { name, lang, hook, sdk } = args;
    check_name(name).map_err(CliError::usage)?;
    let directory = Path::new(name);
    if directory.exists() {
        return Err(CliError::usage(format!(
            "{name} exists already; choose another name, or remove it"
        )));
    }
    let sdk = sdk_dependency(sdk.as_deref())?;
    let mut files = lang.files(*hook);
    files.push((
        "scenarios/first.toml",
        match hook {
            HookKind::PostBuild => template!("common/post-build.toml"),
            HookKind::Diff => template!("common/diff.toml"),
            HookKind::BuilderSelection => template!("common/builder-selection.toml"),
        },
    ));
    let config = if *hook == HookKind::BuilderSelection {
        template!("common/hookrun-policy.toml")
    } else {
        template!("common/hookrun.toml")
    };
    files.push(("hookrun.toml", config));
    if *lang != Language::Rust {
        files.push((
            "plugin.toml",
            if *hook == HookKind::BuilderSelection {
                template!("common/plugin-policy.toml")
            } else {
                template!("common/plugin.toml")
            },
        ));
        files.push(("wit/world.wit", template!("common/world.wit")));
        let needed = |path: &&Template| {
            path.0.contains("/hookrun-host/") || path.0.contains(&format!("/{hook}.wit"))
        };
        files.extend(WIT.iter().filter(needed).copied());
    }
    let wasm = match lang {
        Language::Rust => {
            format!("target/wasm32-wasip2/release/{}.wasm", name.replace('-', "_"))
        }
        _ => format!("{name}.wasm"),
    };
    let file_name = name.replace('-', "_");
    let export = hook.as_str();
    let values = [
        ("{{name}}", name.as_str()),
        ("{{file}}", &file_name),
        ("{{hook}}", export),
        ("{{hook_name}}", &export.replace('-', "_")),
        ("{{wasm}}", &wasm),
        ("{{sdk}}", &sdk),
        ("{{version}}", env!("CARGO_PKG_VERSION")),
        ("{{repository}}", REPOSITORY),
        ("{{lang}}", lang.word()),
    ];
    for (path, template) in files {
        let mut text = template.to_owned();
        if !path.starts_with("wit/deps/") {
            for (key, value) in values {
                text = text.replace(key, value);
            }
        }
        let path = directory.join(path);
        let written = path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&path, text));
        written.map_err(|error| {
            CliError::environment(anyhow::anyhow!("{} cannot be written ({error})", path.display()))
        })?;
    }
    let steps = match lang {
        Language::Rust => format!(
            "  cargo build --release --target wasm32-wasip2\n  hookrun test {wasm} scenarios/*.toml\n"
        ),
        Language::Javascript => "  npm install\n  npm test\n".to_owned(),
        Language::Python => "  make test\n".to_owned(),
    };
    output::print(&format!("created {}; next:\n  cd {name}\n{steps}", printable(name)))?;
    Ok(Exit::Done)
}

/// Checks that a name is one for a crate, a package and a world.
fn check_name(name: &str) -> Result<(), String> {
    let is_word = |word: &str| {
        word.starts_with(|first: char| first.is_ascii_lowercase())
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    if name.len() <= 64 && name.split('-').all(is_word) {
        return Ok(());
    }
    Err(format!(
        "`{name}` is not a name for a plugin; write lower-case words with `-` between them, such as `build-notifier`"
    ))
}

/// Returns the value of the dependency on the SDK in `Cargo.toml`.
fn sdk_dependency(sdk: Option<&Path>) -> Result<String, CliError> {
    let Some(sdk) = sdk else { return Ok(format!("{{ git = \"{REPOSITORY}\" }}")) };
    if !sdk.join("Cargo.toml").is_file() {
        return Err(CliError::usage(format!(
            "{} has no Cargo.toml; name the directory `plugin-sdk` of a clone of {REPOSITORY}",
            sdk.display()
        )));
    }
    // The project is one directory below the working directory.
    let from_project = if sdk.is_absolute() { sdk.to_owned() } else { Path::new("..").join(sdk) };
    Ok(format!("{{ path = \"{}\" }}", from_project.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_case_words() {
        for name in ["a", "announce", "build-notifier2"] {
            check_name(name).unwrap();
        }
        for name in ["", "-", "A", "2a", "a_b", "a--b", "../a", "a/b", "a b"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn every_language_has_files_for_every_hook() {
        for lang in [Language::Rust, Language::Javascript, Language::Python] {
            for hook in HookKind::ALL {
                let files = lang.files(hook);
                assert!(files.len() > 4 && files.iter().all(|(_, text)| !text.is_empty()));
            }
        }
    }
}
