//! The proof that a webhook is genuine. The only file that sees a secret.
//!
//! Adapters describe how a provider signs, with a [`Scheme`]; [`verify`] checks it, over the bytes exactly as they
//! were received and in constant time, against every live secret of a source.

use std::{fmt, mem, sync::Arc, time::Duration};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base16ct::{lower, mixed};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac, digest::CtOutput};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretSlice};
use serde_json::value::RawValue;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{
    Headers, RawWebhook, VerifiedWebhook,
    json::{self, Rewrite, Text},
    usage::Usage,
};

/// How a provider signs its webhooks. All signatures are HMACs in hex, of either case.
#[derive(Debug)]
pub struct Scheme {
    /// The name by which a source accepts the scheme.
    pub name: &'static str,
    /// The hash inside the HMAC.
    pub hash: Hash,
    /// How the secret becomes the HMAC's key.
    pub key: Key,
    /// Where the signature is, and what it covers.
    pub recipe: Recipe,
}

/// The hash inside an HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-1, for providers that still use it.
    Sha1,
    /// SHA-256.
    Sha256,
}

/// How a secret becomes the key of an HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The secret as it is written, prefix included, nothing decoded.
    Text,
    /// The lower-case hex of the secret's SHA-256, as text.
    Sha256Hex,
}

/// Where a signature is, and what it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// A header holds the signature of the body.
    Body {
        /// The header.
        header: &'static str,
        /// What may stand before the hex; the first is what we write when we sign. An empty one means bare hex.
        prefixes: &'static [&'static str],
    },
    /// A header `t=<Unix seconds>,v1=<hex>` holds the signature of `<t>.<body>`. Several `v1` may be listed; one that
    /// matches is enough.
    TimestampedBody {
        /// The header.
        header: &'static str,
    },
    /// A top-level member of the JSON body holds the signature of another. Nothing else in the body is signed.
    Member {
        /// The member that holds the signature.
        signature: &'static str,
        /// The member that is signed.
        signed: &'static str,
        /// How the member is written when it is signed.
        rewrite: Rewrite,
    },
}

/// A secret that a source shares with its provider. Redacted in `Debug`, wiped on drop.
#[derive(Clone, Debug)]
pub struct Secret {
    id: String,
    value: Arc<Value>,
    loaded_at: Option<Timestamp>,
    usage: Arc<Usage>,
}

impl Secret {
    /// A secret with the id that events name it by.
    pub fn new(id: String, value: Vec<u8>) -> Self {
        Self {
            id,
            value: Arc::new(Value::new(value.into())),
            loaded_at: None,
            usage: Arc::default(),
        }
    }

    /// Takes over a value that was read again, and says whether it is another. If so, its use is counted anew.
    pub fn renew(&mut self, value: &[u8], now: Timestamp) -> bool {
        if verify_slices_are_equal(self.value.text.expose_secret(), value).is_ok() {
            return false;
        }
        *self = Self {
            loaded_at: Some(now),
            ..Self::new(mem::take(&mut self.id), value.to_vec())
        };
        true
    }

    /// Since when it has this value, if it was changed since the start.
    pub fn loaded_at(&self) -> Option<Timestamp> {
        self.loaded_at
    }

