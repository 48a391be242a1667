//! TLS: rustls with ring, TLS 1.2 and 1.3, and the system's certificate authorities or those of the
//! grant's `ca-file`. They are read once, when the process starts and may still read them.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, TlsAlertReceivedPayload};

use hookrun_config::http::Host;

/// Maximum size of a file of certificates in bytes. Mozilla's complete list has 220 KiB.
const MAX_FILE: u64 = 4 << 20;

/// Returns the TLS configuration that trusts the authorities of `ca_file`, or the system's.
///
/// # Errors
/// Returns a sentence that ends with the fix.
pub(crate) fn trust(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(file) => {
            let wrong = |what: String| {
                let file = file.display();
                format!(
                    "the ca-file {file} {what}; it must hold certificates in PEM form and be readable for the user that runs the plugins"
                )
            };
            let mut pem = Vec::new();
            let read = std::fs::File::open(file)
                .and_then(|opened| opened.take(MAX_FILE).read_to_end(&mut pem));
            read.map_err(|error| wrong(format!("cannot be read ({error})")))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate =
                    certificate.map_err(|error| wrong(format!("is damaged ({error})")))?;
                roots.add(certificate).map_err(|error| {
                    wrong(format!("holds a certificate that cannot be used ({error})"))
                })?;
            }
            if roots.is_empty() {
                return Err(wrong("holds no certificate".to_owned()));
            }
        }
        None => {
            // Some of a system's certificates may be unusual. Those that cannot be parsed are
            // ignored.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err("this machine has no certificate authorities; install its package `ca-certificates`, or write \
                            `ca-file = \"/path\"` in the grant"
                    .to_owned());
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be used ({error}); this is a defect of hookrun"))?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    // Informs a server that also supports HTTP/2 that the client supports only HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Starts TLS on a connection to `host`. The certificate must contain that name, not the address.
///
/// # Errors
/// Returns the code for the guest and a fragment.
pub(crate) async fn connect(
    config: Arc<ClientConfig>,
    host: &Host,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, (ErrorCode, String)> {
    let name = match host {
        Host::Name(name) => ServerName::try_from(name.clone()).map_err(|_| {
            (ErrorCode::TlsCertificateError, "its name is not valid in a certificate".to_owned())
        })?,
        Host::Address(address) => ServerName::from(*address),
    };
    TlsConnector::from(config).connect(name, stream).await.map_err(|error| {
        let text = format!("no trusted TLS connection ({error})").replace('\n', " ");
        let code = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
                ErrorCode::TlsCertificateError
            }
            Some(rustls::Error::AlertReceived(alert)) => {
                ErrorCode::TlsAlertReceived(TlsAlertReceivedPayload {
                    alert_id: Some(u8::from(*alert)),
                    alert_message: Some(format!("{alert:?}")),
                })
            }
            Some(_) => ErrorCode::TlsProtocolError,
            None => ErrorCode::ConnectionTerminated,
        };
        (code, text)
    })
}
