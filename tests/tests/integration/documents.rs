//! Runs the commands and checks the listings of the documents.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use hookrun_tests::document::{self, Step, blocks, repository, steps};
use hookrun_tests::lab::{Need, hookrun_program, require, require_nix};

/// Returns a directory for compiled dependencies of the crates in the documents, which later runs
/// use again.
pub(crate) fn target_directory() -> PathBuf {
    let directory = hookrun_program().ancestors().nth(2).unwrap().join("documents");
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

/// Returns a shell in an empty directory with `hookrun` and the toolchain of this repository.
pub(crate) fn shell(directory: &Path) -> Command {
    let bin = directory.join("bin");
    std::fs::create_dir(&bin).unwrap();
    symlink(hookrun_program(), bin.join("hookrun")).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let toolchain = std::fs::read_to_string(repository().join("rust-toolchain.toml")).unwrap();
    let toolchain = toolchain.split('"').nth(1).unwrap().to_owned();
    let mut shell = Command::new("sh");
    shell
        .current_dir(directory.join("work"))
        .env("PATH", format!("{}:{path}", bin.display()))
        .env("RUSTUP_TOOLCHAIN", toolchain)
        // Cargo in the shell must not use the settings of this test run.
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CARGO_MANIFEST_DIR")
        // The build of the repository has downloaded all dependencies.
        .env("CARGO_NET_OFFLINE", "true")
        .env("HOOKRUN_STATE_DIR", directory.join("state"))
        .env_remove("HOOKRUN_CONFIG");
    shell
}

#[test]
fn every_command_of_the_sdks_readme_works_as_printed() {
    if !require(Need::Program("cargo")) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let work = directory.path().join("work");
    std::fs::create_dir(&work).unwrap();
    // The clone that the page mentions.
    symlink(repository(), work.join("hookrun")).unwrap();
    let mut steps = steps(&document::read("plugin-sdk/README.md"));
    // Dependencies are resolved as in the repository, from the crates that were downloaded for it,
    // and compiled once for all runs of this test.
    let entered = steps
        .iter()
        .position(|step| matches!(step, Step::Command { line, .. } if line == "cd announce"))
        .expect("the page enters the crate");
    let link =
        format!("ln -s {} target && cp ../hookrun/Cargo.lock .", target_directory().display());
    steps.insert(entered + 1, Step::Command { line: link, output: Vec::new() });
    document::run(&steps, &mut shell(directory.path()), "");
}

/// Makes `work` look like the repository, with a target directory that later runs use again.
fn enter_repository(work: &Path) {
    for entry in std::fs::read_dir(repository()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "target" {
            symlink(entry.path(), work.join(entry.file_name())).unwrap();
        }
    }
    symlink(target_directory(), work.join("target")).unwrap();
}

#[test]
fn every_command_of_the_example_plugins_works_as_printed() {
    if !require(Need::Program("cargo")) {
        return;
    }
    for example in hookrun_tests::guests::EXAMPLES {
        let directory = tempfile::tempdir().unwrap();
        let work = directory.path().join("work");
        std::fs::create_dir(&work).unwrap();
        enter_repository(&work);
        let page = document::read(&format!("examples/plugins/{example}/README.md"));
        let steps: Vec<Step> =
            steps(&page).into_iter().filter(|step| matches!(step, Step::Command { .. })).collect();
        assert_eq!(steps.len(), 2, "{example}");
        document::run(&steps, &mut shell(directory.path()), "");
    }
}

/// Replaces the directories of the system by private copies, and the release build and the service
/// manager by functions. Then it enters a clone, as the page says.
const PRIVATE_SYSTEM: &str = r#"
set -e
mount -t tmpfs tmpfs "$SCRATCH"
for directory in /etc /usr/lib /usr/local /var /nix; do
    [ -d "$directory" ] || continue
    upper="$SCRATCH$directory"
    mkdir -p "$upper/upper" "$upper/work"
    mount -t overlay -o "lowerdir=$directory,upperdir=$upper/upper,workdir=$upper/work" overlay "$directory"
done
# A machine without hookrun, whatever this one has.
rm -rf /var/lib/hookrun /var/lib/hookrun-fallback /etc/hookrun /etc/nix /usr/lib/hookrun
! id hookrun > /dev/null 2>&1 || userdel hookrun
mkdir -p "$HOME/.cargo/bin" /etc/nix
cargo() {
    [ "$*" = "install --locked --path runner" ] || { echo "unexpected: cargo $*" >&2; return 1; }
    cp "$HOOKRUN_PROGRAM" "$HOOKRUN_PROGRAM-hook" "$HOME/.cargo/bin"
}
rustup() { [ "$*" = "target add wasm32-wasip2" ]; }
systemctl() {
    [ "$*" = "restart nix-daemon" ] || { echo "unexpected: systemctl $*" >&2; return 1; }
    nix-daemon --daemon > /dev/null 2>&1 &
    daemon=$!
}
trap '[ -z "$daemon" ] || kill "$daemon"' EXIT
set +e
cd "$CLONE"
"#;

#[test]
fn the_first_configuration_of_the_readme_works_as_printed() {
    if !require(Need::Root) {
        return;
    }
    require_nix();
    let directory = tempfile::tempdir().unwrap();
    for name in ["scratch", "home"] {
        std::fs::create_dir(directory.path().join(name)).unwrap();
    }
    let text = document::read("README.md");
    let mut steps = steps(&text);
    // `cargo xtask` runs this test, and the demo has its own tests (`demo::`).
    let before = steps.len();
    steps.retain(
        |step| !matches!(step, Step::Command { line, .. } if line.starts_with("cargo xtask")),
    );
    assert_eq!(before - steps.len(), 1, "the page shows one command of xtask");
    // The listing for nix.conf has to be there before the daemon is restarted.
    let restart = steps
        .iter()
        .position(
            |step| matches!(step, Step::Command { line, .. } if line.starts_with("systemctl")),
        )
        .expect("the page restarts the daemon");
    let nix_conf = blocks(&text).into_iter().find(|block| block.language == "ini").unwrap().text;
    steps.insert(restart, Step::File { path: "/etc/nix/nix.conf".to_owned(), text: nix_conf });
    // The page says in which directory the programs were built.
    let install = steps.iter().position(
        |step| matches!(step, Step::Command { line, .. } if line.starts_with("for program")),
    );
    let built = Step::Command { line: "cd \"$HOME/.cargo/bin\"".to_owned(), output: Vec::new() };
    steps.insert(install.expect("the page installs the programs"), built);
    // The secret that a user types.
    for step in &mut steps {
        if let Step::Command { line, .. } = step
            && line.contains("/dev/stdin")
        {
            *line = format!("echo example | {line}");
        }
    }
    let modes = "cd /etc/hookrun && stat -c %a:%U secrets secrets/cache-private-key \
                 secrets/s3-access-key-id secrets/s3-secret-access-key secrets/smtp-password \
                 hookrun.toml";
    steps.push(Step::Command {
        line: modes.to_owned(),
        output: ["700:root", "600:root", "600:root", "600:root", "600:root", "644:root"]
            .map(ToOwned::to_owned)
            .to_vec(),
    });
    let mut shell = Command::new("unshare");
    shell
        .args(["--mount", "--propagation", "private", "sh"])
        .env("SCRATCH", directory.path().join("scratch"))
        .env("HOME", directory.path().join("home"))
        .env("HOOKRUN_PROGRAM", hookrun_program())
        .env("CLONE", repository())
        .env_remove("HOOKRUN_CONFIG")
        .env_remove("HOOKRUN_STATE_DIR");
    document::run(&steps, &mut shell, PRIVATE_SYSTEM);
}

/// Returns the table in ARCHITECTURE.md: each crate, and the crates that it may depend on.
fn allowed_dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let text = document::read("ARCHITECTURE.md");
    let table = text
        .lines()
        .skip_while(|line| !line.starts_with("| crate | may depend on |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let names = |cell: &str| -> BTreeSet<String> {
        cell.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect()
    };
    table
        .map(|line| {
            let cells: Vec<&str> = line.split('|').collect();
            (names(cells[1]).into_iter().next().unwrap(), names(cells[2]))
        })
        .collect()
}

/// Returns Cargo's metadata of the packages whose manifest is below one of these directories.
fn packages_below(directories: &[&str]) -> Vec<serde_json::Value> {
    let metadata = Command::new("cargo")
        .args(["metadata", "--no-deps", "--offline", "--locked", "--format-version", "1"])
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let root = format!("{}/", metadata["workspace_root"].as_str().unwrap());
    let is_below = |package: &&serde_json::Value| {
        let manifest = package["manifest_path"].as_str().unwrap();
        let manifest = manifest.strip_prefix(&root).unwrap();
        directories.iter().any(|directory| manifest.starts_with(directory))
    };
    metadata["packages"].as_array().unwrap().iter().filter(is_below).cloned().collect()
}

/// Returns the dependencies between crates of the workspace, without those that test programs.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    // Test crates may depend on all crates.
    packages_below(&["runner/", "plugin-sdk/", "plugins/"])
        .iter()
        .map(|package| {
            let ours = package["dependencies"].as_array().unwrap().iter();
            let ours = ours.filter(|dependency| dependency["path"].is_string());
            (text(&package["name"]), ours.map(|dependency| text(&dependency["name"])).collect())
        })
        .collect()
}

