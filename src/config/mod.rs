//! The configuration: one TOML file over the defaults, the environment over both, checked in full before anything is
//! opened.

mod callers;
mod issuers;
mod source;
mod tls;

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use config::{Environment as EnvironmentSource, File, FileFormat};
use serde::Deserialize;

use crate::{caller::Callers, source::Source};

pub use callers::{CallerConfig, CallerError, CallersError};
pub use issuers::{IssuerConfig, IssuerError};
pub use source::{DEFAULT_ACCOUNT, DEFAULT_MAX_JSON_DEPTH, SourceConfig, SourceError};
pub use tls::{ClientCertificates, TlsConfig};

const DEFAULTS: &str = include_str!("../config.default.toml");

/// Variables of the environment, so that tests need not change those of the process.
pub type Variables = HashMap<String, String>;

/// The whole configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The listener and its limits.
    pub server: ServerConfig,
    /// The log.
    pub log: LogConfig,
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

/// The listener and its limits. See `config.default.toml` for what each is for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "documented where users read it, in config.default.toml"
)]
pub struct ServerConfig {
    pub grpc_listen: SocketAddr,
    pub insecure: bool,
    pub tls: Option<TlsConfig>,
    pub max_connections: usize,
    pub handshake_timeout_seconds: u64,
    pub write_timeout_seconds: u64,
    pub max_connection_age_seconds: u64,
    pub max_connection_age_grace_seconds: u64,
    pub reload_interval_seconds: u64,
    pub max_payload_bytes: usize,
    pub max_headers: usize,
    pub max_header_bytes: usize,
    pub max_concurrent_calls: usize,
    pub max_subscriptions: usize,
    pub max_ingest_streams: usize,
    pub call_timeout_seconds: u64,
    pub max_concurrent_streams_per_connection: u32,
    pub keepalive_interval_seconds: u64,
    pub keepalive_timeout_seconds: u64,
    pub shutdown_grace_seconds: u64,
    pub stalled_answer_timeout_seconds: u64,
    pub max_metadata_bytes: u32,
    pub max_json_depth: usize,
    pub reflection: Reflection,
    pub max_calls_per_second_per_caller: u32,
    pub max_concurrent_calls_per_caller: usize,
    pub max_subscriptions_per_caller: usize,
}

/// Who may ask the server for its services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reflection {
    /// Nobody.
    Off,
    /// Any caller of the configuration.
    Authenticated,
    /// Whoever can connect.
    Open,
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
    /// The listener would be open to others, who could read what travels, or read and write what they like.
    #[error(
        "server.grpc_listen = \"{address}\" is not loopback, and {missing}; configure {remedy}, \
         or set server.insecure = true to listen there all the same"
    )]
    Exposed {
        /// Where it would listen.
        address: SocketAddr,
        /// What is not there.
        missing: &'static str,
        /// What would put it there.
        remedy: &'static str,
    },
    /// A limit that would stop everything.
    #[error("server.{0} must be at least 1")]
    Zero(&'static str),
    /// A limit that the server could not keep.
    #[error("server.{0} must be at most {MAX_AT_ONCE}")]
    TooMany(&'static str),
    /// Files that could not be written, or would be too many.
    #[error("log.segment_bytes must be between {} and {}", SEGMENT_BYTES.start(), SEGMENT_BYTES.end())]
    SegmentBytes,
    /// More headers than could be decoded in bounded memory.
    #[error("server.max_headers must be at most {MAX_HEADERS}")]
    TooManyHeaders,
    /// A depth that JSON cannot be read to.
    #[error("server.max_json_depth must be at most {MAX_JSON_DEPTH}")]
    JsonDepth,
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
    /// The listener and its limits.
    pub server: ServerConfig,
    /// The log.
    pub log: LogConfig,
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
            sources,
            audit_path,
        })
    }
}

impl ServerConfig {
    /// Beyond loopback, connections must be encrypted and callers known, unless the operator insists.
    fn check_exposure(&self, has_callers: bool) -> Result<(), ConfigError> {
        if self.grpc_listen.ip().is_loopback() || self.insecure {
            return Ok(());
        }
        let (missing, remedy) = match (self.tls.is_some(), has_callers) {
            (true, true) => return Ok(()),
            (true, false) => ("anyone could call", "[[callers]]"),
            (false, true) => ("there is no TLS", "[server.tls]"),
            (false, false) => (
                "there is no TLS, and anyone could call",
                "[server.tls] and [[callers]]",
            ),
        };
        Err(ConfigError::Exposed {
            address: self.grpc_listen,
            missing,
            remedy,
        })
    }