    /// How it was used since it has this value.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// The id that events name it by.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// The value of a secret, and the HMACs with it, so that a webhook does not pay for making them ready. Wiped on drop.
struct Value {
    text: SecretSlice<u8>,
    of_text: Hmacs,
    of_sha256_hex: Hmacs,
}

impl Value {
    fn new(text: SecretSlice<u8>) -> Self {
        let sha256 = Zeroizing::new(sha256(text.expose_secret()));
        let sha256_hex = Zeroizing::new(lower::encode_string(sha256.as_slice()));
        Self {
            of_text: Hmacs::new(text.expose_secret()),
            of_sha256_hex: Hmacs::new(sha256_hex.as_bytes()),
            text,
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("redacted")
    }
}

/// The HMACs with one key, before any message.
struct Hmacs {
    sha1: Hmac<Sha1>,
    sha256: Hmac<Sha256>,
}

impl Hmacs {
    fn new(key: &[u8]) -> Self {
        const ANY_LENGTH: &str = "HMAC takes a key of any length";
        Self {
            sha1: Hmac::new_from_slice(key).expect(ANY_LENGTH),
            sha256: Hmac::new_from_slice(key).expect(ANY_LENGTH),
        }
    }
}

/// Why a webhook was not proved genuine. For our metrics; the caller learns only that it was not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// There is no signature where the scheme expects it.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// The signature is there more than once.
    #[error("{0} is given more than once")]
    Repeated(&'static str),
    /// The signature is not written as the scheme says.
    #[error("{0} is malformed")]
    Malformed(&'static str),
    /// The body does not hold the one member that the scheme signs.
    #[error("the body does not hold what is signed")]
    NothingSigned,
    /// No secret of the source made this signature.
    #[error("the signature matches no secret")]
    Mismatch,
    /// The signature is right, but its time is too far from ours.
    #[error("the signed time is {0} s away")]
    Stale(u64),
}

/// Proves a webhook genuine by one of the accepted schemes and one of the live secrets.
///
/// A signed timestamp may be `tolerance` before or after `now`.
pub fn verify(
    webhook: RawWebhook,
    schemes: &[&'static Scheme],
    secrets: &[Secret],
    tolerance: Duration,
    now: Timestamp,
) -> Result<VerifiedWebhook, VerifyError> {
    let mut error = None;
    for scheme in schemes {
        match scheme.check(&webhook, secrets, tolerance, now) {
            Ok((secret, signed)) => {
                secret.usage.record(now);
                let secret_id = secret.id.clone();
                return Ok(VerifiedWebhook::new(webhook, &signed, scheme, secret_id));
            }
            // A scheme that finds no signature says less than one that finds a wrong one.
            Err(VerifyError::Missing(_)) if error.is_some() => {}
            Err(failed) => error = Some(failed),
        }
    }
    Err(error.unwrap_or(VerifyError::Missing("an accepted signature scheme")))
}

/// The most signatures that one header may list.
const MAX_SIGNATURES: usize = 8;

/// A signature as a webhook carries it, and what it is said to cover.
struct Claim<'h> {
    signature: Signature<'h>,
    /// The bytes that are signed, without the time.
    signed: Bytes,
}

/// A signature as a webhook carries it.
struct Signature<'h> {
    /// The signed time in Unix seconds, and how it is written.
    signed_at: Option<(i64, &'h str)>,
    /// The MACs, one of which must be right.
    macs: Vec<ClaimedMac>,
}

/// A MAC that a webhook carries, behind which the array is not used.
struct ClaimedMac {
    bytes: [u8; Hash::MAX_BYTES],
    len: usize,
}

impl ClaimedMac {
    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Signature<'_> {
    fn untimed(mac: ClaimedMac) -> Self {
        Self {
            signed_at: None,
            macs: vec![mac],
        }
    }
}

impl Scheme {
    /// Finds the secret that made the webhook's signature; returns it with the bytes that it signed.
    fn check<'s>(
        &self,
        webhook: &RawWebhook,
        secrets: &'s [Secret],
        tolerance: Duration,
        now: Timestamp,
    ) -> Result<(&'s Secret, Bytes), VerifyError> {
        let Claim { signature, signed } = self.claim(webhook)?;
        let time = signature.signed_at.map(|(_, text)| text);
        let matches = |secret: &&Secret| {
            let hmacs = self.hmacs(secret);
            self.hash.matches(hmacs, time, &signed, &signature.macs)
        };
        let secret = secrets.iter().find(matches).ok_or(VerifyError::Mismatch)?;
        if let Some((signed_at, _)) = signature.signed_at {
            let distance = now.as_second().abs_diff(signed_at);
            if distance > tolerance.as_secs() {
                return Err(VerifyError::Stale(distance));
            }
        }
        Ok((secret, signed))
    }

    /// Reads the signature, without trusting it.
    fn claim<'h>(&self, webhook: &'h RawWebhook) -> Result<Claim<'h>, VerifyError> {
        match self.recipe {
            Recipe::Body { header, prefixes } => {
                let value = signature_header(&webhook.headers, header)?;
                let mac = prefixes
                    .iter()
                    .find_map(|prefix| self.mac(value.strip_prefix(prefix)?))
                    .ok_or(VerifyError::Malformed(header))?;
                Ok(Claim {
                    signature: Signature::untimed(mac),
                    signed: webhook.payload.clone(),
                })
            }
            Recipe::TimestampedBody { header } => {
                let value = signature_header(&webhook.headers, header)?;
                Ok(Claim {
                    signature: self
                        .timestamped(value)
                        .ok_or(VerifyError::Malformed(header))?,
                    signed: webhook.payload.clone(),
                })
            }
            Recipe::Member {
                signature,
                signed,
                rewrite,
            } => {
                let members = json::members(&webhook.payload, [signature, signed])
                    .ok_or(VerifyError::NothingSigned)?;
                let [Some(claimed), Some(member)] = members else {
                    let absent = if members[0].is_none() {
                        signature
                    } else {
                        signed
                    };
                    return Err(VerifyError::Missing(absent));
                };
                let mac = serde_json::from_str::<Text<'_>>(claimed.get())
                    .ok()
                    .and_then(|text| self.mac(&text))
                    .ok_or(VerifyError::Malformed(signature))?;
                Ok(Claim {
                    signature: Signature::untimed(mac),
                    signed: rewritten(&webhook.payload, member, rewrite)?,
                })
            }
        }
    }

