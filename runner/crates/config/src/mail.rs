//! `[mail.NAME]`.

use std::path::PathBuf;

use serde::Deserialize;

/// The way in which mail is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MailTransport {
    /// Into a maildir.
    #[default]
    Maildir,
    /// To an SMTP server.
    Smtp,
    /// By a program such as `/usr/sbin/sendmail`.
    Sendmail,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Mail {
    /// The way in which mail is sent.
    pub transport: MailTransport,
    /// For `smtp`: `smtps://host:465` (TLS), `smtp://host:587?tls=required` (STARTTLS),
    /// `?tls=opportunistic`, or `smtp://host:25` (plain).
    pub url: Option<String>,
    /// The sender; by default `hookrun@` and the host name.
    pub from: Option<String>,
    /// Recipients that any plugin with this grant may write to.
    pub to: Vec<String>,
    /// For `smtp`.
    pub username: Option<String>,
    /// For `smtp`: a file with the password.
    pub password_file: Option<PathBuf>,
    /// For `smtp`: a file with the certificate authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// For `smtp`: the name that this machine sends in EHLO. By default it is the host name if it
    /// has a domain, and the address otherwise.
    pub helo_name: Option<String>,
    /// For `maildir`; by default below hookrun's state.
    pub directory: Option<PathBuf>,
    /// For `sendmail`: the program, by default `/usr/sbin/sendmail`.
    pub program: Option<PathBuf>,
}
