//! `hookrun test` with scenarios: those of the bundled plugins, plugins with a defect, and every
//! output format.

use std::path::{Path, PathBuf};
use std::process::Command;

use hookrun_tests::document::{self, repository, steps};
use hookrun_tests::guests::guest;
use hookrun_tests::lab::{Ran, hookrun_program};

const PLUGINS: [&str; 4] = ["s3-upload", "email-on-nondeterminism", "speed-factor", "webhook"];

/// Runs `hookrun test` in a directory, without the configuration of the system.
fn test(directory: &Path, arguments: &[&str]) -> Ran {
    let mut command = Command::new(hookrun_program());
    command
        .current_dir(directory)
        .arg("test")
        .args(arguments)
        .env("HOOKRUN_STATE_DIR", directory.join("state"))
        .env_remove("HOOKRUN_CONFIG");
    Ran::of(&mut command)
}

/// Returns the scenarios of a bundled plugin.
fn scenarios(plugin: &str) -> Vec<PathBuf> {
    let directory = repository().join("plugins").join(plugin).join("scenarios");
    let mut files: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn bundled_plugins_pass_their_scenarios_also_under_faults() {
    let directory = tempfile::tempdir().unwrap();
    let mut count = 0;
    for plugin in PLUGINS {
        let files = scenarios(plugin);
        count += files.len();
        let source = format!("bundled:{plugin}");
        let mut arguments = vec![source.as_str()];
        arguments.extend(files.iter().map(|file| file.to_str().unwrap()));
        let faults: &[&str] = match plugin {
            "s3-upload" => &[
                "object-store=503",
                "object-store=403",
                "object-store=timeout",
                "signing=refuse",
                "nix-store=timeout",
            ],
            "email-on-nondeterminism" => {
                &["mail=refuse", "mail=timeout", "mail=slow", "state=garbage"]
            }
            "webhook" => &["http=503", "http=403", "http=timeout", "http=refuse"],
            _ => &[],
        };
        arguments.extend(["--deny", "all"]);
        arguments.extend(faults.iter().flat_map(|fault| ["--fault", fault]));
        test(directory.path(), &arguments).expect_success();
    }
    assert!(count > 5, "{count}");
}

/// A directory with a configuration of the guest `web`, which reports success whatever the server
/// answers, and a scenario for it.
fn swallower(scenario: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let guest = guest("web").unwrap();
    let config = format!(
        "[plugins.web]\nsource = \"{}\"\n[[plugins.web.grant.http]]\nurl = \"https://chat.example.org/\"\n\
         methods = [\"POST\"]\ncredential = \"chat\"\n[http-credentials.chat]\nkind = \"bearer\"\n\
         token-file = \"/nowhere/canary\"\n",
        guest.display()
    );
    std::fs::write(directory.path().join("hookrun.toml"), config).unwrap();
    std::fs::write(directory.path().join("s.toml"), scenario).unwrap();
    (directory, guest.display().to_string())
}

const REQUEST: &str = "format = 1\nconfig = { requests = [{ method = \"POST\", url = \"https://chat.example.org/a\", body = \"hi\" }] }\n";

#[test]
fn a_request_is_compared_and_answered_as_the_scenario_says() {
    let scenario = format!(
        "{REQUEST}[[answer]]\ncall = \"http\"\nurl = \"https://chat.example.org/*\"\nstatus = 429\nbody = \"busy\"\n\
         [[step]]\n[step.expect]\ndetails = {{ answer = \"429: busy\" }}\n\
         requests = [{{ method = \"POST\", url = \"https://chat.example.org/a\", body = \"h*\", credential = \"chat\" }}]\n"
    );
    let (directory, guest) = swallower(&scenario);
    test(directory.path(), &[&guest, "s.toml"]).expect_success();
    let wrong = scenario.replace("h*", "other");
    std::fs::write(directory.path().join("s.toml"), wrong).unwrap();
    let ran = test(directory.path(), &[&guest, "s.toml"]).expect_exit(1);
    assert!(
        ran.stdout.contains("requests[0].body: expected `other`, found `hi`"),
        "{}",
        ran.stdout
    );
}

#[test]
fn a_plugin_that_reports_success_after_a_failure_does_not_pass() {
    let (directory, guest) = swallower(&format!("{REQUEST}[[step]]\n"));
    for fault in ["http=503", "http=timeout", "http=refuse"] {
        let ran = test(directory.path(), &[&guest, "s.toml", "--fault", fault]).expect_exit(1);
        let expected = format!("under `{fault}` a call of `http` failed, and the plugin reports");
        assert!(ran.stdout.contains(&expected), "{}", ran.stdout);
    }
    test(directory.path(), &[&guest, "s.toml", "--fault", "http=slow"]).expect_success();
    let tolerant = format!("{REQUEST}tolerates = [\"http=503\"]\n[[step]]\n");
    std::fs::write(directory.path().join("s.toml"), tolerant).unwrap();
    test(directory.path(), &[&guest, "s.toml", "--fault", "http=503"]).expect_success();
}

#[test]
fn state_is_kept_between_steps_and_updated_expectations_pass() {
    let directory = tempfile::tempdir().unwrap();
    let guest = guest("good").unwrap().display().to_string();
    let path = directory.path().join("s.toml");
    let text = "# Two builds.\nformat = 1\n[given.state]\n\"greet-2.12\" = \"6\"\n\n[[step]]\nhook = \"post-build\"\n\n[[step]]\nhook = \"post-build\" # again\n";
    std::fs::write(&path, text).unwrap();
    test(directory.path(), &[&guest, "s.toml", "--update"]).expect_success();
    let updated = std::fs::read_to_string(&path).unwrap();
    assert!(updated.starts_with("# Two builds.\n") && updated.contains("# again"), "{updated}");
    assert!(updated.contains("runs = \"8\"") && updated.contains("\"greet-2.12\" = \"8\""));
    test(directory.path(), &[&guest, "s.toml"]).expect_success();
    let ran = test(directory.path(), &[&guest, "s.toml", "--update"]).expect_success();
    assert!(ran.stdout.contains("0 scenarios were updated"), "{}", ran.stdout);
}

#[test]
fn an_event_that_a_plugin_does_not_survive_is_found_and_made_small() {
    let directory = tempfile::tempdir().unwrap();
    let guest = guest("faulty").unwrap().display().to_string();
    let config = format!(
        "[plugins.x]\nsource = \"{guest}\"\nhooks = [\"post-build\"]\nconfig = {{ fault = \"first-output\" }}\n"
    );
    std::fs::write(directory.path().join("hookrun.toml"), config).unwrap();
    let ran = test(directory.path(), &[&guest, "--fuzz", "60", "--seed", "1"]).expect_exit(1);
    let (report, scenario) = ran.stdout.split_once("\n\n").unwrap();
    assert!(report.contains("index out of bounds"), "{report}");
    assert!(scenario.contains("[step.event]\noutputs = []\n"), "{scenario}");
    // What was found is a scenario that fails in the same way.
    std::fs::write(directory.path().join("found.toml"), scenario).unwrap();
    let again = test(directory.path(), &[&guest, "found.toml"]).expect_exit(1);
    assert!(again.stdout.contains("expected `done`, found `trapped"), "{}", again.stdout);
    let set = ["--set", "fault = \"output\"", "--limit", "output-bytes=16MiB"];
    let good = [&[guest.as_str(), "--fuzz", "1"][..], &set[..]].concat();
    let ran = test(directory.path(), &good).expect_success();
    assert!(ran.stdout.contains("neither trapped nor reached a limit"), "{}", ran.stdout);
}

#[test]
fn results_have_a_form_for_people_and_three_for_programs() {
    let (directory, guest) = swallower(&format!(
        "{REQUEST}[[step]]\n[step.expect]\noutcome = \"permanent\"\nmessage = \"<a & \\\"b\\\">\"\n"
    ));
    std::fs::write(directory.path().join("good.toml"), format!("{REQUEST}[[step]]\n")).unwrap();
    let run = |format: &str| {
        test(directory.path(), &[&guest, "s.toml", "good.toml", "--format", format]).expect_exit(1)
    };
    let json: serde_json::Value = serde_json::from_str(&run("json").stdout).unwrap();
    assert_eq!(json[0]["scenarios"][0]["passed"], false);
    assert_eq!(json[0]["scenarios"][1]["steps"][0]["requests"][0]["body"], "hi");
    let junit = run("junit").stdout;
    assert!(
        junit.contains("tests=\"2\" failures=\"1\"") && junit.contains("&lt;a &amp; "),
        "{junit}"
    );
    let tap = run("tap").stdout;
    assert!(
        tap.starts_with("TAP version 14\n1..2\nnot ok 1 - ") && tap.contains("\nok 2 - "),
        "{tap}"
    );
    // The token's file is never read, and its name is in no output.
    for output in [junit, tap, run("text").stdout] {
        assert!(!output.contains("canary"), "{output}");
    }
}

#[test]
fn a_wrong_scenario_or_option_is_named_with_the_fix() {
    let (directory, guest) = swallower("format = 1\n[[step]]\nexpekt = {}\n");
    let error =
        |arguments: &[&str], exit| test(directory.path(), arguments).expect_exit(exit).stderr;
    let text = error(&[&guest, "s.toml"], 3);
    assert!(text.contains("s.toml:3: unknown field `expekt`, expected one of"), "{text}");
    let text = error(&["s.toml"], 2);
    assert!(text.contains("the scenario `s.toml` has no plugin"), "{text}");
    std::fs::write(directory.path().join("s.toml"), "format = 1\n\n[limits]\nwall-tim = \"1s\"\n")
        .unwrap();
    let text = error(&[&guest, "s.toml"], 3);
    assert!(text.contains("s.toml: ") && text.contains("wall-time"), "{text}");
    std::fs::write(directory.path().join("s.toml"), "format = 1\n[grant]\nstate = true\n").unwrap();
    let text = error(&[&guest, "s.toml"], 3);
    assert!(
        text.contains("it wants `http` and has no grant")
            && text.contains("under [grant] in s.toml:2"),
        "{text}"
    );
    let text = error(&[&guest, "s.toml", "--fault", "mail=503"], 2);
    assert!(text.contains("`mail=503` changes nothing"), "{text}");
    let text = error(&[&guest, "s.toml", "--filter", "other"], 2);
    assert!(text.contains("`--filter` leaves out all 1"), "{text}");
}

#[test]
fn every_command_of_the_page_about_scenarios_works_as_printed() {
    let directory = tempfile::tempdir().unwrap();
    let steps = steps(&document::read("docs/scenarios.md"));
    assert!(!steps.is_empty());
    let bin = directory.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(hookrun_program(), bin.join("hookrun")).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = Command::new("sh");
    shell
        .current_dir(repository())
        .env("PATH", format!("{}:{path}", bin.display()))
        .env("HOOKRUN_STATE_DIR", directory.path().join("state"))
        .env_remove("HOOKRUN_CONFIG");
    document::run(&steps, &mut shell, "");
}
