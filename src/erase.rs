//! Erasing a subject: the log is walked, and the keys of what is about the subject are destroyed.
//!
//! The events stay, and so does their order. A subject is known by one id. Events of its verifications that name no subject
//! at all, because the provider did not know it yet, are about it too.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use prost::Message;
use tokio::task;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use uuid::Uuid;

use crate::{
    delivery, event,
    ingest::{self, Ingestor},
    log::{
        AppendError, EraseError, Position, QuarantineKind, ReadError, ReadLimit, StoredQuarantined,
    },
    proto::{QuarantinedDelivery, Source, Subject, VerificationEvent, verification_event::Detail},
    provider::Normalized,
};

/// What is held in memory: this many events, or the last event that exceeds this many bytes.
const READ_LIMIT: ReadLimit = ReadLimit {
    records: 1024,
    bytes: 1 << 20,
};

/// How many events of one verification are read at once.
const HISTORY: usize = 256;

/// How many events are erased at once. The writer reads the record of each, and others wait for it.
const PORTION: usize = 128;

/// Whom to erase.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// The provider's key.
    pub provider: String,
    /// The account at the provider.
    pub account: String,
    /// By which id the subject is known.
    pub id: SubjectId,
}

/// An id of a subject.
#[derive(Clone, PartialEq, Eq)]
pub enum SubjectId {
    /// The provider's id of the subject.
    Provider(String),
    /// Our customer's own id of the subject.
    External(String),
    /// The provider's id of a verification of it, for a subject without any other.
    Verification(String),
}

impl SubjectId {
    /// The id itself.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Provider(id) | Self::External(id) | Self::Verification(id) => id,
        }
    }
}

/// What was erased.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Events about the subject, now or earlier erased.
    pub events: u64,
    /// Deliveries about the subject that were taken out of the quarantine of genuine deliveries.
    pub quarantined_discarded: u64,
    /// Deliveries of the source in the quarantines of which nobody can say whom they are about.
    pub quarantined_unattributed: u64,
}

/// Why erasing ended before its time. It can be repeated.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EndError {
    /// The log could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The log could not be written.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// So many events about the subject were stored without encryption, and stay. All else was erased.
    #[error("{0} events about the subject are not encrypted")]
    NotEncrypted(u64),
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Draining,
}

/// What is looked at in an event.
#[derive(Clone, PartialEq, Message)]
struct Told {
    #[prost(message, optional, tag = "2")]
    source: Option<Source>,
    #[prost(message, optional, tag = "5")]
    subject: Option<Subject>,
    #[prost(message, optional, tag = "6")]
    verification: Option<ToldVerification>,
}

#[derive(Clone, PartialEq, Message)]
struct ToldVerification {
    #[prost(string, tag = "1")]
    verification_id: String,
}

impl Told {
    fn verification_id(&self) -> Option<&str> {
        let verification = self.verification.as_ref()?;
        Some(&verification.verification_id)
    }

    fn names_nobody(&self) -> bool {
        self.subject.as_ref().is_none_or(|subject| {
            subject.provider_subject_id.is_empty() && subject.external_id.is_empty()
        })
    }
}

impl Target {
    fn is_source(&self, provider: &str, account: &str) -> bool {
        self.provider == provider && self.account == account
    }

    /// Whether an event of the source names the subject.
    fn is_named(&self, told: &Told) -> bool {
        let subject = told.subject.as_ref();
        match &self.id {
            SubjectId::Provider(id) => subject.is_some_and(|s| s.provider_subject_id == *id),
            SubjectId::External(id) => subject.is_some_and(|s| s.external_id == *id),
            SubjectId::Verification(id) => told.verification_id() == Some(id),
        }
    }
}

/// A walk through the log.
struct Erasure {
    ingestor: Arc<Ingestor>,
    target: Target,
    draining: CancellationToken,
    /// The place of the last event that was looked at.
    position: Position,
    /// The verifications of the subject that have been seen.
    verifications: HashSet<[u8; 32]>,
    erased: Erased,
    not_encrypted: u64,
}

