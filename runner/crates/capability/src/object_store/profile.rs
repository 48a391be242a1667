//! Profiles, as the AWS tools keep them: `~/.aws/credentials` (or `AWS_SHARED_CREDENTIALS_FILE`)
//! and `~/.aws/config` (or `AWS_CONFIG_FILE`).
//!
//! A profile has access keys, or a role with the source of the credentials that may assume it:
//! another profile (`source_profile`), the environment, container or machine
//! (`credential_source`), or a token of web identity. A profile that needs a person or a program
//! (single sign-on, a second factor, `credential_process`) is refused by name.

use std::path::Path;

use super::role::Role;
use hookrun_config::{profiles_config_file, profiles_file};

/// The name of the profile if none is configured.
const DEFAULT: &str = "default";
/// The file is a few lines for each profile.
const MAX_FILE: u64 = 1 << 20;
/// Sources of credentials that are not supported.
const ELSEWHERE: [&str; 4] = ["sso_session", "sso_start_url", "credential_process", "mfa_serial"];
/// The maximum number of roles between a profile and its access keys.
const MAX_ROLES: usize = 5;

/// What a profile says.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Profile {
    pub source: Source,
    pub region: Option<String>,
}

/// Where the credentials of a profile come from.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Source {
    Keys {
        key_id: String,
        secret: String,
        token: Option<String>,
    },
    /// The environment, the container or the machine.
    Ambient,
    /// A role that a token may assume.
    WebIdentity {
        role: String,
        token_file: String,
        session: Option<String>,
    },
    /// A role that other credentials may assume.
    Role {
        role: Role,
        from: Box<Source>,
    },
}

/// The profile called `wanted`; else the one that `AWS_PROFILE` names; else the default one, which
/// need not be there.
///
/// # Errors
/// A fragment that names the file and says what is wrong with it.
pub(super) fn find(wanted: Option<&str>) -> Result<Option<Profile>, String> {
    let environment = std::env::var("AWS_PROFILE").ok().filter(|name| !name.is_empty());
    let asked = wanted.or(environment.as_deref());
    let name = asked.unwrap_or(DEFAULT);
    let (Some(file), config) = (profiles_file(), profiles_config_file()) else {
        return match asked {
            Some(name) => Err(format!(
                "there is no home directory to look for the profile `{name}` in; set AWS_SHARED_CREDENTIALS_FILE"
            )),
            None => Ok(None),
        };
    };
    let credentials = read(&file)?;
    let config = config.map_or(Ok(String::new()), |path| read(&path))?;
    let profile = parse(name, &credentials, &config)
        .map_err(|what| format!("the profile `{name}` of {} {what}", file.display()))?;
    match (profile, asked) {
        (None, Some(name)) => Err(format!(
            "the profile `{name}` is not in {}; add it there, or name another",
            file.display()
        )),
        (profile, _) => Ok(profile),
    }
}

fn read(path: &Path) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("{} cannot be read ({error})", path.display());
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(failed(error)),
        Ok(found) if found.len() > MAX_FILE => {
            return Err(format!("{} is too long to be a file of profiles", path.display()));
        }
        Ok(_) => {}
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// The profile `name` in the texts of the two files, if it is in one of them.
fn parse(name: &str, credentials: &str, config: &str) -> Result<Option<Profile>, String> {
    let keys = keys(name, credentials, config);
    if keys.is_empty() {
        return Ok(None);
    }
    let region = value(&keys, "region");
    match source(name, credentials, config, 0) {
        Ok(source) => Ok(Some(Profile { source, region })),
        // A profile of a region alone.
        Err(Problem::Nothing) if name == DEFAULT => Ok(None),
        Err(Problem::Nothing) => {
            Err("lacks `aws_access_key_id` and `aws_secret_access_key`, or `role_arn`; add them"
                .to_owned())
        }
        Err(Problem::Wrong(what)) => Err(what),
    }
}

/// The reason why a profile has no credentials.
enum Problem {
    Nothing,
    Wrong(String),
}

