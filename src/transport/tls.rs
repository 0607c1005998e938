//! TLS: what new connections are given, made from files, and made anew when these change.
//!
//! TLS 1.3 and 1.2 with the cipher suites of rustls, which are all forward secret and authenticated. Sessions are not
//! resumed: each connection shows its certificate, and is checked against the issuers of today. Connections live for an
//! hour, so that costs nothing worth having.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use jiff::Timestamp;
use rustls::{
    RootCertStore,
    crypto::aws_lc_rs,
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::listener::{HTTP1, HTTP2, Protocol};
use crate::{
    config::{ClientCertificates, ServerConfig, TlsConfig},
    reload::{FileError, Files, Fingerprint, Reload},
};

/// Why TLS cannot be set up, in one line that names the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The certificates are missing or broken.
    #[error(
        "{}: no certificate in PEM (it must hold -----BEGIN CERTIFICATE-----)",
        .0.display()
    )]
    NoCertificate(PathBuf),
    /// A certificate of an issuer of client certificates is broken.
    #[error("{}: not the certificate of an issuer: {error}", path.display())]
    Issuer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: rustls::Error,
    },
    /// The key is missing, encrypted or broken.
    #[error(
        "{}: no private key in PEM that is not encrypted (it must hold -----BEGIN PRIVATE KEY-----)",
        .0.display()
    )]
    NoKey(PathBuf),
    /// The key belongs to another certificate.
    #[error("{} is not the key of the certificate in {}", key.display(), certificate.display())]
    OtherKey {
        /// The file of the key.
        key: PathBuf,
        /// The file of the certificate.
        certificate: PathBuf,
    },
    /// The certificate or its key cannot be used.
    #[error("{} with {}: {error}", certificate.display(), key.display())]
    Unusable {
        /// The file of the key.
        key: PathBuf,
        /// The file of the certificate.
        certificate: PathBuf,
        /// What is wrong.
        error: rustls::Error,
    },
    /// The issuers of client certificates cannot be used.
    #[error("{}: {error}", path.display())]
    Issuers {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: rustls::server::VerifierBuilderError,
    },
    /// The versions cannot be had.
    #[error("TLS cannot be set up: {0}")]
    Versions(rustls::Error),
}

/// TLS of a listener, always as its files are now.
pub struct Tls {
    config: TlsConfig,
    protocol: Protocol,
    paths: Vec<PathBuf>,
    first: Fingerprint,
    current: RwLock<Arc<rustls::ServerConfig>>,
}

impl Tls {
    /// Reads the files. Blocks.
    pub fn load(config: TlsConfig, protocol: Protocol) -> Result<Self, TlsError> {
        let mut paths = vec![config.cert_file.clone(), config.key_file.clone()];
        paths.extend(config.client_certificates.ca_file().cloned());
        let files = Files::read(&paths);
        let current = server_config(&config, protocol, &files)?;
        Ok(Self {
            config,
            protocol,
            paths,
            first: files.fingerprint(),
            current: RwLock::new(Arc::new(current)),
        })
    }

    /// What a new connection is given.
    pub fn current(&self) -> Arc<rustls::ServerConfig> {
        let current = self.current.read();
        Arc::clone(&current.unwrap_or_else(PoisonError::into_inner))
    }
}

/// TLS of each listener that has it.
#[derive(Default)]
pub struct ServerTls {
    pub(super) grpc: Option<Arc<Tls>>,
    pub(super) webhook: Option<Arc<Tls>>,
    pub(super) ops: Option<Arc<Tls>>,
}

/// Why TLS of a listener cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("server.{section}: {error}")]
pub struct SectionError {
    section: &'static str,
    error: TlsError,
}

impl ServerTls {
    /// Reads all files. Blocks.
    pub fn load(config: &ServerConfig) -> Result<Self, SectionError> {
        let load = |section, tls: &Option<TlsConfig>, protocol| {
            let loaded = tls.clone().map(|tls| Tls::load(tls, protocol)).transpose();
            let loaded = loaded.map_err(|error| SectionError { section, error })?;
            Ok(loaded.map(Arc::new))
        };
        Ok(Self {
            grpc: load("tls", &config.tls, HTTP2)?,
            webhook: load("webhook_tls", &config.webhook_tls, HTTP1)?,
            ops: load("ops_tls", &config.ops_tls, HTTP1)?,
        })
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Tls>> {
        [&self.grpc, &self.webhook, &self.ops].into_iter().flatten()
    }
}

impl Reload for Tls {
    fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    fn first(&self) -> Fingerprint {
        self.first
    }

    fn reload(&self, files: &Files, _now: Timestamp) {
        match server_config(&self.config, self.protocol, files) {
            Ok(new) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                tracing::info!("the files of TLS have changed; new connections are given the new");
            }
            Err(error) => {
                tracing::error!(%error, "the files of TLS have changed and cannot be used; the old stay in use");
            }
        }
    }
}

fn server_config(
    config: &TlsConfig,
    protocol: Protocol,
    files: &Files,
) -> Result<rustls::ServerConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(TlsError::Versions)?;
    let builder = match client_verifier(config, provider, files)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let chain = certificates(&config.cert_file, files)?;
    let key = PrivateKeyDer::from_pem_slice(files.get(&config.key_file)?)
        .map_err(|_| TlsError::NoKey(config.key_file.clone()))?;
    let mut server = builder.with_single_cert(chain, key).map_err(|error| {
        let (key, certificate) = (config.key_file.clone(), config.cert_file.clone());
        match error {
            rustls::Error::InconsistentKeys(_) => TlsError::OtherKey { key, certificate },
            error => TlsError::Unusable {
                key,
                certificate,
                error,
            },
        }
    })?;
    server.alpn_protocols = vec![protocol.name.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok(server)
}

/// What checks the certificates of clients, if they are to show any.
fn client_verifier(
    config: &TlsConfig,
    provider: Arc<rustls::crypto::CryptoProvider>,
    files: &Files,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
    let Some(path) = config.client_certificates.ca_file() else {
        return Ok(None);
    };
    let mut issuers = RootCertStore::empty();
    for certificate in certificates(path, files)? {
        issuers.add(certificate).map_err(|error| TlsError::Issuer {
            path: path.clone(),
            error,
        })?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(issuers), provider);
    let builder = match config.client_certificates {
        ClientCertificates::Optional { .. } => builder.allow_unauthenticated(),
        _ => builder,
    };
    let verifier = builder.build().map_err(|error| TlsError::Issuers {
        path: path.clone(),
        error,
    })?;
    Ok(Some(verifier))
}

/// The certificates of a file, of which there must be one.
fn certificates(path: &Path, files: &Files) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = files.get(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(TlsError::NoCertificate(path.to_owned())),
    }
}
