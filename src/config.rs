//! The configuration: one TOML file over the defaults, the environment over both, checked in full before anything is
//! opened.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use config::{Environment as EnvironmentSource, File, FileFormat};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{
    proto::Environment,
    provider::{
        self, PROVIDERS, Provider,
        jwe::{DecryptionKey, KeyError},
        signature::{Scheme, Secret},
    },
    source::{Counts, Source},
};

const DEFAULTS: &str = include_str!("config.default.toml");

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
    /// Where webhooks come from.
    #[serde(default)]
    pub sources: Vec<SourceConfig>,
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
    pub max_payload_bytes: usize,
    pub max_headers: usize,
    pub max_header_bytes: usize,
    pub max_concurrent_calls: usize,
    pub max_subscriptions: usize,
    pub call_timeout_seconds: u64,
    pub max_concurrent_streams_per_connection: u32,
    pub keepalive_interval_seconds: u64,
    pub keepalive_timeout_seconds: u64,
    pub shutdown_grace_seconds: u64,
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

/// One source, as it is written in the configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    provider: String,
    #[serde(default = "default_account")]
    account: String,
    #[serde(default)]
    environment: EnvironmentName,
    secrets: Vec<SecretConfig>,
    #[serde(default)]
    decryption_keys: Vec<SecretConfig>,
    /// Empty means the provider's default scheme.
    #[serde(default)]
    schemes: Vec<String>,
    #[serde(default = "default_tolerance_seconds")]
    tolerance_seconds: u64,
    #[serde(default)]
    keep_unverified: bool,
    #[serde(default)]
    options: BTreeMap<String, bool>,
}

/// The account of a source that names none, and of an Ingest call that names none.
pub const DEFAULT_ACCOUNT: &str = "default";

fn default_account() -> String {
    DEFAULT_ACCOUNT.to_owned()
}

