//! The post-build and diff hooks: from Nix's call to a durable file in the spool.
//!
//! The program's `role` module calls them. They load no plugin, read no secret, open no socket and
//! take no lock that another hook holds. The work is done in a separate process ([`super::guard`]),
//! so that the hook exits 0 within [`CAP`](super::guard::CAP) in spite of errors and panics, which
//! print one line. If no process can be created, the time has no limit.

use std::ffi::OsString;
use std::io::Write as _;
use std::time::{Duration, Instant};

use super::guard::{self, HookResult, Reporter};
use super::spool::SpoolPlace;
use super::{envelope, roots, spawn, spool};
use hookrun_config::ConfigText;
use hookrun_nix as nix;
use hookrun_nix::caller::Caller;
use hookrun_nix::derivation::MAX_SIZE_IN_HOOK;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{Diff, Event, HookEvent, HookKind, NixDirs};
use hookrun_nix::evidence::Evidence;
use hookrun_nix::evidence::compare::{Bounds, compare};
use hookrun_nix::terminal::say;

/// Time after which an event that is not yet in the spool is also written to fallback directories.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same for the diff hook, which compares two trees first.
const PATIENCE_WITH_DIFF: Duration = Duration::from_millis(1500);
/// If the comparison took longer than this, the caller is not determined.
const CALLER_BEFORE: Duration = Duration::from_secs(1);
/// The time limit for determining the caller.
const CALLER_TIME: Duration = Duration::from_millis(200);

/// Runs the post-build hook. It writes nothing to standard output. Gates run after it returns.
pub fn post_build() -> HookResult {
    // A build that hookrun itself started is not reported again.
    if nix::is_nested() {
        return HookResult::nothing();
    }
    guard::run(HookKind::PostBuild, PATIENCE, |reporter| {
        let nix_dirs = nix::store_uri::of_caller();
        let event = match nix::post_build::from_env(&nix_dirs) {
            Ok(event) => Event { nix: nix_dirs, ..Event::now(HookEvent::PostBuild(event)) },
            Err(error) => return say(&error.to_string()),
        };
        hand_over(reporter, &event);
    })
}

/// Runs the diff hook. Nix shows its standard output to the user if it exits 0.
pub fn diff(arguments: &[OsString]) {
    if nix::is_nested() {
        return;
    }
    let (begun, parent) = (Instant::now(), rustix::process::getppid());
    guard::run(HookKind::Diff, PATIENCE_WITH_DIFF, |reporter| {
        let mut nix_dirs = NixDirs::from_env();
        let derivation = |path: &str| nix::outputs_of(&nix_dirs, path, MAX_SIZE_IN_HOOK);
        let call = match nix::diff::read(arguments, &nix_dirs, derivation) {
            Ok(call) => call,
            Err(error) => return say(&error.to_string()),
        };
        let nix::diff::DiffArguments { drv_path, output, previous, current, real_store } = call;
        nix_dirs.real_store = real_store;
        let (old, new) = (nix_dirs.real_path(&previous), nix_dirs.real_path(&current));
        if !rustix::process::geteuid().is_root() {
            // A build user may report only on the store of this machine; plugins get the evidence.
            nix_dirs.real_store = None;
        }
        // The event to keep if the comparison does not end.
        let evidence = Evidence {
            incomplete: Some("the comparison did not end in time".to_owned()),
            ..Evidence::default()
        };
        let diff = Diff { drv_path, output, previous, current, evidence };
        let mut event = Event { nix: nix_dirs, ..Event::now(HookEvent::Diff(diff)) };
        if let Ok(sealed) = envelope::seal(&event) {
            reporter.event(&sealed);
        }
        if let HookEvent::Diff(diff) = &mut event.hook {
            diff.evidence = compare(&old, &new, Bounds::default());
        }
        if begun.elapsed() < CALLER_BEFORE {
            event.caller = Some(Caller::find(parent, CALLER_TIME));
        }
        let kept = hand_over(reporter, &event);
        // The reader may have closed its end.
        let _shown = writeln!(std::io::stdout(), "hookrun: {}", summary(&event, kept));
    });
}

