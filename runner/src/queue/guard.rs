//! The work of a thin hook, in a process that Nix does not wait for.
//!
//! Nix waits until its hook has ended and until everybody has closed the hook's standard output and
//! error. A process that sleeps in the kernel, in a file system that does not answer, cannot end,
//! whatever signal it gets. So the process that Nix started touches no file system: it forks before
//! it has any thread, and reads from pipes what the other one does. The other one has none of Nix's
//! descriptors, and is left behind if it does not end in time.
//!
//! The one that works tells each event as soon as it is known. If it has not written the event by
//! [`RESCUE`], or has died, further processes write it, one for each place where it may be found:
//! one of them mostly is on another file system. The worker takes an event once, however often it
//! finds it.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use super::{envelope, spool};
use crate::dirs::Dirs;
use crate::terminal::say;

/// The longest that a hook may take, in all.
pub const CAP: Duration = Duration::from_secs(2);
/// An event that is not written by then is written elsewhere as well.
pub const RESCUE: Duration = Duration::from_millis(1500);
/// The same, counted from when its writing began.
pub const RESCUE_OF_WRITING: Duration = Duration::from_secs(1);
/// Bytes passed on at once. A pipe that poll(2) calls writable takes so many without blocking
/// (`PIPE_BUF`).
const PASSED_ON: usize = 4096;
/// The largest event that is held for a rescue.
const MAX_EVENT: usize = 64 << 20;

/// Why a hook is given up that is still there.
const HANGS: &str = "had no answer from a file system in time (is the state directory's hanging?)";

/// What the working process says of an event. Frames on a pipe: a byte, and for an event its length
/// and its bytes.
const EVENT: u8 = b'e';
const WRITING: u8 = b'w';
const KEPT: u8 = b'k';
const DONE: u8 = b'd';

/// Tells the process that Nix waits for how far the work is.
#[derive(Debug, Default)]
pub struct Teller {
    /// None where there is one process only.
    pipe: Option<File>,
    event: Option<Vec<u8>>,
}

impl Teller {
    /// An event, as it is known by now, sealed. A later one replaces it.
    pub fn event(&mut self, sealed: &[u8]) {
        match (&self.pipe, u32::try_from(sealed.len())) {
            (Some(_), Ok(length)) => {
                let mut frame = vec![EVENT];
                frame.extend(length.to_le_bytes());
                frame.extend(sealed);
                self.tell(&frame);
            }
            _ => self.event = Some(sealed.to_owned()),
        }
    }

    /// The event is about to be written.
    pub fn writing(&mut self) {
        self.tell(&[WRITING]);
    }

    /// The event is durable.
    pub fn kept(&mut self) {
        self.tell(&[KEPT]);
    }

    fn tell(&mut self, frame: &[u8]) {
        if let Some(pipe) = &mut self.pipe {
            // The other process may have left: it waits for two seconds only.
            let _told = pipe.write_all(frame);
        }
    }
}

/// How the work of a hook ended.
#[derive(Debug, Default)]
pub struct Ended {
    /// The event, sealed; none if there was none.
    pub event: Option<Vec<u8>>,
    /// Did the work end by itself, in time?
    pub in_time: bool,
}

/// Has `work` done by another process, and returns within [`CAP`]. Must be called before this
/// process has another thread.
pub fn run(hook: &'static str, work: impl FnOnce(&mut Teller)) -> Ended {
    let begun = Instant::now();
    match split() {
        Ok(Side::Works(pipe)) => {
            safely(hook, || {
                let mut teller = Teller { pipe: Some(pipe), event: None };
                work(&mut teller);
                teller.tell(&[DONE]);
            });
            leave();
        }
        Ok(Side::Waits(watch)) => watch.run(hook, begun),
        // No process is to be had: the work is done here, without a bound on its time.
        Err(_) => {
            let mut teller = Teller::default();
            safely(hook, || work(&mut teller));
            Ended { event: teller.event, in_time: true }
        }
    }
}

/// A panic becomes a line.
fn safely(hook: &'static str, work: impl FnOnce()) {
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        say(&format!(
            "{hook} failed inside ({place}); the build is not affected; please report this"
        ));
    }));
    // What it was doing is told by the panic hook.
    let _panicked = std::panic::catch_unwind(AssertUnwindSafe(work));
}

/// Ends a process that was forked.
fn leave() -> ! {
    // Nobody may be listening.
    let _shown = io::stdout().flush();
    // SAFETY: `_exit` takes no pointer and does not return. What would run at an ordinary exit
    // belongs to the process that was forked from.
    unsafe { libc::_exit(0) }
}

/// Which of the two processes this is.
enum Side {
    Works(File),
    Waits(Watch),
}

