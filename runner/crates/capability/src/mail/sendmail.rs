//! Mail through a program with the interface of `sendmail`, which every mail server for Unix
//! provides. It queues the message, so an accepted message counts as sent.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::error::quoted;
use crate::{CapabilityError, ErrorKind};

/// The path that the Filesystem Hierarchy Standard 3.0 (section 4.10) defines.
pub(super) const DEFAULT_PROGRAM: &str = "/usr/sbin/sendmail";
/// Time limit of the program. It only has to queue the message; a program that takes longer hangs.
const TIMEOUT: Duration = Duration::from_secs(30);
/// sysexits.h: "temporary failure; user is invited to retry".
const EX_TEMPFAIL: i32 = 75;
/// sysexits.h: "system error", such as a failed fork.
const EX_OSERR: i32 = 71;

/// sysexits.h: "input/output error".
const EX_IOERR: i32 = 74;
/// sysexits.h: "service unavailable"; clients return it if they cannot log in.
const EX_UNAVAILABLE: i32 = 69;
/// sysexits.h: "permission denied".
const EX_NOPERM: i32 = 77;
/// sysexits.h: "configuration error".
const EX_CONFIG: i32 = 78;
/// The exit code of a shell script whose own program cannot be started.
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// A message for one recipient, for a program with the interface of `sendmail`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ProgramMail {
    pub plugin: String,
    /// The transport's name in the configuration.
    pub transport: String,
    pub from: String,
    pub to: String,
    /// The message with LF line ends.
    pub text: String,
}

#[derive(Debug, Clone)]
pub(super) struct Sendmail {
    pub(super) name: String,
    pub(super) program: PathBuf,
}

impl Sendmail {
    pub(super) async fn send(&self, mail: &ProgramMail) -> Result<(), CapabilityError> {
        match tokio::time::timeout(TIMEOUT, self.run(mail)).await {
            Ok(result) => result,
            Err(_) => Err(self.error(
                ErrorKind::Transient,
                &format!("did not end within {}", humantime::format_duration(TIMEOUT)),
                "check its log",
            )),
        }
    }

    fn error(&self, kind: ErrorKind, what: &str, fix: &str) -> CapabilityError {
        CapabilityError::new(
            kind,
            format!("mail transport `{}`: {} {what}; {fix}", self.name, self.program.display()),
        )
    }

    async fn run(&self, mail: &ProgramMail) -> Result<(), CapabilityError> {
        let fix_program = format!("write the right `program` under [mail.{}]", self.name);
        // -i: a line with a single dot does not end the message. The recipient comes from the
        // envelope, never from the headers (`-t`), so that what is sent is what was checked.
        let mut child = Command::new(&self.program)
            .args(["-i", "-f"])
            .arg(&mail.from)
            .arg("--")
            .arg(&mail.to)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                self.error(
                    ErrorKind::Refused,
                    &format!("cannot be started ({error})"),
                    &fix_program,
                )
            })?;
        let stdin = child.stdin.take();
        let write = async move {
            if let Some(mut stdin) = stdin {
                // A program that stops reading gives the reason by its exit code.
                let _ = stdin.write_all(mail.text.as_bytes()).await;
                let _ = stdin.shutdown().await;
            }
        };
        let ((), output) = tokio::join!(write, child.wait_with_output());
        let output = output.map_err(|error| {
            self.error(ErrorKind::Transient, &format!("was lost ({error})"), "check its log")
        })?;
        if output.status.success() {
            return Ok(());
        }
        let said = quoted(&String::from_utf8_lossy(&output.stderr));
        let kind = match output.status.code() {
            // A process without an exit code was killed by a signal.
            None | Some(EX_TEMPFAIL | EX_OSERR | EX_IOERR) => ErrorKind::Transient,
            Some(EX_UNAVAILABLE | EX_NOPERM | EX_CONFIG | NOT_FOUND | NOT_EXECUTABLE) => {
                ErrorKind::Refused
            }
            Some(_) => ErrorKind::Permanent,
        };
        let fix =
            format!("check its configuration, and `from` and `to` under [mail.{}]", self.name);
        Err(self.error(kind, &format!("refused the message ({}: {said})", output.status), &fix))
    }
}
