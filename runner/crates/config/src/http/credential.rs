//! `[http-credentials.NAME]`: the credential that the host adds to a request whose grant names it.
//! Secrets are named by their files.

use std::path::PathBuf;

use serde::Deserialize;

use crate::KeyError;

/// One credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpCredential {
    /// `Authorization: Bearer TOKEN` (RFC 6750 section 2.1).
    Bearer {
        /// A file with the token.
        token_file: PathBuf,
    },
    /// `Authorization: Basic ...` (RFC 7617).
    Basic {
        username: String,
        /// A file with the password.
        password_file: PathBuf,
    },
    /// A header of any other name.
    Header {
        header: String,
        /// A file with its value.
        value_file: PathBuf,
    },
    /// AWS Signature Version 4.
    AwsSigv4 {
        /// A file with the access key id.
        access_key_file: PathBuf,
        /// A file with the secret access key.
        secret_key_file: PathBuf,
        /// A file with a session token.
        session_token_file: Option<PathBuf>,
        /// The region, such as `eu-west-1`.
        region: String,
        /// The service, such as `execute-api`.
        service: String,
    },
}

impl HttpCredential {
    /// Returns whether it sets this header (in lower case). A request must then not contain it.
    pub fn sets(&self, header: &str) -> bool {
        match self {
            Self::Bearer { .. } | Self::Basic { .. } => header == "authorization",
            Self::Header { header: own, .. } => header == own,
            Self::AwsSigv4 { .. } => AWS_HEADERS.contains(&header),
        }
    }

    /// Returns the files that it is read from, each with its key.
    pub fn files(&self) -> Vec<(&'static str, &PathBuf)> {
        match self {
            Self::Bearer { token_file } => vec![("token-file", token_file)],
            Self::Basic { username: _, password_file } => vec![("password-file", password_file)],
            Self::Header { header: _, value_file } => vec![("value-file", value_file)],
            Self::AwsSigv4 {
                access_key_file,
                secret_key_file,
                session_token_file,
                region: _,
                service: _,
            } => {
                let mut files = vec![
                    ("access-key-file", access_key_file),
                    ("secret-key-file", secret_key_file),
                ];
                files.extend(session_token_file.iter().map(|file| ("session-token-file", file)));
                files
            }
        }
    }

    /// Returns the same files so that their paths can be changed.
    pub(crate) fn files_mut(&mut self) -> Vec<&mut PathBuf> {
        match self {
            Self::Bearer { token_file } => vec![token_file],
            Self::Basic { username: _, password_file } => vec![password_file],
            Self::Header { header: _, value_file } => vec![value_file],
            Self::AwsSigv4 { access_key_file, secret_key_file, session_token_file, .. } => {
                [access_key_file, secret_key_file].into_iter().chain(session_token_file).collect()
            }
        }
    }
}

/// The headers of a signature.
pub const AWS_HEADERS: [&str; 4] =
    ["authorization", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum CredentialKind {
    Bearer,
    Basic,
    Header,
    AwsSigv4,
}

impl CredentialKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Bearer => "bearer",
            Self::Basic => "basic",
            Self::Header => "header",
            Self::AwsSigv4 => "aws-sigv4",
        }
    }
}

/// The table as written, with all keys of all kinds. An enum with a tag would lose the lines of the
/// keys.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct CredentialTable {
    kind: CredentialKind,
    token_file: Option<PathBuf>,
    username: Option<String>,
    password_file: Option<PathBuf>,
    header: Option<String>,
    value_file: Option<PathBuf>,
    access_key_file: Option<PathBuf>,
    secret_key_file: Option<PathBuf>,
    session_token_file: Option<PathBuf>,
    region: Option<String>,
    service: Option<String>,
}

impl CredentialTable {
    /// Checks the table called `name`.
    pub(crate) fn checked(self, name: &str) -> Result<HttpCredential, KeyError> {
        let Self {
            kind,
            token_file,
            username,
            password_file,
            header,
            value_file,
            access_key_file,
            secret_key_file,
            session_token_file,
            region,
            service,
        } = self;
        let of = [
            ("token-file", token_file.is_some(), CredentialKind::Bearer),
            ("username", username.is_some(), CredentialKind::Basic),
            ("password-file", password_file.is_some(), CredentialKind::Basic),
            ("header", header.is_some(), CredentialKind::Header),
            ("value-file", value_file.is_some(), CredentialKind::Header),
            ("access-key-file", access_key_file.is_some(), CredentialKind::AwsSigv4),
            ("secret-key-file", secret_key_file.is_some(), CredentialKind::AwsSigv4),
            ("session-token-file", session_token_file.is_some(), CredentialKind::AwsSigv4),
            ("region", region.is_some(), CredentialKind::AwsSigv4),
            ("service", service.is_some(), CredentialKind::AwsSigv4),
        ];
        if let Some((key, _, other)) = of.iter().find(|(_, set, of)| *set && *of != kind) {
            let other = other.as_str();
            return Err(KeyError::new(
                &[key],
                format!(
                    "`{key}` of [http-credentials.{name}] is for `kind = \"{other}\"` only; write that, or remove `{key}`"
                ),
            ));
        }
        let missing = |key: &'static str, example: &str| {
            let kind = kind.as_str();
            KeyError::new(
                &["kind"],
                format!(
                    "[http-credentials.{name}] is of the kind `{kind}` and lacks `{key}`; write `{key} = \"{example}\"`"
                ),
            )
        };
        Ok(match kind {
            CredentialKind::Bearer => HttpCredential::Bearer {
                token_file: token_file.ok_or_else(|| missing("token-file", "/path"))?,
            },
            CredentialKind::Basic => {
                let username = username.ok_or_else(|| missing("username", "NAME"))?;
                // RFC 7617 section 2: the first colon ends the user name.
                if username.contains(':') || username.chars().any(char::is_control) {
                    return Err(KeyError::new(
                        &["username"],
                        format!(
                            "`username` of [http-credentials.{name}] may not hold `:` or control characters; correct it"
                        ),
                    ));
                }
                HttpCredential::Basic {
                    username,
                    password_file: password_file
                        .ok_or_else(|| missing("password-file", "/path"))?,
                }
            }
            CredentialKind::Header => {
                let header = header.ok_or_else(|| missing("header", "x-api-key"))?;
                let token = !header.is_empty()
                    && header
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
                if !token || RESERVED.iter().any(|reserved| header.eq_ignore_ascii_case(reserved)) {
                    return Err(KeyError::new(
                        &["header"],
                        format!(
                            "`{header}` cannot be the `header` of [http-credentials.{name}]; write for example `x-api-key`"
                        ),
                    ));
                }
                HttpCredential::Header {
                    header: header.to_ascii_lowercase(),
                    value_file: value_file.ok_or_else(|| missing("value-file", "/path"))?,
                }
            }
            CredentialKind::AwsSigv4 => HttpCredential::AwsSigv4 {
                access_key_file: access_key_file
                    .ok_or_else(|| missing("access-key-file", "/path"))?,
                secret_key_file: secret_key_file
                    .ok_or_else(|| missing("secret-key-file", "/path"))?,
                session_token_file,
                region: region.ok_or_else(|| missing("region", "eu-west-1"))?,
                service: service.ok_or_else(|| missing("service", "execute-api"))?,
            },
        })
    }
}

/// Headers that frame or route a message (RFC 9110 sections 7 and 8.6, RFC 9112). A credential
/// cannot set them.
const RESERVED: [&str; 8] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
