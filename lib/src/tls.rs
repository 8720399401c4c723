//! The certificate authorities that a TLS client trusts: those of a PEM file, or those of the system. TLS is rustls on
//! ring.

use std::error::Error;
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};

use crate::{Exit, Failure};

/// Why a PEM text cannot be used.
pub type PemError = Box<dyn Error + Send + Sync>;

/// The authorities that this host trusts. An invalid certificate among them is skipped.
///
/// # Errors
/// The host trusts none (exit 78).
pub fn system_roots() -> Result<RootCertStore, Failure> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(loaded.certs);
    if !roots.is_empty() {
        return Ok(roots);
    }
    let failure = Failure::new(Exit::CONFIG, "this host trusts no certificate authority")
        .remedy("install ca-certificates, or name a file of them in SSL_CERT_FILE");
    Err(match loaded.errors.into_iter().next() {
        Some(error) => failure.because(error),
        None => failure,
    })
}

/// The authorities of a PEM text.
///
/// # Errors
/// As [`pem_certificates`]; or one cannot be an authority.
pub fn pem_roots(pem: &[u8]) -> Result<RootCertStore, PemError> {
    let mut roots = RootCertStore::empty();
    for certificate in pem_certificates(pem)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

/// The certificates of a PEM text.
///
/// # Errors
/// It is not PEM, or has no certificate.
pub fn pem_certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>()?;
    match certificates.is_empty() {
        true => Err("there is no certificate in it".into()),
        false => Ok(certificates),
    }
}

/// Client settings that trust `roots`, TLS 1.2 and 1.3.
///
/// # Errors
/// The crypto provider has no cipher suite for these versions (exit 78).
pub fn client_config(
    roots: RootCertStore,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, Failure> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::new(Exit::CONFIG, "cannot set up TLS").because(error))?;
    Ok(builder.with_root_certificates(roots))
}
