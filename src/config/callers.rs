//! Callers and issuers of the configuration: who may call, how they prove who they are, and what they may do.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs, io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use http::Uri;
use jsonwebtoken::Algorithm;
use serde::Deserialize;

use super::Variables;
use crate::{
    caller::{
        Caller, Callers, Issuer, KeySet, KeySetError, Limits, Member, Place, Token, TokenHash,
        certificate_name,
    },
    proto::Scope,
    provider::{self, PROVIDERS},
};

/// One caller, as it is written in the configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallerConfig {
    name: String,
    #[serde(default)]
    tokens: Vec<TokenConfig>,
    #[serde(default)]
    certificates: Vec<String>,
    #[serde(default)]
    subjects: Vec<SubjectConfig>,
    #[serde(default)]
    grants: Vec<GrantConfig>,
}

/// Where the SHA-256 of a token comes from. The token itself is never in the configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenConfig {
    id: String,
    sha256: Option<String>,
    env: Option<String>,
    file: Option<PathBuf>,
}

/// A subject of an issuer.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubjectConfig {
    issuer: String,
    subject: String,
}

/// Some scopes, and how far they reach.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantConfig {
    scopes: Vec<String>,
    #[serde(default)]
    providers: BTreeSet<String>,
    #[serde(default)]
    accounts: BTreeSet<String>,
}

/// One issuer of JWTs, as it is written in the configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    name: String,
    issuer: String,
    audiences: Vec<String>,
    jwks_file: Option<PathBuf>,
    jwks_url: Option<String>,
    #[serde(default = "default_refresh_seconds")]
    jwks_refresh_seconds: u64,
    #[serde(default = "default_algorithms")]
    algorithms: Vec<String>,
    #[serde(default = "default_leeway_seconds")]
    leeway_seconds: u64,
}

fn default_refresh_seconds() -> u64 {
    300
}

fn default_algorithms() -> Vec<String> {
    ["RS256", "ES256"].map(str::to_owned).into()
}

fn default_leeway_seconds() -> u64 {
    60
}

const LEAST_REFRESH_SECONDS: u64 = 10;
const MOST_LEEWAY_SECONDS: u64 = 600;

/// What is wrong with a caller.
#[derive(Debug, thiserror::Error)]
pub enum CallerError {
    /// A name that could not stand before that of a consumer.
    #[error("the name must be 1 to 64 lower-case letters, digits, `.`, `_` or `-`")]
    Name,
    /// Two callers with one name.
    #[error("configured twice")]
    Twice,
    /// Nobody could be this caller.
    #[error("no credentials: give it tokens, certificates or subjects")]
    NoCredentials,
    /// It could do nothing.
    #[error("no grants: add [[callers.grants]] with the scopes that it may use")]
    NoGrants,
    /// A grant of nothing.
    #[error("a grant without scopes")]
    NoScopes,
    /// No such scope.
    #[error("unknown scope {0:?}; there are ingest, subscribe, personal_data, backfill and admin")]
    UnknownScope(String),
    /// A scope that does nothing without another.
    #[error("the scope {0} only adds to {1}, which it has not")]
    Alone(&'static str, &'static str),
    /// No such provider.
    #[error("unknown provider {0:?} in a grant; verdict knows {1}")]
    UnknownProvider(String, String),
    /// No such account could be.
    #[error("the account {0:?} in a grant is not one that a source could have")]
    Account(String),
    /// A token without a name.
    #[error("the id of a token must be 1 to 64 characters, none of them of a control character")]
    TokenId,
    /// Two tokens with one id.
    #[error("the token id {0:?} is used twice")]
    TokenIdTwice(String),
    /// None or several places to read from.
    #[error("token {0:?}: name one of sha256, env and file")]
    TokenPlace(String),
    /// The variable is not set.
    #[error("token {id:?}: the environment variable {variable} is not set")]
    TokenVariable {
        /// The token.
        id: String,
        /// The variable.
        variable: String,
    },
    /// The file cannot be read.
    #[error("token {id:?}: cannot read {}: {source}", path.display())]
    TokenFile {
        /// The token.
        id: String,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What was read is no hash. It may be the token, so it is not quoted.
    #[error(
        "token {0:?}: its SHA-256 must be 64 hex digits, not the token itself; verdict token new makes both"
    )]
    TokenHash(String),
    /// One token for two.
    #[error("token {0:?} is the token of another entry too")]
    TokenTwice(String),
    /// A name of a certificate that cannot be one.
    #[error("the certificate name {0:?} is neither a URI nor a DNS name")]
    Certificate(String),
    /// One certificate for two.
    #[error("the certificate name {0:?} is used twice")]
    CertificateTwice(String),
    /// No such issuer.
    #[error("the issuer {0:?} of a subject is not among [[issuers]]")]
    UnknownIssuer(String),
    /// Nobody.
    #[error("a subject is empty")]
    Subject,
    /// One subject for two.
    #[error("the subject {subject:?} of issuer {issuer:?} is used twice")]
    SubjectTwice {
        /// The issuer.
        issuer: String,
        /// The subject.
        subject: String,
    },
}

