//! Shared memory between the working process of a hook and the process that Nix waits for. It
//! contains the event, and the configuration if that may have a gate.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use hookrun_config::ConfigText;
use hookrun_nix::role::GATE;

/// A list of frames in shared memory. The last frame of each kind is valid. A frame consists of its
/// kind (one byte), the length of its content (64 bits, little-endian) and its content.
#[derive(Debug)]
pub(super) struct Frames(pub(super) File);

/// The content of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrameKind {
    /// An event, sealed.
    Event = 1,
    /// A configuration that may have a gate, as JSON.
    Configuration = 2,
}

/// Bytes before the content of a frame.
const HEADER: usize = 9;

impl Frames {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(hookrun_system::memory::file("hookrun-event")?))
    }

    pub(super) fn add(&mut self, kind: FrameKind, content: &[u8]) {
        let mut frame = vec![kind as u8];
        frame.extend((content.len() as u64).to_le_bytes());
        frame.extend(content);
        // If memory is short, no fallback copy is written, and gates read the configuration file.
        let _added = self.0.write_all(&frame);
    }

    pub(super) fn last(&self, wanted: FrameKind) -> Option<Vec<u8>> {
        let (mut last, mut at) = (None, 0);
        let size = self.0.metadata().ok()?.len();
        loop {
            let mut header = [0; HEADER];
            if self.0.read_exact_at(&mut header, at).is_err() {
                return last;
            }
            let [kind, length @ ..] = header;
            let length = u64::from_le_bytes(length);
            at += HEADER as u64;
            // The process ended while it wrote this frame.
            if length > size.saturating_sub(at) {
                return last;
            }
            if kind == wanted as u8 {
                let mut content = vec![0; usize::try_from(length).ok()?];
                if self.0.read_exact_at(&mut content, at).is_err() {
                    return last;
                }
                last = Some(content);
            }
            at += length;
        }
    }
}

/// The result of the work of a hook.
#[derive(Debug)]
pub struct HookResult {
    pub(super) frames: Option<Frames>,
    /// Whether the work ended by itself and in time.
    pub in_time: bool,
    /// Whether all of the work was done, so that a gate would have been found.
    pub(super) is_complete: bool,
}

/// Arguments of `hookrun hook gate`: the work of the hook ended in time, or did not.
const IN_TIME: &str = "in-time";
const LATE: &str = "late";

impl HookResult {
    /// Returns the sealed event, if there is one.
    pub fn event(&self) -> Option<Vec<u8>> {
        self.frames.as_ref()?.last(FrameKind::Event)
    }

    /// Returns the configuration, if it may have a gate.
    pub fn configuration(&self) -> Option<ConfigText> {
        serde_json::from_slice(&self.frames.as_ref()?.last(FrameKind::Configuration)?).ok()
    }

    /// Returns whether a gate may have to run on the event.
    pub fn may_have_gate(&self) -> bool {
        // Usually the work was done and there is no gate: then the event is not read.
        (!self.is_complete || self.configuration().is_some()) && self.event().is_some()
    }

    /// Replaces this process with `program`, which runs the gates. Returns only if that fails.
    pub fn exec_gates(self, program: &Path) -> io::Error {
        let Some(Frames(file)) = &self.frames else { return io::ErrorKind::NotFound.into() };
        if let Err(error) = rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty()) {
            return error.into();
        }
        Command::new(program)
            .args(["hook", GATE])
            .arg(file.as_raw_fd().to_string())
            .arg(if self.in_time { IN_TIME } else { LATE })
            .exec()
    }

    /// Takes over what the program that called [`HookResult::exec_gates`] left, from the arguments
    /// after `hook gate`: the number of a file descriptor, and whether its work ended in time.
    pub fn inherited(arguments: &[OsString]) -> Self {
        let [descriptor, time] = arguments else { return Self::nothing() };
        let number = descriptor.to_str().and_then(|text| text.parse::<u32>().ok());
        let file = number.and_then(|number| File::open(format!("/dev/fd/{number}")).ok());
        Self { frames: file.map(Frames), in_time: time == IN_TIME, is_complete: false }
    }

    /// The end of a hook that had nothing to do.
    pub(crate) fn nothing() -> Self {
        Self { frames: None, in_time: true, is_complete: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_frame_of_a_kind_counts() {
        let mut frames = Frames::new().unwrap();
        assert_eq!(frames.last(FrameKind::Event), None);
        frames.add(FrameKind::Event, b"one");
        frames.add(FrameKind::Event, b"another");
        frames.add(FrameKind::Configuration, b"text");
        assert_eq!(frames.last(FrameKind::Event).as_deref(), Some(b"another".as_slice()));
        assert_eq!(frames.last(FrameKind::Configuration).as_deref(), Some(b"text".as_slice()));
        // The process ended while it wrote this frame.
        frames.0.write_all(&[FrameKind::Event as u8]).unwrap();
        frames.0.write_all(&9_u64.to_le_bytes()).unwrap();
        frames.0.write_all(b"begun").unwrap();
        assert_eq!(frames.last(FrameKind::Event).as_deref(), Some(b"another".as_slice()));
    }

    #[test]
    fn gates_are_looked_for_unless_the_work_found_that_there_are_none() {
        let mut frames = Frames::new().unwrap();
        frames.add(FrameKind::Event, b"one");
        let mut ended = HookResult { frames: Some(frames), in_time: true, is_complete: true };
        assert!(!ended.may_have_gate());
        ended.is_complete = false;
        assert!(ended.may_have_gate(), "it died before it had read the configuration");
        assert!(!HookResult::nothing().may_have_gate(), "there is no event");
        assert!(!HookResult::inherited(&["x".into(), LATE.into()]).may_have_gate());
    }
}
