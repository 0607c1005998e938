//! What the stored deliveries would become today: the whole log, run through the current adapters again.
//!
//! It is pulled, like a subscription: nothing is read before what was found before has been taken. Only what an adapter
//! says counts as a difference; times of receipt, traces and everything that comes from the configuration stay as they
//! are stored.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::Arc,
};

use bytes::Bytes;
use prost::Message as _;
use tokio::task;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use uuid::Uuid;

use crate::{
    delivery, diff,
    event::{self, NORMALIZER_VERSION},
    filter::Filter,
    ingest::{self, Ingestor},
    log::{AppendError, Appended, NewEvent, Origin, Position, ReadError, ReadLimit, StoredEvent},
    proto::{
        Environment, RenormalizeSummary, RenormalizedEvent, VerificationEvent,
        renormalize_response::Message,
    },
    provider::{Normalized, NormalizedEvent, VerifiedWebhook, signature},
    source::Source,
};

/// What is held in memory: this many events, or the last event that exceeds this many bytes.
const READ_LIMIT: ReadLimit = ReadLimit {
    records: 256,
    bytes: 256 << 10,
};

/// A walk through the log, from its first event to the one that is the newest when it starts.
pub struct Renormalization {
    ingestor: Arc<Ingestor>,
    filter: Filter,
    dry_run: bool,
    /// The place of the last event that was looked at or passed over.
    position: Position,
    end: Position,
    /// Read, and not looked at yet.
    read: VecDeque<StoredEvent>,
    /// Where the newest correction of each event lies that was corrected; `None` before they have been looked for.
    corrections: Option<HashMap<Uuid, Position>>,
    summary: RenormalizeSummary,
    draining: CancellationToken,
    ended: bool,
}

/// Why a walk ended before its time. It can be started again from the beginning: nothing is appended twice.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EndError {
    /// The log could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A corrected event could not be written.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Draining,
}

/// A part of the log.
enum Block {
    /// At least one event.
    Events(Vec<StoredEvent>),
    /// The next event is damaged.
    Damaged(Position),
    /// There is nothing more.
    End,
}

/// What a stored delivery is today.
enum Today {
    Event(Box<VerificationEvent>),
    /// It would end in another way. How.
    NoEvent(String),
    /// It cannot be read any more.
    Unreadable,
}

impl Renormalization {
    /// Starts a walk. `draining` is cancelled when the server shuts down.
    pub fn new(
        ingestor: Arc<Ingestor>,
        filter: Filter,
        dry_run: bool,
        draining: CancellationToken,
    ) -> Self {
        Self {
            filter,
            dry_run,
            position: ingestor.log.start(),
            end: ingestor.log.tail().end(),
            read: VecDeque::new(),
            corrections: None,
            summary: RenormalizeSummary::default(),
            draining,
            ended: false,
            ingestor,
        }
    }

    /// The next event that is different, and at last the summary; then `None`. An error ends it too.
    pub async fn next(&mut self) -> Option<Result<Message, EndError>> {
        if self.ended {
            return None;
        }
        let message = self.next_message().await;
        self.ended = !matches!(message, Ok(Message::Changed(_)));
        Some(message)
    }

    async fn next_message(&mut self) -> Result<Message, EndError> {
        if self.corrections.is_none() {
            self.corrections = Some(self.find_corrections().await?);
        }
        loop {
            if self.draining.is_cancelled() {
                return Err(EndError::Draining);
            }
            let Some(stored) = self.read.pop_front() else {
                if self.position >= self.end {
                    info!(
                        renormalize.dry_run = self.dry_run,
                        renormalize.changed = self.summary.changed,
                        renormalize.appended = self.summary.appended,
                        renormalize.damaged = self.summary.damaged,
                        "the log was normalized again"
                    );
                    return Ok(Message::Summary(self.summary));
                }
                self.read_block().await?;
                continue;
            };
            self.position = stored.position;
            if !self.filter.matches(&stored.event) {
                continue;
            }
            self.summary.examined += 1;
            match self.examine(&stored).await {
                Ok(None) => {}
                Ok(Some(changed)) => return Ok(Message::Changed(changed)),
                Err(EndError::Read(ReadError::Damaged { position, place })) => {
                    error!(
                        log.position = position.0,
                        place, "an event cannot be normalized again"
                    );
                    self.summary.damaged += 1;
                }
                Err(ended) => return Err(ended),
            }
        }
    }

    async fn read_block(&mut self) -> Result<(), ReadError> {
        match self.block(self.position).await? {
            Block::Events(events) => self.read = events.into(),
            Block::Damaged(position) => {
                // Nobody knows whose it is, so only who may see all is told of it.
                if self.filter.sees_all() {
                    self.summary.examined += 1;
                    self.summary.damaged += 1;
                }
                self.position = position;
            }
            Block::End => self.position = self.end,
        }
        Ok(())
    }