#[test]
fn dependencies_md_has_a_row_for_each_direct_dependency_and_no_other() {
    if !require(Need::Program("cargo")) {
        return;
    }
    let text = document::read("docs/dependencies.md");
    let rows: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let mut direct = BTreeSet::new();
    for package in packages_below(&["runner/"]) {
        for dependency in package["dependencies"].as_array().unwrap() {
            if dependency["kind"].is_null() && dependency["path"].is_null() {
                direct.insert(dependency["name"].as_str().unwrap().to_owned());
            }
        }
    }
    assert!(direct.len() > 40, "{direct:?}");
    // In order, and each once.
    assert_eq!(rows, direct.iter().collect::<Vec<_>>(), "the table and the Cargo.toml files");
}

#[test]
fn crates_depend_on_each_other_as_architecture_md_allows() {
    if !require(Need::Program("cargo")) {
        return;
    }
    let (allowed, dependencies) = (allowed_dependencies(), dependencies());
    assert!(dependencies.len() > 8, "{dependencies:?}");
    assert_eq!(
        allowed.keys().collect::<Vec<_>>(),
        dependencies.keys().collect::<Vec<_>>(),
        "the table `crate | may depend on` has a row for each crate"
    );
    for (name, used) in &dependencies {
        assert_eq!(&allowed[name], used, "the row of {name} and its Cargo.toml");
    }
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let pages = pages(repository());
    assert!(pages.len() > 8, "{pages:?}");
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            assert!(page.parent().unwrap().join(file).exists(), "{}: {link}", page.display());
        }
    }
}

