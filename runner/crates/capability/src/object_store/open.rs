//! Opens a store of `[object-stores.NAME]`: checks the settings, reads the credentials and makes
//! the client.
//!
//! Secrets are read here, by the process that uses them, and are passed to the client only.
//! Messages name files and variables, never their contents.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};
use std::time::Duration;

use ::object_store::aws::{
    AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, AwsCredentialProvider,
};
use ::object_store::azure::MicrosoftAzureBuilder;
use ::object_store::gcp::GoogleCloudStorageBuilder;
use ::object_store::http::HttpBuilder;
use ::object_store::local::LocalFileSystem;
use ::object_store::memory::InMemory;
use ::object_store::multipart::MultipartStore;
use ::object_store::path::Path as Key;
use ::object_store::prefix::PrefixStore;
use ::object_store::{BackoffConfig, ClientOptions, CredentialProvider, ObjectStore, RetryConfig};
use async_trait::async_trait;
use url::Url;

use super::connector::{self, BoundedConnector};
use super::profile;
use crate::{CapabilityError, SandboxNeeds};
use hookrun_config as config;
use hookrun_nix::layout;

/// A server that does not take a connection in this time is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// One request with all of its answer, so that none goes on for ever by single bytes; what is
/// normal has shorter times ([`connector`]).
const REQUEST_TIMEOUT: Duration = Duration::from_mins(15);
/// Tries again within one call are for a dropped connection or a single 503; whatever lasts is for
/// the queue, which waits longer and survives a restart.
const RETRIES: usize = 3;
/// As above.
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);
/// The region that S3 has where nobody names one; servers other than Amazon's ignore it.
const DEFAULT_REGION: &str = "us-east-1";
/// A credential is a line. What is longer is another file.
const MAX_SECRET: u64 = 64 << 10;

/// RFC 9110, section 4.2.
const HTTP: u16 = 80;
/// As above.
const HTTPS: u16 = 443;

/// A store that can be used.
#[derive(Debug, Clone)]
pub(super) struct Open {
    /// The name in the configuration.
    pub name: String,
    /// What is behind it.
    pub store: Arc<dyn ObjectStore>,
    /// Whether it keeps a content type.
    pub attributes: bool,
    /// Where it is, for messages.
    pub place: String,
    /// How large objects are sent, where the service gives uploads a name.
    pub parts: Option<Parts>,
    /// The directory, if it is one.
    pub directory: Option<PathBuf>,
    /// Whether it takes objects in one piece only.
    pub whole_only: bool,
}

/// Uploads in parts that can be named: what a process has left, another can end.
#[derive(Clone)]
pub(super) struct Parts {
    store: Arc<dyn MultipartStore>,
    prefix: Key,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Parts {
    /// What does it.
    pub(super) fn store(&self) -> Arc<dyn MultipartStore> {
        Arc::clone(&self.store)
    }

    /// The object `key` as the service names it.
    pub(super) fn key(&self, key: &Key) -> Key {
        self.prefix.parts().chain(key.parts()).collect()
    }
}

/// There are no credentials.
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
    /// For the store `store`; `cause`: why the machine gives none.
    pub(super) fn new(store: &str, cause: &str) -> Self {
        Self { store: store.to_owned(), cause: cause.to_owned() }
    }
}

