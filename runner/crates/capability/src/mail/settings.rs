//! The settings of mail transports: their checks, and the transports that are created from them.

use std::path::PathBuf;

use super::maildir::Maildir;
use super::recipients::{own_recipients, recipient};
use super::sendmail::{self, Sendmail};
use super::smtp::Smtp;
use super::{Transport, compose};
use crate::ServiceFinding;
use hookrun_config::{self as config, Config, KeyError, MailTransport};
use hookrun_nix::dirs::Dirs;

/// Checks every `[mail.NAME]` without opening files or sockets.
///
/// # Errors
/// Returns the first transport that cannot work as configured.
pub fn check(config: &Config, dirs: &Dirs) -> Result<(), KeyError> {
    let host = compose::host_name("");
    for (name, settings) in &config.mail {
        checked_transport(name, settings, dirs)
            .map_err(|(key, message)| KeyError::new(&["mail", name, key], message))?;
        compose::sender(name, settings, &host)
            .map_err(|error| KeyError::new(&["mail", name, "from"], error.message))?;
        for to in &settings.to {
            recipient(to, settings.transport, &host)
                .map_err(|error| KeyError::new(&["mail", name, "to"], error.message))?;
        }
    }
    for (name, plugin) in &config.plugins {
        let granted = || plugin.grant.mail.iter().filter_map(|name| config.mail.get(name));
        for to in own_recipients(plugin) {
            // It is not known here which of the granted transports the plugin uses.
            let mut refused = None;
            let reached = granted().any(|settings| {
                refused = recipient(to, settings.transport, &host).err();
                refused.is_none()
            });
            if let Some(error) = refused.filter(|_| !reached) {
                return Err(KeyError::new(&["plugins", name, "config", "to"], error.message));
            }
        }
    }
    Ok(())
}

/// Returns warnings for transports whose password is sent without encryption, which is accepted
/// only for a server on this machine.
pub(super) fn clear_text_passwords(config: &Config) -> Vec<KeyError> {
    let clear = |(name, settings): (&String, &config::Mail)| {
        let smtp = Smtp::new(name, settings).ok()?;
        let warning = smtp.sends_password_in_clear().then(|| {
            format!(
                "mail transport `{name}` sends its password without encryption, to this machine \
                 only; write `smtps://` or `?tls=required` if its server can do that"
            )
        })?;
        Some(KeyError::new(&["mail", name, "url"], warning))
    };
    let smtp = config.mail.iter().filter(|(_, mail)| mail.transport == MailTransport::Smtp);
    smtp.filter_map(clear).collect()
}

/// Checks that the files of transports can be opened. The check does not need their content.
pub(super) fn readable_files(config: &Config) -> Vec<ServiceFinding> {
    let mut findings = Vec::new();
    for (name, mail) in &config.mail {
        for (key, file) in [("password-file", &mail.password_file), ("ca-file", &mail.ca_file)] {
            let Some(file) = file else { continue };
            findings.push(ServiceFinding::of(match std::fs::File::open(file) {
                Ok(_) => Ok(format!("mail {name}: {key} is readable")),
                Err(error) => Err(KeyError::new(
                    &["mail", name, key],
                    format!(
                        "the {key} {} cannot be read ({error}); make it readable for the user \
                         that runs the worker",
                        file.display()
                    ),
                )),
            }));
        }
    }
    findings
}

/// Turns settings into a transport. The error is the key and a sentence.
pub(super) fn checked_transport(
    name: &str,
    settings: &config::Mail,
    dirs: &Dirs,
) -> Result<Transport, (&'static str, String)> {
    let config::Mail {
        transport,
        url,
        from: _,
        to: _,
        username,
        password_file,
        ca_file,
        helo_name,
        directory,
        program,
    } = settings;
    let unused = |used_by: &str, keys: &[(&'static str, bool)]| {
        keys.iter().find(|(_, set)| *set).map_or(Ok(()), |(key, _)| {
            Err((
                *key,
                format!("`{key}` of [mail.{name}] is for `transport = \"{used_by}\"` only; write that, or remove `{key}`"),
            ))
        })
    };
    let smtp_keys = [
        ("url", url.is_some()),
        ("username", username.is_some()),
        ("password-file", password_file.is_some()),
        ("ca-file", ca_file.is_some()),
        ("helo-name", helo_name.is_some()),
    ];
    match transport {
        MailTransport::Maildir => {
            unused("smtp", &smtp_keys)?;
            unused("sendmail", &[("program", program.is_some())])?;
            Ok(Transport::Maildir(Maildir {
                name: name.to_owned(),
                directory: directory.clone().unwrap_or_else(|| dirs.maildir(name)),
            }))
        }
        MailTransport::Smtp => {
            unused("maildir", &[("directory", directory.is_some())])?;
            unused("sendmail", &[("program", program.is_some())])?;
            Smtp::new(name, settings).map(Transport::Smtp)
        }
        MailTransport::Sendmail => {
            unused("smtp", &smtp_keys)?;
            unused("maildir", &[("directory", directory.is_some())])?;
            Ok(Transport::Sendmail(Sendmail {
                name: name.to_owned(),
                program: program
                    .clone()
                    .unwrap_or_else(|| PathBuf::from(sendmail::DEFAULT_PROGRAM)),
            }))
        }
    }
}
