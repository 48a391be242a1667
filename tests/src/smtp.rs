//! A real mail server for tests: Exim (Debian package exim4-daemon-light) with its own directory
//! and ports, STARTTLS, implicit TLS, logins, refusals, and a maildir for accepted messages. It
//! does not use the files of a mail server of the machine.

use std::fs::Permissions;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::lab::{Need, require, shared_directory};

/// The program of Debian's Exim.
const PROGRAM: &str = "/usr/sbin/exim4";
/// The user that Debian's Exim runs as, which is compiled in.
const USER: &str = "Debian-exim";
/// The command that installs the server.
const INSTALL: &str = "apt-get install --no-install-recommends exim4-daemon-light openssl";
/// The longest time to start or to deliver a message.
const PATIENCE: Duration = Duration::from_mins(1);

/// The user name of the only login.
pub const USERNAME: &str = "hookrun";
/// Its password.
pub const PASSWORD: &str = "correct horse";

/// A running mail server. It accepts mail for `example.org` without a login, and for
/// `private.example.org` with a login. It refuses `nobody@` permanently and `busy@` temporarily.
#[derive(Debug)]
pub struct MailServer {
    directory: tempfile::TempDir,
    daemon: Child,
    port: u16,
    tls_port: u16,
}

impl MailServer {
    /// Starts a server. Returns `None` if the test is skipped, since the server needs root to run
    /// as its own user.
    ///
    /// # Panics
    /// If there is no Exim and it cannot be installed.
    pub fn start() -> Option<Self> {
        Self::start_with(PASSWORD)
    }

    /// Starts a server with another password for [`USERNAME`].
    ///
    /// # Panics
    /// If there is no Exim and it cannot be installed.
    pub fn start_with(password: &str) -> Option<Self> {
        if !require(Need::Root) {
            return None;
        }
        require_exim();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        // Exim's user traverses the directory and owns the files that it writes.
        std::fs::set_permissions(path, Permissions::from_mode(0o711)).unwrap();
        for name in ["spool", "log", "mail"] {
            std::fs::create_dir(path.join(name)).unwrap();
            run(Command::new("chown").arg(format!("{USER}:")).arg(path.join(name)));
        }
        make_certificates(path);
        for attempt in 1.. {
            let (port, tls_port) = (free_port(), free_port());
            std::fs::write(path.join("exim.conf"), configuration(path, port, tls_port, password))
                .unwrap();
            for file in ["exim.conf", "key.pem"] {
                run(Command::new("chown").arg(format!("root:{USER}")).arg(path.join(file)));
                std::fs::set_permissions(path.join(file), Permissions::from_mode(0o640)).unwrap();
            }
            let mut daemon = exim(path).arg("-bdf").spawn().unwrap();
            if is_up(&mut daemon, port) {
                return Some(Self { directory, daemon, port, tls_port });
            }
            // Another process may have taken the port.
            assert!(attempt < 5, "Exim does not start: {}", log_of(path));
        }
        unreachable!("the loop ends by a server or by a panic")
    }

    /// Returns `smtp://...` with this query, such as `?tls=required`.
    pub fn url(&self, query: &str) -> String {
        format!("smtp://localhost:{}{query}", self.port)
    }

    /// Returns `smtps://...`.
    pub fn tls_url(&self) -> String {
        format!("smtps://localhost:{}", self.tls_port)
    }

    /// Returns the table of a mail transport that logs in with the password in this file.
    pub fn transport(&self, password_file: &Path) -> toml::Table {
        toml::toml! {
            transport = "smtp"
            url = (self.tls_url())
            from = "hookrun@example.org"
            username = USERNAME
            password-file = (password_file.display().to_string())
            ca-file = (self.ca_file().display().to_string())
        }
    }

    /// Returns the file with the authority that signed the server's certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Writes a file with `password` and returns its path.
    pub fn password_file(&self, password: &str) -> PathBuf {
        let path = self.directory.path().join("password");
        std::fs::write(&path, format!("{password}\n")).unwrap();
        path
    }

