//! What operators are told, as it is written in the configuration: logs, and where traces are sent.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderName, Uri};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use secrecy::SecretString;
use serde::Deserialize;

use super::Variables;
use crate::{
    reload::shown,
    telemetry::logs::{Levels, LevelsError},
};

/// Logs and traces. See `config.default.toml` for what each is for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "documented where users read it, in config.default.toml"
)]
pub struct TelemetryConfig {
    pub log_format: LogFormat,
    pub log_levels: String,
    pub otlp: Option<OtlpConfig>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Where traces are sent, as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "documented where users read it, in config.default.toml"
)]
pub struct OtlpConfig {
    pub endpoint: String,
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    #[serde(default)]
    headers: BTreeMap<String, ValuePlace>,
    #[serde(default = "always")]
    pub sample_ratio: f64,
    #[serde(default = "ten_seconds")]
    pub timeout_seconds: u64,
    #[serde(default)]
    pub resource: BTreeMap<String, String>,
}

fn always() -> f64 {
    1.0
}

fn ten_seconds() -> u64 {
    10
}

/// Where the value of a header comes from: a file or the environment, because it may be a password.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ValuePlace {
    env: Option<String>,
    file: Option<PathBuf>,
}

/// Logs and traces, checked, with everything read.
#[derive(Debug)]
pub struct Telemetry {
    /// How log lines look.
    pub log_format: LogFormat,
    /// Which log lines there are, by module.
    pub log_levels: Levels,
    /// Where traces are sent, if they are.
    pub otlp: Option<Otlp>,
}

/// A receiver of traces.
#[derive(Debug)]
pub struct Otlp {
    /// Its address: http or https.
    pub endpoint: String,
    /// The certificates, in PEM, of those who may have issued its own. Those of the system when there are none.
    pub ca_pem: Option<Vec<u8>>,
    /// What it is sent as metadata, with each request.
    pub headers: Vec<(HeaderName, SecretString)>,
    /// Which share of the traces that begin here is sent, from 0 to 1. A trace that began elsewhere is sent if its caller
    /// sends it.
    pub sample_ratio: f64,
    /// How long one request may take.
    pub timeout: Duration,
    /// What is told of this process with every trace.
    pub resource: BTreeMap<String, String>,
}

/// What is wrong with logs and traces.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Something is wrong with which log lines there are.
    #[error("telemetry.log_levels {0}")]
    Levels(#[from] LevelsError),
    /// Something is wrong with where traces are sent.
    #[error("telemetry.otlp: {0}")]
    Otlp(#[from] OtlpError),
}

/// What is wrong with where traces are sent.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// The address cannot be called.
    #[error("endpoint must be http://host:port or https://host:port, and is {0:?}")]
    Endpoint(String),
    /// The certificates cannot be read.
    #[error("ca_file: {}: {error}", shown(path))]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Certificates without a use.
    #[error("ca_file does nothing for an endpoint that is not https")]
    NoTls,
    /// A name that no header has.
    #[error("the header name {0:?} is not one")]
    HeaderName(String),
    /// The value cannot be had.
    #[error("header {name}: {why}")]
    HeaderValue {
        /// The header.
        name: String,
        /// Why not.
        why: String,
    },
    /// A share that is none.
    #[error("sample_ratio must be between 0 and 1")]
    SampleRatio,
    /// No time at all.
    #[error("timeout_seconds must be at least 1")]
    Timeout,
}

impl TelemetryConfig {
    pub(super) fn load(self, variables: &Variables) -> Result<Telemetry, TelemetryError> {
        Ok(Telemetry {
            log_format: self.log_format,
            log_levels: self.log_levels.parse()?,
            otlp: self.otlp.map(|otlp| otlp.load(variables)).transpose()?,
        })
    }
}

impl OtlpConfig {
    fn load(self, variables: &Variables) -> Result<Otlp, OtlpError> {
        let uri = self.endpoint.parse::<Uri>().ok();
        let uri = uri.filter(|uri| uri.host().is_some_and(|host| !host.is_empty()));
        let tls = match uri.as_ref().and_then(Uri::scheme_str) {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(OtlpError::Endpoint(self.endpoint)),
        };
        if self.ca_file.is_some() && !tls {
            return Err(OtlpError::NoTls);
        }
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            return Err(OtlpError::SampleRatio);
        }
        if self.timeout_seconds == 0 {
            return Err(OtlpError::Timeout);
        }
        let read =
            |path: PathBuf| certificates(&path).map_err(|error| OtlpError::CaFile { path, error });
        let headers = self.headers.into_iter().map(|(name, place)| {
            let parsed = HeaderName::try_from(name.as_str());
            let parsed = parsed.map_err(|_| OtlpError::HeaderName(name.clone()))?;
            let value = place.read(variables);
            let value = value.map_err(|why| OtlpError::HeaderValue { name, why })?;
            Ok((parsed, value))
        });
        Ok(Otlp {
            headers: headers.collect::<Result<_, OtlpError>>()?,
            endpoint: self.endpoint,
            ca_pem: self.ca_file.map(read).transpose()?,
            sample_ratio: self.sample_ratio,
            timeout: Duration::from_secs(self.timeout_seconds),
            resource: self.resource,
        })
    }
}

/// What is in a file of certificates, of which there must be one.
fn certificates(path: &Path) -> io::Result<Vec<u8>> {
    let pem = fs::read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(pem),
        _ => Err(io::Error::other("it holds no certificate in PEM")),
    }
}

impl ValuePlace {
    fn read(self, variables: &Variables) -> Result<SecretString, String> {
        let text = match (self.env, self.file) {
            (Some(variable), None) => match variables.get(&variable) {
                Some(value) => value.clone(),
                None => return Err(format!("the environment variable {variable:?} is not set")),
            },
            (None, Some(path)) => {
                fs::read_to_string(&path).map_err(|error| format!("{}: {error}", shown(&path)))?
            }
            _ => return Err("name either env or file".to_owned()),
        };
        let text = text.trim();
        match text.bytes().all(|b| (0x20..0x7f).contains(&b)) && !text.is_empty() {
            true => Ok(SecretString::from(text)),
            false => Err("the value is empty, or holds what a header cannot".to_owned()),
        }
    }
}