/// Creates roots, writes the event and starts a worker. Returns whether the event was written.
fn hand_over(reporter: &mut Reporter, event: &Event) -> bool {
    let sealed = match envelope::seal(event) {
        Ok(sealed) => sealed,
        Err(error) => {
            say(&format!(
                "the event of {} is lost: it cannot be written as JSON ({error})",
                event.drv_path()
            ));
            return false;
        }
    };
    reporter.event(&sealed);
    let dirs = Dirs::from_env();
    // Before the event, so that its outputs are never queued without a root.
    roots::make(event);
    reporter.writing();
    match spool::put_sealed(&dirs, &event.id, &sealed) {
        Ok(SpoolPlace::Spool) => {}
        Ok(SpoolPlace::Fallback { path, reason }) => {
            say(&format!(
                "{reason}; the event of {} is kept in {}, where the worker will find it",
                event.name(),
                path.display()
            ));
        }
        Err(error) => {
            let recovery = guard::recovery(event.kind());
            say(&format!("the event of {} is lost: {error}; {recovery}", event.drv_path()));
            roots::remove(event);
            return false;
        }
    }
    reporter.kept();
    follow_up(reporter, &dirs, event);
    true
}

/// Passes on a configuration that may have a gate, and starts a worker if the configuration says so
/// and none runs. Reads the configuration once, and not at all if nothing depends on it.
fn follow_up(reporter: &mut Reporter, dirs: &Dirs, event: &Event) {
    // Only a post-build hook has gates.
    let may_have_gate = matches!(event.hook, HookEvent::PostBuild(_));
    let may_start = spawn::may_start(dirs);
    if !may_have_gate && !may_start {
        return;
    }
    let text = ConfigText::in_force(dirs);
    if let Some(text) = text.as_ref().ok().filter(|text| may_have_gate && text.may_have_gate()) {
        reporter.configuration(text);
    }
    let started = text.map_err(|error| error.to_string());
    if may_start && let Err(error) = started.and_then(|text| spawn::if_wanted(dirs, &text)) {
        say(&format!(
            "no worker was started ({error}); the event of {} waits in the spool",
            event.name()
        ));
    }
}

/// One line for the user about a difference.
fn summary(event: &Event, kept: bool) -> String {
    let HookEvent::Diff(diff) = &event.hook else { return String::new() };
    let mut files: Vec<&str> =
        diff.evidence.differences.iter().map(|difference| difference.path.as_str()).collect();
    files.dedup();
    let more = if diff.evidence.incomplete.is_some() { "at least " } else { "" };
    let what = match files.as_slice() {
        [] => "no difference was found within the time limit".to_owned(),
        [""] => "1 difference".to_owned(),
        [file] => format!("{more}1 difference, {}", file.escape_debug()),
        [first, ..] => format!("{more}{} differences, first {}", files.len(), first.escape_debug()),
    };
    let output = if diff.output.name.is_empty() { &diff.output.path } else { &diff.output.name };
    let details = if kept { "details: hookrun log" } else { "not recorded, see standard error" };
    format!("{what} in {output} of {}; {details}", event.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::diff;
    use hookrun_nix::evidence::Difference;

    #[test]
    fn the_first_difference_is_printed_for_nix_build_check() {
        let line = |paths: &[&str], incomplete: bool, kept: bool| {
            let mut event = diff("hello-1.0");
            if let HookEvent::Diff(diff) = &mut event.hook {
                diff.evidence.incomplete = incomplete.then(String::new);
                let difference = |path: &&str| Difference {
                    path: (*path).into(),
                    kind: "content".into(),
                    previous: String::new(),
                    current: String::new(),
                    offset: None,
                    details: Vec::new(),
                };
                diff.evidence.differences = paths.iter().map(difference).collect();
            }
            summary(&event, kept)
        };
        insta::assert_snapshot!(line(&[""], false, true), @"1 difference in out of hello-1.0; details: hookrun log");
        insta::assert_snapshot!(line(&["bin/a", "bin/a", "lib/b"], false, true), @"2 differences, first bin/a in out of hello-1.0; details: hookrun log");
        insta::assert_snapshot!(line(&["a"], true, false), @"at least 1 difference, a in out of hello-1.0; not recorded, see standard error");
        insta::assert_snapshot!(line(&[], true, true), @"no difference was found within the time limit in out of hello-1.0; details: hookrun log");
    }
}
