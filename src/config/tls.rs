//! TLS of a listener, as it is written in the configuration: where the files are, and whether clients need a certificate.

use std::path::PathBuf;

use serde::Deserialize;

/// TLS of a listener. See `config.default.toml` for what each is for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
#[expect(
    missing_docs,
    reason = "documented where users read it, in config.default.toml"
)]
pub struct TlsConfig {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    pub client_certificates: ClientCertificates,
}

/// Whether clients show a certificate, and who may have issued it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// They are not asked.
    None,
    /// They may. One that they show must be good.
    Optional {
        /// The certificates of its issuers.
        ca_file: PathBuf,
    },
    /// They must.
    Required {
        /// The certificates of its issuers.
        ca_file: PathBuf,
    },
}

impl ClientCertificates {
    /// The certificates of the issuers.
    pub fn ca_file(&self) -> Option<&PathBuf> {
        match self {
            Self::None => None,
            Self::Optional { ca_file } | Self::Required { ca_file } => Some(ca_file),
        }
    }
}

/// The keys as they are written, before it is known that they go together.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    cert_file: PathBuf,
    key_file: PathBuf,
    client_ca_file: Option<PathBuf>,
    #[serde(default)]
    client_certificates: Choice,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Choice {
    #[default]
    None,
    Optional,
    Required,
}

impl TryFrom<Written> for TlsConfig {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let client_certificates = match (written.client_certificates, written.client_ca_file) {
            (Choice::None, None) => ClientCertificates::None,
            (Choice::Optional, Some(ca_file)) => ClientCertificates::Optional { ca_file },
            (Choice::Required, Some(ca_file)) => ClientCertificates::Required { ca_file },
            (Choice::None, Some(_)) => {
                return Err(
                    "client_ca_file does nothing unless client_certificates is \"optional\" or \"required\"",
                );
            }
            (_, None) => {
                return Err(
                    "client_certificates needs client_ca_file, the certificates of those who issue them",
                );
            }
        };
        Ok(Self {
            cert_file: written.cert_file,
            key_file: written.key_file,
            client_certificates,
        })
    }
}
