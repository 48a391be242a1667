//! Runs the work of a post-build or diff hook in a process that Nix does not wait for.
//!
//! Nix waits until its hook has ended and until every process has closed the hook's standard output
//! and error. A process that sleeps in the kernel, in a file system that does not answer, cannot
//! end by any signal. Therefore the process that Nix started touches no file system: it forks
//! before it has threads, and reads from pipes what the working process reports. The working
//! process has none of Nix's descriptors and is abandoned if it does not end in time.
//!
//! The working process puts each event into shared memory as soon as it is known. If it has not
//! written the event after some time, or has died, further processes write it, one for each
//! fallback directory, because one of them is usually on another file system. The worker takes an
//! event once, even if it finds several copies.

mod hook_result;

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitOptions};

pub use hook_result::HookResult;
use hook_result::{FrameKind, Frames};

use super::{envelope, spool};
use hookrun_config::ConfigText;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::HookKind;
use hookrun_nix::terminal::say;
use hookrun_system::descriptor::close_range;
use hookrun_system::process::fork;

/// The longest that a hook may take, in all.
pub const CAP: Duration = Duration::from_secs(2);
/// Bytes forwarded at once: a pipe that poll(2) reports as writable accepts this many without
/// blocking (`PIPE_BUF`).
const PASSED_ON: usize = 4096;

/// Number of checks for the exit of a process. The first ones have no pause, because an exit takes
/// microseconds on an idle machine.
const REAP_TRIES: u32 = 60;
const REAP_YIELDS: u32 = 50;
const REAP_PAUSE: Duration = Duration::from_micros(100);
/// The first descriptor after the standard streams.
const FIRST_OTHER: u32 = 3;

/// The reason why a hook that still runs is stopped.
const HANGS: &str = "was stopped: a file system did not answer in time (check the file system of the state directory)";

/// Progress of one event, sent by the working process as one byte. The bytes are read when the
/// process has ended or its time is over.
const WRITING: u8 = b'w';
const KEPT: u8 = b'k';
const DONE: u8 = b'd';

/// The working process's end of the pipe to the process that Nix waits for.
#[derive(Debug)]
pub struct Reporter {
    /// None where there is one process only.
    pipe: Option<File>,
    frames: Frames,
}

impl Reporter {
    /// Stores the sealed event. A later call replaces it.
    pub fn event(&mut self, sealed: &[u8]) {
        self.frames.add(FrameKind::Event, sealed);
    }

    /// Stores a configuration that may have a gate.
    pub fn configuration(&mut self, text: &ConfigText) {
        if let Ok(json) = serde_json::to_vec(text) {
            self.frames.add(FrameKind::Configuration, &json);
        }
    }

    /// Reports that the event is about to be written.
    pub fn writing(&mut self) {
        self.tell(WRITING);
    }

    /// Reports that the event is durable.
    pub fn kept(&mut self) {
        self.tell(KEPT);
    }

    fn tell(&mut self, what: u8) {
        if let Some(pipe) = &mut self.pipe {
            // The other process may have exited: it waits for at most two seconds.
            let _told = pipe.write_all(&[what]);
        }
    }
}

/// Runs `work` in another process, and returns within [`CAP`] if that process can be created. An
/// event that is not written after `patience` is also written to fallback directories. Must be
/// called before this process has a second thread.
pub fn run(hook: HookKind, patience: Duration, work: impl FnOnce(&mut Reporter)) -> HookResult {
    let begun = Instant::now();
    match split() {
        Ok(Side::Works(mut reporter)) => {
            safely(hook, || {
                work(&mut reporter);
                reporter.tell(DONE);
            });
            leave();
        }
        Ok(Side::Waits(watch)) => watch.run(hook, begun, patience),
        // No process can be created: the work is done here, without a time limit.
        Err(_) => match Frames::new() {
            Ok(frames) => {
                let mut reporter = Reporter { pipe: None, frames };
                let is_complete = safely(hook, || work(&mut reporter));
                HookResult { frames: Some(reporter.frames), in_time: true, is_complete }
            }
            Err(error) => {
                say(&format!(
                    "{} cannot create its shared memory ({error}), so its event is lost; {}",
                    hook.setting(),
                    recovery(hook)
                ));
                HookResult::nothing()
            }
        },
    }
}

