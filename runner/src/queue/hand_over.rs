//! The thin hooks: from Nix's call to a durable file in the spool.
//!
//! Called by [`crate::role`]. They load no plugin, read no secret, open no socket and take no lock
//! that another hook holds. Whatever happens inside, Nix sees exit code 0 within [`CAP`]: errors
//! and panics become one line, and a file system that hangs is left to the watchdog.

use std::ffi::OsString;
use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::spool::Place;
use super::{roots, spawn, spool};
use crate::dirs::Dirs;
use crate::event::{Diff, Event, HookEvent, NixDirs};
use crate::evidence::compare::{Bounds, compare};
use crate::nix;
use crate::nix::caller::Caller;
use crate::terminal::say;

/// The longest that a hook may take, in all.
pub const CAP: Duration = Duration::from_secs(2);
/// If the spool has not taken the event by then, the fallback directory is tried, which mostly is
/// on another file system.
pub const RESCUE: Duration = Duration::from_millis(1500);
/// After a comparison that took longer, nobody looks for who called.
const CALLER_BEFORE: Duration = Duration::from_secs(1);
/// How long looking for who called may take.
const CALLER_TIME: Duration = Duration::from_millis(200);
/// Stack of the threads that watch and rescue, which format lines and serialise one event.
const WATCHDOG_STACK: usize = 256 << 10;

/// Nix's post-build hook. Standard output stays empty. Gives the event, if there is one: plugins
/// that may fail the build run on it after this.
pub fn post_build() -> Option<Event> {
    guarded("post-build-hook", || {
        let dirs = Dirs::from_env();
        let event = match nix::post_build::from_env(&NixDirs::from_env()) {
            Ok(event) => Event::now(HookEvent::PostBuild(event)),
            Err(error) => {
                say(&error.to_string());
                return None;
            }
        };
        hand_over(&dirs, &event);
        Some(event)
    })
}

/// Nix's diff hook. What it writes to standard output Nix shows to the user, on exit code 0.
pub fn diff(arguments: &[OsString]) {
    guarded("diff-hook", || {
        let begun = Instant::now();
        let dirs = Dirs::from_env();
        let call = match nix::diff::read(arguments, &NixDirs::from_env(), nix::outputs_of) {
            Ok(call) => call,
            Err(error) => {
                say(&error.to_string());
                return None;
            }
        };
        let evidence =
            compare(Path::new(&call.previous), Path::new(&call.current), Bounds::default());
        let nix::diff::Call { drv_path, output, previous, current } = call;
        let mut event =
            Event::now(HookEvent::Diff(Diff { drv_path, output, previous, current, evidence }));
        if begun.elapsed() < CALLER_BEFORE {
            event.caller = Some(Caller::find(CALLER_TIME));
        }
        let kept = hand_over(&dirs, &event);
        // Nobody may be listening.
        let _shown = writeln!(std::io::stdout(), "hookrun: {}", summary(&event, kept));
        Some(event)
    });
}

/// Roots, the event, the worker; true if the event is kept.
fn hand_over(dirs: &Dirs, event: &Event) -> bool {
    *lock(&PENDING) = Some((dirs.clone(), event.clone()));
    let kept = hand_over_in_time(dirs, event);
    *lock(&PENDING) = None;
    kept
}

fn hand_over_in_time(dirs: &Dirs, event: &Event) -> bool {
    // Before the event, so that its outputs are never queued without a root.
    roots::make(event);
    match spool::put(dirs, event) {
        Ok(Place::Spool) => {}
        Ok(Place::Fallback { path, reason }) => {
            say(&format!(
                "{reason}; the event of {} is kept in {} and will be found there",
                event.name(),
                path.display()
            ));
        }
        Err(error) => {
            say(&format!("the event of {} is lost: {error}", event.drv_path()));
            roots::remove(event);
            return false;
        }
    }
    if let Err(error) = spawn::if_wanted(dirs) {
        say(&format!("no worker was started ({error}); the event of {} is kept", event.name()));
    }
    true
}

/// One line for the user about a difference.
fn summary(event: &Event, kept: bool) -> String {
    let HookEvent::Diff(diff) = &event.hook else { return String::new() };
    let mut files: Vec<&str> =
        diff.evidence.differences.iter().map(|difference| difference.path.as_str()).collect();
    files.dedup();
    let more = if diff.evidence.incomplete.is_some() { "at least " } else { "" };
    let what = match files.as_slice() {
        [] => "differences were not found in the time there was".to_owned(),
        [""] => "1 difference".to_owned(),
        [file] => format!("{more}1 difference, {}", file.escape_debug()),
        [first, ..] => format!("{more}{} differences, first {}", files.len(), first.escape_debug()),
    };
    let output = if diff.output.name.is_empty() { &diff.output.path } else { &diff.output.name };
    let details = if kept { "details: hookrun log" } else { "not recorded, see standard error" };
    format!("{what} in {output} of {}; {details}", event.name())
}

