//! JSON Web Keys: which keys of a set signatures can be verified with, and how.

use std::sync::Arc;

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;

use super::KeySetError;

/// How many keys a set may hold.
pub(super) const MAX_KEYS: usize = 100;

/// A key that signatures can be verified with.
pub(super) struct Key {
    pub(super) id: Option<String>,
    /// What may be signed with it.
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) key: DecodingKey,
}

#[derive(Deserialize)]
struct RawKeySet {
    keys: Vec<serde_json::Value>,
}

/// The keys of a set that signatures can be verified with. What is not known is passed over, as RFC 7517 wants it.
pub(super) fn parse(text: &[u8]) -> Result<Vec<Arc<Key>>, KeySetError> {
    let set: RawKeySet = serde_json::from_slice(text).map_err(|_| KeySetError::Malformed)?;
    if set.keys.len() > MAX_KEYS {
        return Err(KeySetError::TooMany);
    }
    let keys = set.keys.into_iter().filter_map(|key| {
        let jwk: Jwk = serde_json::from_value(key).ok()?;
        usable(&jwk).map(Arc::new)
    });
    Ok(keys.collect())
}

fn usable(jwk: &Jwk) -> Option<Key> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    let of_its_kind: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &[RS256, RS384, RS512, PS256, PS384, PS512],
        AlgorithmParameters::EllipticCurve(parameters) => match parameters.curve {
            EllipticCurve::P256 => &[ES256],
            EllipticCurve::P384 => &[ES384],
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(parameters) => match parameters.curve {
            EllipticCurve::Ed25519 => &[EdDSA],
            _ => return None,
        },
        // Never a shared secret: who can verify with one can sign with it.
        _ => return None,
    };
    let common = &jwk.common;
    let is_for_signatures = match &common.public_key_use {
        None | Some(PublicKeyUse::Signature) => true,
        Some(_) => false,
    };
    let verifies = match &common.key_operations {
        None => true,
        Some(operations) => operations.contains(&KeyOperations::Verify),
    };
    if !is_for_signatures || !verifies {
        return None;
    }
    let told = common.key_algorithm;
    let algorithms = of_its_kind.iter().copied();
    let algorithms =
        algorithms.filter(|one| told.is_none_or(|told| told == KeyAlgorithm::from(*one)));
    Some(Key {
        id: common.key_id.clone(),
        algorithms: algorithms.collect(),
        key: DecodingKey::from_jwk(jwk).ok()?,
    })
}
