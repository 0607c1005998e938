//! Erasing a subject: the log is walked, and the keys of what is about the subject are destroyed.
//!
//! The events stay, and so does their order. A subject is known by one id. Events of its verifications that name no subject
//! at all, because the provider did not know it yet, are about it too. So are all corrections of an event that is, and what was
//! corrected by one that is: they hold the same delivery.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

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
        AppendError, EraseError, Position, QuarantineKind, ReadError, ReadLimit, StoredEvent,
        StoredQuarantined,
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

/// How many events about a subject are remembered, so that their corrections are found. No person has as many.
const MAX_ORIGINALS: usize = 1 << 20;

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
    #[prost(string, tag = "1")]
    event_id: String,
    #[prost(message, optional, tag = "2")]
    source: Option<Source>,
    #[prost(message, optional, tag = "5")]
    subject: Option<Subject>,
    #[prost(message, optional, tag = "6")]
    verification: Option<ToldVerification>,
    #[prost(string, tag = "14")]
    corrects_event_id: String,
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

    /// The id of the event that it corrects, or its own. All corrections of an event name that one.
    fn original(&self) -> Option<Uuid> {
        let id = match self.is_correction() {
            true => &self.corrects_event_id,
            false => &self.event_id,
        };
        Uuid::parse_str(id).ok()
    }

    fn is_correction(&self) -> bool {
        !self.corrects_event_id.is_empty()
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
    /// The events about the subject that have been seen, by their ids, and those that were corrected by one.
    originals: HashSet<Uuid>,
    /// Those of them that were passed over before a correction told that they are about the subject, with its place. Their
    /// corrections may have been passed over too.
    passed_over: HashMap<Uuid, Position>,
    erased: Erased,
    not_encrypted: u64,
    /// Events of which nobody can say whom they are about.
    damaged: u64,
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
        originals: HashSet::new(),
        passed_over: HashMap::new(),
        erased: Erased::default(),
        not_encrypted: 0,
        damaged: 0,
    };
    erasure.erase_events().await?;
    erasure.discard_quarantined().await?;
    // What came in meanwhile, from the quarantine too.
    erasure.erase_events().await?;
    erasure.erase_passed_over().await?;
    // Even if nothing was found: an earlier try may have left keys that are to be destroyed.
    erasure.erase_portion(Vec::new()).await?;
    let Erasure {
        target,
        erased,
        not_encrypted,
        damaged,
        ..
    } = erasure;
    info!(
        provider.name = target.provider,
        erase.events = erased.events,
        erase.not_encrypted = not_encrypted,
        erase.damaged = damaged,
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
        while let Some(events) = self.next_events().await? {
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

    /// Erases what was passed over before it was known to be about the subject.
    async fn erase_passed_over(&mut self) -> Result<(), EndError> {
        if self.passed_over.is_empty() {
            return Ok(());
        }
        self.position = Position(0);
        while let Some(events) = self.next_events().await? {
            let mut found = Vec::new();
            for stored in &events {
                self.position = stored.position;
                let told = Told::decode(stored.event.clone()).unwrap_or_default();
                let known = told.original().and_then(|id| self.passed_over.get(&id));
                let is_of_source = self.told_source(&told).is_some();
                if is_of_source && known.is_some_and(|known| stored.position < *known) {
                    found.push(stored.position);
                }
            }
            self.erase(found).await?;
        }
        Ok(())
    }

    /// The events behind the place of the walk. `None` at the end of the log.
    async fn next_events(&mut self) -> Result<Option<Vec<StoredEvent>>, EndError> {
        let log = Arc::clone(&self.ingestor.log);
        while self.position < log.tail().end() {
            self.check_draining()?;
            // Others want this thread too.
            task::yield_now().await;
            // What is no longer retained by now is nobody's any more.
            let after = self.position.max(log.start());
            match log.read(after, READ_LIMIT).await {
                Err(ReadError::NotRetained) if log.start() > after => {}
                Err(ReadError::Damaged { position, place }) if position > after => {
                    error!(
                        log.position = position.0,
                        place, "nobody can say whom a damaged event is about"
                    );
                    self.damaged += 1;
                    self.position = position;
                }
                events => return Ok(Some(events?)),
            }
        }
        Ok(None)
    }

    /// Where an event comes from, if that is where the subject is known.
    fn told_source(&self, told: &Told) -> Option<Source> {
        let source = told.source.clone().unwrap_or_default();
        let is_of_it = self.target.is_source(&source.provider, &source.account);
        is_of_it.then_some(source)
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
        let Some(source) = self.told_source(&told) else {
            return Ok(false);
        };
        let original = told.original();
        let verification = told
            .verification_id()
            .map(|id| event::key_of_verification(&source.provider, &source.account, id));
        let is_named = self.target.is_named(&told);
        let is_of_known = told.names_nobody()
            && verification.is_some_and(|key| self.verifications.contains(&key));
        let is_correction = original.is_some_and(|id| self.originals.contains(&id));
        if !(is_named || is_of_known || is_correction) {
            return Ok(false);
        }
        if let Some(original) = original
            && self.remember(original)
            && told.is_correction()
        {
            self.passed_over.insert(original, self.position);
        }
        if is_named
            && let Some(key) = verification
            && self.verifications.insert(key)
        {
            self.find_earlier(key, found).await?;
        }
        Ok(true)
    }

    /// Remembers an event about the subject. Says whether it was not known before.
    fn remember(&mut self, original: Uuid) -> bool {
        if self.originals.len() >= MAX_ORIGINALS {
            return false;
        }
        let is_new = self.originals.insert(original);
        if is_new && self.originals.len() == MAX_ORIGINALS {
            error!("a subject has so many events that not all of their corrections may be found");
        }
        is_new
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
        let mut originals = Vec::new();
        let mut next = log.verification(key).await?.map(|state| state.last);
        while let Some(from) = next {
            self.check_draining()?;
            let history = match log.history(from, HISTORY).await {
                // What lies before it is gone, or is passed over as the walk passes over it.
                Err(ReadError::NotRetained | ReadError::Damaged { .. }) => break,
                history => history?,
            };
            for stored in &history.events {
                let told = Told::decode(stored.event.clone()).unwrap_or_default();
                let original = told.original();
                let is_found = original.is_some_and(|id| self.originals.contains(&id));
                if stored.position < self.position && told.names_nobody() && !is_found {
                    found.push(stored.position);
                    originals.extend(original);
                }
            }
            self.erase(std::mem::take(found)).await?;
            next = history.next;
        }
        for original in originals {
            self.remember(original);
        }
        Ok(())
    }

    async fn erase(&mut self, found: Vec<Position>) -> Result<(), EndError> {
        for portion in found.chunks(PORTION) {
            self.erase_portion(portion.to_vec()).await?;
        }
        Ok(())
    }

    async fn erase_portion(&mut self, portion: Vec<Position>) -> Result<(), EndError> {
        let events = portion.len() as u64;
        match self.ingestor.log.erase(portion).await {
            Ok(()) => {}
            Err(EraseError::NotEncrypted(events)) => self.not_encrypted += events,
            Err(EraseError::Append(error)) => return Err(error.into()),
        }
        self.erased.events += events;
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
            subject: event.subject,
            verification: verification_id
                .map(|verification_id| ToldVerification { verification_id }),
            ..Default::default()
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