/// Says of credentials that cannot be fetched what is missing.
#[derive(Debug)]
struct Fetched {
    store: String,
    from: AwsCredentialProvider,
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

/// Opens the store called `name`; `default` is its directory if the settings name no URL.
///
/// # Errors
/// `refused`, with the line to write.
pub(super) fn open(
    name: &str,
    settings: &config::ObjectStore,
    default: &Path,
) -> Result<Open, CapabilityError> {
    use_ring();
    let config::ObjectStore { url, region, endpoint, path_style, credentials, profile, timeout } =
        settings;
    let wrong = |what: &str| {
        CapabilityError::refused(format!(
            "object store `{name}`: {what} under [object-stores.{name}]"
        ))
    };
    let Some(text) = url else {
        layout::make_own(default).map_err(|error| unusable(name, default, &error))?;
        return open_directory(name, default);
    };
    let url = Url::parse(text).map_err(|error| {
        wrong(&format!(
            "`{text}` is not a valid URL ({error}); write for example `url = \"s3://bucket\"`"
        ))
    })?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong(
            "`url` holds a user name or a password; write it without, and the credentials in files",
        ));
    }
    if let Some(what) = left_over(name, &url) {
        return Err(CapabilityError::refused(format!("object store `{name}`: {what}")));
    }
    let is_s3 = url.scheme() == "s3";
    let only_s3 = [
        ("region", region.is_some()),
        ("endpoint", endpoint.is_some()),
        ("path-style", path_style.is_some()),
        ("credentials", *credentials != config::Credentials::default()),
        ("profile", profile.is_some()),
    ];
    if let Some((key, _)) = only_s3.iter().find(|(_, is_set)| *is_set && !is_s3) {
        return Err(wrong(&format!("`{key}` is for s3:// only; remove it")));
    }
    let mut place = url.to_string();
    let timeout = timeout.unwrap_or(connector::TIMEOUT);
    let connector = || BoundedConnector::new(timeout);
    let build = |error: ::object_store::Error| {
        wrong(&format!("{}; see the keys", one_line(&error.to_string())))
    };
    let mut parts: Option<Arc<dyn MultipartStore>> = None;
    let (store, inner): (Arc<dyn ObjectStore>, &str) = match url.scheme() {
        "file" => {
            let path = url
                .to_file_path()
                .map_err(|()| wrong("`url` has a host; write `url = \"file:///directory\"`"))?;
            return open_directory(name, &path);
        }
        "memory" => (Arc::new(InMemory::new()), url.path()),
        "s3" => {
            let (builder, endpoint) = s3(name, &url, settings)?;
            let builder = builder.with_http_connector(connector());
            let from = Arc::clone(builder.clone().build().map_err(build)?.credentials());
            let fetched = Fetched { store: name.to_owned(), from };
            let s3 = Arc::new(builder.with_credentials(Arc::new(fetched)).build().map_err(build)?);
            if let Some(endpoint) = endpoint {
                place = format!("{place} at {endpoint}");
            }
            parts = Some(Arc::clone(&s3) as _);
            (s3, url.path())
        }
        "gs" => {
            let builder = GoogleCloudStorageBuilder::from_env().with_url(place.clone());
            let builder = builder.with_retry(retry()).with_client_options(client());
            let gs = Arc::new(builder.with_http_connector(connector()).build().map_err(build)?);
            parts = Some(Arc::clone(&gs) as _);
            (gs, url.path())
        }
        "az" => {
            let builder = MicrosoftAzureBuilder::from_env().with_url(place.clone());
            let builder = builder.with_retry(retry()).with_client_options(client());
            let builder = builder.with_http_connector(connector());
            (Arc::new(builder.build().map_err(build)?), url.path())
        }
        // The path is part of the URL that requests are made from.
        scheme @ ("http" | "https") => {
            let builder = HttpBuilder::new().with_url(place.clone()).with_retry(retry());
            let builder = builder.with_client_options(client().with_allow_http(scheme == "http"));
            let builder = builder.with_http_connector(connector());
            (Arc::new(builder.build().map_err(build)?), "")
        }
        scheme => {
            return Err(wrong(&format!(
                "`{scheme}://` is unknown; write s3://, gs://, az://, http(s):// or file://"
            )));
        }
    };
    let prefix =
        Key::from_url_path(inner).map_err(|error| wrong(&format!("`url`: {error}; shorten it")))?;
    let parts = parts.map(|store| Parts { store, prefix: prefix.clone() });
    let store =
        if prefix.as_ref().is_empty() { store } else { Arc::new(PrefixStore::new(store, prefix)) };
    Ok(Open {
        name: name.to_owned(),
        store,
        attributes: url.scheme() != "http" || is_s3,
        place,
        parts,
        directory: None,
        whole_only: matches!(url.scheme(), "http" | "https"),
    })
}