/// Erases a subject, and returns when that is durable. `draining` is cancelled when the server shuts down.
pub async fn erase(
    ingestor: Arc<Ingestor>,
    target: Target,
    draining: CancellationToken,
) -> Result<Erased, EndError> {
    let mut erasure = Erasure {
        position: ingestor.log.start(),
        ingestor,
        target,
        draining,
        verifications: HashSet::new(),
        erased: Erased::default(),
        not_encrypted: 0,
    };
    erasure.erase_events().await?;
    erasure.discard_quarantined().await?;
    // What came in meanwhile, from the quarantine too.
    erasure.erase_events().await?;
    let Erasure {
        target,
        erased,
        not_encrypted,
        ..
    } = erasure;
    info!(
        provider.name = target.provider,
        erase.events = erased.events,
        erase.not_encrypted = not_encrypted,
        erase.quarantined_discarded = erased.quarantined_discarded,
        erase.quarantined_unattributed = erased.quarantined_unattributed,
        "a subject was erased"
    );
    match not_encrypted {
        0 => Ok(erased),
        events => Err(EndError::NotEncrypted(events)),
    }
}

impl Erasure {
    /// Erases up to the end of the log, wherever that is by then.
    async fn erase_events(&mut self) -> Result<(), EndError> {
        let log = Arc::clone(&self.ingestor.log);
        while self.position < log.tail().end() {
            self.check_draining()?;
            // Others want this thread too.
            task::yield_now().await;
            // What is no longer retained by now is nobody's any more.
            let after = self.position.max(log.start());
            let events = match log.read(after, READ_LIMIT).await {
                Err(ReadError::NotRetained) if log.start() > after => continue,
                Err(ReadError::Damaged { position, place }) if position > after => {
                    error!(
                        log.position = position.0,
                        place, "nobody can say whom a damaged event is about"
                    );
                    self.position = position;
                    continue;
                }
                events => events?,
            };
            let mut found = Vec::new();
            for stored in &events {
                self.position = stored.position;
                if self.is_about(&stored.event, &mut found).await? {
                    found.push(stored.position);
                }
            }
            self.erase(found).await?;
        }
        Ok(())
    }

    /// Whether an event is about the subject. Earlier ones of its verification that name nobody are added to `found`.
    async fn is_about(
        &mut self,
        event: &Bytes,
        found: &mut Vec<Position>,
    ) -> Result<bool, EndError> {
        let Ok(told) = Told::decode(event.clone()) else {
            return Ok(false);
        };
        let source = told.source.clone().unwrap_or_default();
        if !self.target.is_source(&source.provider, &source.account) {
            return Ok(false);
        }
        let verification = told
            .verification_id()
            .map(|id| event::key_of_verification(&source.provider, &source.account, id));
        if !self.target.is_named(&told) {
            let is_known = verification.is_some_and(|key| self.verifications.contains(&key));
            return Ok(is_known && told.names_nobody());
        }
        if let Some(key) = verification
            && self.verifications.insert(key)
        {
            self.find_earlier(key, found).await?;
        }
        Ok(true)
    }

    /// Finds the events of a verification that name nobody, up to where the walk is.
    async fn find_earlier(
        &mut self,
        key: [u8; 32],
        found: &mut Vec<Position>,
    ) -> Result<(), EndError> {
        // By its own id all of them are found.
        if let SubjectId::Verification(_) = self.target.id {
            return Ok(());
        }
        let log = Arc::clone(&self.ingestor.log);
        let mut next = log.verification(key).await?.map(|state| state.last);
        while let Some(from) = next {
            self.check_draining()?;
            let history = match log.history(from, HISTORY).await {
                // What lies before it is gone, or is passed over as the walk passes over it.
                Err(ReadError::NotRetained | ReadError::Damaged { .. }) => return Ok(()),
                history => history?,
            };
            for stored in &history.events {
                if stored.position < self.position
                    && Told::decode(stored.event.clone()).is_ok_and(|told| told.names_nobody())
                {
                    found.push(stored.position);
                }
            }
            self.erase(std::mem::take(found)).await?;
            next = history.next;
        }
        Ok(())
    }

