//! `hookrun-hook` and `hookrun` behave in the same way for each call of Nix. Without `hookrun`,
//! `hookrun-hook` writes events and reports that `hookrun` is missing.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use hookrun::demo::private_nix::install_hookrun;
use hookrun_tests::guests;
use hookrun_tests::lab::{hookrun_program, wait_for};

/// The hash part of a store path; any value works.
const HASH: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";

/// Directories of one installation, with a store of one derivation.
struct Installation {
    directory: tempfile::TempDir,
}

impl Installation {
    fn new(configuration: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("hookrun-").tempdir().unwrap();
        let root = directory.path();
        std::fs::set_permissions(root, PermissionsExt::from_mode(0o755)).unwrap();
        install_hookrun(&hookrun_program(), &root.join("bin")).unwrap();
        let store = root.join("store");
        for output in ["one", "one.check"] {
            std::fs::create_dir_all(store.join(format!("{HASH}-{output}"))).unwrap();
            std::fs::write(store.join(format!("{HASH}-{output}/file")), output).unwrap();
        }
        let output = store.join(format!("{HASH}-one"));
        let derivation = format!(
            r#"Derive([("out","{0}","","")],[],[],"x86_64-linux","/bin/sh",[],[("name","one"),("out","{0}")])"#,
            output.display()
        );
        std::fs::write(store.join(format!("{HASH}-one.drv")), derivation).unwrap();
        std::fs::write(root.join("hookrun.toml"), configuration).unwrap();
        Self { directory }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.directory.path().join(relative)
    }

    fn store(&self, name: &str) -> String {
        self.path("store").join(format!("{HASH}-{name}")).display().to_string()
    }

    /// The four arguments of a diff hook.
    fn difference(&self) -> Vec<String> {
        let build = self.path("build").display().to_string();
        vec![self.store("one"), self.store("one.check"), self.store("one.drv"), build]
    }

    fn command(&self, program: &str, name: &str) -> Command {
        let mut command = Command::new(self.path("bin").join(program));
        command
            .arg0(name)
            .env_clear()
            .env("HOME", "/nonexistent")
            .env("NIX_STORE_DIR", self.path("store"))
            .env("NIX_STATE_DIR", self.path("var"))
            .env("NIX_CONF_DIR", self.path("etc"))
            .env("HOOKRUN_CONFIG", self.path("hookrun.toml"))
            .env("HOOKRUN_STATE_DIR", self.path("state"));
        command
    }

    /// Runs a command, and returns its exit code, both output streams, and the events it wrote.
    fn account(&self, command: &mut Command) -> String {
        let output = command.output().unwrap();
        let mut account = format!("{}\n", output.status);
        for stream in [&output.stdout, &output.stderr] {
            let text = String::from_utf8_lossy(stream);
            let text = text.replace(&self.path("").display().to_string(), "@");
            writeln!(account, "{}---", without_id(&text)).unwrap();
        }
        for event in events(&self.path("state/spool")) {
            let event = event.replace(&self.path("").display().to_string(), "@");
            writeln!(account, "{event}").unwrap();
        }
        account
    }
}

/// A message without the name of an event's file in a fallback directory.
fn without_id(text: &str) -> String {
    const DIRECTORY: &str = "state-fallback/";
    match text.split_once(DIRECTORY) {
        Some((before, after)) => {
            let end = after.find(' ').unwrap_or(after.len());
            format!("{before}{DIRECTORY}ID{}", &after[end..])
        }
        None => text.to_owned(),
    }
}

/// The events in a spool, without what differs from run to run.
fn events(spool: &Path) -> Vec<String> {
    let files = std::fs::read_dir(spool).into_iter().flatten();
    files
        .map(|entry| {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            let json = text.split_once('\n').unwrap().1;
            let mut event: serde_json::Value = serde_json::from_str(json).unwrap();
            let fields = event.as_object_mut().unwrap();
            for name in ["id", "time-ms", "caller"] {
                fields.remove(name);
            }
            event.to_string()
        })
        .collect()
}

/// Runs a call with both programs, each in its own installation, and compares the results.
#[track_caller]
fn both(configuration: &str, call: impl Fn(&Installation, &str) -> Command) -> String {
    let account = |program: &str| {
        let installation = Installation::new(configuration);
        installation.account(&mut call(&installation, program))
    };
    let (small, whole) = (account("hookrun-hook"), account("hookrun"));
    assert_eq!(small, whole);
    small
}

fn post_build(installation: &Installation, program: &str) -> Command {
    let mut command = installation.command(program, "hookrun-post-build");
    command
        .env("DRV_PATH", installation.store("one.drv"))
        .env("OUT_PATHS", installation.store("one"));
    command
}

fn diff(installation: &Installation, program: &str) -> Command {
    let mut command = installation.command(program, "hookrun-diff");
    command.args(installation.difference());
    command
}

const SERVICE: &str = "[worker]\nstart = \"service\"\n";

#[test]
fn both_hand_over_a_build() {
    let account = both(SERVICE, post_build);
    assert!(account.contains("\"kind\":\"post-build\""), "{account}");
    let by_environment = both(SERVICE, |installation, program| {
        let mut command = post_build(installation, program);
        command.arg0("/x/hookrun");
        command
    });
    assert_eq!(by_environment, account, "without a link's name");
}

#[test]
fn both_write_the_event_of_a_difference_and_print_it() {
    let account = both(SERVICE, diff);
    assert!(
        account.contains("1 difference, file in out of one; details: hookrun log"),
        "{account}"
    );
    assert!(account.contains("\"kind\":\"diff\""), "{account}");
    let by_arguments = both(SERVICE, |installation, program| {
        let mut command = diff(installation, program);
        command.arg0("hookrun");
        command
    });
    assert_eq!(by_arguments, account, "without a link's name");
}

