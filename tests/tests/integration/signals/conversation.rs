//! A build hook, its Nix, and the conversation between them.

use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};

use hookrun_builders::slots::sessions::{self, SessionState};
use hookrun_builders::slots::slot_files::{Slot, SlotFiles, SlotResult};
use hookrun_tests::lab::{Ran, build_hook, hookrun_program, wait_until};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::Interruption;
use super::stage::{MACHINE, Stage};

/// A hook and its Nix in their own directory.
pub(super) struct Conversation {
    pub(super) directory: tempfile::TempDir,
    pub(super) nix: Child,
    pub(super) hook: Pid,
    /// `None` after Nix has closed it.
    input: Option<ChildStdin>,
    pub(super) replies: Option<ChildStderr>,
    pub(super) heard: String,
    pub(super) slot: Option<Slot>,
}

impl Conversation {
    /// Starts a conversation and continues it up to this stage.
    pub(super) fn reach(stage: &Stage) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let hook = build_hook(directory.path(), stage.stock_hook);
        std::fs::write(directory.path().join("hookrun.toml"), stage.file.to_string()).unwrap();
        let variables: Vec<_> =
            hook.get_envs().filter_map(|(name, value)| Some((name, value?))).collect();
        if stage.has_policy {
            let mut compile = Command::new(hookrun_program());
            Ran::of(compile.arg("compile").env_clear().envs(variables.iter().copied()))
                .expect_success();
        }
        let slot = stage.occupied.then(|| slot_of(&directory));
        let mut nix = Command::new("/bin/sh");
        nix.args(["-c", "setpriv --pdeathsig KILL \"$@\"; exit $?", "nix"])
            .arg(hook.get_program())
            .args(hook.get_args());
        nix.env_clear()
            .envs(variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut nix = nix.process_group(0).spawn().unwrap();
        let (mut input, replies) = (nix.stdin.take().unwrap(), nix.stderr.take().unwrap());
        // `listen` must not block.
        rustix::fs::fcntl_setfl(&replies, rustix::fs::OFlags::NONBLOCK).unwrap();
        let shell = Pid::from_child(&nix);
        let hook = wait_until("the hook runs", || {
            children(shell).into_iter().find(|pid| handles_signals(*pid))
        });
        input.write_all(&stage.sent.bytes()).unwrap();
        let mut conversation = Self {
            directory,
            nix,
            hook,
            input: Some(input),
            replies: Some(replies),
            heard: String::new(),
            slot,
        };
        wait_until(stage.name, || {
            conversation.listen();
            (conversation.directives() == stage.said && (stage.reached)(&conversation))
                .then_some(())
        });
        conversation
    }

    pub(super) fn interrupt(&mut self, interruption: Interruption) {
        match interruption {
            Interruption::Asked => kill_process(self.hook, Signal::TERM).unwrap(),
            Interruption::Killed => kill_process(self.hook, Signal::KILL).unwrap(),
            Interruption::NixKilled => self.nix.kill().unwrap(),
            Interruption::NixGone => {
                self.listen();
                (self.input, self.replies) = (None, None);
            }
        }
        wait_until("the hook ends", || is_gone(self.hook).then_some(()));
    }

    /// Reads the replies so far.
    pub(super) fn listen(&mut self) {
        let mut bytes = Vec::new();
        if let Some(replies) = &mut self.replies {
            // Ends with `WouldBlock` or with the end of the stream.
            let _all = replies.read_to_end(&mut bytes);
        }
        self.heard.push_str(&String::from_utf8_lossy(&bytes));
    }

    pub(super) fn directives(&self) -> Vec<&str> {
        // The last line may be incomplete.
        let whole = self.heard.rfind('\n').map_or("", |end| &self.heard[..end]);
        whole.lines().filter(|line| line.starts_with("# ")).collect()
    }

    /// Returns the process that wrote its id into this file.
    pub(super) fn process(&self, file: &str) -> Option<Pid> {
        let text = std::fs::read_to_string(self.directory.path().join(file)).ok()?;
        Pid::from_raw(text.strip_suffix('\n')?.parse().ok()?)
    }

    pub(super) fn sessions(&self) -> Vec<SessionState> {
        sessions::live(&sessions::directory(&self.builders()))
    }

    pub(super) fn builders(&self) -> PathBuf {
        self.directory.path().join("state/builders")
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        // Nix kills the processes of a killed hook like this.
        let _ = kill_process_group(Pid::from_child(&self.nix), Signal::KILL);
        let _ = self.nix.wait();
    }
}

/// Takes the only slot of the machine.
#[track_caller]
pub(super) fn slot_of(directory: &tempfile::TempDir) -> Slot {
    let files = SlotFiles::below(&directory.path().join("nix-state"));
    // A program that another thread of this process starts has our files open for a moment.
    wait_until("the slot is free", || match files.take(MACHINE, 1) {
        SlotResult::Slot(slot) => Some(slot),
        SlotResult::Full | SlotResult::Unknown => None,
    })
}

pub(super) fn children(pid: Pid) -> Vec<Pid> {
    let pid = pid.as_raw_nonzero();
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts =
        threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let texts: Vec<String> = texts.collect();
    texts
        .iter()
        .flat_map(|text| text.split_whitespace())
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .collect()
}

/// SIGTERM, 15, in the masks of `/proc/PID/status`.
const TERM: u64 = 1 << (15 - 1);

/// Returns whether this is the hook and it has installed its signal handlers.
fn handles_signals(pid: Pid) -> bool {
    let program = std::fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()));
    if program.ok().and_then(|program| Some(program.file_name()? != "hookrun")) != Some(false) {
        return false;
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()))
        .unwrap_or_default();
    let blocked = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("SigBlk:")?.trim(), 16).ok());
    blocked.is_some_and(|blocked| blocked & TERM != 0)
}

/// Returns whether the process has no threads any more. It may be a zombie.
pub(super) fn is_gone(pid: Pid) -> bool {
    let process = format!("/proc/{}", pid.as_raw_nonzero());
    let stat = std::fs::read_to_string(format!("{process}/stat"));
    let ended = |text: String| {
        text.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with(['Z', 'X']))
    };
    stat.map_or(true, ended)
        && std::fs::read_dir(format!("{process}/task")).map_or(0, Iterator::count) <= 1
}