/// What is wrong with an issuer.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// A name that could not be read in the audit log.
    #[error("the name must be 1 to 64 lower-case letters, digits, `.`, `_` or `-`")]
    Name,
    /// Two issuers with one name.
    #[error("configured twice")]
    Twice,
    /// It has no name of its own.
    #[error("issuer is empty; it must be what the tokens have as iss")]
    Issuer,
    /// Two entries for one issuer.
    #[error("another entry has the same issuer")]
    IssuerTwice,
    /// Tokens that are made for others would do.
    #[error(
        "audiences is empty; name what the tokens have as aud, so that tokens for others are refused"
    )]
    NoAudience,
    /// None or both.
    #[error("name either jwks_file or jwks_url")]
    Place,
    /// Anybody on the way could change the keys.
    #[error("jwks_url must be https://…; http:// is taken only to loopback")]
    Url,
    /// The keys cannot be had.
    #[error("{place}: {error}")]
    Keys {
        /// Where they are.
        place: String,
        /// What is wrong.
        error: KeySetError,
    },
    /// An algorithm that is not known or not safe.
    #[error(
        "unknown algorithm {0:?}; RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 and EdDSA can be allowed"
    )]
    UnknownAlgorithm(String),
    /// An algorithm whose key everybody has who can verify.
    #[error("the algorithm {0} is not safe here: whoever can check such a token can make one")]
    UnsafeAlgorithm(String),
    /// Nothing is allowed.
    #[error("algorithms is empty")]
    NoAlgorithm,
    /// A clock that is too wrong.
    #[error("leeway_seconds must be at most {MOST_LEEWAY_SECONDS}")]
    Leeway,
    /// Too often.
    #[error("jwks_refresh_seconds must be at least {LEAST_REFRESH_SECONDS}")]
    Refresh,
    /// Nobody comes from it.
    #[error("no caller has a subject of it")]
    Unused,
}

/// Something is wrong with a caller or an issuer.
#[derive(Debug, thiserror::Error)]
pub enum CallersError {
    /// With a caller.
    #[error("caller {name:?}: {error}")]
    Caller {
        /// The name of the caller.
        name: String,
        /// What is wrong.
        error: CallerError,
    },
    /// With an issuer.
    #[error("issuer {name:?}: {error}")]
    Issuer {
        /// The name of the issuer.
        name: String,
        /// What is wrong.
        error: IssuerError,
    },
}

/// Checks callers and issuers, and reads what they refer to.
pub(super) fn load(
    callers: Vec<CallerConfig>,
    issuers: Vec<IssuerConfig>,
    variables: &Variables,
) -> Result<Callers, CallersError> {
    if callers.is_empty() && issuers.is_empty() {
        return Ok(Callers::anyone());
    }
    let mut seen = Seen::default();
    let mut subjects: BTreeMap<String, HashMap<String, Caller>> = issuers
        .iter()
        .map(|issuer| (issuer.name.clone(), HashMap::new()))
        .collect();
    let mut members = Vec::new();
    for caller in callers {
        let name = caller.name.clone();
        let loaded = caller.load(&mut seen, &mut subjects, variables);
        members.push(loaded.map_err(|error| CallersError::Caller { name, error })?);
    }
    let mut loaded = Vec::new();
    for issuer in issuers {
        let name = issuer.name.clone();
        let subjects = subjects.get_mut(&name).map(std::mem::take);
        let one = issuer.load(&loaded, subjects.unwrap_or_default());
        loaded.push(one.map_err(|error| CallersError::Issuer { name, error })?);
    }
    Ok(Callers::new(members, loaded))
}

/// What callers have that only one of them may have.
#[derive(Default)]
struct Seen {
    names: HashSet<String>,
    tokens: HashSet<TokenHash>,
    certificates: HashSet<String>,
}

