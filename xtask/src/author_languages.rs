//! `cargo xtask author-languages`: generates a plugin of each hook in JavaScript and Python with
//! `hookrun new`, and builds and tests it with the ordinary tools of its language. Then it does the
//! same with the commands of the pages about these languages. Not part of
//! the tests, because it downloads those tools.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::process::{self, CommandExt as _};

/// Pages with commands that download tools.
const PAGES: [&str; 4] = [
    "examples/plugins/chat-notifier/README.md",
    "examples/plugins/naming-gate/README.md",
    "docs/book/src/first/javascript.md",
    "docs/book/src/first/python.md",
];

/// The page of the plugin in C, whose tools are not downloaded.
const C_PAGE: &str = "examples/plugins/fastest-first/README.md";
/// Programs that this page needs.
const C_PROGRAMS: [&str; 2] = ["clang-14", "wit-bindgen"];

const HOOKS: [&str; 3] = ["post-build", "diff", "builder-selection"];

/// Builds and tests all projects, and prints the time of each.
pub(crate) fn run() -> Result<()> {
    process::build_programs()?;
    let bin = std::path::absolute(process::target_directory()?.join("debug"))?;
    let directory = process::target_directory()?.join("author-languages");
    if directory.exists() {
        std::fs::remove_dir_all(&directory)?;
    }
    std::fs::create_dir_all(&directory)?;
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", bin.display());
    let run = |directory: &Path, line: &[&str]| {
        let (program, arguments) = line.split_first().context("an empty command")?;
        Command::new(program).args(arguments).current_dir(directory).env("PATH", &path).run()
    };
    let mut times = Vec::new();
    for (lang, steps) in [
        ("javascript", &[&["npm", "install"][..], &["npm", "test"]][..]),
        ("python", &[&["make", "test"][..]][..]),
    ] {
        for hook in HOOKS {
            let begun = Instant::now();
            let name = format!("{lang}-{hook}");
            run(&directory, &["hookrun", "new", &name, "--lang", lang, "--hook", hook])?;
            let project = directory.join(&name);
            for step in steps {
                run(&project, step)?;
            }
            times.push(format!("{name}: {:.1} s", begun.elapsed().as_secs_f64()));
        }
    }
    let starts = |program: &&str| {
        Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
    };
    let missing: Vec<&str> = C_PROGRAMS.into_iter().filter(|program| !starts(program)).collect();
    if !missing.is_empty() {
        eprintln!("note: {C_PAGE} was NOT run; it needs {}", missing.join(" and "));
    }
    let c_page = missing.is_empty().then_some(C_PAGE);
    for page in PAGES.into_iter().chain(c_page) {
        let begun = Instant::now();
        let text = std::fs::read_to_string(process::repository().join(page))?;
        let commands: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
        ensure!(!commands.is_empty(), "{page} has no commands");
        // The pages say that the clone's examples are beside the new project.
        let place = directory.join(page.replace('/', "-"));
        std::fs::create_dir(&place)?;
        std::os::unix::fs::symlink(process::repository().join("examples"), place.join("examples"))?;
        run(&place, &["sh", "-e", "-x", "-c", &commands.join("\n")])?;
        times.push(format!("{page}: {:.1} s", begun.elapsed().as_secs_f64()));
    }
    println!("from `hookrun new` to the first green test, with the installation of the tools:");
    for time in times {
        println!("  {time}");
    }
    Ok(())
}