    async fn erase(&mut self, found: Vec<Position>) -> Result<(), EndError> {
        for portion in found.chunks(PORTION) {
            match self.ingestor.log.erase(portion.to_vec()).await {
                Ok(()) => {}
                Err(EraseError::NotEncrypted(events)) => self.not_encrypted += events,
                Err(EraseError::Append(error)) => return Err(error.into()),
            }
            self.erased.events += portion.len() as u64;
        }
        Ok(())
    }

    /// Takes the deliveries about the subject out of the quarantine of genuine ones, and counts those of which nobody knows.
    async fn discard_quarantined(&mut self) -> Result<(), EndError> {
        let log = Arc::clone(&self.ingestor.log);
        for kind in [QuarantineKind::Genuine, QuarantineKind::Unverified] {
            let mut after = 0;
            loop {
                self.check_draining()?;
                task::yield_now().await;
                let read = match log.quarantined(kind, after, READ_LIMIT).await {
                    // Nobody knows of which source it is.
                    Err(ReadError::Damaged { position, .. }) if position.0 > after => {
                        after = position.0;
                        self.erased.quarantined_unattributed += 1;
                        continue;
                    }
                    read => read?,
                };
                let Some(last) = read.last() else { break };
                after = last.sequence;
                for stored in &read {
                    self.discard(stored).await?;
                }
            }
        }
        Ok(())
    }

    async fn discard(&mut self, stored: &StoredQuarantined) -> Result<(), EndError> {
        let Ok(summary) = QuarantinedDelivery::decode(stored.summary.clone()) else {
            self.erased.quarantined_unattributed += 1;
            return Ok(());
        };
        if !self.target.is_source(&summary.provider, &summary.account) {
            return Ok(());
        }
        let (Some(event), Ok(id)) = (
            self.understand(stored).await,
            Uuid::parse_str(&summary.quarantine_id),
        ) else {
            self.erased.quarantined_unattributed += 1;
            return Ok(());
        };
        let verification_id = match event.detail {
            Some(Detail::Verification(verification)) => Some(verification.verification_id),
            _ => None,
        };
        let told = Told {
            source: None,
            subject: event.subject,
            verification: verification_id
                .map(|verification_id| ToldVerification { verification_id }),
        };
        let of_known = told.names_nobody()
            && told.verification_id().is_some_and(|id| {
                let (provider, account) = (&self.target.provider, &self.target.account);
                let key = event::key_of_verification(provider, account, id);
                self.verifications.contains(&key)
            });
        if (of_known || self.target.is_named(&told)) && self.ingestor.log.release(id).await? {
            self.erased.quarantined_discarded += 1;
        }
        Ok(())
    }

    /// The event that a quarantined delivery would be today. `None` if it is not proved genuine, or not understood.
    async fn understand(&self, stored: &StoredQuarantined) -> Option<VerificationEvent> {
        if stored.kind == QuarantineKind::Unverified {
            return None;
        }
        let (delivery, received_at) = delivery::decode(&stored.delivery).ok()?;
        let source = self
            .ingestor
            .source(&delivery.provider, &delivery.account)?;
        let mut webhook = delivery::verified(source, delivery).ok()?;
        ingest::open(source, &mut webhook, received_at).await.ok()?;
        match source.normalize(&webhook).ok()? {
            Normalized::Event(normalized) => Some(normalized.event),
            Normalized::Ignored => None,
        }
    }

    fn check_draining(&self) -> Result<(), EndError> {
        match self.draining.is_cancelled() {
            true => Err(EndError::Draining),
            false => Ok(()),
        }
    }
}