impl CallerConfig {
    fn load(
        self,
        seen: &mut Seen,
        subjects: &mut BTreeMap<String, HashMap<String, Caller>>,
        variables: &Variables,
    ) -> Result<Member, CallerError> {
        if !is_name(&self.name) {
            return Err(CallerError::Name);
        }
        if !seen.names.insert(self.name.clone()) {
            return Err(CallerError::Twice);
        }
        if self.tokens.is_empty() && self.certificates.is_empty() && self.subjects.is_empty() {
            return Err(CallerError::NoCredentials);
        }
        let caller = Caller::new(&self.name, grants(&self.grants)?);
        for (scope, name, needs) in [
            (Scope::Backfill, "backfill", &[Scope::Ingest][..]),
            (
                Scope::PersonalData,
                "personal_data",
                &[Scope::Subscribe, Scope::Admin],
            ),
        ] {
            if caller.has(scope) && !needs.iter().any(|needed| caller.has(*needed)) {
                let needed = if scope == Scope::Backfill {
                    "ingest"
                } else {
                    "subscribe or admin"
                };
                return Err(CallerError::Alone(name, needed));
            }
        }
        for subject in &self.subjects {
            subject.add(&caller, subjects)?;
        }
        for name in &self.certificates {
            if !is_certificate_name(name) {
                return Err(CallerError::Certificate(name.clone()));
            }
            if !seen.certificates.insert(certificate_name(name)) {
                return Err(CallerError::CertificateTwice(name.clone()));
            }
        }
        let mut ids = HashSet::new();
        let mut tokens = Vec::new();
        for token in &self.tokens {
            let token = token.load(&mut ids, variables)?;
            if !seen.tokens.insert(token.hash()) {
                return Err(CallerError::TokenTwice(token.id().as_ref().to_owned()));
            }
            tokens.push(token);
        }
        Ok(Member {
            caller,
            tokens,
            certificates: self.certificates,
        })
    }
}

fn grants(grants: &[GrantConfig]) -> Result<Vec<(Scope, Limits)>, CallerError> {
    if grants.is_empty() {
        return Err(CallerError::NoGrants);
    }
    let mut granted = Vec::new();
    for grant in grants {
        if grant.scopes.is_empty() {
            return Err(CallerError::NoScopes);
        }
        for provider in &grant.providers {
            if provider::find(provider).is_none() {
                let known: Vec<_> = PROVIDERS.iter().map(|provider| provider.name()).collect();
                return Err(CallerError::UnknownProvider(
                    provider.clone(),
                    known.join(", "),
                ));
            }
        }
        if let Some(account) = grant
            .accounts
            .iter()
            .find(|one| !super::source::is_account(one))
        {
            return Err(CallerError::Account(account.clone()));
        }
        let limits = Limits {
            providers: grant.providers.clone(),
            accounts: grant.accounts.clone(),
        };
        for name in &grant.scopes {
            granted.push((scope(name)?, limits.clone()));
        }
    }
    Ok(granted)
}

fn scope(name: &str) -> Result<Scope, CallerError> {
    match name {
        "ingest" => Ok(Scope::Ingest),
        "subscribe" => Ok(Scope::Subscribe),
        "personal_data" => Ok(Scope::PersonalData),
        "backfill" => Ok(Scope::Backfill),
        "admin" => Ok(Scope::Admin),
        _ => Err(CallerError::UnknownScope(name.to_owned())),
    }
}

impl SubjectConfig {
    fn add(
        &self,
        caller: &Caller,
        subjects: &mut BTreeMap<String, HashMap<String, Caller>>,
    ) -> Result<(), CallerError> {
        let Self { issuer, subject } = self;
        let known = subjects.get_mut(issuer);
        let known = known.ok_or_else(|| CallerError::UnknownIssuer(issuer.clone()))?;
        if subject.is_empty() {
            return Err(CallerError::Subject);
        }
        match known.insert(subject.clone(), caller.clone()) {
            None => Ok(()),
            Some(_) => Err(CallerError::SubjectTwice {
                issuer: issuer.clone(),
                subject: subject.clone(),
            }),
        }
    }
}