fn source(name: &str, credentials: &str, config: &str, roles: usize) -> Result<Source, Problem> {
    let wrong = |what: &str| Err(Problem::Wrong(what.to_owned()));
    let keys = keys(name, credentials, config);
    let value = |wanted| value(&keys, wanted);
    let own = || match (value("aws_access_key_id"), value("aws_secret_access_key")) {
        (Some(key_id), Some(secret)) => {
            Ok(Source::Keys { key_id, secret, token: value("aws_session_token") })
        }
        (None, None) if ELSEWHERE.iter().any(|key| value(key).is_some()) => wrong(
            "has no access key of its own, and single sign-on, second factors and programs are not supported; \
             write `credentials` with files that hold the keys",
        ),
        (None, None) => Err(Problem::Nothing),
        _ => wrong("lacks `aws_access_key_id` or `aws_secret_access_key`; add both"),
    };
    let Some(arn) = value("role_arn") else { return own() };
    if value("mfa_serial").is_some() {
        return wrong("has `mfa_serial`, and a second factor cannot be asked for; use another");
    }
    let session = value("role_session_name");
    if let Some(token_file) = value("web_identity_token_file") {
        return Ok(Source::WebIdentity { role: arn, token_file, session });
    }
    let from = match (value("source_profile"), value("credential_source").as_deref()) {
        _ if roles >= MAX_ROLES => {
            return wrong(
                "refers to itself, or to too many profiles with roles; shorten the chain",
            );
        }
        // Its own keys may assume the role.
        (Some(from), None) if from == name => own()?,
        (Some(from), None) => match source(&from, credentials, config, roles + 1) {
            Ok(found) => found,
            Err(Problem::Nothing) => {
                return wrong(&format!(
                    "has the `source_profile` `{from}`, which has no credentials; add them"
                ));
            }
            Err(problem) => return Err(problem),
        },
        (None, Some("Environment" | "Ec2InstanceMetadata" | "EcsContainer")) => Source::Ambient,
        (None, Some(other)) => {
            return wrong(&format!(
                "has an unknown `credential_source` `{other}`; write `Environment`, `Ec2InstanceMetadata` or `EcsContainer`"
            ));
        }
        (None, None) => return wrong("has `role_arn` without `source_profile`; add it"),
        (Some(_), Some(_)) => {
            return wrong("has both `source_profile` and `credential_source`; remove one");
        }
    };
    let (external_id, duration) = (value("external_id"), value("duration_seconds"));
    let role = Role { arn, session, external_id, duration };
    Ok(Source::Role { role, from: Box::new(from) })
}

/// The keys of a profile in both files.
fn keys<'a>(name: &str, credentials: &'a str, config: &'a str) -> Vec<(&'a str, &'a str)> {
    let in_config = if name == DEFAULT { name.to_owned() } else { format!("profile {name}") };
    let mut keys = section(credentials, name);
    keys.extend(section(config, &in_config));
    keys
}

fn value(keys: &[(&str, &str)], wanted: &str) -> Option<String> {
    let found = keys.iter().find(|(key, value)| *key == wanted && !value.is_empty());
    found.map(|(_, value)| (*value).to_owned())
}

