//! Credentials. They are read from their files once, when the process starts and may still read
//! them, and added to requests by the host.
//!
//! A secret is wiped when its [`Credential`] is dropped, is never shown by `Debug`, and is never
//! part of a message. The guest can neither name nor see it: the grant names it, and the host adds
//! it after the guest has passed the request.

use std::fmt;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{HttpRequest, HttpRequestBody};
use zeroize::{Zeroize as _, Zeroizing};

use hookrun_config::HttpCredential;
use hookrun_config::http::AWS_HEADERS;

/// Maximum size of a file in bytes. A credential is one line; the longest known ones (JWTs with
/// many claims) have a few KiB.
const MAX_SECRET: u64 = 16 << 10;

/// One credential, ready to be added to requests.
pub(super) struct Credential(LoadedCredential);

enum LoadedCredential {
    /// One header.
    Header { name: HeaderName, value: Zeroizing<Vec<u8>> },
    /// A signature.
    Aws { keys: AwsKeys, region: String, service: String },
}

/// Keys that are wiped when they are dropped.
struct AwsKeys(AwsCredential);

impl Drop for AwsKeys {
    fn drop(&mut self) {
        let AwsCredential { key_id, secret_key, token } = &mut self.0;
        key_id.zeroize();
        secret_key.zeroize();
        token.zeroize();
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(..)")
    }
}

impl Credential {
    /// Reads the credential called `name`.
    ///
    /// # Errors
    /// Returns the key and a sentence that ends with the fix.
    pub(super) fn load(
        name: &str,
        settings: &HttpCredential,
    ) -> Result<Arc<Self>, (&'static str, String)> {
        let line = |key: &'static str, file: &Path| {
            line(file).map_err(|what| {
                let uid = rustix::process::geteuid().as_raw();
                let file = file.display();
                let text = format!(
                    "http credential `{name}`: `{key}`: {file} {what}; it must hold one line and be readable only for uid {uid}, which \
                     runs the plugins"
                );
                (key, text)
            })
        };
        Ok(Arc::new(Self(match settings {
            HttpCredential::Bearer { token_file } => {
                let token = line("token-file", token_file)?;
                LoadedCredential::Header {
                    name: AUTHORIZATION,
                    value: joined(&[b"Bearer ", token.as_bytes()]),
                }
            }
            HttpCredential::Basic { username, password_file } => {
                let password = line("password-file", password_file)?;
                let pair = joined(&[username.as_bytes(), b":", password.as_bytes()]);
                let encoded = Zeroizing::new(BASE64.encode(&*pair));
                LoadedCredential::Header {
                    name: AUTHORIZATION,
                    value: joined(&[b"Basic ", encoded.as_bytes()]),
                }
            }
            HttpCredential::Header { header, value_file } => {
                let value = line("value-file", value_file)?;
                let header = HeaderName::from_bytes(header.as_bytes()).map_err(|_| {
                    (
                        "header",
                        format!(
                            "http credential `{name}`: `{header}` is not a valid header; correct `header`"
                        ),
                    )
                })?;
                LoadedCredential::Header { name: header, value: joined(&[value.as_bytes()]) }
            }
            HttpCredential::AwsSigv4 {
                access_key_file,
                secret_key_file,
                session_token_file,
                region,
                service,
            } => {
                let token = session_token_file
                    .as_deref()
                    .map(|file| line("session-token-file", file))
                    .transpose()?;
                let keys = AwsKeys(AwsCredential {
                    key_id: line("access-key-file", access_key_file)?.to_string(),
                    secret_key: line("secret-key-file", secret_key_file)?.to_string(),
                    token: token.map(|token| token.to_string()),
                });
                LoadedCredential::Aws { keys, region: region.clone(), service: service.clone() }
            }
        })))
    }

    /// Returns whether it covers the body, which then has to be read completely first.
    pub(super) fn covers_body(&self) -> bool {
        matches!(self.0, LoadedCredential::Aws { .. })
    }

    /// Adds it to the headers of a request. `digest` is the SHA-256 of the body, for a credential
    /// that covers it.
    ///
    /// # Errors
    /// Returns a fragment if the request cannot be signed.
    pub(super) fn apply(
        &self,
        method: &Method,
        uri: &Uri,
        digest: &[u8; 32],
        headers: &mut HeaderMap,
    ) -> Result<(), &'static str> {
        match &self.0 {
            LoadedCredential::Header { name, value } => {
                let mut value = HeaderValue::from_bytes(value)
                    .map_err(|_| "its credential is not valid in a header")?;
                value.set_sensitive(true);
                headers.insert(name.clone(), value);
                Ok(())
            }
            LoadedCredential::Aws { keys, region, service } => {
                // The signer would panic on an invalid URL.
                url::Url::parse(&uri.to_string()).map_err(|_| "its URL cannot be signed")?;
                let mut request = HttpRequest::new(HttpRequestBody::empty());
                *request.method_mut() = method.clone();
                *request.uri_mut() = uri.clone();
                // AWS requires `host` and every `x-amz-` header to be signed. Proxies may change
                // the others.
                for (name, value) in
                    headers.iter().filter(|(name, _)| name.as_str().starts_with("x-amz-"))
                {
                    value.to_str().map_err(|_| "one of its x-amz- headers is not ASCII")?;
                    request.headers_mut().append(name, value.clone());
                }
                AwsAuthorizer::new(&keys.0, service, region)
                    .try_authorize(&mut request, Some(digest))
                    .map_err(|_| "it cannot be signed")?;
                for name in AWS_HEADERS.into_iter().map(HeaderName::from_static) {
                    if let Some(mut value) = request.headers_mut().remove(&name) {
                        value.set_sensitive(true);
                        headers.insert(name, value);
                    }
                }
                Ok(())
            }
        }
    }
}