    /// Reads `t=<Unix seconds>,v1=<hex>`, in any order, with `v1` once or more. Parts with other names are passed
    /// over: providers announce new schemes in that way.
    fn timestamped<'h>(&self, value: &'h str) -> Option<Signature<'h>> {
        let mut signed_at = None;
        let mut macs = Vec::new();
        for part in value.split(',') {
            let (name, value) = part.trim().split_once('=')?;
            match name {
                "t" if signed_at.is_some() => return None,
                "t" => {
                    let digits = value.len() <= 12 && value.bytes().all(|b| b.is_ascii_digit());
                    let seconds = value.parse().ok().filter(|_| digits)?;
                    signed_at = Some((seconds, value));
                }
                "v1" if macs.len() == MAX_SIGNATURES => return None,
                "v1" => macs.push(self.mac(value)?),
                _ => {}
            }
        }
        (signed_at.is_some() && !macs.is_empty()).then_some(Signature { signed_at, macs })
    }

    /// A MAC from hex of the right length.
    fn mac(&self, text: &str) -> Option<ClaimedMac> {
        let (mut bytes, len) = ([0; Hash::MAX_BYTES], self.hash.size_bytes());
        let decoded = mixed::decode(text, &mut bytes).ok()?;
        (decoded.len() == len).then_some(ClaimedMac { bytes, len })
    }

    /// The bytes that are signed, without the time, which changes with each attempt.
    pub(super) fn signed(&self, payload: &Bytes) -> Result<Bytes, VerifyError> {
        let Recipe::Member {
            signed, rewrite, ..
        } = self.recipe
        else {
            return Ok(payload.clone());
        };
        match json::members(payload, [signed]) {
            Some([Some(member)]) => rewritten(payload, member, rewrite),
            _ => Err(VerifyError::NothingSigned),
        }
    }

    fn hmacs<'s>(&self, secret: &'s Secret) -> &'s Hmacs {
        match self.key {
            Key::Text => &secret.value.of_text,
            Key::Sha256Hex => &secret.value.of_sha256_hex,
        }
    }

    /// Signs a body as the provider would: for the demo, for `verdict send` and for tests.
    ///
    /// A scheme that puts the signature into the body returns another body. Fails when the body does not hold what
    /// the scheme signs.
    pub fn sign(
        &self,
        body: Bytes,
        secret: &Secret,
        now: Timestamp,
    ) -> Result<RawWebhook, VerifyError> {
        let signed = self.signed(&body)?;
        let mut headers = Headers::default();
        let hmacs = self.hmacs(secret);
        let payload = match self.recipe {
            Recipe::Body { header, prefixes } => {
                let prefix = prefixes.first().copied().unwrap_or_default();
                let mac = self.hash.hex(hmacs, None, &signed);
                headers.push(header, format!("{prefix}{mac}"));
                body
            }
            Recipe::TimestampedBody { header } => {
                let t = now.as_second().to_string();
                let mac = self.hash.hex(hmacs, Some(&t), &signed);
                headers.push(header, format!("t={t},v1={mac}"));
                body
            }
            Recipe::Member { signature, .. } => {
                let mac = self.hash.hex(hmacs, None, &signed);
                json::with_member(&body, signature, &mac).ok_or(VerifyError::NothingSigned)?
            }
        };
        Ok(RawWebhook { payload, headers })
    }
}