/// What of a URL has no meaning here, with the keys that have: parameters as `nix copy --to` takes
/// them, or a fragment.
fn left_over(name: &str, url: &Url) -> Option<String> {
    if let (None, Some(fragment)) = (url.query(), url.fragment()) {
        return Some(format!(
            "`url` has a fragment, which means nothing here; remove `#{fragment}`"
        ));
    }
    url.query()?;
    let pairs: Vec<(String, String)> =
        url.query_pairs().map(|(key, value)| (key.into_owned(), value.into_owned())).collect();
    let value = |wanted: &str| pairs.iter().find(|(key, _)| key == wanted).map(|(_, value)| value);
    // By the table that they belong in.
    let (mut store, mut plugin, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    for (key, given) in &pairs {
        match key.as_str() {
            "endpoint" if given.contains("://") => store.push(format!("`endpoint = {given:?}`")),
            "endpoint" => {
                let scheme = value("scheme").map_or("https", String::as_str);
                store.push(format!("`endpoint = \"{scheme}://{given}\"`"));
            }
            "region" | "profile" => store.push(format!("`{key} = {given:?}`")),
            "compression" => plugin.push(format!("`compression = {given:?}`")),
            "compression-level" => plugin.push(format!("`level = {given}`")),
            "priority" | "want-mass-query" => plugin.push(format!("`{key} = {given}`")),
            "secret-key" => keys.push(format!("`file = {given:?}`")),
            _ => {}
        }
    }
    let tables = [
        (store, format!("[object-stores.{name}]")),
        (plugin, "[plugins.PLUGIN.config]".to_owned()),
        (keys, "[signing-keys.\"KEY\"]".to_owned()),
    ];
    let written: Vec<String> = tables
        .iter()
        .filter(|(lines, _)| !lines.is_empty())
        .map(|(lines, table)| format!(", and write {} under {table}", lines.join(", ")))
        .collect();
    let written = written.concat();
    Some(format!("`url` has parameters, which are not read; remove them{written}"))
}

/// What a store needs of the operating system.
pub(super) fn sandbox_needs(settings: &config::ObjectStore, default: &Path) -> SandboxNeeds {
    let config::ObjectStore { url, endpoint, credentials, .. } = settings;
    let Some(url) = url else { return SandboxNeeds::directory(default) };
    let Ok(url) = Url::parse(url) else { return SandboxNeeds::default() };
    match url.scheme() {
        "file" => url
            .to_file_path()
            .map_or_else(|()| SandboxNeeds::default(), |path| SandboxNeeds::directory(&path)),
        "s3" => {
            let from_environment = AmazonS3Builder::from_env();
            let endpoint = endpoint
                .clone()
                .or_else(|| from_environment.get_config_value(&AmazonS3ConfigKey::Endpoint));
            let endpoint = endpoint.and_then(|endpoint| Url::parse(&endpoint).ok());
            let mut reach = SandboxNeeds::ports([endpoint
                .and_then(|url| url.port_or_known_default())
                .unwrap_or(HTTPS)]);
            // A role's credentials come from Amazon's token service or from the machine's metadata.
            if credentials.access_key_id_file.is_none() && !credentials.anonymous {
                reach.ports.extend([HTTP, HTTPS]);
            }
            reach
        }
        // The service, and the machine's metadata.
        "gs" | "az" => SandboxNeeds::ports([HTTP, HTTPS]),
        _ => SandboxNeeds::ports(url.port_or_known_default()),
    }
}

/// A store in memory, for `hookrun test`.
pub(super) fn in_memory(name: &str) -> Open {
    Open {
        name: name.to_owned(),
        store: Arc::new(InMemory::new()),
        attributes: true,
        place: "memory".to_owned(),
        parts: None,
        directory: None,
        whole_only: false,
    }
}

fn unusable(name: &str, path: &Path, error: &dyn std::fmt::Display) -> CapabilityError {
    CapabilityError::refused(format!(
        "object store `{name}`: directory {} cannot be used ({error}); make it, writable for the user that runs plugins",
        path.display()
    ))
}

fn open_directory(name: &str, path: &Path) -> Result<Open, CapabilityError> {
    let failed = |error: &dyn std::fmt::Display| unusable(name, path, error);
    std::fs::create_dir_all(path).map_err(|error| failed(&error))?;
    // A written object is on the disk when `put` returns: without this the crate leaves that to the
    // kernel.
    let store =
        LocalFileSystem::new_with_prefix(path).map_err(|error| failed(&error))?.with_fsync(true);
    let place = format!("file://{}", path.display());
    Ok(Open {
        name: name.to_owned(),
        store: Arc::new(store),
        attributes: false,
        place,
        parts: None,
        directory: Some(path.to_owned()),
        whole_only: false,
    })
}

/// The builder of the client, and the endpoint if one is named.
fn s3(
    name: &str,
    url: &Url,
    settings: &config::ObjectStore,
) -> Result<(AmazonS3Builder, Option<String>), CapabilityError> {
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
                let builder = AmazonS3Builder::new()
                    .with_access_key_id(profile.key_id)
                    .with_secret_access_key(profile.secret);
                profile.token.into_iter().fold(builder, AmazonS3Builder::with_token)
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
        .with_region(region)
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
    Ok((builder.with_retry(retry()).with_client_options(options), endpoint))
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

/// The one line of a file with a secret.
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

fn client() -> ClientOptions {
    ClientOptions::new().with_connect_timeout(CONNECT_TIMEOUT).with_timeout(REQUEST_TIMEOUT)
}

fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: RETRIES,
        retry_timeout: RETRY_TIMEOUT,
    }
}

/// Makes ring the process's TLS provider: the HTTP client was built without one of its own.
fn use_ring() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Someone else's choice, made earlier, serves as well.
        drop(rustls::crypto::ring::default_provider().install_default());
    });
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
