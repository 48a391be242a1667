//! The client for S3: where its credentials come from, and what is said if there are none.

use std::path::PathBuf;
use std::sync::Arc;

use ::object_store::CredentialProvider;
use ::object_store::aws::{
    AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, AwsCredentialProvider,
};
use ::object_store::client::HttpConnector as _;
use async_trait::async_trait;
use url::Url;

use super::connector::BoundedConnector;
use super::open::{client, retry};
use super::profile::{self, Source};
use super::role::{AssumeRole, Role};
use crate::CapabilityError;
use hookrun_config as config;

/// The region if none is configured; servers other than Amazon's ignore it.
const DEFAULT_REGION: &str = "us-east-1";
/// A credential is a line. What is longer is another file.
const MAX_SECRET: u64 = 64 << 10;

/// No credentials were found.
#[derive(Debug, thiserror::Error)]
#[error(
    "no credentials: the configuration and the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, ~/.aws/credentials) have none, and this machine's metadata service gives none ({cause}); \
     write `credentials = {{ access-key-id-file = \"FILE\", secret-access-key-file = \"FILE\" }}` under [object-stores.{store}]"
)]
pub(super) struct NoCredentials {
    store: String,
    cause: String,
}

impl NoCredentials {
    /// The error for `store`. `cause`: why this machine gives none.
    pub(super) fn new(store: &str, cause: &str) -> Self {
        Self { store: store.to_owned(), cause: cause.to_owned() }
    }
}

/// Explains which credentials are missing if none can be fetched.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) store: String,
    pub(super) from: AwsCredentialProvider,
}

#[async_trait]
impl CredentialProvider for Fetched {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> ::object_store::Result<Arc<AwsCredential>> {
        self.from.get_credential().await.map_err(|error| {
            let cause = std::iter::successors(Some(&error as &dyn std::error::Error), |error| {
                error.source()
            });
            let cause = cause.last().map(|cause| one_line(&cause.to_string())).unwrap_or_default();
            ::object_store::Error::Unauthenticated {
                path: String::new(),
                source: Box::new(NoCredentials::new(&self.store, &cause)),
            }
        })
    }
}

/// The client that the settings and the environment describe.
pub(super) fn s3(
    name: &str,
    url: &Url,
    settings: &config::ObjectStore,
) -> Result<S3, CapabilityError> {
    let wrong = |what: &str| {
        CapabilityError::refused(format!(
            "object store `{name}`: {what} under [object-stores.{name}]"
        ))
    };
    let config::ObjectStore { region, endpoint, path_style, credentials, .. } = settings;
    let config::Credentials {
        access_key_id_file,
        secret_access_key_file,
        session_token_file,
        anonymous,
    } = credentials;
    let bucket = url
        .host_str()
        .ok_or_else(|| wrong("`url` names no bucket; write `url = \"s3://bucket\"`"))?;
    let from_environment = AmazonS3Builder::from_env();
    let environment = |key| from_environment.get_config_value(&key);
    let profile = match &settings.profile {
        Some(_) if access_key_id_file.is_some() || *anonymous => {
            return Err(wrong("`profile` and `credentials` exclude each other; remove one"));
        }
        wanted @ Some(_) => profile::find(wanted.as_deref()).map_err(|what| wrong(&what))?,
        None if access_key_id_file.is_none() && !anonymous && !in_environment(&environment) => {
            profile::find(None).map_err(|what| wrong(&what))?
        }
        None => None,
    };
    let region = region
        .clone()
        .or_else(|| environment(AmazonS3ConfigKey::Region))
        .or_else(|| profile.as_ref().and_then(|profile| profile.region.clone()))
        .unwrap_or_else(|| DEFAULT_REGION.to_owned());
    let endpoint = endpoint.clone().or_else(|| environment(AmazonS3ConfigKey::Endpoint));
    let mut roles = Vec::new();
    let mut builder = match (access_key_id_file, secret_access_key_file) {
        (Some(id), Some(secret)) => {
            let builder = AmazonS3Builder::new()
                .with_access_key_id(credential(name, "access-key-id-file", id)?)
                .with_secret_access_key(credential(name, "secret-access-key-file", secret)?);
            match session_token_file {
                Some(token) => builder.with_token(credential(name, "session-token-file", token)?),
                None => builder,
            }
        }
        (None, None) if session_token_file.is_some() => {
            return Err(wrong(
                "`session-token-file` needs `access-key-id-file` and `secret-access-key-file`; write all three",
            ));
        }
        (None, None) => match profile {
            Some(profile) => {
                let (builder, assumed) = of_source(profile.source, &from_environment);
                roles = assumed;
                builder
            }
            None => from_environment.clone().with_skip_signature(*anonymous),
        },
        (Some(_), None) => {
            return Err(wrong("`access-key-id-file` needs `secret-access-key-file`; write both"));
        }
        (None, Some(_)) => {
            return Err(wrong("`secret-access-key-file` needs `access-key-id-file`; write both"));
        }
    };
    let path_style = path_style.unwrap_or(endpoint.is_some());
    builder = builder
        .with_region(region.clone())
        .with_bucket_name(bucket)
        .with_virtual_hosted_style_request(!path_style);
    let mut options = client();
    if let Some(endpoint) = &endpoint {
        let mut parsed = Url::parse(endpoint)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some())
            .ok_or_else(|| wrong("`endpoint` is not a valid URL; write for example `endpoint = \"https://s3.example.org\"`"))?;
        options = options.with_allow_http(parsed.scheme() == "http");
        if !path_style {
            let host = format!("{bucket}.{}", parsed.host_str().unwrap_or_default());
            parsed
                .set_host(Some(&host))
                .map_err(|_| wrong("`endpoint` is an address; write `path-style = true`"))?;
        }
        builder = builder.with_endpoint(parsed.as_str().trim_end_matches('/'));
    }
    let builder = builder.with_retry(retry()).with_client_options(options);
    Ok(S3 { builder, endpoint, region, roles })
}

