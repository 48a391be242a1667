//! Opens a store of `[object-stores.NAME]`: checks the settings, reads the credentials and makes
//! the client.
//!
//! Secrets are read here, by the process that uses them, and are passed to the client only.
//! Messages name files and variables, never their contents.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};
use std::time::Duration;

use ::object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use ::object_store::azure::MicrosoftAzureBuilder;
use ::object_store::gcp::GoogleCloudStorageBuilder;
use ::object_store::http::HttpBuilder;
use ::object_store::local::LocalFileSystem;
use ::object_store::memory::InMemory;
use ::object_store::multipart::MultipartStore;
use ::object_store::path::Path as Key;
use ::object_store::prefix::PrefixStore;
use ::object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::attributes::ObjectAttributes;
use super::connector::{self, BoundedConnector};
use super::http_put::HttpPut;
use super::once::{Condition, Conditions};
use super::pace::Pace;
use super::s3::{S3, one_line, renewal_needs, s3};
use super::signed::Signed;
use super::tls::Tls;
use crate::{CapabilityError, SandboxNeeds};
use hookrun_config as config;
use hookrun_nix::layout;

/// A server that does not take a connection in this time is down.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// One request with all of its answer, so that none goes on for ever by single bytes; what is
/// normal has shorter times ([`connector`]).
const REQUEST_TIMEOUT: Duration = Duration::from_mins(15);
/// Tries again within one call are for a dropped connection or a single 503; whatever lasts is for
/// the queue, which waits longer and survives a restart.
pub(super) const RETRIES: usize = 3;
/// Time for these tries.
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);

/// RFC 9110, section 4.2.
const HTTP: u16 = 80;
/// RFC 9110, section 4.2.
const HTTPS: u16 = 443;

/// A store that can be used.
#[derive(Debug, Clone)]
pub(super) struct Open {
    /// The name in the configuration.
    pub name: String,
    /// What is behind it.
    pub store: Arc<dyn ObjectStore>,
    /// What it keeps besides the bytes of an object.
    pub keeps: Keeps,
    /// How objects are stored if a call says nothing else.
    pub defaults: ObjectAttributes,
    /// Where it is, for messages.
    pub place: String,
    /// How large objects are sent, where the service gives uploads a name.
    pub parts: Option<Parts>,
    /// The directory, if it is one.
    pub directory: Option<PathBuf>,
    /// Requests that the library does not have, in S3.
    pub signed: Option<Signed>,
    /// How large objects are sent to a plain HTTP server.
    pub http: Option<HttpPut>,
    /// What it does with conditions of writes.
    pub conditions: Arc<Conditions>,
    /// The rate that the server asks for.
    pub pace: Arc<Pace>,
}

/// What a store keeps besides the bytes of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keeps {
    Nothing,
    /// Headers of HTTP.
    Headers,
    /// Also a storage class and tags.
    Everything,
}

