//! The configured sources: which provider, which account, which secrets.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use ipnet::IpNet;
use jiff::Timestamp;

use crate::{
    event::IdempotencyKey,
    keyring::{Keyring, Keys},
    proto::{Environment, verification_event::Detail},
    provider::{
        ALLOW_PLAINTEXT, NormalizeError, Normalized, Provider, RawWebhook, VerifiedWebhook, json,
        jwe::{self, JweError},
        signature::{self, Scheme, VerifyError},
    },
    reload::{Files, Fingerprint, Reload},
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
    /// The live secrets, and the keys that payloads may be encrypted to.
    pub keyring: Keyring,
    /// How far a signed time may be from ours.
    pub tolerance: Duration,
    /// Whether deliveries that are not proved genuine are kept, in a quarantine of their own.
    pub keep_unverified: bool,
    /// From which addresses its webhooks may be posted; from anywhere, if there are none.
    pub allowed_ips: Vec<IpNet>,
    /// How deep the JSON of a webhook may be nested.
    pub max_json_depth: usize,
    /// The switches that are on.
    pub options: BTreeSet<String>,
    /// How deliveries have ended.
    pub counts: Counts,
}

impl Source {
    /// The secrets and keys of now.
    pub fn keys(&self) -> Arc<Keys> {
        self.keyring.keys()
    }

    /// Proves a webhook genuine.
    pub fn verify(
        &self,
        webhook: RawWebhook,
        now: Timestamp,
    ) -> Result<VerifiedWebhook, VerifyError> {
        let secrets = &self.keys().secrets;
        signature::verify(webhook, &self.schemes, secrets, self.tolerance, now)
    }

    /// Whether the payload must be decrypted before it can be normalized.
    pub fn is_encrypted(&self, webhook: &VerifiedWebhook) -> bool {
        let plaintext = || webhook.content().trim_ascii_start().starts_with(b"{");
        self.provider.encrypted() && !(self.options.contains(ALLOW_PLAINTEXT) && plaintext())
    }

    /// Decrypts a payload that was received at this time. Takes about a millisecond of one core: call it off the async
    /// threads.
    pub fn decrypt(&self, payload: &[u8], received_at: Timestamp) -> Result<Bytes, JweError> {
        let keys = &self.keys().decryption_keys;
        jwe::decrypt(payload, keys, received_at).map(Bytes::from)
    }

    /// Turns a verified webhook into an event.
    pub fn normalize(&self, webhook: &VerifiedWebhook) -> Result<Normalized, NormalizeError> {
        if json::is_deeper(webhook.content(), self.max_json_depth) {
            let most = self.max_json_depth;
            return Err(NormalizeError::Unparseable(format!(
                "the JSON is nested deeper than {most} levels (server.max_json_depth)"
            )));
        }
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

impl Reload for Source {
    fn paths(&self) -> &[PathBuf] {
        self.keyring.paths()
    }

    fn first(&self) -> Fingerprint {
        self.keyring.first()
    }

    fn reload(&self, files: &Files, now: Timestamp) {
        let reloaded = self.keyring.reload(files, now);
        let (provider, account) = (self.provider.name(), &self.account);
        for id in reloaded.changed {
            tracing::info!(
                provider.name = provider,
                source.account = account,
                secret.id = id,
                "a secret has changed"
            );
        }
        for error in reloaded.unusable {
            tracing::error!(
                provider.name = provider,
                source.account = account,
                %error,
                "a secret has changed and cannot be used; the old stays in use"
            );
        }
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