/// Runs `work` in another process, and returns whether it ended within `patience`. A process that
/// hangs in a file system is abandoned; it has none of this process's descriptors. Must be called
/// before this process has a second thread.
///
/// # Errors
/// No process can be created.
pub fn ends_within(patience: Duration, work: impl FnOnce()) -> io::Result<bool> {
    let end = Instant::now() + patience;
    let (read, held) = pipe()?;
    let nowhere: OwnedFd = File::options().read(true).write(true).open("/dev/null")?.into();
    let Some(process) = fork()? else {
        if detach([held.as_fd()], &nowhere, &nowhere).is_ok() {
            // The caller reports the failure.
            let _panicked = std::panic::catch_unwind(AssertUnwindSafe(work));
        }
        leave()
    };
    drop(held);
    // Nothing is written: the end of the pipe is waited for.
    let ended = wait(&mut [PollFd::new(&read, PollFlags::IN)], end) > 0;
    if ended {
        reap(process);
    }
    Ok(ended)
}

/// Does `work`, and writes one line if it panics. Returns whether it did not.
fn safely(hook: HookKind, work: impl FnOnce()) -> bool {
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        say(&format!(
            "{} failed with an internal error ({place}); the build is not affected; please report this",
            hook.setting()
        ));
    }));
    std::panic::catch_unwind(AssertUnwindSafe(work)).is_ok()
}

/// Ends a process that was forked.
fn leave() -> ! {
    // The reader may have closed its end.
    let _shown = io::stdout().flush();
    // Exit handlers belong to the parent process, so they are skipped.
    hookrun_system::process::end_now(0)
}

/// Which of the two processes this is.
enum Side {
    Works(Reporter),
    Waits(Monitor),
}

/// Creates a close-on-exec pipe, and returns its reading and its writing end.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = io::pipe()?;
    Ok((read.into(), write.into()))
}

fn split() -> io::Result<Side> {
    let frames = Frames::new()?;
    let (control, tell) = pipe()?;
    let (output, write_output) = pipe()?;
    let (errors, write_errors) = pipe()?;
    if let Some(process) = fork()? {
        return Ok(Side::Waits(Monitor {
            process,
            control,
            streams: [
                Stream { from: Some(output), to: rustix::stdio::stdout() },
                Stream { from: Some(errors), to: rustix::stdio::stderr() },
            ],
            frames,
            said: Vec::new(),
        }));
    }
    detach([tell.as_fd(), frames.0.as_fd()], &write_output, &write_errors)?;
    forget([control, output, write_output, errors, write_errors]);
    Ok(Side::Works(Reporter { pipe: Some(File::from(tell)), frames }))
}

