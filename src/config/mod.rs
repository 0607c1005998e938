//! The configuration: one TOML file over the defaults, the environment over both, checked in full before anything is
//! opened.

mod callers;
mod issuers;
mod network;
mod server;
mod source;
mod telemetry;
mod tls;

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use config::{Environment as EnvironmentSource, File, FileFormat};
use serde::Deserialize;

use crate::{caller::Callers, source::Source};

pub use callers::{CallerConfig, CallerError, CallersError};
pub use issuers::{IssuerConfig, IssuerError};
pub(crate) use server::MAX_HEADERS;
pub use server::{ForwardedHeader, Reflection, ServerConfig, ServerError};
pub use source::{DEFAULT_ACCOUNT, DEFAULT_MAX_JSON_DEPTH, SourceConfig, SourceError};
pub use telemetry::{
    LogFormat, Otlp, OtlpConfig, OtlpError, Telemetry, TelemetryConfig, TelemetryError,
};
pub use tls::{ClientCertificates, TlsConfig};

const DEFAULTS: &str = include_str!("../config.default.toml");

/// Variables of the environment, so that tests need not change those of the process.
pub type Variables = HashMap<String, String>;

/// The whole configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The listeners and their limits.
    pub server: ServerConfig,
    /// The log.
    pub log: LogConfig,
    /// What operators are told.
    pub telemetry: TelemetryConfig,
    /// Who has done what.
    pub audit: AuditConfig,
    /// Where webhooks come from.
    #[serde(default)]
    pub sources: Vec<SourceConfig>,
    /// Who may call. When it is empty nobody is asked.
    #[serde(default)]
    pub callers: Vec<CallerConfig>,
    /// Who signs JWTs for callers.
    #[serde(default)]
    pub issuers: Vec<IssuerConfig>,
}

/// The audit log. See `config.default.toml` for what it holds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "documented where users read it, in config.default.toml"
)]
pub struct AuditConfig {
    pub enabled: bool,
    #[serde(default)]
    pub path: Option<PathBuf>,
}

/// The log. See `config.default.toml` for what each is for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "documented where users read it, in config.default.toml"
)]
pub struct LogConfig {
    pub kind: LogKind,
    pub path: PathBuf,
    pub segment_bytes: u64,
    pub min_free_bytes: u64,
    pub retention: Retention,
    pub unverified: UnverifiedLimits,
    pub encryption: EncryptionConfig,
}

/// How the log encrypts personal data and raw deliveries.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "documented where users read it, in config.default.toml"
)]
pub struct EncryptionConfig {
    pub enabled: bool,
    pub keys_path: PathBuf,
    pub master_key_file: PathBuf,
    pub without_keys: bool,
}

/// What is kept how long. 0 means for ever, or without a limit.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "documented where users read it, in config.default.toml"
)]
pub struct Retention {
    pub events_max_age_seconds: u64,
    pub events_max_bytes: u64,
    pub deliveries_max_age_seconds: u64,
    pub deliveries_max_bytes: u64,
    pub quarantine_max_age_seconds: u64,
    pub quarantine_max_bytes: u64,
}

/// The space for deliveries that were not proved genuine.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "documented where users read it, in config.default.toml"
)]
pub struct UnverifiedLimits {
    pub max_deliveries: u64,
    pub max_bytes: u64,
}

/// The implementations of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum LogKind {
    /// On local disk.
    Embedded,
    /// Forgotten at exit.
    Memory,
}

impl TryFrom<String> for LogKind {
    type Error = String;

    fn try_from(kind: String) -> Result<Self, String> {
        match kind.as_str() {
            "embedded" => Ok(Self::Embedded),
            "memory" => Ok(Self::Memory),
            _ => Err(format!(
                "{kind:?} is not supported by this version; embedded and memory are"
            )),
        }
    }
}

