//! `[object-stores.NAME]`. Secrets are named by file or environment variable here and read only by
//! the process that uses them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::quantity::optional_duration;

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ObjectStore {
    /// `s3://bucket[/prefix]`, `gs://`, `az://`, `http(s)://` or `file:///dir`. If it is missing,
    /// the store is a directory below hookrun's state.
    pub url: Option<String>,
    pub region: Option<String>,
    /// The S3 endpoint, such as `http://127.0.0.1:9000`.
    pub endpoint: Option<String>,
    /// S3 path-style requests (`endpoint/bucket/key`); by default when `endpoint` is set.
    pub path_style: Option<bool>,
    pub credentials: Credentials,
    /// The profile of `~/.aws/credentials` that has the S3 credentials.
    pub profile: Option<String>,
    /// The storage class of new objects, such as `STANDARD_IA`.
    pub storage_class: Option<String>,
    /// The tags of new objects.
    pub tags: BTreeMap<String, String>,
    /// The certificate authorities that are trusted instead of the machine's.
    pub ca_file: Option<PathBuf>,
    /// The certificate that is shown to a server that asks for one.
    pub client_certificate_file: Option<PathBuf>,
    /// Its private key.
    pub client_key_file: Option<PathBuf>,
    /// How long the server may take to begin an answer, and between two parts of it.
    #[serde(deserialize_with = "optional_duration")]
    pub timeout: Option<Duration>,
}

/// The source of the credentials. Without files it is the environment (`AWS_ACCESS_KEY_ID`,
/// `AWS_SECRET_ACCESS_KEY`), then a profile of `~/.aws/credentials`, then the role of the instance.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Credentials {
    /// A file with the access key id.
    pub access_key_id_file: Option<PathBuf>,
    /// A file with the secret access key.
    pub secret_access_key_file: Option<PathBuf>,
    /// A file with a session token.
    pub session_token_file: Option<PathBuf>,
    /// Whether requests are sent without a signature, for public or internal stores.
    pub anonymous: bool,
}

/// Returns the file of the AWS tools with access keys: `AWS_SHARED_CREDENTIALS_FILE` or
/// `~/.aws/credentials`.
pub fn profiles_file() -> Option<PathBuf> {
    of_environment("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials")
}

/// Returns the file of the AWS tools with other settings of profiles: `AWS_CONFIG_FILE` or
/// `~/.aws/config`.
pub fn profiles_config_file() -> Option<PathBuf> {
    of_environment("AWS_CONFIG_FILE", ".aws/config")
}

fn of_environment(variable: &str, in_home: &str) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set(variable).map(PathBuf::from).or_else(|| Some(PathBuf::from(set("HOME")?).join(in_home)))
}