#[test]
fn no_document_has_the_markers_of_a_merge_conflict() {
    for page in pages(repository()) {
        let text = std::fs::read_to_string(&page).unwrap();
        let is_marker = |line: &str| line.starts_with("<<<<<<< ") || line.starts_with(">>>>>>> ");
        assert!(!text.lines().any(is_marker), "{}", page.display());
    }
}

#[test]
fn the_readme_has_a_row_for_every_command() {
    let help = hookrun_tests::lab::Ran::of(Command::new(hookrun_program()).arg("--help"));
    let commands = help.stdout.split("Commands:").nth(1).unwrap().split("\n\n").next().unwrap();
    let mut commands: Vec<&str> = commands
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    let readme = document::read("README.md");
    let mut rows: Vec<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `hookrun ")?.split('`').next())
        .collect();
    commands.sort_unstable();
    rows.sort_unstable();
    assert_eq!(rows, commands);
}

/// Returns the names of all tests of the repository.
fn tests() -> BTreeSet<String> {
    let sources = files(repository(), "rs");
    assert!(sources.len() > 200, "{}", sources.len());
    let mut names = BTreeSet::new();
    for source in sources {
        let text = std::fs::read_to_string(source).unwrap();
        let mut is_test = false;
        for line in text.lines().map(str::trim_start) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test) {
                names.extend(rest.split('(').next().map(ToOwned::to_owned));
                is_test = false;
            }
        }
    }
    names
}

#[test]
fn every_test_that_security_md_names_is_there() {
    let text = document::read("SECURITY.md");
    let is_name = |word: &&str| {
        word.matches('_').count() > 2
            && word.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase())
    };
    let named: Vec<&str> = text.split('`').skip(1).step_by(2).filter(is_name).collect();
    assert!(named.len() > 80, "{named:?}");
    let tests = tests();
    let missing: Vec<&&str> = named.iter().filter(|name| !tests.contains(**name)).collect();
    assert_eq!(missing, Vec::<&&str>::new(), "there is no such test");
    // A row of a table of promises has at least one test. The rows in bold are headings.
    let rows = |head: &str| -> Vec<String> {
        let lines = text.lines().skip_while(|line| !line.starts_with(head)).skip(2);
        lines.take_while(|line| line.starts_with('|')).map(ToOwned::to_owned).collect()
    };
    let promises = rows("| promise | tests |").into_iter().filter(|row| !row.starts_with("| **"));
    let files = rows("| file | owner, mode |");
    assert!(files.len() > 15, "{files:?}");
    for row in files.into_iter().chain(promises) {
        let last = row.trim_end_matches('|').rsplit('|').next().unwrap().to_owned();
        let has_test = last.split('`').skip(1).step_by(2).any(|word| is_name(&word));
        assert!(has_test, "no test holds this: {row}");
    }
}

/// Returns the Markdown files of a directory.
fn pages(directory: &Path) -> Vec<PathBuf> {
    files(directory, "md")
}

/// Returns the files of a directory with this extension.
fn files(directory: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(files(&path, end));
        } else if path.extension().is_some_and(|extension| extension == end) {
            found.push(path);
        }
    }
    found
}