impl TokenConfig {
    fn load(&self, ids: &mut HashSet<String>, variables: &Variables) -> Result<Token, CallerError> {
        let id = || self.id.clone();
        if !(1..=64).contains(&self.id.len()) || self.id.chars().any(char::is_control) {
            return Err(CallerError::TokenId);
        }
        if !ids.insert(id()) {
            return Err(CallerError::TokenIdTwice(id()));
        }
        let text = match (&self.sha256, &self.env, &self.file) {
            (Some(text), None, None) => text.clone(),
            (None, Some(variable), None) => {
                let value = variables.get(variable).cloned();
                value.ok_or_else(|| CallerError::TokenVariable {
                    id: id(),
                    variable: variable.clone(),
                })?
            }
            (None, None, Some(path)) => {
                fs::read_to_string(path).map_err(|source| CallerError::TokenFile {
                    id: id(),
                    path: path.clone(),
                    source,
                })?
            }
            _ => return Err(CallerError::TokenPlace(id())),
        };
        let hash = TokenHash::parse(&text).ok_or_else(|| CallerError::TokenHash(id()))?;
        Ok(Token::new(&self.id, hash, self.file.clone()))
    }
}

impl IssuerConfig {
    fn load(
        self,
        before: &[Issuer],
        subjects: HashMap<String, Caller>,
    ) -> Result<Issuer, IssuerError> {
        if !is_name(&self.name) {
            return Err(IssuerError::Name);
        }
        if before.iter().any(|other| *other.name == *self.name) {
            return Err(IssuerError::Twice);
        }
        if self.issuer.is_empty() {
            return Err(IssuerError::Issuer);
        }
        if before.iter().any(|other| other.issuer == self.issuer) {
            return Err(IssuerError::IssuerTwice);
        }
        if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
            return Err(IssuerError::NoAudience);
        }
        if self.leeway_seconds > MOST_LEEWAY_SECONDS {
            return Err(IssuerError::Leeway);
        }
        let algorithms: Result<Vec<_>, _> =
            self.algorithms.iter().map(|name| algorithm(name)).collect();
        let algorithms = algorithms?;
        if algorithms.is_empty() {
            return Err(IssuerError::NoAlgorithm);
        }
        let place = self.place()?;
        if subjects.is_empty() {
            return Err(IssuerError::Unused);
        }
        let shown = place.to_string();
        let keys = KeySet::open(place);
        Ok(Issuer {
            keys: keys.map_err(|error| IssuerError::Keys {
                place: shown,
                error,
            })?,
            name: Arc::from(self.name),
            issuer: self.issuer,
            audiences: self.audiences,
            algorithms,
            leeway_seconds: self.leeway_seconds,
            subjects,
        })
    }

    fn place(&self) -> Result<Place, IssuerError> {
        let url = match (&self.jwks_file, &self.jwks_url) {
            (Some(path), None) => return Ok(Place::File(path.clone())),
            (None, Some(url)) => url,
            _ => return Err(IssuerError::Place),
        };
        if self.jwks_refresh_seconds < LEAST_REFRESH_SECONDS {
            return Err(IssuerError::Refresh);
        }
        let url: Uri = url.parse().map_err(|_| IssuerError::Url)?;
        let is_loopback = match url.host().unwrap_or_default() {
            "localhost" => true,
            host => {
                let host = host.trim_start_matches('[').trim_end_matches(']');
                host.parse()
                    .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
            }
        };
        match url.scheme_str() {
            Some("https") if url.host().is_some() => {}
            Some("http") if is_loopback => {}
            _ => return Err(IssuerError::Url),
        }
        Ok(Place::Url(
            url,
            Duration::from_secs(self.jwks_refresh_seconds),
        ))
    }
}

/// An algorithm that may be allowed.
fn algorithm(name: &str) -> Result<Algorithm, IssuerError> {
    match name {
        "RS256" => Ok(Algorithm::RS256),
        "RS384" => Ok(Algorithm::RS384),
        "RS512" => Ok(Algorithm::RS512),
        "PS256" => Ok(Algorithm::PS256),
        "PS384" => Ok(Algorithm::PS384),
        "PS512" => Ok(Algorithm::PS512),
        "ES256" => Ok(Algorithm::ES256),
        "ES384" => Ok(Algorithm::ES384),
        "EdDSA" => Ok(Algorithm::EdDSA),
        "none" | "HS256" | "HS384" | "HS512" => Err(IssuerError::UnsafeAlgorithm(name.to_owned())),
        _ => Err(IssuerError::UnknownAlgorithm(name.to_owned())),
    }
}

fn is_name(name: &str) -> bool {
    let in_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    (1..=64).contains(&name.len()) && name.bytes().all(in_name)
}

/// Whether a text could be a URI or a DNS name of a certificate. A wildcard in a certificate names nobody.
fn is_certificate_name(name: &str) -> bool {
    let is_uri = name.contains(':') && name.parse::<Uri>().is_ok();
    let in_dns = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let is_dns = !name.is_empty() && name.len() <= 253 && name.bytes().all(in_dns);
    is_uri || is_dns
}
