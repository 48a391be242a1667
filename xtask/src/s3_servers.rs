//! `cargo xtask s3-servers`: runs the tests of object stores against other S3 servers, each behind
//! the recording proxy of the tests.
//!
//! moto comes from PyPI, into a virtual environment in the target directory. Another server that
//! runs already is named with `--server`.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::process::{self, CommandExt as _, cargo};

/// moto starts within this time.
const START: Duration = Duration::from_mins(1);

/// Options of `cargo xtask s3-servers`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A server that runs already, as ADDRESS:PORT, instead of moto.
    #[arg(long)]
    server: Option<String>,
    /// The server of `--server` ignores conditions of writes, as Garage does.
    #[arg(long, requires = "server")]
    ignores_conditions: bool,
    /// A file with the access key id for `--server`, which must have the buckets `hookrun-1` and
    /// `hookrun-2`; else requests are not signed.
    #[arg(long, requires = "secret_file")]
    id_file: Option<String>,
    /// A file with its secret access key.
    #[arg(long, requires = "id_file")]
    secret_file: Option<String>,
}

/// Runs it.
pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some(server) = &options.server {
        return test(server, options);
    }
    let environment = process::target_directory()?.join("moto");
    let program = environment.join("bin/moto_server");
    if !program.exists() {
        Command::new("python3").args(["-m", "venv"]).arg(&environment).run()?;
        let pip = environment.join("bin/pip");
        Command::new(pip).args(["install", "--quiet", "moto[server]"]).run()?;
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let server = format!("127.0.0.1:{port}");
    let _moto = Moto::start(&program, port)?;
    test(&server, options)
}

/// A process that ends with the value.
struct Moto(Child);

impl Moto {
    fn start(program: &Path, port: u16) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let moto = Self(command.spawn().context("moto does not start")?);
        let end = Instant::now() + START;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > end {
                bail!("moto does not listen after {} s", START.as_secs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(moto)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn test(server: &str, options: &Options) -> Result<()> {
    let conditions = if options.ignores_conditions { "ignored" } else { "honoured" };
    let mut command = cargo();
    command.args(["test", "--workspace", "--test", "integration", "--"]);
    command.args(["stores::servers::", "--ignored", "--nocapture", "--test-threads", "1"]);
    command.env("HOOKRUN_S3_SERVER", server).env("HOOKRUN_S3_CONDITIONS", conditions);
    if let (Some(id), Some(secret)) = (&options.id_file, &options.secret_file) {
        command.env("HOOKRUN_S3_ID_FILE", id).env("HOOKRUN_S3_SECRET_FILE", secret);
    }
    command.run()
}