/// What is wrong with the configuration, in one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A value is missing, unknown or of the wrong type.
    #[error("{}", first_and_last_line(.0))]
    Value(#[from] config::ConfigError),
    /// There is nothing to take webhooks from.
    #[error("no [[sources]] are configured; README.md shows one")]
    NoSources,
    /// Something is wrong with the server's part.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Files that could not be written, or would be too many.
    #[error("log.segment_bytes must be between {} and {}", SEGMENT_BYTES.start(), SEGMENT_BYTES.end())]
    SegmentBytes,
    /// Something is wrong with logs or traces.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// Something is wrong with a caller or an issuer.
    #[error(transparent)]
    Callers(#[from] CallersError),
    /// Something is wrong with a source.
    #[error("source {}/{}: {error}", provider.escape_debug(), account.escape_debug())]
    Source {
        /// The provider of the source.
        provider: String,
        /// The account of the source.
        account: String,
        /// What is wrong.
        error: SourceError,
    },
}

/// An error of TOML's syntax quotes the file over several lines: where it is stands in the first, what it is in the
/// last. What is quoted may hold anything.
fn first_and_last_line(error: &config::ConfigError) -> String {
    let text = error.to_string();
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let line = match (lines.next(), lines.next_back()) {
        (Some(first), Some(last)) => format!("{first}: {last}"),
        _ => text,
    };
    line.replace(char::is_control, " ")
}

/// A configuration that can be run: checked, with its secrets read.
#[derive(Debug)]
pub struct Loaded {
    /// The listeners and their limits.
    pub server: ServerConfig,
    /// The log.
    pub log: LogConfig,
    /// What operators are told.
    pub telemetry: Telemetry,
    /// The sources.
    pub sources: Vec<Source>,
    /// Who may call.
    pub callers: Callers,
    /// Where the audit log is, if there is one.
    pub audit_path: Option<PathBuf>,
}

/// Reads the configuration and everything that it refers to.
pub fn load(path: Option<&Path>, variables: &Variables) -> Result<Loaded, ConfigError> {
    let text = match path {
        Some(path) => fs::read_to_string(path).map_err(|source| ConfigError::File {
            path: path.to_owned(),
            source,
        })?,
        None => String::new(),
    };
    parse(&text, variables)?.check(variables)
}

/// Reads a configuration file's text, with the defaults under it and the environment over it.
pub fn parse(text: &str, variables: &Variables) -> Result<Config, ConfigError> {
    let overrides = EnvironmentSource::with_prefix("VERDICT")
        .prefix_separator("__")
        .separator("__")
        .try_parsing(true)
        .source(Some(variables.clone()));
    let config = config::Config::builder()
        .add_source(File::from_str(DEFAULTS, FileFormat::Toml))
        .add_source(File::from_str(text, FileFormat::Toml))
        .add_source(overrides)
        .build()?;
    Ok(config.try_deserialize()?)
}

impl Config {
    /// Checks what types cannot, and reads the secrets.
    pub fn check(self, variables: &Variables) -> Result<Loaded, ConfigError> {
        self.server.check()?;
        self.server.check_exposure(!self.callers.is_empty())?;
        self.log.check()?;
        if self.sources.is_empty() {
            return Err(ConfigError::NoSources);
        }
        let mut seen = BTreeSet::new();
        let mut sources = Vec::new();
        for source in self.sources {
            let (provider, account) = (source.provider.clone(), source.account.clone());
            let loaded = if seen.insert((provider.clone(), account.clone())) {
                source.load(variables).map(|source| Source {
                    max_json_depth: self.server.max_json_depth,
                    ..source
                })
            } else {
                Err(SourceError::Twice)
            };
            sources.push(loaded.map_err(|error| ConfigError::Source {
                provider,
                account,
                error,
            })?);
        }
        let audit_path = match (self.audit.enabled, self.audit.path, self.log.kind) {
            (false, _, _) => None,
            (true, Some(path), _) => Some(path),
            (true, None, LogKind::Embedded) => Some(self.log.path.join("audit.jsonl")),
            // What is forgotten at exit has no place for it.
            (true, None, LogKind::Memory) => None,
        };
        let tls = self.server.tls.as_ref();
        let certificates_asked = tls.is_some_and(|tls| tls.client_certificates.ca_file().is_some());
        Ok(Loaded {
            callers: callers::load(self.callers, self.issuers, certificates_asked, variables)?,
            server: self.server,
            log: self.log,
            telemetry: self.telemetry.load(variables)?,
            sources,
            audit_path,
        })
    }
}

impl LogConfig {
    /// Where the keys of the log lie.
    pub fn keys_path(&self) -> PathBuf {
        match self.encryption.keys_path.as_os_str().is_empty() {
            true => self.path.join("keys"),
            false => self.encryption.keys_path.clone(),
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        match SEGMENT_BYTES.contains(&self.segment_bytes) {
            true => Ok(()),
            false => Err(ConfigError::SegmentBytes),
        }
    }
}

/// How large a file of the log may be made. Places in it are kept in 32 bits.
const SEGMENT_BYTES: RangeInclusive<u64> = 64 << 10..=1 << 30;