    /// What comes after a place.
    async fn block(&self, after: Position) -> Result<Block, ReadError> {
        // Adapters never wait. Others want this thread too.
        task::yield_now().await;
        let log = &self.ingestor.log;
        loop {
            // What is no longer retained by now is nobody's loss.
            let after = after.max(log.start());
            let mut events = match log.read(after, READ_LIMIT).await {
                Err(ReadError::NotRetained) if log.start() > after => continue,
                Err(ReadError::Damaged { position, .. }) if position > after => {
                    return Ok(Block::Damaged(position));
                }
                events => events?,
            };
            events.retain(|event| event.position <= self.end);
            return Ok(match events.is_empty() {
                true => Block::End,
                false => Block::Events(events),
            });
        }
    }

    /// Finds the newest correction of each event that was corrected: that is what counts today.
    async fn find_corrections(&self) -> Result<HashMap<Uuid, Position>, EndError> {
        let mut corrections = HashMap::new();
        let mut position = self.position;
        while !self.draining.is_cancelled() {
            match self.block(position).await? {
                Block::Events(events) => {
                    for stored in events {
                        position = stored.position;
                        if let Ok(event) = decode(&stored, &Bytes::new())
                            && let Ok(corrected) = Uuid::parse_str(&event.corrects_event_id)
                        {
                            corrections.insert(corrected, position);
                        }
                    }
                }
                Block::Damaged(damaged) => position = damaged,
                Block::End => return Ok(corrections),
            }
        }
        Err(EndError::Draining)
    }

    /// Looks at one event. Says what is different, if anything is.
    async fn examine(
        &mut self,
        stored: &StoredEvent,
    ) -> Result<Option<RenormalizedEvent>, EndError> {
        let event = self.decode(stored).await?;
        if !event.corrects_event_id.is_empty() {
            self.summary.corrections += 1;
            return Ok(None);
        }
        let delivery = match self.ingestor.log.delivery(stored.position).await {
            Err(ReadError::NotRetained) => None,
            delivery => delivery?,
        };
        let Some(delivery) = delivery else {
            self.summary.without_delivery += 1;
            return Ok(None);
        };
        let known = self.as_corrected(&event).await?;
        if known.personal_data.as_ref().is_some_and(|data| data.erased) {
            // Its subject was erased, and must not come back with a correction.
            self.summary.without_delivery += 1;
            return Ok(None);
        }
        match self.today(&known, &delivery).await {
            Today::Event(today) => self.compare(stored, event, known, *today, delivery).await,
            Today::NoEvent(why) => {
                self.summary.changed += 1;
                Ok(Some(RenormalizedEvent {
                    no_longer_an_event: why,
                    ..renormalized(event)
                }))
            }
            Today::Unreadable => {
                self.summary.without_delivery += 1;
                Ok(None)
            }
        }
    }

    /// What is known of an event by now: its newest correction, or the event itself.
    async fn as_corrected(
        &self,
        event: &VerificationEvent,
    ) -> Result<VerificationEvent, ReadError> {
        let correction = Uuid::parse_str(&event.event_id)
            .ok()
            .and_then(|id| self.corrections.as_ref()?.get(&id));
        let Some(position) = correction else {
            return Ok(event.clone());
        };
        let limit = ReadLimit {
            records: 1,
            ..READ_LIMIT
        };
        let read = self.ingestor.log.read(Position(position.0 - 1), limit);
        match read.await?.first() {
            Some(correction) => self.decode(correction).await,
            None => Ok(event.clone()),
        }
    }

    /// A stored event, with its personal data.
    async fn decode(&self, stored: &StoredEvent) -> Result<VerificationEvent, ReadError> {
        decode(stored, &self.ingestor.log.personal_data(stored).await?)
    }

    /// Runs a stored delivery through the current adapter.
    async fn today(&self, stored: &VerificationEvent, delivery: &Bytes) -> Today {
        let Ok((delivery, received_at)) = delivery::decode(delivery) else {
            return Today::Unreadable;
        };
        let Some(source) = self.ingestor.source(&delivery.provider, &delivery.account) else {
            return Today::Unreadable;
        };
        let Ok(mut webhook) = delivery::verified(source, delivery) else {
            return Today::Unreadable;
        };
        if ingest::open(source, &mut webhook, received_at)
            .await
            .is_err()
        {
            return Today::Unreadable;
        }
        match source.normalize(&webhook) {
            Ok(Normalized::Event(normalized)) => {
                Today::Event(Box::new(describe(source, &webhook, *normalized, stored)))
            }
            Ok(Normalized::Ignored) => {
                Today::NoEvent("it is known, but not about verification".to_owned())
            }
            Err(error) => Today::NoEvent(error.to_string()),
        }
    }