/// A member of the payload as it is written when it is signed.
fn rewritten(payload: &Bytes, member: &RawValue, rewrite: Rewrite) -> Result<Bytes, VerifyError> {
    match rewrite {
        Rewrite::None => Ok(payload.slice_ref(member.get().as_bytes())),
        _ => json::rewrite(member, rewrite)
            .map(Bytes::from)
            .ok_or(VerifyError::NothingSigned),
    }
}

/// The value of a signature header, which must be given exactly once.
fn signature_header<'h>(headers: &'h Headers, name: &'static str) -> Result<&'h str, VerifyError> {
    let mut values = headers.values(name);
    let value = values.next().ok_or(VerifyError::Missing(name))?;
    if values.next().is_some() {
        return Err(VerifyError::Repeated(name));
    }
    Ok(value.trim())
}

impl Hash {
    /// The size of the largest.
    const MAX_BYTES: usize = 32;

    fn size_bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    /// Whether one of the MACs is that of `<prefix>.<message>`. Constant time in the MACs.
    fn matches(
        self,
        hmacs: &Hmacs,
        prefix: Option<&str>,
        message: &[u8],
        macs: &[ClaimedMac],
    ) -> bool {
        match self {
            Self::Sha1 => matches_any(&hmacs.sha1, prefix, message, macs),
            Self::Sha256 => matches_any(&hmacs.sha256, prefix, message, macs),
        }
    }

    /// The MAC of `<prefix>.<message>`, in lower-case hex.
    fn hex(self, hmacs: &Hmacs, prefix: Option<&str>, message: &[u8]) -> String {
        match self {
            Self::Sha1 => lower::encode_string(mac(&hmacs.sha1, prefix, message).as_bytes()),
            Self::Sha256 => lower::encode_string(mac(&hmacs.sha256, prefix, message).as_bytes()),
        }
    }
}

fn mac<M: Mac + Clone>(hmac: &M, prefix: Option<&str>, message: &[u8]) -> CtOutput<M> {
    let mut hmac = hmac.clone();
    if let Some(prefix) = prefix {
        hmac.update(prefix.as_bytes());
        hmac.update(b".");
    }
    hmac.update(message);
    hmac.finalize()
}

fn matches_any<M: Mac + Clone>(
    hmac: &M,
    prefix: Option<&str>,
    message: &[u8],
    candidates: &[ClaimedMac],
) -> bool {
    let mac = mac(hmac, prefix, message);
    candidates
        .iter()
        .any(|candidate| verify_slices_are_equal(mac.as_bytes(), candidate.as_bytes()).is_ok())
}

/// The SHA-256 of some bytes.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use zeroize::ZeroizeOnDrop;

    use super::*;

    #[test]
    fn what_could_sign_in_the_place_of_a_secret_is_wiped_and_not_shown() {
        fn wiped<T: ZeroizeOnDrop>() {}
        // What an HMAC is made of.
        wiped::<Sha1>();
        wiped::<Sha256>();
        let secret = Secret::new("id".to_owned(), b"the value".to_vec());
        let shown = format!("{secret:?}");
        assert!(
            shown.contains("redacted") && !shown.contains("Hmac"),
            "{shown}"
        );
    }
}