fn joined(parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    // Allocate all of it at once, because a buffer that grows leaves copies in memory.
    let mut whole = Zeroizing::new(Vec::with_capacity(parts.iter().map(|part| part.len()).sum()));
    for part in parts {
        whole.extend_from_slice(part);
    }
    whole
}

/// Returns the only line of a file.
fn line(file: &Path) -> Result<Zeroizing<String>, String> {
    let failed = |error: std::io::Error| format!("cannot be read ({error})");
    let room = usize::try_from(MAX_SECRET).unwrap_or_default() + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    std::fs::File::open(file)
        .map_err(failed)?
        .take(MAX_SECRET + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() >= room {
        return Err("is too long".to_owned());
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| "is not UTF-8".to_owned())?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    // A header's value ends with its line, so a second line would become another header.
    if text.chars().any(char::is_control) || text != text.trim() {
        return Err("holds more than one line, or blanks around it".to_owned());
    }
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn applied(settings: &HttpCredential) -> HeaderMap {
        let credential = Credential::load("c", settings).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-target", HeaderValue::from_static("Thing.Do"));
        let uri = Uri::from_static("https://api.example.org/v1/a%20b?q=1");
        credential.apply(&Method::POST, &uri, &[7; 32], &mut headers).unwrap();
        for name in headers.keys().filter(|name| *name != "x-amz-target") {
            assert!(settings.sets(name.as_str()), "{name}");
        }
        assert!(!format!("{credential:?} {headers:?}").contains("s3cret"), "{headers:?}");
        headers
    }

    #[test]
    fn each_kind_sets_its_headers() {
        let secret = file("s3cret\n");
        let path = secret.path().to_owned();
        let headers = applied(&HttpCredential::Bearer { token_file: path.clone() });
        assert_eq!(headers["authorization"], "Bearer s3cret");
        let headers = applied(&HttpCredential::Basic {
            username: "me".to_owned(),
            password_file: path.clone(),
        });
        assert_eq!(headers["authorization"], "Basic bWU6czNjcmV0");
        let headers = applied(&HttpCredential::Header {
            header: "x-api-key".to_owned(),
            value_file: path.clone(),
        });
        assert_eq!(headers["x-api-key"], "s3cret");
        let headers = applied(&HttpCredential::AwsSigv4 {
            access_key_file: file("AKIDEXAMPLE").path().to_owned(),
            secret_key_file: path.clone(),
            session_token_file: Some(path),
            region: "eu-west-1".to_owned(),
            service: "execute-api".to_owned(),
        });
        let signature = headers["authorization"].to_str().unwrap();
        assert!(signature.contains(
            "SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token;x-amz-target"
        ));
        assert_eq!(headers["x-amz-content-sha256"], "07".repeat(32).as_str());
    }

    #[test]
    fn errors_about_a_credential_file_do_not_contain_the_secret() {
        let wrong = |text: &str| {
            let file = file(text);
            let (key, message) = Credential::load(
                "c",
                &HttpCredential::Bearer { token_file: file.path().to_owned() },
            )
            .unwrap_err();
            assert_eq!(key, "token-file");
            assert!(!message.contains("s3cret"), "{message}");
            message.replace(&file.path().display().to_string(), "FILE")
        };
        for (text, expected) in [
            ("", "is empty"),
            ("\n", "is empty"),
            ("s3cret\nx-other: 1\n", "holds more than one line"),
            (" s3cret", "blanks around it"),
        ] {
            let message = wrong(text);
            assert!(
                message.contains(expected)
                    && message.starts_with("http credential `c`: `token-file`: FILE "),
                "{message}"
            );
        }
        assert!(wrong(&"x".repeat(20_000)).contains("is too long"));
    }
}
