//! Certificates of one test: an authority, a leaf for loopback, a client certificate, and rustls settings for them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hostkit::tls::pem_roots;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;

/// A certificate authority and the certificates it signed, as PEM files that are removed on drop.
#[derive(Debug)]
pub struct CertificateAuthority {
    directory: TempDir,
}

impl CertificateAuthority {
    /// An authority with a leaf for `localhost` and 127.0.0.1.
    #[must_use]
    pub fn new() -> Self {
        Self::with_leaf(&["localhost", "127.0.0.1"], 2099)
    }

    /// An authority whose leaf expired with the year 2000.
    #[must_use]
    pub fn expired() -> Self {
        Self::with_leaf(&["localhost", "127.0.0.1"], 2000)
    }

    /// An authority whose leaf is for another host.
    #[must_use]
    pub fn wrong_name() -> Self {
        Self::with_leaf(&["elsewhere.invalid"], 2099)
    }

    fn with_leaf(names: &[&str], last_year: i32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let issuer = {
            let mut params = named("hostkit test authority", &[]);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
        };
        let write = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).unwrap();
        };
        write("ca.pem", &issuer.pem());
        let sign = |file: &str, mut params: CertificateParams, usage| {
            params.extended_key_usages = vec![usage];
            params.use_authority_key_identifier_extension = true;
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            write(&format!("{file}.pem"), &certificate.pem());
            write(&format!("{file}.key"), &key.serialize_pem());
        };
        let mut leaf = named("hostkit test server", names);
        leaf.not_after = date_time_ymd(last_year, 12, 31);
        sign("leaf", leaf, ExtendedKeyUsagePurpose::ServerAuth);
        let client = named("hostkit test client", &["client.invalid"]);
        sign("client", client, ExtendedKeyUsagePurpose::ClientAuth);
        Self { directory }
    }

    /// The authority's own certificate, which a client must trust.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.file("ca.pem")
    }

    #[must_use]
    pub fn leaf(&self) -> PathBuf {
        self.file("leaf.pem")
    }

    #[must_use]
    pub fn leaf_key(&self) -> PathBuf {
        self.file("leaf.key")
    }

    #[must_use]
    pub fn client(&self) -> PathBuf {
        self.file("client.pem")
    }

    #[must_use]
    pub fn client_key(&self) -> PathBuf {
        self.file("client.key")
    }

    /// Server settings without client certificates.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.config(false)
    }

    /// Server settings that require a client certificate of this authority.
    #[must_use]
    pub fn server_config_for_clients(&self) -> Arc<ServerConfig> {
        self.config(true)
    }

    fn config(&self, verify_clients: bool) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if verify_clients {
            let roots = pem_roots(&std::fs::read(self.ca()).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::from_pem_file(self.leaf_key()).unwrap();
        let config = builder.with_single_cert(vec![certificate(&self.leaf())], key);
        Arc::new(config.unwrap())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Default for CertificateAuthority {
    fn default() -> Self {
        Self::new()
    }
}

fn named(common_name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.not_before = date_time_ymd(1999, 1, 1);
    params.not_after = date_time_ymd(2099, 12, 31);
    params
}

fn certificate(file: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(file).unwrap()
}