/// A client for S3 that is not built yet.
pub(super) struct S3 {
    pub builder: AmazonS3Builder,
    /// The endpoint, if one is named.
    pub endpoint: Option<String>,
    pub region: String,
    /// The roles to assume with the credentials of the builder, one after the other.
    roles: Vec<Role>,
}

impl S3 {
    /// The source of the credentials that requests are signed with. `store`: the name for messages.
    pub(super) fn credentials(
        &self,
        store: &str,
        connector: &BoundedConnector,
    ) -> ::object_store::Result<AwsCredentialProvider> {
        let mut from = Arc::clone(self.builder.clone().build()?.credentials());
        let endpoint =
            sts_endpoint().unwrap_or_else(|| format!("https://sts.{}.amazonaws.com", self.region));
        for role in &self.roles {
            let options = client().with_allow_http(endpoint.starts_with("http://"));
            from = Arc::new(AssumeRole {
                role: role.clone(),
                from,
                region: self.region.clone(),
                endpoint: endpoint.clone(),
                http: connector.connect(&options)?,
                cached: tokio::sync::Mutex::default(),
            });
        }
        Ok(Arc::new(Fetched { store: store.to_owned(), from }))
    }
}

/// A builder with the first credentials of a profile, and the roles to assume with them.
fn of_source(source: Source, ambient: &AmazonS3Builder) -> (AmazonS3Builder, Vec<Role>) {
    match source {
        Source::Keys { key_id, secret, token } => {
            let builder =
                AmazonS3Builder::new().with_access_key_id(key_id).with_secret_access_key(secret);
            (token.into_iter().fold(builder, AmazonS3Builder::with_token), Vec::new())
        }
        Source::Ambient => (ambient.clone(), Vec::new()),
        Source::WebIdentity { role, token_file, session } => {
            use AmazonS3ConfigKey as Name;
            let mut builder = AmazonS3Builder::new()
                .with_config(Name::WebIdentityTokenFile, token_file)
                .with_config(Name::RoleArn, role);
            if let Some(session) = session {
                builder = builder.with_config(Name::RoleSessionName, session);
            }
            if let Some(endpoint) = sts_endpoint() {
                builder = builder.with_config(Name::StsEndpoint, endpoint);
            }
            (builder, Vec::new())
        }
        Source::Role { role, from } => {
            let (builder, mut roles) = of_source(*from, ambient);
            roles.push(role);
            (builder, roles)
        }
    }
}

/// The URL of the token service, if the environment names one.
fn sts_endpoint() -> Option<String> {
    std::env::var("AWS_ENDPOINT_URL_STS").ok().filter(|url| !url.is_empty())
}

/// The files that are read again whenever credentials are renewed, and the ports of the services
/// that give them, as the environment names them.
pub(super) fn renewal_needs() -> (Vec<PathBuf>, Vec<u16>) {
    let value = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let files = ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"];
    let urls = [
        "AWS_ENDPOINT_URL_STS",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        "AWS_METADATA_ENDPOINT",
    ];
    let port = |text: String| Url::parse(&text).ok()?.port_or_known_default();
    // Kubernetes replaces the directory behind such a file.
    let directory = |file: String| std::path::Path::new(&file).parent().map(PathBuf::from);
    (
        files.into_iter().filter_map(value).filter_map(directory).collect(),
        urls.into_iter().filter_map(value).filter_map(port).collect(),
    )
}

/// Returns whether the environment says where credentials come from.
fn in_environment(value: &impl Fn(AmazonS3ConfigKey) -> Option<String>) -> bool {
    use AmazonS3ConfigKey as Name;
    let names = [
        Name::AccessKeyId,
        Name::WebIdentityTokenFile,
        Name::ContainerCredentialsRelativeUri,
        Name::ContainerCredentialsFullUri,
    ];
    names.into_iter().any(|name| value(name).is_some_and(|value| !value.is_empty()))
}

/// Returns the only line of a file with a secret.
fn credential(name: &str, key: &str, file: &PathBuf) -> Result<String, CapabilityError> {
    let wrong = |what: &str| {
        CapabilityError::refused(format!(
            "object store `{name}`: `{key}`: {} {what}; it must hold one line and be readable for uid {}, which runs plugins",
            file.display(),
            rustix::process::geteuid().as_raw()
        ))
    };
    let metadata =
        std::fs::metadata(file).map_err(|error| wrong(&format!("cannot be read ({error})")))?;
    if metadata.len() > MAX_SECRET {
        return Err(wrong("is too long"));
    }
    let text = std::fs::read_to_string(file)
        .map_err(|error| wrong(&format!("cannot be read ({error})")))?;
    let line = text.trim();
    if line.is_empty() || line.contains(char::is_whitespace) {
        return Err(wrong(if line.is_empty() { "is empty" } else { "holds more than one word" }));
    }
    Ok(line.to_owned())
}

pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