fn split() -> io::Result<Side> {
    let (control, tell) = pipe_with(PipeFlags::CLOEXEC)?;
    let (output, write_output) = pipe_with(PipeFlags::CLOEXEC)?;
    let (errors, write_errors) = pipe_with(PipeFlags::CLOEXEC)?;
    if fork()? {
        return Ok(Side::Waits(Watch {
            control: Some(control),
            streams: [
                Stream { from: Some(output), to: rustix::stdio::stdout() },
                Stream { from: Some(errors), to: rustix::stdio::stderr() },
            ],
            ..Watch::default()
        }));
    }
    detach(&tell, &write_output, &write_errors)?;
    forget([control, output, write_output, errors, write_errors]);
    Ok(Side::Works(File::from(tell)))
}

/// Forks; true in the process that was there before.
fn fork() -> io::Result<bool> {
    // SAFETY: hooks have one thread, so that the new process has all threads that the old one had,
    // and no lock is held by one that is missing.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(false),
        _ => Ok(true),
    }
}

/// Leaves the session of Nix's hook, which is killed as a whole when the client goes, and its
/// descriptors, and keeps these.
fn detach(tell: &OwnedFd, output: &OwnedFd, errors: &OwnedFd) -> io::Result<()> {
    // A new process leads no group, so it may.
    let _session = rustix::process::setsid();
    rustix::stdio::dup2_stdout(output)?;
    rustix::stdio::dup2_stderr(errors)?;
    // Dropped here, before all are closed.
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    let kept = u32::try_from(tell.as_raw_fd()).unwrap_or(u32::MAX);
    close_all(3, kept.saturating_sub(1));
    close_all(kept.saturating_add(1), u32::MAX);
    Ok(())
}

/// For descriptors that [`detach`] has closed.
fn forget(closed: impl IntoIterator<Item = OwnedFd>) {
    closed.into_iter().for_each(std::mem::forget);
}

