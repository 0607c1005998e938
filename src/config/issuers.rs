//! Issuers of the configuration: who signs JWTs for callers, and with which keys.

use std::{collections::HashMap, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use http::Uri;
use jsonwebtoken::Algorithm;
use serde::Deserialize;

use super::callers::is_name;
use crate::caller::{Caller, Issuer, KeySet, KeySetError, Place};

/// One issuer of JWTs, as it is written in the configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    pub(super) name: String,
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
    /// A password where everybody can read it.
    #[error(
        "jwks_url must have no user or password before its host: the keys of an issuer are public"
    )]
    UserInfo,
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

impl IssuerConfig {
    pub(super) fn load(
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
        if url
            .authority()
            .is_some_and(|host| host.as_str().contains('@'))
        {
            return Err(IssuerError::UserInfo);
        }
        let is_loopback = match url.host().unwrap_or_default() {
            "localhost" => true,
            host => {
                let host = host.trim_start_matches('[').trim_end_matches(']');
                host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
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