/// The keys of a section. Lines that begin with a space belong to the key above, and none of those
/// that are read has such lines.
fn section<'a>(text: &'a str, name: &str) -> Vec<(&'a str, &'a str)> {
    let mut within = false;
    let keys = text.lines().filter_map(|line| {
        let header = line.trim().strip_prefix('[').and_then(|rest| rest.split_once(']'));
        if let Some((header, _)) = header {
            within = header.split_whitespace().eq(name.split_whitespace());
            return None;
        }
        if !within || line.starts_with([' ', '\t', '#', ';']) {
            return None;
        }
        line.split_once('=').map(|(key, value)| (key.trim(), value.trim()))
    });
    keys.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "[default]\naws_access_key_id = AK1\naws_secret_access_key=s=1\n\n# more\n[ ci ]\n\
        aws_access_key_id=AK2\naws_secret_access_key = s2\naws_session_token = t2\n[half]\naws_access_key_id = AK3\n";
    const CONFIG: &str = "[default]\nregion = eu-west-1\n[profile ci]\nregion = eu-north-1\ns3 =\n  region = no\n\
        [profile sso]\nsso_session = x\n[profile own]\naws_access_key_id = AK4\naws_secret_access_key = s4\n\
        [profile role]\nrole_arn = arn:1\nsource_profile = ci\nexternal_id = e\n\
        [profile chain]\nrole_arn = arn:2\nsource_profile = role\n\
        [profile itself]\nrole_arn = arn:3\nsource_profile = itself\naws_access_key_id = AK5\naws_secret_access_key = s5\n\
        [profile machine]\nrole_arn = arn:4\ncredential_source = Ec2InstanceMetadata\n\
        [profile token]\nrole_arn = arn:5\nweb_identity_token_file = /run/token\n\
        [profile loop]\nrole_arn = arn:6\nsource_profile = loop2\n[profile loop2]\nrole_arn = arn:7\nsource_profile = loop\n\
        [profile second]\nrole_arn = arn:8\nsource_profile = ci\nmfa_serial = m\n\
        [profile odd]\nrole_arn = arn:9\ncredential_source = Moon\n\
        [profile lost]\nrole_arn = arn:10\nsource_profile = none\n[profile alone]\nrole_arn = arn:11\n";

    fn ids(name: &str) -> Result<Option<(String, String)>, String> {
        let profile = parse(name, CREDENTIALS, CONFIG)?;
        let id = |source| match source {
            Source::Keys { key_id, .. } => key_id,
            Source::Ambient => "ambient".to_owned(),
            Source::WebIdentity { role, token_file, .. } => format!("{role} by {token_file}"),
            Source::Role { role, from } => match *from {
                Source::Keys { key_id, .. } => format!("{} by {key_id}", role.arn),
                Source::Role { role: first, .. } => format!("{} by {}", role.arn, first.arn),
                _ => format!("{} by another", role.arn),
            },
        };
        Ok(profile.map(|profile| (id(profile.source), profile.region.unwrap_or_default())))
    }

    #[test]
    fn profiles_of_both_files() {
        let some = |id: &str, region: &str| Ok(Some((id.to_owned(), region.to_owned())));
        assert_eq!(ids("default"), some("AK1", "eu-west-1"));
        assert_eq!(ids("ci"), some("AK2", "eu-north-1"));
        assert_eq!(ids("own"), some("AK4", ""));
        assert_eq!(ids("none"), Ok(None));
        assert_eq!(
            parse("default", "", "[default]\nregion = x\n").map(|found| found.is_some()),
            Ok(false)
        );
        let keys = Source::Keys {
            key_id: "AK2".to_owned(),
            secret: "s2".to_owned(),
            token: Some("t2".to_owned()),
        };
        assert!(parse("ci", CREDENTIALS, "").unwrap().unwrap().source == keys);
    }

    #[test]
    fn profiles_with_roles() {
        let some = |id: &str| Ok(Some((id.to_owned(), String::new())));
        assert_eq!(ids("role"), some("arn:1 by AK2"));
        assert_eq!(ids("chain"), some("arn:2 by arn:1"));
        assert_eq!(ids("itself"), some("arn:3 by AK5"));
        assert_eq!(ids("machine"), some("arn:4 by another"));
        assert_eq!(ids("token"), some("arn:5 by /run/token"));
        for (name, what) in [
            ("loop", "refers to itself"),
            ("second", "has `mfa_serial`"),
            ("odd", "has an unknown `credential_source` `Moon`"),
            ("lost", "has the `source_profile` `none`"),
            ("alone", "has `role_arn` without `source_profile`"),
        ] {
            let error = ids(name).unwrap_err();
            assert!(error.starts_with(what), "{name}: {error}");
        }
    }

    #[test]
    fn a_profile_without_keys_is_refused() {
        assert!(ids("half").unwrap_err().starts_with("lacks"));
        assert!(ids("sso").unwrap_err().starts_with("has no access key of its own"));
    }
}