    /// Compares an event, as it was corrected last, with what it is today, and has it corrected if that is asked for.
    async fn compare(
        &mut self,
        stored: &StoredEvent,
        event: VerificationEvent,
        known: VerificationEvent,
        today: VerificationEvent,
        delivery: Bytes,
    ) -> Result<Option<RenormalizedEvent>, EndError> {
        let is_correction = known.event_id != event.event_id;
        let before = VerificationEvent {
            // A correction has an id of its own in any case.
            event_id: match is_correction {
                true => today.event_id.clone(),
                false => event.event_id.clone(),
            },
            corrects_event_id: String::new(),
            ..known.clone()
        };
        let changes = diff::changes(&before, &today).map_err(|error| damaged(stored, &error))?;
        if changes.is_empty() {
            self.summary.unchanged += 1;
            return Ok(None);
        }
        self.summary.changed += 1;
        let mut corrected_event_id = String::new();
        if !self.dry_run {
            let corrected = Uuid::parse_str(&event.event_id).map_err(|e| damaged(stored, &e))?;
            let correction = correction(corrected, &known.event_id, today, delivery);
            corrected_event_id = correction.event_id.to_string();
            self.append(correction).await?;
        }
        Ok(Some(RenormalizedEvent {
            changes,
            corrected_event_id,
            ..renormalized(event)
        }))
    }

    async fn append(&mut self, correction: NewEvent) -> Result<(), AppendError> {
        match self.ingestor.log.append(correction).await? {
            Appended::New(_) => self.summary.appended += 1,
            // It was appended by an earlier walk: its id follows from its content.
            Appended::Duplicate(_) | Appended::Conflict(_) => {}
        }
        Ok(())
    }
}

fn decode(stored: &StoredEvent, personal_data: &Bytes) -> Result<VerificationEvent, ReadError> {
    VerificationEvent::decode(event::merge(&stored.event, personal_data))
        .map_err(|error| damaged(stored, &error))
}

fn damaged(stored: &StoredEvent, error: &dyn fmt::Display) -> ReadError {
    ReadError::Damaged {
        position: stored.position,
        place: format!("the event: {error}"),
    }
}

fn renormalized(stored: VerificationEvent) -> RenormalizedEvent {
    RenormalizedEvent {
        event_id: stored.event_id,
        provider: stored.source.unwrap_or_default().provider,
        ..Default::default()
    }
}

/// The event that a delivery becomes today, with everything from the stored one that no adapter decides on.
fn describe(
    source: &Source,
    webhook: &VerifiedWebhook,
    normalized: NormalizedEvent,
    stored: &VerificationEvent,
) -> VerificationEvent {
    let NormalizedEvent { key, mut event } = normalized;
    // The source may have been configured for another environment since. That says nothing about what is past.
    let told = event.source.get_or_insert_default();
    if told.environment() == Environment::Unspecified {
        told.environment = stored.source.as_ref().map_or(0, |s| s.environment);
    }
    let event_id = event::event_id(source.provider.name(), &source.account, &key);
    VerificationEvent {
        received_at: stored.received_at,
        trace: stored.trace.clone(),
        revision: stored.revision,
        late: stored.late,
        normalizer_version: stored.normalizer_version.clone(),
        ..ingest::describe(source, webhook, event_id, event)
    }
}

/// The event that corrects a stored one. Its id follows from its content and from what was known before, so that the same
/// correction is never made twice, and one that was itself corrected can be made again.
fn correction(
    corrected: Uuid,
    before: &str,
    today: VerificationEvent,
    delivery: Bytes,
) -> NewEvent {
    // What differs from walk to walk, or from event to event, is no part of the content.
    let content = VerificationEvent {
        event_id: String::new(),
        received_at: None,
        revision: 0,
        late: false,
        trace: None,
        normalizer_version: String::new(),
        ..today.clone()
    };
    let content_sha256 = signature::sha256(&content.encode_to_vec());
    let event_id = event::correction_id(corrected, before, &content_sha256);
    let event = VerificationEvent {
        event_id: event_id.to_string(),
        corrects_event_id: corrected.to_string(),
        revision: 0,
        late: false,
        normalizer_version: NORMALIZER_VERSION.to_owned(),
        ..today
    };
    NewEvent {
        event_id,
        content_sha256,
        verification: event::verification_key(&event),
        subject: event::subject_key(&event),
        occurred_at: event.occurred_at,
        received_at: event.received_at.unwrap_or_default(),
        origin: Origin::Correction(corrected),
        encoded: event::encode(event),
        delivery,
    }
}
