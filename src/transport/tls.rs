//! TLS: what new connections are given, made from files, and made anew when these change.
//!
//! TLS 1.3 and 1.2 with the cipher suites of rustls, which are all forward secret and authenticated. Sessions are not
//! resumed: each connection shows its certificate, and is checked against the issuers of today. Connections live for an
//! hour, so that costs nothing worth having.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use jiff::Timestamp;
use rustls::{
    RootCertStore,
    crypto::aws_lc_rs,
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject};

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
    current: RwLock<Current>,
}

/// What the files hold now.
struct Current {
    config: Arc<rustls::ServerConfig>,
    expires_at: Option<u64>,
}

impl Current {
    fn new(config: &TlsConfig, protocol: Protocol, files: &Files) -> Result<Self, TlsError> {
        Ok(Self {
            config: Arc::new(server_config(config, protocol, files)?),
            expires_at: expires_at(&certificates(&config.cert_file, files)?),
        })
    }
}

impl Tls {
    /// Reads the files. Blocks.
    pub fn load(config: TlsConfig, protocol: Protocol) -> Result<Self, TlsError> {
        let mut paths = vec![config.cert_file.clone(), config.key_file.clone()];
        paths.extend(config.client_certificates.ca_file().cloned());
        let files = Files::read(&paths);
        let current = Current::new(&config, protocol, &files)?;
        Ok(Self {
            config,
            protocol,
            paths,
            first: files.fingerprint(),
            current: RwLock::new(current),
        })
    }

    /// What a new connection is given.
    pub fn current(&self) -> Arc<rustls::ServerConfig> {
        let current = self.current.read();
        let current = current.unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current.config)
    }

    /// When the first of the certificates expires that are shown to clients, in seconds of Unix time.
    pub(super) fn expires_at(&self) -> Option<u64> {
        let current = self.current.read();
        current.unwrap_or_else(PoisonError::into_inner).expires_at
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
    error: Box<TlsError>,
}

impl ServerTls {
    /// Reads all files. Blocks.
    pub fn load(config: &ServerConfig) -> Result<Self, SectionError> {
        let load = |section, tls: &Option<TlsConfig>, protocol| {
            let loaded = tls.clone().map(|tls| Tls::load(tls, protocol)).transpose();
            let loaded = loaded.map_err(|error| SectionError {
                section,
                error: Box::new(error),
            })?;
            Ok(loaded.map(Arc::new))
        };
        Ok(Self {
            grpc: load("tls", &config.tls, HTTP2)?,
            webhook: load("webhook_tls", &config.webhook_tls, HTTP1)?,
            ops: load("ops_tls", &config.ops_tls, HTTP1)?,
        })
    }

    /// Those that there are, by the name of their listener.
    pub(super) fn named(&self) -> Vec<(&'static str, Arc<Tls>)> {
        let all = [
            ("grpc", &self.grpc),
            ("webhook", &self.webhook),
            ("ops", &self.ops),
        ];
        let those = all.into_iter();
        those
            .filter_map(|(name, tls)| Some((name, Arc::clone(tls.as_ref()?))))
            .collect()
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
        match Current::new(&self.config, self.protocol, files) {
            Ok(new) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
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

/// When the first of some certificates expires. webpki tells that only of one that has expired, so it is asked about the end
/// of time, and answers before it looks at anything else.
fn expires_at(certificates: &[CertificateDer<'_>]) -> Option<u64> {
    const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);
    let time = UnixTime::since_unix_epoch(YEAR_10000);
    let expired = certificates.iter().filter_map(|certificate| {
        let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
        let usage = webpki::KeyUsage::server_auth();
        match certificate.verify_for_usage(&[], &[], &[], time, usage, None, None) {
            Err(webpki::Error::CertExpired { not_after, .. }) => Some(not_after.as_secs()),
            _ => None,
        }
    });
    expired.min()
}
