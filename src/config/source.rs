//! One source of the configuration: its provider, its secrets, its switches.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{Variables, network};
use crate::{
    keyring::{Keyring, KeyringError, Origin, Place},
    proto::Environment,
    provider::{self, PROVIDERS, Provider, signature::Scheme},
    source::{Counts, Source},
};

/// One source, as it is written in the configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    pub(super) provider: String,
    #[serde(default = "default_account")]
    pub(super) account: String,
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
    /// Empty means from anywhere.
    #[serde(default)]
    allowed_ips: Vec<String>,
    #[serde(default)]
    options: BTreeMap<String, bool>,
}

/// The account of a source that names none, and of an Ingest call that names none.
pub const DEFAULT_ACCOUNT: &str = "default";

/// How deep the JSON of a webhook may be nested where no configuration says so: several times what any provider sends.
pub const DEFAULT_MAX_JSON_DEPTH: usize = 64;

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
    /// Not a place that webhooks could be posted from.
    #[error("allowed_ips: {0:?} is {EXPECTED}", EXPECTED = network::EXPECTED)]
    AllowedIp(String),
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
    #[error("secret {id:?}: the environment variable {} is not set", variable.escape_debug())]
    SecretVariable {
        /// The secret.
        id: String,
        /// The variable.
        variable: String,
    },
    /// A secret or a key cannot be used.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
}

impl SourceConfig {
    pub(super) fn load(self, variables: &Variables) -> Result<Source, SourceError> {
        let provider = provider::find(&self.provider).ok_or_else(|| {
            SourceError::UnknownProvider(list(PROVIDERS.iter().map(|provider| provider.name())))
        })?;
        if !is_account(&self.account) {
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

        let secrets = places(&self.secrets, variables)?;
        if secrets.is_empty() {
            return Err(SourceError::NoSecrets);
        }
        let decryption_keys = places(&self.decryption_keys, variables)?;
        let no_keys = decryption_keys.is_empty();
        let keyring = Keyring::load(secrets, decryption_keys)?;
        let plaintext = options.contains(provider::ALLOW_PLAINTEXT);
        match no_keys {
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
            keyring,
            tolerance: Duration::from_secs(self.tolerance_seconds),
            keep_unverified: self.keep_unverified,
            allowed_ips: networks(&self.allowed_ips)?,
            max_json_depth: DEFAULT_MAX_JSON_DEPTH,
            options,
            counts: Counts::default(),
        })
    }
}

/// Whether an account could be named in a request and a URL.
pub(super) fn is_account(account: &str) -> bool {
    let in_account = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=64).contains(&account.len()) && account.bytes().all(in_account)
}

/// Networks and single addresses.
fn networks(written: &[String]) -> Result<Vec<IpNet>, SourceError> {
    let network =
        |text: &String| network::parse(text).ok_or_else(|| SourceError::AllowedIp(text.clone()));
    written.iter().map(network).collect()
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

/// Where secrets come from.
fn places(configs: &[SecretConfig], variables: &Variables) -> Result<Vec<Place>, SourceError> {
    let mut ids = BTreeSet::new();
    let mut places = Vec::new();
    for config in configs {
        if !ids.insert(&config.id) {
            return Err(SourceError::IdTwice(config.id.clone()));
        }
        places.push(config.place(variables)?);
    }
    Ok(places)
}

impl SecretConfig {
    fn place(&self, variables: &Variables) -> Result<Place, SourceError> {
        let id = self.id.clone();
        let from = match (&self.env, &self.file) {
            (Some(variable), None) => match variables.get(variable) {
                Some(value) => Origin::Value(Zeroizing::new(value.clone().into_bytes())),
                None => {
                    let variable = variable.clone();
                    return Err(SourceError::SecretVariable { id, variable });
                }
            },
            (None, Some(path)) => Origin::File(path.clone()),
            _ => return Err(SourceError::SecretPlace(id)),
        };
        Ok(Place { id, from })
    }
}
