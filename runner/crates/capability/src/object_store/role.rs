//! Temporary credentials of a role: `AssumeRole` of AWS's token service (STS), signed with the
//! credentials of another profile, the environment or the machine. They are renewed before they
//! end.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::object_store::aws::{AwsAuthorizer, AwsCredential, AwsCredentialProvider};
use ::object_store::client::{HttpClient, HttpRequestBody};
use ::object_store::{CredentialProvider, Error, Result};
use async_trait::async_trait;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request};
use http_body_util::BodyExt as _;
use tokio::sync::Mutex;
use url::form_urlencoded::Serializer;

/// The name of the session if the profile has none.
const SESSION: &str = "hookrun";
/// Credentials are renewed so long before they end, or at half of their life.
const BEFORE_END: Duration = Duration::from_mins(5);
/// The life of credentials whose end cannot be read. It is the shortest that STS gives.
const SHORTEST: Duration = Duration::from_mins(15);
/// The version of the interface of STS.
const VERSION: &str = "2011-06-15";

/// What a profile says about a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Role {
    pub arn: String,
    pub session: Option<String>,
    pub external_id: Option<String>,
    /// In seconds.
    pub duration: Option<String>,
}

impl Role {
    /// The body of the request.
    fn form(&self) -> String {
        let mut form = Serializer::new(String::new());
        form.append_pair("Action", "AssumeRole")
            .append_pair("Version", VERSION)
            .append_pair("RoleArn", &self.arn)
            .append_pair("RoleSessionName", self.session.as_deref().unwrap_or(SESSION));
        if let Some(id) = &self.external_id {
            form.append_pair("ExternalId", id);
        }
        if let Some(seconds) = &self.duration {
            form.append_pair("DurationSeconds", seconds);
        }
        form.finish()
    }
}

/// Fetches the credentials of a role.
pub(super) struct AssumeRole {
    pub role: Role,
    pub from: AwsCredentialProvider,
    pub region: String,
    /// The URL of STS.
    pub endpoint: String,
    pub http: HttpClient,
    /// The credentials with the time of their renewal.
    pub cached: Mutex<Option<(Arc<AwsCredential>, SystemTime)>>,
}

impl fmt::Debug for AssumeRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AssumeRole").field("role", &self.role.arn).finish_non_exhaustive()
    }
}

#[async_trait]
impl CredentialProvider for AssumeRole {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> Result<Arc<AwsCredential>> {
        let mut cached = self.cached.lock().await;
        if let Some((credential, renewal)) = &*cached
            && SystemTime::now() < *renewal
        {
            return Ok(Arc::clone(credential));
        }
        let text = self.ask().await?;
        let (credential, end) = parse(&text).ok_or_else(|| failed("the answer is not usable"))?;
        let credential = Arc::new(credential);
        *cached = Some((Arc::clone(&credential), renewal(SystemTime::now(), end)));
        Ok(credential)
    }
}

impl AssumeRole {
    async fn ask(&self) -> Result<String> {
        let role = &self.role;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(&self.endpoint)
            .body(HttpRequestBody::from(role.form()))
            .map_err(failed)?;
        let is_form = HeaderValue::from_static("application/x-www-form-urlencoded; charset=utf-8");
        request.headers_mut().insert(CONTENT_TYPE, is_form);
        let credential = self.from.get_credential().await?;
        AwsAuthorizer::new(&credential, "sts", &self.region).try_authorize(&mut request, None)?;
        let answer = self.http.execute(request).await.map_err(failed)?;
        let (head, body) = answer.into_parts();
        // The connector bounds it.
        let body = body.collect().await.map_err(failed)?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        if head.status.is_success() {
            return Ok(text);
        }
        let said = |name| element(&text, name).unwrap_or_default();
        let (code, message) = (said("Code"), said("Message"));
        Err(failed(format!(
            "the role {} cannot be assumed: HTTP status {}, {code}: {message}",
            role.arn,
            head.status.as_u16()
        )))
    }
}

fn failed(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic { store: "STS", source: source.into() }
}

/// The credentials of an answer, and their end.
fn parse(text: &str) -> Option<(AwsCredential, Option<SystemTime>)> {
    let (_, credentials) = text.split_once("<Credentials>")?;
    let value = |name| element(credentials, name).filter(|value| !value.is_empty());
    let credential = AwsCredential {
        key_id: value("AccessKeyId")?.to_owned(),
        secret_key: value("SecretAccessKey")?.to_owned(),
        token: Some(value("SessionToken")?.to_owned()),
    };
    let end = value("Expiration").and_then(|time| humantime::parse_rfc3339_weak(time).ok());
    Some((credential, end))
}

fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(value, _)| value.trim())
}

fn renewal(now: SystemTime, end: Option<SystemTime>) -> SystemTime {
    let life = end.map_or(SHORTEST, |end| end.duration_since(now).unwrap_or_default());
    now + life.checked_sub(BEFORE_END).unwrap_or_default().max(life / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_sts_is_read() {
        let text = "<AssumeRoleResponse><AssumeRoleResult><Credentials>\
            <AccessKeyId>ASIA1</AccessKeyId><SecretAccessKey>s/1+</SecretAccessKey>\
            <SessionToken>t==</SessionToken><Expiration>2026-11-28T12:00:00Z</Expiration>\
            </Credentials></AssumeRoleResult></AssumeRoleResponse>";
        let (credential, end) = parse(text).unwrap();
        assert_eq!(credential.key_id, "ASIA1");
        assert_eq!(credential.secret_key, "s/1+");
        assert_eq!(credential.token.as_deref(), Some("t=="));
        assert_eq!(end, humantime::parse_rfc3339_weak("2026-11-28 12:00:00").ok());
        assert!(parse("<Credentials><AccessKeyId>A</AccessKeyId></Credentials>").is_none());
    }

    #[test]
    fn credentials_are_renewed_before_they_end() {
        let now = SystemTime::UNIX_EPOCH;
        let after = |seconds| {
            let end = Some(now + Duration::from_secs(seconds));
            renewal(now, end).duration_since(now).unwrap().as_secs()
        };
        assert_eq!([after(3600), after(900), after(400), after(0)], [3300, 600, 200, 0]);
        assert_eq!(renewal(now, None), now + Duration::from_mins(10));
    }
}
