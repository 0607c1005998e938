//! The configured sources: which provider, which account, which secrets.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;

use crate::{
    event::IdempotencyKey,
    proto::{Environment, verification_event::Detail},
    provider::{
        ALLOW_PLAINTEXT, NormalizeError, Normalized, Provider, RawWebhook, VerifiedWebhook,
        jwe::{self, DecryptionKey, JweError},
        signature::{self, Scheme, Secret, VerifyError},
    },
};

/// A configured (provider, account) pair.
#[derive(Debug)]
pub struct Source {
    /// The provider.
    pub provider: &'static dyn Provider,
    /// The account at the provider.
    pub account: String,
    /// Whether its verifications are real or tests.
    pub environment: Environment,
    /// The signature schemes that are accepted, in the order in which they are tried.
    pub schemes: Vec<&'static Scheme>,
    /// The live secrets.
    pub secrets: Vec<Secret>,
    /// The keys that payloads may be encrypted to.
    pub decryption_keys: Vec<DecryptionKey>,
    /// How far a signed time may be from ours.
    pub tolerance: Duration,
    /// Whether deliveries that are not proved genuine are kept, in a quarantine of their own.
    pub keep_unverified: bool,
    /// The switches that are on.
    pub options: BTreeSet<String>,
    /// How deliveries have ended.
    pub counts: Counts,
}

impl Source {
    /// Proves a webhook genuine.
    pub fn verify(
        &self,
        webhook: RawWebhook,
        now: Timestamp,
    ) -> Result<VerifiedWebhook, VerifyError> {
        signature::verify(webhook, &self.schemes, &self.secrets, self.tolerance, now)
    }

    /// Whether the payload must be decrypted before it can be normalized.
    pub fn is_encrypted(&self, webhook: &VerifiedWebhook) -> bool {
        let plaintext = || webhook.content().trim_ascii_start().starts_with(b"{");
        self.provider.encrypted() && !(self.options.contains(ALLOW_PLAINTEXT) && plaintext())
    }

    /// Decrypts a payload. Takes about a millisecond of one core: call it off the async threads.
    pub fn decrypt(&self, payload: &[u8]) -> Result<Bytes, JweError> {
        jwe::decrypt(payload, &self.decryption_keys).map(Bytes::from)
    }

    /// Turns a verified webhook into an event.
    pub fn normalize(&self, webhook: &VerifiedWebhook) -> Result<Normalized, NormalizeError> {
        let normalized = self.provider.normalize(webhook)?;
        if let Normalized::Event(normalized) = &normalized {
            if normalized.key == IdempotencyKey::ProviderEventId(String::new()) {
                return Err(NormalizeError::missing("the id of the event"));
            }
            if let Some(Detail::Verification(verification)) = &normalized.event.detail
                && verification.verification_id.is_empty()
            {
                return Err(NormalizeError::missing("the id of the verification"));
            }
        }
        Ok(normalized)
    }
}

/// How deliveries to a source have ended since the server started.
#[derive(Debug, Default)]
pub struct Counts {
    /// New events.
    pub accepted: Count,
    /// Redeliveries.
    pub duplicate: Count,
    /// Genuine, but not understood.
    pub quarantined: Count,
    /// Genuine, but not about verification.
    pub ignored: Count,
    /// Not genuine.
    pub signature_invalid: Count,
    /// Not genuine, and kept all the same. Counted among `signature_invalid` too.
    pub unverified_kept: Count,
    /// Not genuine, and not kept, although the source keeps them. Counted among `signature_invalid` too.
    pub unverified_dropped: Count,
    /// Genuine, but not stored.
    pub log_unavailable: Count,
    /// Not taken, because verdict failed over it: a bug of ours.
    pub failed: Count,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// One more.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
