//! JWTs that an issuer (an OpenID Connect provider, a Kubernetes cluster) signs for its subjects.
//!
//! The library checks signatures and claims. What is decided here is which of them count: the issuer is found by what the
//! token says and then proved, the key by its id among those of the issuer, and nothing that the token says of keys or of
//! where to find them is looked at.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use jsonwebtoken::{Algorithm, Header, Validation, dangerous, errors::ErrorKind};
use serde::Deserialize;

use super::{Caller, Credential, Identity, KeySet, Refused, Validity};

/// An issuer, and which of its subjects are callers.
#[derive(Debug)]
pub struct Issuer {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// What `iss` must be.
    pub issuer: String,
    /// One of them must be in `aud`.
    pub audiences: Vec<String>,
    /// How its tokens may be signed: only ever with asymmetric keys.
    pub algorithms: Vec<Algorithm>,
    /// How far its clock may be from ours.
    pub leeway_seconds: u64,
    /// Its keys.
    pub keys: KeySet,
    /// Its subjects.
    pub subjects: HashMap<String, Caller>,
}

/// Whether a token looks like a JWT: three parts with dots between them.
pub(super) fn is_jwt(token: &str) -> bool {
    token.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// What a token says of its issuer, before anything of it is proved.
#[derive(Deserialize)]
struct Claimed {
    iss: String,
}

/// What is proved of a token.
#[derive(Deserialize)]
struct Proved {
    iss: String,
    sub: String,
    /// The library has checked that it is a time, and that it has not come.
    #[serde(default)]
    exp: serde_json::Value,
}

/// Until when a token is good that expires at this time by a clock that may be so far from ours.
fn until(exp: &serde_json::Value, leeway_seconds: u64) -> Option<Timestamp> {
    // A number that is too large becomes the largest one: a time that never comes.
    let exp = exp.as_f64()?.ceil() as i64;
    let seconds = exp.saturating_add_unsigned(leeway_seconds.saturating_add(1));
    Timestamp::from_second(seconds).ok()
}

/// Finds out whose token this is.
pub(super) async fn authenticate(
    issuers: &[Arc<Issuer>],
    token: &str,
) -> Result<Identity, Refused> {
    let claimed = dangerous::insecure_decode_claims::<Claimed>(token);
    let claimed = claimed.map_err(|_| Refused::MalformedToken)?;
    let issuer = issuers.iter().find(|issuer| issuer.issuer == claimed.iss);
    issuer
        .ok_or(Refused::UnknownIssuer)?
        .authenticate(token)
        .await
}

impl Issuer {
    async fn authenticate(&self, token: &str) -> Result<Identity, Refused> {
        // An algorithm that is not known, `none` for one, is no header.
        let header = jsonwebtoken::decode_header(token);
        let header = header.map_err(|_| Refused::MalformedToken)?;
        check(&header)?;
        if !self.algorithms.contains(&header.alg) {
            return Err(Refused::AlgorithmNotAllowed);
        }
        let key = self.keys.find(header.kid.as_deref(), header.alg).await?;
        let mut validation = Validation::new(header.alg);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&self.audiences);
        validation.validate_nbf = true;
        validation.leeway = self.leeway_seconds;
        let proved = jsonwebtoken::decode::<Proved>(token, &key.key, &validation);
        let Proved { iss, sub, exp } = proved.map_err(|error| refused(error.kind()))?.claims;
        if iss != self.issuer {
            return Err(Refused::WrongIssuer);
        }
        let caller = self.subjects.get(&sub).ok_or(Refused::UnknownSubject)?;
        Ok(Identity {
            caller: caller.clone(),
            credential: Credential::Subject {
                issuer: Arc::clone(&self.name),
                subject: sub.into(),
            },
            validity: Validity {
                until: until(&exp, self.leeway_seconds),
                withdrawn: None,
            },
        })
    }
}

/// Refuses what a header asks for that is not done here: extensions that must be understood, encryption, and tokens that
/// are made for something else.
fn check(header: &Header) -> Result<(), Refused> {
    if header.crit.is_some() || header.enc.is_some() || header.zip.is_some() {
        return Err(Refused::UnknownExtension);
    }
    let Some(kind) = &header.typ else {
        return Ok(());
    };
    let kind = kind.to_ascii_lowercase();
    match kind.strip_prefix("application/").unwrap_or(&kind) {
        "jwt" | "at+jwt" => Ok(()),
        _ => Err(Refused::MalformedToken),
    }
}

fn refused(kind: &ErrorKind) -> Refused {
    match kind {
        ErrorKind::InvalidSignature => Refused::SignatureInvalid,
        ErrorKind::ExpiredSignature => Refused::Expired,
        ErrorKind::ImmatureSignature => Refused::NotYetValid,
        ErrorKind::InvalidAudience => Refused::WrongAudience,
        ErrorKind::InvalidIssuer => Refused::WrongIssuer,
        ErrorKind::MissingRequiredClaim(_) => Refused::ClaimMissing,
        ErrorKind::InvalidAlgorithm => Refused::AlgorithmNotAllowed,
        _ => Refused::MalformedToken,
    }
}