    /// Returns the path of a `sendmail` program that hands messages to this server.
    pub fn sendmail(&self) -> PathBuf {
        let path = self.directory.path().join("sendmail");
        let script = format!(
            "#!/bin/sh\nexec {PROGRAM} -C {}/exim.conf \"$@\"\n",
            self.directory.path().display()
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Waits until the server has delivered `count` messages and returns them. There is one for
    /// each recipient, with the headers `Return-path` and `Envelope-to` of the server.
    ///
    /// # Panics
    /// If they do not arrive in time.
    pub fn delivered(&self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mails = self.delivered_now();
            if mails.len() >= count {
                assert_eq!(mails.len(), count, "{mails:#?}");
                return mails;
            }
            assert!(
                Instant::now() < deadline,
                "{} of {count} mails arrived: {}",
                mails.len(),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Returns the messages that the server has delivered so far.
    pub fn delivered_now(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.directory.path().join("mail/new")) else {
            return Vec::new();
        };
        let mut mails: Vec<String> =
            entries.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
        mails.sort();
        mails
    }

    /// Returns the logs of the server.
    pub fn log(&self) -> String {
        log_of(self.directory.path())
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn log_of(directory: &Path) -> String {
    ["main", "panic", "reject"]
        .map(|name| {
            std::fs::read_to_string(directory.join(format!("log/{name}log"))).unwrap_or_default()
        })
        .concat()
}

fn exim(directory: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .arg("-C")
        .arg(directory.join("exim.conf"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Returns whether the server sends a greeting in time.
fn is_up(daemon: &mut Child, port: u16) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline && daemon.try_wait().unwrap().is_none() {
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            let mut greeting = [0; 4];
            if stream.read_exact(&mut greeting).is_ok() && greeting == *b"220 " {
                return true;
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = daemon.kill();
    let _ = daemon.wait();
    false
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The Exim specification, chapters 14 (main options), 44 (ACLs), 26 (appendfile) and 34
/// (plaintext).
fn configuration(directory: &Path, port: u16, tls_port: u16, password: &str) -> String {
    let directory = directory.display();
    format!(
        "primary_hostname = localhost
spool_directory = {directory}/spool
log_file_path = {directory}/log/%slog
pid_file_path = {directory}/spool/pid
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port} : {tls_port}
tls_on_connect_ports = {tls_port}
tls_certificate = {directory}/cert.pem
tls_privatekey = {directory}/key.pem
tls_advertise_hosts = *
auth_advertise_hosts = *
host_lookup =
rfc1413_query_timeout = 0s
keep_environment =
acl_smtp_rcpt = recipient
acl_smtp_data = data

begin acl
recipient:
  deny local_parts = nobody
       message = no such user here
  defer local_parts = busy
       message = come back later
  deny domains = private.example.org
       !authenticated = *
       message = log in first
  accept domains = example.org : private.example.org
  deny message = relay not permitted
data:
  accept

begin routers
all:
  driver = accept
  transport = maildir

begin transports
maildir:
  driver = appendfile
  directory = {directory}/mail
  maildir_format
  user = {USER}
  group = {USER}
  envelope_to_add
  return_path_add

begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{{USERNAME}}}}}{{eq{{$auth3}}{{{password}}}}}}}}}
  server_set_id = $auth2
"
    )
}

/// Makes a certificate authority and the certificate of the server.
fn make_certificates(directory: &Path) {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let openssl = |arguments: &[&str], more: &[&str]| {
        run(Command::new("openssl").args(arguments).args(more).current_dir(directory));
    };
    std::fs::write(
        directory.join("extensions"),
        "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n",
    )
    .unwrap();
    openssl(
        &[
            "req",
            "-x509",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-days",
            "2",
            "-subj",
            "/CN=hookrun tests",
        ],
        &key,
    );
    openssl(
        &["req", "-new", "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=localhost"],
        &key,
    );
    openssl(
        &[
            "x509",
            "-req",
            "-in",
            "request.pem",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
        ],
        &["-extfile", "extensions", "-out", "cert.pem"],
    );
}

fn require_exim() {
    let is_there =
        || Path::new(PROGRAM).exists() && Command::new("openssl").arg("version").output().is_ok();
    if is_there() {
        return;
    }
    let lock = std::fs::File::create(shared_directory().join("install.lock")).unwrap();
    lock.lock().unwrap();
    if is_there() {
        return;
    }
    // Installing Exim beside another mail server would remove that one.
    let another = Path::new("/usr/sbin/sendmail").exists() && !Path::new(PROGRAM).exists();
    assert!(
        Path::new("/etc/debian_version").exists() && !another,
        "these tests need Exim and openssl: install them, on Debian by `{INSTALL}`{}",
        if another { " (that removes the mail server of this machine)" } else { "" }
    );
    run(Command::new("apt-get").args(["update", "-qq"]));
    // RUNLEVEL=1 keeps Debian's scripts from starting the machine's own Exim, as invoke-rc.d(8)
    // says.
    let mut words = INSTALL.split(' ');
    run(Command::new(words.next().unwrap_or_default())
        .args(words)
        .args(["-y", "-qq"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1"));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; {INSTALL}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