/// Uploads in parts that can be named: what a process has left, another can end.
#[derive(Clone)]
pub(super) struct Parts {
    store: Arc<dyn MultipartStore>,
    prefix: Key,
    /// Whether the end of an upload may have a condition.
    pub is_s3: bool,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Parts {
    pub(super) fn store(&self) -> Arc<dyn MultipartStore> {
        Arc::clone(&self.store)
    }

    /// The object `key` as the service names it.
    pub(super) fn key(&self, key: &Key) -> Key {
        self.prefix.parts().chain(key.parts()).collect()
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
    let config::ObjectStore { url, region, endpoint, path_style, profile, timeout, .. } = settings;
    let config::ObjectStore { credentials, storage_class, tags, .. } = settings;
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
    let is_http = matches!(url.scheme(), "http" | "https");
    let is_file = matches!(url.scheme(), "file" | "memory");
    let config::ObjectStore { ca_file, client_certificate_file, .. } = settings;
    let only_others = [
        ("storage-class", storage_class.is_some(), "s3://, gs:// and az://", is_http || is_file),
        ("tags", !tags.is_empty(), "s3:// and az://", is_http || is_file || url.scheme() == "gs"),
        ("ca-file", ca_file.is_some(), "stores of the network", is_file),
        (
            "client-certificate-file",
            client_certificate_file.is_some(),
            "stores of the network",
            is_file,
        ),
    ];
    if let Some((key, _, those, _)) = only_others.iter().find(|(_, is_set, _, not)| *is_set && *not)
    {
        return Err(wrong(&format!("`{key}` is for {those} only; remove it")));
    }
    let defaults = ObjectAttributes {
        storage_class: storage_class.clone(),
        tags: tags.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        ..ObjectAttributes::default()
    };
    defaults.check().map_err(|error| wrong(&error.message))?;
    let tls = Tls::read(name, settings)?;
    let mut place = url.to_string();
    let timeout = timeout.unwrap_or(connector::TIMEOUT);
    let pace = Arc::<Pace>::default();
    let connector = || BoundedConnector::new(timeout, Arc::clone(&pace), tls.clone());
    let build = |error: ::object_store::Error| {
        wrong(&format!("{}; see the keys", one_line(&error.to_string())))
    };
    let mut parts: Option<Arc<dyn MultipartStore>> = None;
    let mut amazon = None;
    let (store, inner): (Arc<dyn ObjectStore>, &str) = match url.scheme() {
        "file" => {
            let path = url
                .to_file_path()
                .map_err(|()| wrong("`url` has a host; write `url = \"file:///directory\"`"))?;
            return open_directory(name, &path);
        }
        "memory" => (Arc::new(InMemory::new()), url.path()),
        "s3" => {
            let mut s3 = s3(name, &url, settings)?;
            s3.builder = s3.builder.with_http_connector(connector());
            let credentials = s3.credentials(name, &connector()).map_err(build)?;
            let S3 { builder, endpoint, .. } = s3;
            let s3 = Arc::new(builder.with_credentials(credentials).build().map_err(build)?);
            if let Some(endpoint) = &endpoint {
                place = format!("{place} at {endpoint}");
            }
            parts = Some(Arc::clone(&s3) as _);
            amazon = Some((Arc::clone(&s3), endpoint.unwrap_or_default()));
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
    let http = if is_http {
        let client = connector::client(&tls, url.scheme() == "http");
        let client = client
            .connect_timeout(CONNECT_TIMEOUT)
            .build()
            .map_err(|error| wrong(&format!("{}; see the keys", one_line(&error.to_string()))))?;
        Some(HttpPut { client, base: url.clone(), timeout })
    } else {
        None
    };
    let prefix =
        Key::from_url_path(inner).map_err(|error| wrong(&format!("`url`: {error}; shorten it")))?;
    let signed = amazon
        .map(|(s3, service)| {
            let bucket = url.host_str().unwrap_or_default();
            Signed::new(&s3, &connector(), bucket, &service, &prefix)
        })
        .transpose()
        .map_err(build)?;
    let parts = parts.map(|store| Parts { store, prefix: prefix.clone(), is_s3 });
    let store =
        if prefix.as_ref().is_empty() { store } else { Arc::new(PrefixStore::new(store, prefix)) };
    Ok(Open {
        name: name.to_owned(),
        store,
        keeps: if is_http { Keeps::Headers } else { Keeps::Everything },
        defaults,
        place,
        parts,
        directory: None,
        signed,
        http,
        conditions: Arc::new(Conditions::new(if is_s3 || is_http {
            Condition::Unknown
        } else {
            Condition::Honoured
        })),
        pace,
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
                let (files, ports) = renewal_needs();
                reach.reads.extend(files);
                reach.ports.extend(ports.into_iter().chain([HTTP, HTTPS]));
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
        keeps: Keeps::Everything,
        defaults: ObjectAttributes::default(),
        place: "memory".to_owned(),
        parts: None,
        directory: None,
        signed: None,
        http: None,
        conditions: Arc::new(Conditions::new(Condition::Honoured)),
        pace: Arc::default(),
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
        keeps: Keeps::Nothing,
        defaults: ObjectAttributes::default(),
        place,
        parts: None,
        directory: Some(path.to_owned()),
        signed: None,
        http: None,
        conditions: Arc::new(Conditions::new(Condition::Honoured)),
        pace: Arc::default(),
    })
}

pub(super) fn client() -> ClientOptions {
    ClientOptions::new().with_connect_timeout(CONNECT_TIMEOUT).with_timeout(REQUEST_TIMEOUT)
}

pub(super) fn retry() -> RetryConfig {
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
        // If another provider was installed earlier, it is used.
        drop(rustls::crypto::ring::default_provider().install_default());
    });
}
