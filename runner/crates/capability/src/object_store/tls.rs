//! The certificates of `ca-file`, `client-certificate-file` and `client-key-file`, read once, when
//! the store is opened.

use std::path::Path;

use reqwest::{Certificate, ClientBuilder, Identity};

use crate::CapabilityError;
use hookrun_config as config;

/// Mozilla's whole list of authorities has 220 KiB.
const MAX_FILE: u64 = 4 << 20;

/// What connections to a store are made with.
#[derive(Debug, Clone, Default)]
pub(super) struct Tls {
    /// The only authorities that are trusted; none: those of this machine.
    authorities: Option<Vec<Certificate>>,
    /// Shown to a server that asks for a certificate.
    identity: Option<Identity>,
}

impl Tls {
    /// Reads the files that `settings` name.
    ///
    /// # Errors
    /// `refused`, with the file and the key.
    pub(super) fn read(
        name: &str,
        settings: &config::ObjectStore,
    ) -> Result<Self, CapabilityError> {
        let config::ObjectStore { ca_file, client_certificate_file, client_key_file, .. } =
            settings;
        let wrong = |what: String| {
            CapabilityError::refused(format!(
                "object store `{name}`: {what} under [object-stores.{name}]"
            ))
        };
        let at = |key: &str, file: &Path, what: &str| {
            wrong(format!(
                "`{key}`: {} {what}; write a file in PEM form that uid {}, which runs plugins, can read,",
                file.display(),
                rustix::process::geteuid().as_raw()
            ))
        };
        let pem = |key: &str, file: &Path| {
            let unreadable =
                |error: std::io::Error| at(key, file, &format!("cannot be read ({error})"));
            if std::fs::metadata(file).map_err(unreadable)?.len() > MAX_FILE {
                return Err(at(key, file, "is too long"));
            }
            std::fs::read(file).map_err(unreadable)
        };
        let mut tls = Self::default();
        if let Some(file) = ca_file {
            let certificates = Certificate::from_pem_bundle(&pem("ca-file", file)?)
                .map_err(|error| at("ca-file", file, &format!("is damaged ({error})")))?;
            if certificates.is_empty() {
                return Err(at("ca-file", file, "holds no certificate"));
            }
            tls.authorities = Some(certificates);
        }
        match (client_certificate_file, client_key_file) {
            (Some(certificate), Some(key)) => {
                let mut both = pem("client-certificate-file", certificate)?;
                both.push(b'\n');
                both.extend(pem("client-key-file", key)?);
                // The cause may quote the file.
                tls.identity = Some(Identity::from_pem(&both).map_err(|_| {
                    let what = "holds no key for the certificate of `client-certificate-file`";
                    at("client-key-file", key, what)
                })?);
            }
            (None, None) => {}
            _ => {
                return Err(wrong(
                    "`client-certificate-file` and `client-key-file` belong together; write both"
                        .to_owned(),
                ));
            }
        }
        Ok(tls)
    }

    pub(super) fn apply(&self, mut client: ClientBuilder) -> ClientBuilder {
        if let Some(authorities) = &self.authorities {
            client = client.tls_certs_only(authorities.iter().cloned());
        }
        if let Some(identity) = &self.identity {
            client = client.identity(identity.clone());
        }
        client
    }
}