/// Starts a new session and closes all descriptors except for `kept`. Nix kills the session of its
/// hook when the client disconnects.
fn detach<const N: usize>(
    kept: [BorrowedFd<'_>; N],
    output: &OwnedFd,
    errors: &OwnedFd,
) -> io::Result<()> {
    // A forked process is not a group leader, so `setsid` succeeds.
    let _session = rustix::process::setsid();
    rustix::stdio::dup2_stdout(output)?;
    rustix::stdio::dup2_stderr(errors)?;
    // This descriptor is dropped before `close_range` could close it.
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    let mut kept = kept.map(|kept| u32::try_from(kept.as_raw_fd()).unwrap_or(u32::MAX));
    kept.sort_unstable();
    let mut first = FIRST_OTHER;
    for kept in kept {
        // If the kernel does not support this, Nix's descriptors stay open in this process.
        close_range(first, kept.saturating_sub(1));
        first = kept.saturating_add(1);
    }
    close_range(first, u32::MAX);
    Ok(())
}

/// Prevents a second close of descriptors that [`detach`] has closed.
fn forget(closed: impl IntoIterator<Item = OwnedFd>) {
    closed.into_iter().for_each(std::mem::forget);
}

/// An output stream of the working process, and the stream that it is forwarded to.
struct Stream {
    from: Option<OwnedFd>,
    to: BorrowedFd<'static>,
}

/// State of the process that Nix waits for.
struct Monitor {
    /// The one that works.
    process: Pid,
    control: OwnedFd,
    streams: [Stream; 2],
    frames: Frames,
    /// Bytes read from the control pipe.
    said: Vec<u8>,
}

impl Monitor {
    fn run(mut self, hook: HookKind, begun: Instant, patience: Duration) -> HookResult {
        let cap = begun + CAP;
        let mut works = self.listen((begun + patience).min(cap));
        if works && (self.has_said(KEPT) || self.frames.last(FrameKind::Event).is_none()) {
            // The event is durable or not known yet, so the process may use the remaining time.
            works = self.listen(cap);
        }
        let why = if works { HANGS } else { "ended early (it crashed or ran out of memory)" };
        if !self.has_said(KEPT) && (works || !self.has_said(DONE)) {
            let rescued = self.rescue(cap);
            let line = last_words(hook, why, rescued.as_deref());
            let [_, errors] = &self.streams;
            pass_on(errors.to, line.as_bytes(), cap);
        }
        if !works {
            reap(self.process);
        }
        let is_complete = self.has_said(DONE);
        HookResult { frames: Some(self.frames), in_time: !works, is_complete }
    }

    fn has_said(&self, what: u8) -> bool {
        self.said.contains(&what)
    }

    /// Forwards the output of the working process until it has ended, or until `end`. Returns
    /// whether it still runs.
    fn listen(&mut self, end: Instant) -> bool {
        let works = loop {
            let printed = self.streams.iter().filter_map(|stream| stream.from.as_ref());
            // Wait only for the end of the control pipe, not for its bytes.
            let mut ready: Vec<PollFd<'_>> =
                std::iter::once(PollFd::new(&self.control, PollFlags::empty()))
                    .chain(printed.map(|from| PollFd::new(from, PollFlags::IN)))
                    .collect();
            if wait(&mut ready, end) == 0 {
                break true;
            }
            let ended = ready.first().is_some_and(|control| !control.revents().is_empty());
            self.pass_on(end);
            if ended {
                break false;
            }
        };
        let mut buffer = [0; PASSED_ON];
        while let Some(size) = take(&self.control, &mut buffer).filter(|size| *size > 0) {
            self.said.extend(buffer.get(..size).unwrap_or_default());
        }
        works
    }

    /// Forwards the available output of the working process.
    fn pass_on(&mut self, end: Instant) {
        let mut buffer = [0; PASSED_ON];
        for stream in &mut self.streams {
            while let Some(size) = stream.from.as_ref().and_then(|from| take(from, &mut buffer)) {
                if size == 0 {
                    stream.from = None;
                }
                pass_on(stream.to, buffer.get(..size).unwrap_or_default(), end);
            }
        }
    }

    /// Has the event written by processes of their own; returns the first file that is durable.
    fn rescue(&self, end: Instant) -> Option<PathBuf> {
        let sealed = self.frames.last(FrameKind::Event)?;
        let (read, tell) = pipe().ok()?;
        // If the write to the spool has begun, the spool does not answer: skip it.
        let skipped = usize::from(self.has_said(WRITING));
        for number in skipped..=spool::MOST_PLACES {
            match fork() {
                Ok(Some(_)) => {}
                Ok(None) => rescuer(&tell, &sealed, number),
                Err(_) => break,
            }
        }
        drop(tell);
        let mut ready = [PollFd::new(&read, PollFlags::IN)];
        let mut path = [0; PASSED_ON];
        // Each process writes its path in one write, or writes nothing.
        let size = (wait(&mut ready, end) > 0).then(|| take(&read, &mut path)).flatten()?;
        let path = path.get(..size).filter(|path| !path.is_empty())?;
        let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(PathBuf::from(std::ffi::OsStr::from_bytes(path)))
    }
}

/// Reaps a process that has closed its pipe and is about to end. If it does not end soon enough,
/// init reaps it.
fn reap(process: Pid) {
    for attempt in 0..REAP_TRIES {
        let waited = rustix::process::waitpid(Some(process), WaitOptions::NOHANG);
        if !matches!(waited, Ok(None)) {
            return;
        }
        if attempt < REAP_YIELDS {
            std::thread::yield_now();
        } else {
            std::thread::sleep(REAP_PAUSE);
        }
    }
}

/// A process that writes the event into one of the places, and ends.
fn rescuer(tell: &OwnedFd, sealed: &[u8], number: usize) -> ! {
    let write = || -> Option<()> {
        let nowhere = File::options().read(true).write(true).open("/dev/null").ok()?.into();
        let detached = detach([tell.as_fd()], &nowhere, &nowhere);
        forget([nowhere]);
        detached.ok()?;
        let event = envelope::open(sealed).ok()?;
        let dirs = Dirs::from_env();
        let written = match number.checked_sub(1) {
            None => spool::put_in_spool(&dirs, &event.id, sealed).ok()?,
            Some(place) => {
                spool::put_in(spool::places(&dirs).get(place)?, &event.id, sealed).ok()?
            }
        };
        let mut path = written.as_os_str().as_bytes().to_vec();
        path.push(0);
        let _told = rustix::io::write(tell, &path);
        Some(())
    };
    let _panicked = std::panic::catch_unwind(AssertUnwindSafe(write));
    leave()
}

/// Returns what makes up for a lost event.
pub(crate) fn recovery(hook: HookKind) -> &'static str {
    match hook {
        HookKind::Diff => "repeat the check of the build, such as `nix-build --check`",
        HookKind::PostBuild | HookKind::BuilderSelection => {
            "run `hookrun sync` to queue what was built"
        }
    }
}

