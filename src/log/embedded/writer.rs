//! The one thread that writes.
//!
//! It takes what has queued up, decides each request against what is stored and what came before it in the same batch,
//! writes the batch, syncs once, and answers all. So it alone sees the order of events, and needs no locks.

use std::{
    collections::HashMap,
    fs::File,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost_types::Timestamp;
use tokio::{runtime::Runtime, sync::mpsc, time};
use uuid::Uuid;

use super::{
    consumers::ConsumerChange,
    frame::Frames,
    index::{IndexError, Indexer},
    meta,
    portion::IdEntry,
    quarantine::{Change, Quarantine},
    reader::Shared,
    record::{ClosedRecord, EventRecord, MetaRecord, PlaceInVerification},
    request::{Reply, Request, answer},
    retention::Retirement,
    rewrap::Rewrapping,
    seal::Nonces,
    segments::{Segments, WriteError},
    tables::Tables,
};
use crate::{
    log::{
        AppendError, Appended, EraseError, NewEvent, Origin, Position, QuarantineKind, Sealed,
        StoredEvent, VerificationState,
        verification::{self, Member, Time},
    },
    marks::Marks,
};

/// The most requests in one batch, and about the most bytes.
const MAX_BATCH: usize = 512;
const MAX_BATCH_BYTES: usize = 4 << 20;

/// How many events of a verification are looked at when one of them is corrected.
const MAX_MEMBERS: usize = 1000;

/// How often the writer looks after the disk and what is to be deleted.
const TICK: Duration = Duration::from_secs(1);

/// The writer's view of the log.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) events: Segments,
    /// What was written last, for its memory.
    pub(super) frames: Frames,
    pub(super) nonces: Nonces,
    pub(super) genuine: Quarantine,
    pub(super) unverified: Quarantine,
    pub(super) indexer: Indexer,
    pub(super) end: Position,
    pub(super) latest_received_at: Time,
    pub(super) retirement: Retirement,
    pub(super) rewrapping: Rewrapping,
    pub(super) meta: MetaRecord,
    /// Held as long as anything is written.
    pub(super) _locks: [File; 2],
}

/// Requests that become durable together.
struct Batch {
    end: Position,
    latest_received_at: Time,
    size_bytes: usize,
    ids: HashMap<Uuid, IdEntry>,
    verifications: HashMap<[u8; 32], VerificationState>,
    events: Vec<PlacedEvent>,
    answers: Vec<(Appended, Reply<Appended>)>,
    genuine: Vec<(Change, ChangeReply)>,
    unverified: Vec<(Change, ChangeReply)>,
    consumers: Vec<ConsumerChange>,
    erasures: Vec<(Vec<Position>, Reply<(), EraseError>)>,
}

/// An event with its place.
pub(super) struct PlacedEvent {
    pub(super) marks: Option<Marks>,
    pub(super) subject: [u8; 32],
    pub(super) record: EventRecord,
    pub(super) stored: StoredEvent,
    pub(super) delivery: Bytes,
}

enum ChangeReply {
    Added(Reply<()>),
    Released(Reply<bool>),
    Nobody,
}

