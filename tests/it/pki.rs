//! Certificates, made for a test and gone with it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize, SanType, date_time_ymd,
};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use verdict::config::{ClientCertificates, ServerConfig, TlsConfig};

use crate::support::server_config;

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Pair {
    /// Writes both into a directory, as `<name>.crt` and `<name>.key`.
    pub(crate) fn write(&self, directory: &Path, name: &str) -> (PathBuf, PathBuf) {
        let path = |extension| directory.join(format!("{name}.{extension}"));
        let (certificate, key) = (path("crt"), path("key"));
        fs::write(&certificate, &self.certificate).expect("a file");
        fs::write(&key, &self.key).expect("a file");
        (certificate, key)
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity::from_pem(&self.certificate, &self.key)
    }
}

/// A certificate authority.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a server on this machine.
    pub(crate) fn server(&self) -> Pair {
        self.issue(server_params(), KeyPair::generate().expect("a key"))
    }

    /// The same with an RSA key, which other cipher suites need.
    pub(crate) fn rsa_server(&self) -> Pair {
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048);
        self.issue(server_params(), key.expect("a key"))
    }

    /// A certificate for a server that expired years ago.
    pub(crate) fn expired_server(&self) -> Pair {
        self.issue(
            expired(server_params()),
            KeyPair::generate().expect("a key"),
        )
    }

    /// A certificate for a client.
    pub(crate) fn client(&self) -> Pair {
        self.issue(client_params(), KeyPair::generate().expect("a key"))
    }

    /// A certificate for a client that expired years ago.
    pub(crate) fn expired_client(&self) -> Pair {
        self.issue(
            expired(client_params()),
            KeyPair::generate().expect("a key"),
        )
    }

    fn issue(&self, params: CertificateParams, key: KeyPair) -> Pair {
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    /// Shakes hands with a server that it has issued a certificate to, as a client that speaks HTTP/2.
    pub(crate) async fn handshake(&self, tcp: TcpStream) -> TlsStream<TcpStream> {
        self.handshake_for(&[b"h2"], tcp).await
    }

    /// The same as a client that speaks one of these protocols.
    pub(crate) async fn handshake_for(
        &self,
        protocols: &[&[u8]],
        tcp: TcpStream,
    ) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("good versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let name = "localhost".try_into().expect("a name");
        let shaken = TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await;
        shaken.expect("a handshake")
    }

    /// What a client needs that trusts this authority.
    pub(crate) fn trusted(&self) -> ClientTlsConfig {
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(self.pem()))
    }
}

/// A client's certificate that nobody but itself has signed.
pub(crate) fn self_signed_client() -> Pair {
    let key = KeyPair::generate().expect("a key");
    let certificate = client_params().self_signed(&key).expect("a certificate");
    Pair {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    }
}

fn server_params() -> CertificateParams {
    let names = ["localhost", "127.0.0.1"].map(str::to_owned);
    let mut params = CertificateParams::new(names).expect("good names");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn client_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    let uri = "spiffe://tests/gateway".try_into().expect("a URI");
    let name = "gateway.tests".try_into().expect("a name");
    // What looks like a DNS name is none when it says that it is a URI.
    let no_uri = "admin.tests".try_into().expect("a text");
    params.subject_alt_names = vec![
        SanType::DnsName(name),
        SanType::URI(no_uri),
        SanType::URI(uri),
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn expired(mut params: CertificateParams) -> CertificateParams {
    params.not_before = date_time_ymd(2019, 1, 1);
    params.not_after = date_time_ymd(2020, 1, 1);
    params
}

/// A server's configuration with TLS, from the files of a directory: `tls.crt`, `tls.key`, and with client certificates
/// `ca.crt`.
pub(crate) fn tls_config(directory: &Path, clients: Clients) -> ServerConfig {
    let ca_file = directory.join("ca.crt");
    ServerConfig {
        tls: Some(TlsConfig {
            cert_file: directory.join("tls.crt"),
            key_file: directory.join("tls.key"),
            client_certificates: match clients {
                Clients::None => ClientCertificates::None,
                Clients::Optional => ClientCertificates::Optional { ca_file },
                Clients::Required => ClientCertificates::Required { ca_file },
            },
        }),
        reload_interval_seconds: 1,
        ..server_config()
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Clients {
    None,
    Optional,
    Required,
}