fn close_all(first: u32, last: u32) {
    if first <= last {
        // SAFETY: a system call on numbers. The caller forgets what it had open there.
        // A kernel before 5.9 has no such call; then Nix's descriptors stay open here, as they
        // would without a second process.
        let _closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// What the working process prints, and where it goes.
struct Stream {
    from: Option<OwnedFd>,
    to: BorrowedFd<'static>,
}

/// The process that waits.
struct Watch {
    control: Option<OwnedFd>,
    streams: [Stream; 2],
    /// Of the control pipe, not understood yet.
    unread: Vec<u8>,
    event: Option<Vec<u8>>,
    /// Since when it is being written.
    writing: Option<Instant>,
    kept: bool,
    done: bool,
}

impl Default for Watch {
    fn default() -> Self {
        let stream = || Stream { from: None, to: rustix::stdio::stderr() };
        Self {
            control: None,
            streams: [stream(), stream()],
            unread: Vec::new(),
            event: None,
            writing: None,
            kept: false,
            done: false,
        }
    }
}

impl Watch {
    fn run(mut self, hook: &str, begun: Instant) -> Ended {
        let cap = begun + CAP;
        let open = self.listen(|watch: &Self| {
            let since = watch.writing.filter(|_| !watch.kept);
            since.map_or(begun + RESCUE, |since| (begun + RESCUE).min(since + RESCUE_OF_WRITING))
        });
        let why = if !open && !self.done && !self.kept {
            "ended early, by a crash or a lack of memory"
        } else if open && !self.kept && self.event.is_some() {
            HANGS
        } else {
            // What is left of the time is its own: the event is kept, or is not known yet.
            let open = open && self.listen(|_| cap);
            if open && !self.kept {
                self.give_up(hook, HANGS, cap);
            }
            return Ended { event: self.event, in_time: !open };
        };
        self.give_up(hook, why, cap);
        Ended { event: self.event, in_time: false }
    }

    /// Writes the event by other means, and says what became of it.
    fn give_up(&mut self, hook: &str, why: &str, end: Instant) {
        let rescued = self.rescue(end);
        let line = last_words(hook, why, rescued.as_deref());
        let [_, errors] = &self.streams;
        pass_on(errors.to, line.as_bytes(), end);
    }

    /// Passes on what the working process says until it has ended, or until the time that `end`
    /// gives. Is it still there?
    fn listen(&mut self, end: impl Fn(&Self) -> Instant) -> bool {
        let mut buffer = [0; PASSED_ON];
        loop {
            let end = end(self);
            let open: Vec<&OwnedFd> = self
                .control
                .iter()
                .chain(self.streams.iter().filter_map(|stream| stream.from.as_ref()))
                .collect();
            if open.is_empty() {
                return false;
            }
            let mut ready: Vec<PollFd<'_>> =
                open.into_iter().map(|from| PollFd::new(from, PollFlags::IN)).collect();
            if wait(&mut ready, end) == 0 {
                return true;
            }
            self.hear(&mut buffer);
            for stream in &mut self.streams {
                let read = stream.from.as_ref().and_then(|from| take(from, &mut buffer));
                match read {
                    Some(0) => stream.from = None,
                    Some(size) => pass_on(stream.to, buffer.get(..size).unwrap_or_default(), end),
                    None => {}
                }
            }
        }
    }

    /// Reads what there is on the control pipe.
    fn hear(&mut self, buffer: &mut [u8]) {
        match self.control.as_ref().and_then(|control| take(control, buffer)) {
            Some(0) => self.control = None,
            Some(size) => {
                self.unread.extend(buffer.get(..size).unwrap_or_default());
                self.understand();
            }
            None => {}
        }
    }

    fn understand(&mut self) {
        loop {
            let used = match self.unread.as_slice() {
                [WRITING, ..] => {
                    self.writing = Some(Instant::now());
                    1
                }
                [KEPT, ..] => {
                    self.kept = true;
                    1
                }
                [DONE, ..] => {
                    self.done = true;
                    1
                }
                [EVENT, a, b, c, d, rest @ ..] => {
                    let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
                    if length > MAX_EVENT || rest.len() < length {
                        return;
                    }
                    self.event = rest.get(..length).map(<[u8]>::to_vec);
                    5 + length
                }
                _ => return,
            };
            self.unread.drain(..used);
        }
    }

    /// Has the event written by processes of their own; returns the first file that is durable.
    fn rescue(&mut self, end: Instant) -> Option<PathBuf> {
        let sealed = self.event.as_deref()?;
        let (read, tell) = pipe_with(PipeFlags::CLOEXEC).ok()?;
        // A spool that was being written to does not answer; another one may.
        let skipped = usize::from(self.writing.is_some());
        for number in skipped..=spool::MOST_PLACES {
            match fork() {
                Ok(true) => {}
                Ok(false) => rescuer(&tell, sealed, number),
                Err(_) => break,
            }
        }
        drop(tell);
        let mut ready = [PollFd::new(&read, PollFlags::IN)];
        let mut path = [0; PASSED_ON];
        // Each tells its path in one write, or nothing.
        let size = (wait(&mut ready, end) > 0).then(|| take(&read, &mut path)).flatten()?;
        let path = path.get(..size).filter(|path| !path.is_empty())?;
        let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(PathBuf::from(std::ffi::OsStr::from_bytes(path)))
    }
}

/// A process that writes the event into one of the places, and ends.
fn rescuer(tell: &OwnedFd, sealed: &[u8], number: usize) -> ! {
    let write = || -> Option<()> {
        let nowhere = File::options().read(true).write(true).open("/dev/null").ok()?.into();
        let detached = detach(tell, &nowhere, &nowhere);
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

/// What the user is told of a hook whose work did not end.
fn last_words(hook: &str, why: &str, rescued: Option<&std::path::Path>) -> String {
    let what = match rescued {
        Some(path) => format!("its event is kept in {}", path.display()),
        None => "its event may be lost; `hookrun sync` finds what was built".to_owned(),
    };
    format!("hookrun: {hook} was given up: it {why}; {what}\n")
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

/// Reads what there is; none: nothing yet.
fn take(from: &OwnedFd, buffer: &mut [u8]) -> Option<usize> {
    let mut ready = [PollFd::new(from, PollFlags::IN)];
    match poll(&mut ready, Some(&Timespec::default())) {
        // The end counts as ready too.
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
            // Nobody is listening.
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_understood_however_they_are_cut() {
        let mut frames = vec![EVENT, 3, 0, 0, 0];
        frames.extend(b"one");
        frames.extend([WRITING, EVENT, 2, 0, 0, 0]);
        frames.extend(b"it");
        frames.extend([KEPT, DONE]);
        for cut in 0..frames.len() {
            let mut watch = Watch::default();
            let (first, second) = frames.split_at(cut);
            for part in [first, second] {
                watch.unread.extend(part);
                watch.understand();
            }
            assert_eq!(watch.event.as_deref(), Some(b"it".as_slice()), "cut at {cut}");
            assert!(watch.writing.is_some() && watch.kept && watch.done && watch.unread.is_empty());
        }
    }

    #[test]
    fn a_hook_that_is_given_up_says_where_its_event_is() {
        insta::assert_snapshot!(last_words("post-build-hook", HANGS, None));
        let path = std::path::Path::new("/var/lib/hookrun-fallback/1");
        insta::assert_snapshot!(last_words("diff-hook", HANGS, Some(path)));
    }

    #[test]
    fn a_panic_ends_the_work_and_nothing_else() {
        safely("post-build-hook", || panic!("inside"));
        // For the other tests of this process.
        drop(std::panic::take_hook());
    }
}
