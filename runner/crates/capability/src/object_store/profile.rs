//! Access keys of a profile, as the AWS tools keep them: `~/.aws/credentials` (or
//! `AWS_SHARED_CREDENTIALS_FILE`) and `~/.aws/config` (or `AWS_CONFIG_FILE`).
//!
//! Access keys and the region are read. A profile that gets its keys otherwise (single sign-on, a
//! role, a program) is refused by name: its keys would have to be fetched.

use std::path::Path;

use hookrun_config::{profiles_config_file, profiles_file};

/// The name of the profile if none is configured.
const DEFAULT: &str = "default";
/// The file is a few lines for each profile.
const MAX_FILE: u64 = 1 << 20;
/// Ways to keys that are not taken here.
const ELSEWHERE: [&str; 6] = [
    "sso_session",
    "sso_start_url",
    "role_arn",
    "credential_process",
    "credential_source",
    "source_profile",
];

/// What a profile says.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Profile {
    pub key_id: String,
    pub secret: String,
    pub token: Option<String>,
    pub region: Option<String>,
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
fn parse(name: &str, credentials: &str, config: &str) -> Result<Option<Profile>, &'static str> {
    let in_config = if name == DEFAULT { name.to_owned() } else { format!("profile {name}") };
    let keys: Vec<(&str, &str)> =
        section(credentials, name).chain(section(config, &in_config)).collect();
    if keys.is_empty() {
        return Ok(None);
    }
    let value = |wanted: &str| {
        let found = keys.iter().find(|(key, value)| *key == wanted && !value.is_empty());
        found.map(|(_, value)| (*value).to_owned())
    };
    match (value("aws_access_key_id"), value("aws_secret_access_key")) {
        (Some(key_id), Some(secret)) => Ok(Some(Profile {
            key_id,
            secret,
            token: value("aws_session_token"),
            region: value("region"),
        })),
        _ if ELSEWHERE.iter().any(|key| value(key).is_some()) => Err(
            "has no access key of its own, and single sign-on, roles and programs are not asked; \
             write `credentials` with files that hold the keys",
        ),
        // A profile of a region alone.
        (None, None) if name == DEFAULT => Ok(None),
        _ => Err("lacks `aws_access_key_id` or `aws_secret_access_key`; add both"),
    }
}

/// The keys of a section. Lines that begin with a space belong to the key above, and none of those
/// that are read has such lines.
fn section<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let mut within = false;
    text.lines().filter_map(move |line| {
        let header = line.trim().strip_prefix('[').and_then(|rest| rest.split_once(']'));
        if let Some((header, _)) = header {
            within = header.split_whitespace().eq(name.split_whitespace());
            return None;
        }
        if !within || line.starts_with([' ', '\t', '#', ';']) {
            return None;
        }
        line.split_once('=').map(|(key, value)| (key.trim(), value.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "[default]\naws_access_key_id = AK1\naws_secret_access_key=s=1\n\n# more\n[ ci ]\n\
        aws_access_key_id=AK2\naws_secret_access_key = s2\naws_session_token = t2\n[half]\naws_access_key_id = AK3\n";
    const CONFIG: &str = "[default]\nregion = eu-west-1\n[profile ci]\nregion = eu-north-1\ns3 =\n  region = no\n\
        [profile sso]\nsso_session = x\n[profile own]\naws_access_key_id = AK4\naws_secret_access_key = s4\n";

    fn ids(name: &str) -> Result<Option<(String, String)>, &'static str> {
        let profile = parse(name, CREDENTIALS, CONFIG)?;
        Ok(profile.map(|profile| (profile.key_id, profile.region.unwrap_or_default())))
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
        let token = parse("ci", CREDENTIALS, "").unwrap().unwrap();
        assert_eq!((token.secret.as_str(), token.token.as_deref()), ("s2", Some("t2")));
    }

    #[test]
    fn a_profile_without_keys_is_refused() {
        assert!(ids("half").unwrap_err().starts_with("lacks"));
        assert!(ids("sso").unwrap_err().starts_with("has no access key of its own"));
    }
}