impl Writer {
    /// Serves requests until there can be no more.
    pub(super) fn run(mut self, runtime: &Runtime, mut queue: mpsc::Receiver<Request>) {
        self.rewrap();
        let mut ticked = Instant::now();
        loop {
            let next = runtime.block_on(async { time::timeout(TICK, queue.recv()).await });
            match next {
                Ok(Some(request)) => self.serve(request, &mut queue),
                Ok(None) => break,
                Err(_) => {}
            }
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                self.tick();
            }
        }
        self.close();
    }

    /// Serves a request and what has queued up behind it.
    fn serve(&mut self, request: Request, queue: &mut mpsc::Receiver<Request>) {
        let mut batch = self.batch();
        self.add(&mut batch, request);
        let mut requests = 1;
        while requests < MAX_BATCH
            && batch.size_bytes < MAX_BATCH_BYTES
            && let Ok(request) = queue.try_recv()
        {
            self.add(&mut batch, request);
            requests += 1;
        }
        self.commit(batch);
        self.delete_some();
    }

    /// What is to be done once in a while: see whether the disk is well, and delete what is too old.
    fn tick(&mut self) {
        self.shared.health.examine();
        if let Err(error) = self.indexer.examine() {
            self.index_failed(&error);
        }
        if let Err(error) = self.unverified.sync() {
            self.trouble(error);
        }
        self.retain_quarantines();
        self.delete_some();
        self.drop_deliveries();
        self.destroy_again();
        self.rewrap();
    }

    /// Leaves word of what the log holds, so that a loss while it is closed is noticed.
    fn close(mut self) {
        self.retirement.close();
        self.rewrapping.close();
        if self.shared.health.has_not_failed().is_err() {
            return;
        }
        if let Err(error) = self.indexer.close() {
            if let IndexError::Damaged(_) = error {
                Tables::mark_broken(&self.shared.directory);
            }
            tracing::warn!(%error, "the index was not closed; it is completed at the next start");
        }
        self.meta.closed = Some(ClosedRecord {
            events: self.end.0,
            genuine: self.genuine.end(),
        });
        let Shared {
            disk, directory, ..
        } = self.shared.as_ref();
        let cut = self.events.cut();
        let cut = cut
            .and_then(|()| self.genuine.cut())
            .and_then(|()| self.unverified.cut());
        if cut.is_err() || meta::write(disk.as_ref(), directory, &self.meta).is_err() {
            tracing::warn!("the log was not closed; it is checked at the next start");
        }
    }

    fn batch(&self) -> Batch {
        Batch {
            end: self.end,
            latest_received_at: self.latest_received_at,
            size_bytes: 0,
            ids: HashMap::new(),
            verifications: HashMap::new(),
            events: Vec::new(),
            answers: Vec::new(),
            genuine: Vec::new(),
            unverified: Vec::new(),
            consumers: Vec::new(),
            erasures: Vec::new(),
        }
    }

    /// Decides a request and adds what it writes to the batch. A request that fails here is answered at once.
    fn add(&mut self, batch: &mut Batch, request: Request) {
        if let Err(error) = self.is_writable(&request) {
            return request.fail(error);
        }
        match request {
            Request::Append(event, reply) => match self.append(batch, *event) {
                Ok(appended) => batch.answers.push((appended, reply)),
                Err(error) => answer(reply, Err(error)),
            },
            Request::Quarantine(delivery, reply) => {
                batch.size_bytes += delivery.delivery.len();
                match delivery.kind {
                    QuarantineKind::Genuine => {
                        let reply = ChangeReply::Added(reply);
                        batch.genuine.push((Change::Add(delivery), reply));
                    }
                    QuarantineKind::Unverified => {
                        // Nobody was promised anything, so nobody waits.
                        answer(reply, Ok(()));
                        let change = Change::Add(delivery);
                        batch.unverified.push((change, ChangeReply::Nobody));
                    }
                }
            }
            Request::Release(id, reply) => {
                let changes = match self.unverified.view.holds(&id) {
                    true => &mut batch.unverified,
                    false => &mut batch.genuine,
                };
                changes.push((Change::Release(id), ChangeReply::Released(reply)));
            }
            Request::Erase(positions, reply) => batch.erasures.push((positions, reply)),
            Request::Commit(commit, reply) => {
                let change = ConsumerChange::Commit(commit, reply);
                batch.consumers.push(change);
            }
            Request::Forget(name, reply) => {
                batch.consumers.push(ConsumerChange::Forget(name, reply));
            }
        }
    }

    fn append(
        &mut self,
        batch: &mut Batch,
        (event, marks): (NewEvent, Option<Marks>),
    ) -> Result<Appended, AppendError> {
        if let Some(known) = self.known(batch, &event.event_id)? {
            let same_content = known.has_content(&event.content_sha256);
            return Ok(Appended::again(known.position, same_content));
        }
        let position = Position(batch.end.0 + 1);
        let (mut revision, mut late, mut place) = (0, false, None);
        if let Some(key) = event.verification {
            let before = match batch.verifications.get(&key) {
                Some(state) => *state,
                None => self.state(&key)?.unwrap_or_default(),
            };
            let member = Member::new(&event, position);
            let after;
            (after, late) = match event.origin {
                Origin::Received | Origin::Redriven => before.next(&member),
                Origin::Correction(_) => {
                    before.corrected(&self.members(batch, before.last, member)?)
                }
            };
            revision = after.revision;
            batch.verifications.insert(key, after);
            place = Some(PlaceInVerification::new(&key, before, after, &member));
        }
        batch.end = position;
        let received_at = verification::time(&event.received_at);
        batch.latest_received_at = batch.latest_received_at.max(received_at);
        let (seconds, nanos) = batch.latest_received_at;
        let encoded = event.encoded.placed(revision, late);
        let entry = IdEntry::new(position, &event.content_sha256);
        batch.ids.insert(event.event_id, entry);
        batch.size_bytes += encoded.event.len() + event.delivery.len();
        batch.events.push(PlacedEvent {
            marks,
            subject: event.subject,
            record: EventRecord {
                event: encoded.event.clone(),
                personal_data: encoded.personal_data.clone(),
                slot: 0,
                slots: 0,
                latest_received_at: Some(Timestamp { seconds, nanos }),
                event_id: Bytes::copy_from_slice(event.event_id.as_bytes()),
                content_sha256: Bytes::copy_from_slice(&event.content_sha256),
                verification: place,
            },
            stored: StoredEvent {
                position,
                event: encoded.event,
                // Sealed when it is written: before that nobody knows in which segment.
                personal_data: Sealed {
                    bytes: encoded.personal_data,
                    slot: 0,
                },
            },
            delivery: event.delivery,
        });
        Ok(Appended::New(position))
    }

    /// Where the event with this id lies, if it is there and retained.
    fn known(&self, batch: &Batch, event_id: &Uuid) -> Result<Option<IdEntry>, AppendError> {
        if let Some(known) = batch.ids.get(event_id) {
            return Ok(Some(*known));
        }
        let known = self.indexer.index.find(event_id);
        let known = known.map_err(|error| self.index_failed(&error))?;
        Ok(known.filter(|known| known.position.0 > self.events.view.start()))
    }

    /// The events of a verification, in log order: those up to `last`, and a new one.
    fn members(
        &self,
        batch: &Batch,
        last: Position,
        new: Member,
    ) -> Result<Vec<Member>, AppendError> {
        let mut members = vec![new];
        let mut next = last;
        while next.0 > self.events.view.start() && members.len() < MAX_MEMBERS {
            let pending = batch
                .events
                .iter()
                .find(|event| event.stored.position == next);
            let record = match pending {
                Some(event) => event.record.clone(),
                None => self
                    .shared
                    .event(next)
                    .map_err(|error| AppendError::Unavailable(error.to_string()))?,
            };
            members.extend(record.member(next));
            let place = record.verification.as_ref();
            next = Position(place.map_or(0, |place| place.previous));
        }
        members.reverse();
        Ok(members)
    }

    fn state(&self, key: &[u8; 32]) -> Result<Option<VerificationState>, AppendError> {
        let state = self.indexer.index.verification(key);
        let state = state.map_err(|error| self.index_failed(&error))?;
        Ok(state.filter(|state| state.last.0 > self.events.view.start()))
    }

    /// Makes a batch durable, then shows it, then answers.
    fn commit(&mut self, mut batch: Batch) {
        let genuine = std::mem::take(&mut batch.genuine);
        let unverified = std::mem::take(&mut batch.unverified);
        let consumers = std::mem::take(&mut batch.consumers);
        let erasures = std::mem::take(&mut batch.erasures);
        self.commit_events(batch);
        for (positions, reply) in erasures {
            let erased = self.erase(&positions);
            answer(reply, erased);
        }
        self.commit_quarantine(QuarantineKind::Genuine, genuine);
        self.commit_quarantine(QuarantineKind::Unverified, unverified);
        self.commit_consumers(consumers);
    }

    fn commit_events(&mut self, mut batch: Batch) {
        let written = self.write_events(&mut batch);
        if written.is_ok() && !batch.events.is_empty() {
            self.end = batch.end;
            self.latest_received_at = batch.latest_received_at;
            let stored = batch.events.into_iter().map(|event| event.stored);
            self.shared.tail.extend(stored.collect());
        }
        for (appended, reply) in batch.answers {
            answer(reply, written.clone().map(|()| appended));
        }
    }

    fn write_events(&mut self, batch: &mut Batch) -> Result<(), AppendError> {
        if batch.events.is_empty() {
            return Ok(());
        }
        self.shared.health.has_not_failed()?;
        // Not their own time: an event that was received long ago is kept as long as one that comes now.
        let time = batch.latest_received_at.0;
        self.make_records(&mut batch.events, time)
            .and_then(|()| self.events.append(&self.frames))
            .map_err(|error| self.trouble(error))?;
        let (ids, verifications) = (batch.ids.drain(), batch.verifications.drain());
        let events = batch.events.iter();
        let marks = events.map(|event| (event.stored.position, event.marks.as_ref()));
        // The events are durable whatever becomes of the index, which is completed at the next start.
        if let Err(error) = self.indexer.add(ids, verifications, marks, batch.end) {
            self.index_failed(&error);
        }
        self.shared.health.well();
        Ok(())
    }

    fn commit_quarantine(&mut self, kind: QuarantineKind, changes: Vec<(Change, ChangeReply)>) {
        if changes.is_empty() {
            return;
        }
        let (changes, replies): (Vec<_>, Vec<_>) = changes.into_iter().unzip();
        let applied = self.apply(kind, changes);
        for (number, reply) in replies.into_iter().enumerate() {
            let effective = applied.clone().map(|effective| effective[number]);
            match reply {
                ChangeReply::Added(reply) => answer(reply, effective.map(|_| ())),
                ChangeReply::Released(reply) => answer(reply, effective),
                ChangeReply::Nobody => {}
            }
        }
    }

    fn apply(
        &mut self,
        kind: QuarantineKind,
        changes: Vec<Change>,
    ) -> Result<Vec<bool>, AppendError> {
        self.shared.health.has_not_failed()?;
        let releases = changes
            .iter()
            .any(|change| matches!(change, Change::Release(_)));
        let quarantine = match kind {
            QuarantineKind::Genuine => &mut self.genuine,
            QuarantineKind::Unverified => &mut self.unverified,
        };
        let applied = quarantine.apply(changes).and_then(|effective| {
            // What was taken out must not come back.
            if releases {
                quarantine.sync()?;
            }
            Ok(effective)
        });
        applied.map_err(|error| self.trouble(error))
    }

    /// Whether a request is worth a try. What makes room is, even on a disk that is nearly full.
    fn is_writable(&self, request: &Request) -> Result<(), AppendError> {
        match request {
            Request::Release(..) | Request::Erase(..) => self.shared.health.has_not_failed(),
            _ => self.shared.health.writable(),
        }
    }

    /// A write has failed. The answer for those who wait for it.
    pub(super) fn trouble(&self, error: WriteError) -> AppendError {
        self.shared.health.trouble(error)
    }

    /// The index has failed. The answer for those who wait.
    pub(super) fn index_failed(&self, error: &IndexError) -> AppendError {
        if let IndexError::Damaged(_) = error {
            Tables::mark_broken(&self.shared.directory);
        }
        self.shared.health.fail(error.to_string());
        AppendError::Unavailable(error.to_string())
    }
}