#[test]
fn both_ignore_a_build_that_hookrun_started() {
    for call in [post_build, diff] {
        let account = both(SERVICE, |installation, program| {
            let mut command = call(installation, program);
            command.env("HOOKRUN_NESTED", "1");
            command
        });
        assert_eq!(account, "exit status: 0\n---\n---\n");
    }
}

#[test]
fn both_report_a_call_with_wrong_arguments() {
    let account =
        both(SERVICE, |installation, program| installation.command(program, "hookrun-post-build"));
    assert!(account.starts_with("exit status: 0\n") && account.contains("DRV_PATH"), "{account}");
    let account = both(SERVICE, |installation, program| {
        let mut command = installation.command(program, "hookrun-diff");
        command.arg("one");
        command
    });
    assert!(account.starts_with("exit status: 0\n") && account.contains("hookrun: "), "{account}");
}

#[test]
fn both_write_to_a_fallback_directory_if_the_spool_is_not_writable() {
    let account = both(SERVICE, |installation, program| {
        // A file is where the state directory should be.
        std::fs::write(installation.path("state"), "").unwrap();
        let mut command = post_build(installation, program);
        command.env("XDG_RUNTIME_DIR", installation.path("run"));
        command
    });
    assert!(account.starts_with("exit status: 0\n"), "{account}");
    assert!(account.contains("is kept in @state-fallback/ID"), "{account}");
}

#[test]
fn both_report_a_configuration_error_that_prevents_a_worker() {
    let account = both("[worker]\nstrat = 1\n", post_build);
    assert!(
        account.contains("no worker was started (@hookrun.toml:2: unknown key `strat`"),
        "{account}"
    );
    assert!(account.contains("\"kind\":\"post-build\""), "{account}");
}

#[test]
fn both_run_a_gate() {
    let guest = guests::guest("good").unwrap();
    let gate = |config: &str| {
        format!(
            "{SERVICE}[plugins.keeper]\nsource = {guest:?}\nhooks = [\"post-build\"]\ngate = true\n\
             grant = {{ state = true }}\nconfig = {{ {config} }}\n"
        )
    };
    let compiled = |installation: &Installation, program: &str| {
        let compile = installation.command("hookrun", "hookrun").arg("compile").output().unwrap();
        assert!(compile.status.success(), "{compile:?}");
        post_build(installation, program)
    };
    let passed = both(&gate(""), compiled);
    assert!(passed.starts_with("exit status: 0\n"), "{passed}");
    let refused = both(&gate("fail = \"permanent\""), compiled);
    assert!(refused.starts_with("exit status: 1\n"), "{refused}");
    assert!(
        refused.contains("the gate `keeper` stops the build at one: told to fail"),
        "{refused}"
    );
}

#[test]
fn both_serve_the_command_line_and_the_build_hook() {
    let version = both(SERVICE, |installation, program| {
        let mut command = installation.command(program, "hookrun");
        command.arg("--version");
        command
    });
    assert!(version.contains("hookrun "), "{version}");
    let build_hook =
        both(SERVICE, |installation, program| installation.command(program, "hookrun-build-hook"));
    let same = both(SERVICE, |installation, program| {
        let mut command = installation.command(program, "x");
        command.args(["hook", "build-hook"]);
        command
    });
    assert_eq!(build_hook, same);
}

#[test]
fn the_small_program_starts_hookrun_as_the_worker() {
    let installation = Installation::new("");
    let mut command = post_build(&installation, "hookrun-hook");
    assert_eq!(installation.account(&mut command).lines().next(), Some("exit status: 0"));
    wait_for("a worker takes the event", || events(&installation.path("state/spool")).is_empty());
    let stop = installation.command("hookrun", "hookrun").arg("stop").output().unwrap();
    assert!(stop.status.success(), "{stop:?}");
}

#[test]
fn a_copy_of_the_small_program_under_another_name_finds_hookrun_beside_it() {
    let installation = Installation::new("");
    let copy = installation.path("bin/copied-hook");
    std::fs::copy(installation.path("bin/hookrun-hook"), &copy).unwrap();
    let version = installation.command("copied-hook", "x").arg("--version").output().unwrap();
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("hookrun "), "{version:?}");
    let account = installation.account(&mut post_build(&installation, "copied-hook"));
    assert_eq!(account.lines().take(3).collect::<Vec<_>>(), ["exit status: 0", "---", "---"]);
    wait_for("a worker takes the event", || events(&installation.path("state/spool")).is_empty());
    let stop = installation.command("hookrun", "hookrun").arg("stop").output().unwrap();
    assert!(stop.status.success(), "{stop:?}");
}

#[test]
fn hookrun_hook_alone_writes_the_event_and_names_the_missing_program() {
    let alone = |configuration: &str, call: fn(&Installation, &str) -> Command| {
        let installation = Installation::new(configuration);
        std::fs::remove_file(installation.path("bin/hookrun")).unwrap();
        installation.account(&mut call(&installation, "hookrun-hook"))
    };
    let account = alone(SERVICE, post_build);
    assert!(account.starts_with("exit status: 0\n---\n---\n{"), "{account}");
    insta::assert_snapshot!(
        alone("[plugins.x]\ngate = true\n", post_build).split('{').next().unwrap()
    );
    insta::assert_snapshot!(alone("", post_build).split('{').next().unwrap());
    insta::assert_snapshot!(alone(SERVICE, |installation, program| {
        installation.command(program, "hookrun-build-hook")
    }));
}
