//! Runs a program of Nix with limits on its time and output. Commands that examine Nix or machines
//! use it, and the build hook if it needs the version of Nix.

use std::io::{self, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use hookrun_system::process::describe_start;

/// The maximum number of bytes that are kept of each output stream; `nix show-config --json` has
/// 100 KiB.
const MAX_OUTPUT: u64 = 4 << 20;
/// The interval at which the program is checked.
const TICK: Duration = Duration::from_millis(10);

/// The output of a program, and how it ended.
#[derive(Debug)]
pub struct ProgramOutput {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The exit status.
    pub status: ExitStatus,
    /// The duration.
    pub took: Duration,
}

/// Runs `command` in its own process group, which is killed after `limit`.
///
/// # Errors
/// The program cannot be started (the error names it), or (`TimedOut`) it did not end in time.
pub fn run(command: &mut Command, limit: Duration) -> io::Result<ProgramOutput> {
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| {
            let why = describe_start(command, &error);
            io::Error::new(error.kind(), format!("cannot be started: {why}"))
        })?;
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begun.elapsed() >= limit {
            let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
            if let Some(group) = group {
                // This also ends ssh and its children.
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            child.wait()?;
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {limit:?}"),
            ));
        }
        std::thread::sleep(TICK);
    };
    let took = begun.elapsed();
    // A remaining process may keep a pipe open, so only the output so far is used.
    let text = |stream: Option<std::sync::mpsc::Receiver<String>>| {
        stream
            .and_then(|stream| stream.recv_timeout(Duration::from_secs(1)).ok())
            .unwrap_or_default()
    };
    Ok(ProgramOutput { stdout: text(stdout), stderr: text(stderr), status, took })
}

fn collect(mut stream: impl Read + Send + 'static) -> std::sync::mpsc::Receiver<String> {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.by_ref().take(MAX_OUTPUT).read_to_end(&mut bytes);
        let _ = send.send(String::from_utf8_lossy(&bytes).into_owned());
        // Further output is read and dropped, so that the program does not block on a full pipe.
        let _ = io::copy(&mut stream, &mut io::sink());
    });
    receive
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_exit_code_and_time_limit_are_reported() {
        let said =
            run(&mut shell("echo out; echo err >&2; exit 3"), Duration::from_mins(1)).unwrap();
        assert_eq!(
            (said.stdout.as_str(), said.stderr.as_str(), said.status.code()),
            ("out\n", "err\n", Some(3))
        );
        let error = run(&mut shell("sleep 1000 & wait"), Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_program_that_cannot_be_started_is_named() {
        let missing = run(&mut Command::new("/no/such"), Duration::from_mins(1)).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "cannot be started: /no/such (No such file or directory (os error 2))"
        );
        let said = run(&mut shell("head -c 6000000 /dev/zero"), Duration::from_mins(1)).unwrap();
        assert_eq!(said.stdout.len(), 4 << 20);
    }
}