    fn check(&self) -> Result<(), ConfigError> {
        let limits = [
            ("max_payload_bytes", self.max_payload_bytes as u64),
            ("max_headers", self.max_headers as u64),
            ("max_header_bytes", self.max_header_bytes as u64),
            ("max_concurrent_calls", self.max_concurrent_calls as u64),
            ("max_subscriptions", self.max_subscriptions as u64),
            ("max_ingest_streams", self.max_ingest_streams as u64),
            ("call_timeout_seconds", self.call_timeout_seconds),
            (
                "max_concurrent_streams_per_connection",
                self.max_concurrent_streams_per_connection.into(),
            ),
            (
                "keepalive_interval_seconds",
                self.keepalive_interval_seconds,
            ),
            ("keepalive_timeout_seconds", self.keepalive_timeout_seconds),
            ("max_connections", self.max_connections as u64),
            ("handshake_timeout_seconds", self.handshake_timeout_seconds),
            ("write_timeout_seconds", self.write_timeout_seconds),
            (
                "max_connection_age_seconds",
                self.max_connection_age_seconds,
            ),
            ("reload_interval_seconds", self.reload_interval_seconds),
            (
                "stalled_answer_timeout_seconds",
                self.stalled_answer_timeout_seconds,
            ),
            ("max_metadata_bytes", self.max_metadata_bytes.into()),
            ("max_json_depth", self.max_json_depth as u64),
        ];
        if let Some((name, _)) = limits.iter().find(|(_, limit)| *limit == 0) {
            return Err(ConfigError::Zero(name));
        }
        if self.max_headers > MAX_HEADERS {
            return Err(ConfigError::TooManyHeaders);
        }
        if self.max_json_depth > MAX_JSON_DEPTH {
            return Err(ConfigError::JsonDepth);
        }
        let at_once = [
            ("max_concurrent_calls", self.max_concurrent_calls),
            ("max_subscriptions", self.max_subscriptions),
            ("max_ingest_streams", self.max_ingest_streams),
            ("max_connections", self.max_connections),
        ];
        match at_once.iter().find(|(_, limit)| *limit > MAX_AT_ONCE) {
            Some((name, _)) => Err(ConfigError::TooMany(name)),
            None => Ok(()),
        }
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

/// The most headers of a webhook that a server can be told to take. Requests with more are refused before they are decoded.
pub(crate) const MAX_HEADERS: usize = 10_000;

/// How deep JSON can be read at all.
const MAX_JSON_DEPTH: usize = 127;

/// The most calls, subscriptions or connections that a server can be told to serve at once.
const MAX_AT_ONCE: usize = 1 << 20;

/// How large a file of the log may be made. Places in it are kept in 32 bits.
const SEGMENT_BYTES: RangeInclusive<u64> = 64 << 10..=1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_both_tls_and_callers_are_needed_unless_the_operator_insists() {
        let tls = "[server.tls]\ncert_file = \"c\"\nkey_file = \"k\"";
        let missing = |address: &str, more: &str, has_callers| {
            let text = format!("[server]\ngrpc_listen = \"{address}\"\n{more}");
            let config = parse(&text, &Variables::new()).expect("a configuration");
            let checked = config.server.check_exposure(has_callers);
            checked.err().map(|error| error.to_string())
        };
        for beyond in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[::ffff:127.0.0.1]:1"] {
            for (more, has_callers, expected) in [
                ("", false, "configure [server.tls] and [[callers]], or"),
                ("", true, "there is no TLS; configure [server.tls], or"),
                (tls, false, "anyone could call; configure [[callers]], or"),
            ] {
                let said = missing(beyond, more, has_callers).expect("a refusal");
                assert!(said.contains(expected), "{said}");
                assert!(said.contains("server.insecure = true"), "{said}");
                assert_eq!(missing("127.0.0.1:1", more, has_callers), None);
                assert_eq!(missing("[::1]:1", more, has_callers), None);
            }
            assert_eq!(missing(beyond, tls, true), None);
            assert_eq!(missing(beyond, "insecure = true", false), None);
        }
    }
}