static ENDED: AtomicBool = AtomicBool::new(false);
static WATCHDOG: Mutex<Option<JoinHandle<()>>> = Mutex::new(None);
/// The event that is being handed over, for the rescue.
static PENDING: Mutex<Option<(Dirs, Event)>> = Mutex::new(None);
/// Where the rescue has put it.
static RESCUED: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Nothing that holds one of these can leave it half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tries the fallback directory from a thread of its own: it may hang too. If the spool takes the
/// event after all, the worker sees it twice, and takes it once.
fn rescue() {
    let rescuer = std::thread::Builder::new().stack_size(WATCHDOG_STACK).spawn(|| {
        let pending = lock(&PENDING).clone();
        let rescued = pending.and_then(|(dirs, event)| spool::rescue(&dirs, &event).ok());
        *lock(&RESCUED) = rescued;
    });
    // Without it the hook ends as it would have.
    drop(rescuer);
}

/// What the user is told of a hook that was given up.
fn given_up(hook: &str, rescued: Option<&Path>) -> String {
    let what = match rescued {
        Some(path) => format!("its event is kept in {} and will be found there", path.display()),
        None => "its event may be lost".to_owned(),
    };
    let seconds = CAP.as_secs();
    format!(
        "hookrun: {hook} did not end in {seconds} s and was given up; {what}; is the state directory's file system hanging?\n"
    )
}

/// Ends the watchdog of a hook that has ended, for a process that goes on and must have one thread.
/// It has no more to watch.
pub fn dismiss_watchdog() {
    let watchdog = lock(&WATCHDOG).take();
    if let Some(watchdog) = watchdog {
        watchdog.thread().unpark();
        // It cannot have panicked, and would be gone all the same.
        let _gone = watchdog.join();
    }
}

/// Runs a hook under the watchdog; a panic in it becomes a line.
fn guarded(hook: &'static str, play: impl FnOnce() -> Option<Event>) -> Option<Event> {
    // A thread and not an alarm: its `_exit` also ends a main thread that sleeps where only a fatal
    // signal wakes it (NFS, FUSE). A sleep that nothing ends (a local disk that hangs) lasts until
    // the kernel gives up; Nix's own writes hang there too. If the thread cannot be had, the hook
    // goes on without it.
    let watchdog = std::thread::Builder::new().stack_size(WATCHDOG_STACK).spawn(move || {
        let begun = Instant::now();
        // It is woken early when it is dismissed, and may be for no reason.
        for (until, rescues) in [(RESCUE, true), (CAP, false)] {
            while !ENDED.load(Ordering::Acquire) && begun.elapsed() < until {
                std::thread::park_timeout(until.saturating_sub(begun.elapsed()));
            }
            if rescues && !ENDED.load(Ordering::Acquire) {
                rescue();
            }
        }
        if !ENDED.load(Ordering::Acquire) {
            last_words(&given_up(hook, lock(&RESCUED).as_deref()));
            // SAFETY: `_exit` takes no pointer and does not return. No destructor of the main
            // thread is owed: it holds nothing that outlives the process but the unfinished file,
            // which the worker recognises.
            unsafe { libc::_exit(0) }
        }
    });
    *lock(&WATCHDOG) = watchdog.ok();
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        say(&format!(
            "{hook} failed inside ({place}); the build is not affected; please report this"
        ));
    }));
    let event = std::panic::catch_unwind(AssertUnwindSafe(play)).unwrap_or_default();
    ENDED.store(true, Ordering::Release);
    event
}

/// Writes to standard error if that does not block.
fn last_words(line: &str) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let stderr = rustix::stdio::stderr();
    let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
    if poll(&mut ready, Some(&Timespec::default())) == Ok(1) {
        // Past that nothing can be told.
        let _said = rustix::io::write(stderr, line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::Difference;
    use crate::queue::tests::diff;

    #[test]
    fn what_the_user_of_check_sees() {
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
        insta::assert_snapshot!(line(&[], true, true), @"differences were not found in the time there was in out of hello-1.0; details: hookrun log");
    }

    #[test]
    fn a_hook_that_is_given_up_says_where_its_event_is() {
        insta::assert_snapshot!(given_up("post-build-hook", None), @"hookrun: post-build-hook did not end in 2 s and was given up; its event may be lost; is the state directory's file system hanging?");
        insta::assert_snapshot!(given_up("diff-hook", Some(Path::new("/var/tmp/s/1"))), @"hookrun: diff-hook did not end in 2 s and was given up; its event is kept in /var/tmp/s/1 and will be found there; is the state directory's file system hanging?");
    }

    #[test]
    fn a_panic_is_a_line() {
        assert_eq!(guarded("post-build-hook", || panic!("inside")), None);
    }
}