/// Formats the message about a hook whose work did not end.
fn last_words(hook: HookKind, why: &str, rescued: Option<&std::path::Path>) -> String {
    let what = match rescued {
        Some(path) => format!("its event is kept in {}", path.display()),
        None => format!("its event may be lost; {}", recovery(hook)),
    };
    format!("hookrun: {} {why}; {what}\n", hook.setting())
}

/// Waits until one of them is ready, or until `end`; returns how many are.
fn wait(ready: &mut [PollFd<'_>], end: Instant) -> usize {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let time = Timespec::try_from(left).unwrap_or_default();
        match poll(ready, Some(&time)) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.unwrap_or(0),
        }
    }
}

/// Reads the available bytes; `None` if there are none yet, 0 at the end.
fn take(from: &OwnedFd, buffer: &mut [u8]) -> Option<usize> {
    let mut ready = [PollFd::new(from, PollFlags::IN)];
    match poll(&mut ready, Some(&Timespec::default())) {
        // The end of the pipe is reported as ready, too.
        Ok(1) => Some(rustix::io::read(from, buffer).unwrap_or(0)),
        _ => None,
    }
}

/// Writes to one of Nix's pipes, as long as that does not block beyond `end`.
fn pass_on(to: BorrowedFd<'_>, mut bytes: &[u8], end: Instant) {
    while !bytes.is_empty() {
        if wait(&mut [PollFd::new(&to, PollFlags::OUT)], end) == 0 {
            return;
        }
        let part = bytes.get(..bytes.len().min(PASSED_ON)).unwrap_or_default();
        match rustix::io::write(to, part) {
            Ok(size) => bytes = bytes.get(size..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            // The reader has closed its end.
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_that_is_stopped_says_where_its_event_is() {
        insta::assert_snapshot!(last_words(HookKind::PostBuild, HANGS, None));
        let path = std::path::Path::new("/var/lib/hookrun-fallback/1");
        insta::assert_snapshot!(last_words(HookKind::Diff, HANGS, Some(path)));
    }

    #[test]
    fn a_panic_ends_the_work_and_nothing_else() {
        safely(HookKind::PostBuild, || panic!("inside"));
        // For the other tests of this process.
        drop(std::panic::take_hook());
    }
}