fn default_tolerance_seconds() -> u64 {
    300
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum EnvironmentName {
    #[default]
    Live,
    Sandbox,
}

/// Where a secret comes from: a file or the environment, never the configuration itself.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretConfig {
    id: String,
    env: Option<String>,
    file: Option<PathBuf>,
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
    /// The listener would be open to anyone.
    #[error(
        "server.grpc_listen = \"{0}\" is not loopback, and this version has neither TLS nor authentication; \
         set server.insecure = true to listen there all the same"
    )]
    NotLoopback(SocketAddr),
    /// A limit that would stop everything.
    #[error("server.{0} must be at least 1")]
    Zero(&'static str),
    /// A limit that the server could not keep.
    #[error("server.{0} must be at most {MAX_AT_ONCE}")]
    TooMany(&'static str),
    /// Files that could not be written, or would be too many.
    #[error("log.segment_bytes must be between {} and {}", SEGMENT_BYTES.start(), SEGMENT_BYTES.end())]
    SegmentBytes,
    /// Something is wrong with a source.
    #[error("source {provider}/{account}: {error}")]
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
/// last.
fn first_and_last_line(error: &config::ConfigError) -> String {
    let text = error.to_string();
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    match (lines.next(), lines.next_back()) {
        (Some(first), Some(last)) => format!("{first}: {last}"),
        _ => text,
    }
}

/// What is wrong with a source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No such provider.
    #[error("unknown provider; verdict knows {0}")]
    UnknownProvider(String),
    /// Configured before.
    #[error("configured twice")]
    Twice,
    /// An account that could not be named in a request or a URL.
    #[error("the account must be 1 to 64 letters, digits, `.`, `_` or `-`")]
    Account,
    /// A scheme that is named twice.
    #[error("the scheme {0:?} is named twice")]
    SchemeTwice(String),
    /// A scheme that the provider does not have.
    #[error("unknown scheme {scheme:?}; {known} can be accepted")]
    UnknownScheme {
        /// The scheme.
        scheme: String,
        /// The schemes of the provider.
        known: String,
    },
    /// A switch that the provider does not have.
    #[error("unknown option {0:?}")]
    UnknownOption(String),
    /// Nothing to verify with.
    #[error("no secrets are configured")]
    NoSecrets,
    /// Nothing to decrypt with.
    #[error("the provider encrypts its payloads, but no decryption_keys are configured")]
    NoDecryptionKeys,
    /// Nothing to decrypt.
    #[error("decryption_keys are configured, but the provider does not encrypt")]
    NotEncrypted,
    /// Two secrets or keys with one id.
    #[error("the id {0:?} is used twice")]
    IdTwice(String),
    /// Neither or both places to read from.
    #[error("secret {0:?}: name either env or file")]
    SecretPlace(String),
    /// The variable is not set.
    #[error("secret {id:?}: the environment variable {variable} is not set")]
    SecretVariable {
        /// The secret.
        id: String,
        /// The variable.
        variable: String,
    },
    /// The file cannot be read.
    #[error("secret {id:?}: cannot read {}: {source}", path.display())]
    SecretFile {
        /// The secret.
        id: String,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file or variable is empty.
    #[error("secret {0:?} is empty")]
    SecretEmpty(String),
    /// Not a private key.
    #[error("decryption key {id:?}: {error}")]
    DecryptionKey {
        /// The key.
        id: String,
        /// What is wrong.
        error: KeyError,
    },
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
        self.log.check()?;
        if self.sources.is_empty() {
            return Err(ConfigError::NoSources);
        }
        let mut seen = BTreeSet::new();
        let mut sources = Vec::new();
        for source in self.sources {
            let (provider, account) = (source.provider.clone(), source.account.clone());
            let loaded = if seen.insert((provider.clone(), account.clone())) {
                source.load(variables)
            } else {
                Err(SourceError::Twice)
            };
            sources.push(loaded.map_err(|error| ConfigError::Source {
                provider,
                account,
                error,
            })?);
        }
        Ok(Loaded {
            server: self.server,
            log: self.log,
            sources,
        })
    }
}

impl ServerConfig {
    fn check(&self) -> Result<(), ConfigError> {
        if !self.grpc_listen.ip().is_loopback() && !self.insecure {
            return Err(ConfigError::NotLoopback(self.grpc_listen));
        }
        let limits = [
            ("max_payload_bytes", self.max_payload_bytes as u64),
            ("max_headers", self.max_headers as u64),
            ("max_header_bytes", self.max_header_bytes as u64),
            ("max_concurrent_calls", self.max_concurrent_calls as u64),
            ("max_subscriptions", self.max_subscriptions as u64),
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
        ];
        if let Some((name, _)) = limits.iter().find(|(_, limit)| *limit == 0) {
            return Err(ConfigError::Zero(name));
        }
        let at_once = [
            ("max_concurrent_calls", self.max_concurrent_calls),
            ("max_subscriptions", self.max_subscriptions),
        ];
        match at_once.iter().find(|(_, limit)| *limit > MAX_AT_ONCE) {
            Some((name, _)) => Err(ConfigError::TooMany(name)),
            None => Ok(()),
        }
    }
}

impl LogConfig {
    fn check(&self) -> Result<(), ConfigError> {
        match SEGMENT_BYTES.contains(&self.segment_bytes) {
            true => Ok(()),
            false => Err(ConfigError::SegmentBytes),
        }
    }
}

/// The most calls or subscriptions that a server can be told to serve at once.
const MAX_AT_ONCE: usize = 1 << 20;

/// How large a file of the log may be made. Places in it are kept in 32 bits.
const SEGMENT_BYTES: RangeInclusive<u64> = 64 << 10..=1 << 30;

impl SourceConfig {
    fn load(self, variables: &Variables) -> Result<Source, SourceError> {
        let provider = provider::find(&self.provider).ok_or_else(|| {
            SourceError::UnknownProvider(list(PROVIDERS.iter().map(|provider| provider.name())))
        })?;
        let in_account = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if !(1..=64).contains(&self.account.len()) || !self.account.bytes().all(in_account) {
            return Err(SourceError::Account);
        }
        if let Some(unknown) = self
            .options
            .keys()
            .find(|name| !provider.options().contains(&name.as_str()))
        {
            return Err(SourceError::UnknownOption(unknown.clone()));
        }
        let options: BTreeSet<String> = self
            .options
            .into_iter()
            .filter_map(|(name, on)| on.then_some(name))
            .collect();

        let secrets = read_all(&self.secrets, variables)?
            .into_iter()
            .map(|(id, value)| Secret::new(id, value.to_vec()))
            .collect::<Vec<_>>();
        if secrets.is_empty() {
            return Err(SourceError::NoSecrets);
        }
        let decryption_keys = read_all(&self.decryption_keys, variables)?
            .into_iter()
            .map(|(id, pem)| {
                DecryptionKey::from_pem(id.clone(), &pem)
                    .map_err(|error| SourceError::DecryptionKey { id, error })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let plaintext = options.contains(provider::ALLOW_PLAINTEXT);
        match decryption_keys.is_empty() {
            true if provider.encrypted() && !plaintext => {
                return Err(SourceError::NoDecryptionKeys);
            }
            false if !provider.encrypted() => return Err(SourceError::NotEncrypted),
            _ => {}
        }

        Ok(Source {
            schemes: schemes(provider, &self.schemes)?,
            provider,
            account: self.account,
            environment: match self.environment {
                EnvironmentName::Live => Environment::Live,
                EnvironmentName::Sandbox => Environment::Sandbox,
            },
            secrets,
            decryption_keys,
            tolerance: Duration::from_secs(self.tolerance_seconds),
            keep_unverified: self.keep_unverified,
            options,
            counts: Counts::default(),
        })
    }
}

/// The schemes with these names; the provider's default when there are none.
fn schemes(
    provider: &'static dyn Provider,
    names: &[String],
) -> Result<Vec<&'static Scheme>, SourceError> {
    if names.is_empty() {
        return Ok(provider.schemes().iter().take(1).collect());
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = names.iter().find(|name| !seen.insert(*name)) {
        return Err(SourceError::SchemeTwice(twice.clone()));
    }
    let known = provider.schemes();
    let find = |name: &String| {
        let scheme = known.iter().find(|scheme| scheme.name == name.as_str());
        scheme.ok_or_else(|| SourceError::UnknownScheme {
            scheme: name.clone(),
            known: list(known.iter().map(|scheme| scheme.name)),
        })
    };
    names.iter().map(find).collect()
}

fn list<'n>(names: impl Iterator<Item = &'n str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

/// A secret with its id.
type NamedSecret = (String, Zeroizing<Vec<u8>>);

/// Reads secrets.
fn read_all(
    configs: &[SecretConfig],
    variables: &Variables,
) -> Result<Vec<NamedSecret>, SourceError> {
    let mut ids = BTreeSet::new();
    let mut secrets = Vec::new();
    for config in configs {
        if !ids.insert(&config.id) {
            return Err(SourceError::IdTwice(config.id.clone()));
        }
        secrets.push((config.id.clone(), config.read(variables)?));
    }
    Ok(secrets)
}

impl SecretConfig {
    /// Reads the secret, without the line break that ends it.
    fn read(&self, variables: &Variables) -> Result<Zeroizing<Vec<u8>>, SourceError> {
        let id = || self.id.clone();
        let mut value = Zeroizing::new(match (&self.env, &self.file) {
            (Some(variable), None) => variables
                .get(variable)
                .ok_or_else(|| SourceError::SecretVariable {
                    id: id(),
                    variable: variable.clone(),
                })?
                .clone()
                .into_bytes(),
            (None, Some(path)) => fs::read(path).map_err(|source| SourceError::SecretFile {
                id: id(),
                path: path.clone(),
                source,
            })?,
            _ => return Err(SourceError::SecretPlace(id())),
        });
        if value.ends_with(b"\n") {
            value.pop();
        }
        if value.ends_with(b"\r") {
            value.pop();
        }
        if value.is_empty() {
            return Err(SourceError::SecretEmpty(id()));
        }
        Ok(value)
    }
}
