//! The settings of an SMTP transport.

use std::net::IpAddr;

use url::Url;

use super::super::compose::host_name;
use super::{Security, Smtp};
use hookrun_config as config;

/// The ports of RFC 5321 section 4.5.4.2, RFC 6409 and RFC 8314.
const SMTP_PORT: u16 = 25;
const SUBMISSION_PORT: u16 = 587;
const SUBMISSIONS_PORT: u16 = 465;

impl Smtp {
    /// Checks the settings. The error is the key and a sentence.
    pub(in crate::mail) fn new(
        name: &str,
        settings: &config::Mail,
    ) -> Result<Self, (&'static str, String)> {
        let example = "`url = \"smtps://mail.example.org:465\"`";
        let Some(text) = &settings.url else {
            return Err((
                "transport",
                format!(
                    "mail transport `{name}` has no `url`; write {example} under [mail.{name}]"
                ),
            ));
        };
        let wrong = |why: String| {
            ("url", format!("`url` of [mail.{name}] {why}; write for example {example}"))
        };
        let url =
            Url::parse(text).map_err(|error| wrong(format!("is not a valid URL ({error})")))?;
        // The URL is never quoted: a password in it is a mistake, and the message would spread it.
        if url.password().is_some() || !url.username().is_empty() {
            return Err((
                "url",
                format!(
                    "`url` of [mail.{name}] holds a user name or a password; write them as `username` and `password-file`"
                ),
            ));
        }
        let mut tls = None;
        for (key, value) in url.query_pairs() {
            match (&*key, &*value) {
                ("tls", "required") => tls = Some(Security::StartTls),
                ("tls", "opportunistic") => tls = Some(Security::Opportunistic),
                _ => {
                    return Err(wrong(format!(
                        "has the parameter `{key}={value}`, and `tls` is `required` or `opportunistic`"
                    )));
                }
            }
        }
        let security = match (url.scheme(), tls) {
            ("smtps", None) => Security::Tls,
            ("smtps", Some(_)) => {
                return Err(wrong(
                    "is `smtps`, which is encrypted from the start, and takes no `?tls=`".into(),
                ));
            }
            ("smtp", tls) => tls.unwrap_or(Security::Plain),
            (other, _) => {
                return Err(wrong(format!(
                    "has the scheme `{other}`, and `smtp` and `smtps` are known"
                )));
            }
        };
        let Some(host) = url.host_str().filter(|host| !host.is_empty()) else {
            return Err(wrong("names no host".into()));
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if !matches!(url.path(), "" | "/") {
            return Err(wrong(format!(
                "has the path `{}`, which means nothing for mail",
                url.path()
            )));
        }
        let port = url.port().unwrap_or(match security {
            Security::Tls => SUBMISSIONS_PORT,
            Security::StartTls | Security::Opportunistic => SUBMISSION_PORT,
            Security::Plain => SMTP_PORT,
        });
        match (&settings.username, &settings.password_file) {
            (Some(_), None) => {
                return Err((
                    "username",
                    format!(
                        "[mail.{name}] has a `username` and no password; write `password-file = \"/path\"`"
                    ),
                ));
            }
            (None, Some(_)) => {
                return Err((
                    "password-file",
                    format!("[mail.{name}] has a `password-file` and no `username`; write one"),
                ));
            }
            _ => {}
        }
        let smtp = Self {
            name: name.to_owned(),
            host,
            port,
            security,
            username: settings.username.clone(),
            password_file: settings.password_file.clone(),
            ca_file: settings.ca_file.clone(),
            helo_name: settings.helo_name.clone(),
            held: None,
        };
        if let Some(helo) = &smtp.helo_name
            && !is_hello(helo)
        {
            return Err((
                "helo-name",
                format!(
                    "`helo-name` of [mail.{name}] is `{}`, which is neither a host name nor an address in brackets; write for \
                     example `helo-name = \"build1.example.org\"` or `\"[192.0.2.1]\"`",
                    helo.escape_debug()
                ),
            ));
        }
        if smtp.username.is_some() && security == Security::Plain && !smtp.is_loopback() {
            return Err((
                "url",
                format!(
                    "`url` of [mail.{name}] would send the password over the network in clear text; write `smtps://{}` or \
                     `smtp://{}?tls=required`",
                    smtp.host, smtp.host
                ),
            ));
        }
        Ok(smtp)
    }
}

/// Returns whether this is a valid argument of EHLO (RFC 5321 section 4.1.1.1).
fn is_hello(name: &str) -> bool {
    let literal = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match literal {
        Some(address) => {
            let address = address.strip_prefix("IPv6:").unwrap_or(address);
            address.parse::<IpAddr>().is_ok()
        }
        None => name.len() <= 255 && host_name(name) == name,
    }
}
