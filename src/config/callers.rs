//! Callers and issuers of the configuration: who may call, how they prove who they are, and what they may do.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use http::Uri;
use serde::Deserialize;

use super::{IssuerConfig, IssuerError, Variables};
use crate::{
    caller::{Caller, Callers, Limits, Member, Token, TokenHash, certificate_name},
    proto::Scope,
    provider::{self, PROVIDERS},
    reload::{FileError, Files},
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
    #[error("token {id:?}: {error}")]
    TokenFile {
        /// The token.
        id: String,
        /// Why not.
        error: FileError,
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
    /// Nobody could show a certificate.
    #[error(
        "it has certificates, and clients are not asked for any; set client_certificates and client_ca_file in [server.tls]"
    )]
    CertificatesNotAsked,
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

/// Checks callers and issuers, and reads what they refer to. `certificates_asked` is whether clients may show certificates.
pub(super) fn load(
    callers: Vec<CallerConfig>,
    issuers: Vec<IssuerConfig>,
    certificates_asked: bool,
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
        let loaded = match loaded {
            Ok(member) if !member.certificates.is_empty() && !certificates_asked => {
                Err(CallerError::CertificatesNotAsked)
            }
            loaded => loaded,
        };
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
            tokens.push(Arc::new(token));
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
            (None, None, Some(path)) => return self.read(path),
            _ => return Err(CallerError::TokenPlace(id())),
        };
        let hash = TokenHash::parse(&text).ok_or_else(|| CallerError::TokenHash(id()))?;
        Ok(Token::new(&self.id, hash))
    }

    fn read(&self, path: &Path) -> Result<Token, CallerError> {
        let id = || self.id.clone();
        let files = Files::read(&[path.to_owned()]);
        let content = files.get(path);
        let content = content.map_err(|error| CallerError::TokenFile { id: id(), error })?;
        let text = str::from_utf8(content).unwrap_or_default();
        let hash = TokenHash::parse(text).ok_or_else(|| CallerError::TokenHash(id()))?;
        Ok(Token::of_file(
            &self.id,
            hash,
            path.to_owned(),
            files.fingerprint(),
        ))
    }
}

pub(super) fn is_name(name: &str) -> bool {
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
