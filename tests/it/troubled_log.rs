//! A log that gets into trouble when a test wants it to.

use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use prost_types::Timestamp;
use tokio::{sync::watch, time};
use uuid::Uuid;
use verdict::log::{
    AppendError, Appended, Commit, CommitError, Consumer, Cursor, EraseError, EventLog, Health,
    History, NewEvent, NewQuarantined, OutOfRange, Position, QuarantineKind, ReadError, ReadLimit,
    Stats, StoredEvent, StoredQuarantined, Tail, VerificationState,
};

use crate::support::{PATIENCE, memory_log};

/// A log in memory, and the trouble that a test gives it.
pub(crate) struct TroubledLog {
    log: Arc<dyn EventLog>,
    trouble: Mutex<Trouble>,
    health: Mutex<watch::Sender<Health>>,
    /// Whether appends may pass.
    gate: watch::Sender<bool>,
    /// The appends that wait at the gate.
    waiting: watch::Sender<usize>,
    /// Whether reads by id, and of the quarantine, may pass.
    read_gate: watch::Sender<bool>,
    /// The reads that wait at their gate.
    waiting_reads: watch::Sender<usize>,
}

#[derive(Default)]
struct Trouble {
    /// The disk has gone away.
    gone: bool,
    /// Retention has come so far.
    start: Position,
    /// Retention comes so far just before the next read.
    next_start: Option<Position>,
    /// Retention comes so far while the next history is read.
    next_history_start: Option<Position>,
    /// The event here cannot be read.
    damaged: Option<Position>,
    /// The quarantined delivery with this sequence cannot be read.
    damaged_quarantined: Option<u64>,
    /// The disk goes away after so many more appends.
    appends_left: Option<usize>,
}

/// Waits until so many wait.
async fn reaches(count: &watch::Sender<usize>, wanted: usize) {
    let mut count = count.subscribe();
    let reached = time::timeout(PATIENCE, count.wait_for(|count| *count >= wanted)).await;
    let _ = reached
        .unwrap_or_else(|_| panic!("there are no {wanted} in time"))
        .unwrap();
}

/// One that waits at a gate; it is counted as long as it does, whatever becomes of it.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn begin(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl TroubledLog {
    /// Without any trouble yet.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            log: memory_log(),
            trouble: Mutex::default(),
            health: Mutex::new(watch::Sender::new(Health::Well)),
            gate: watch::Sender::new(true),
            waiting: watch::Sender::new(0),
            read_gate: watch::Sender::new(true),
            waiting_reads: watch::Sender::new(0),
        })
    }

    /// A log on a disk that has gone away. It says that its first five events are no longer retained.
    pub(crate) fn gone() -> Arc<Self> {
        let log = Self::new();
        log.go_away();
        log.retain_after(5);
        log
    }

    /// The disk goes away.
    pub(crate) fn go_away(&self) {
        self.trouble().gone = true;
    }

    /// Retention passes everything up to here.
    pub(crate) fn retain_after(&self, position: u64) {
        self.trouble().start = Position(position);
    }

    /// Retention passes everything up to here, just before something is read again.
    pub(crate) fn retain_after_at_next_read(&self, position: u64) {
        self.trouble().next_start = Some(Position(position));
    }

    /// Retention passes everything up to here, while a history is read.
    pub(crate) fn retain_after_at_next_history(&self, position: u64) {
        self.trouble().next_history_start = Some(Position(position));
    }

    /// The event here cannot be read any more.
    pub(crate) fn damage(&self, position: u64) {
        self.trouble().damaged = Some(Position(position));
    }

    /// The quarantined delivery with this sequence cannot be read any more.
    pub(crate) fn damage_quarantined(&self, sequence: u64) {
        self.trouble().damaged_quarantined = Some(sequence);
    }

    /// The disk goes away after so many more appends.
    pub(crate) fn go_away_after(&self, appends: usize) {
        self.trouble().appends_left = Some(appends);
    }

    /// The disk is there again.
    pub(crate) fn come_back(&self) {
        let mut trouble = self.trouble();
        trouble.gone = false;
        trouble.appends_left = None;
    }

    /// Says how the log is.
    pub(crate) fn set_health(&self, health: Health) {
        self.health.lock().unwrap().send_replace(health);
    }

    /// The writer ends without a word.
    pub(crate) fn end_writer(&self) {
        *self.health.lock().unwrap() = watch::Sender::new(Health::Well);
    }

    /// Holds appends back, or lets all of them pass.
    pub(crate) fn set_gate(&self, open: bool) {
        self.gate.send_replace(open);
    }

    /// Waits until so many appends are held back.
    pub(crate) async fn held_back(&self, appends: usize) {
        reaches(&self.waiting, appends).await;
    }

    /// Holds reads by id back, or lets all of them pass.
    pub(crate) fn set_read_gate(&self, open: bool) {
        self.read_gate.send_replace(open);
    }

    /// Waits until so many reads by id are held back.
    pub(crate) async fn reads_held_back(&self, reads: usize) {
        reaches(&self.waiting_reads, reads).await;
    }

    /// How many appends are held back.
    pub(crate) fn waiting(&self) -> usize {
        *self.waiting.borrow()
    }

    fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap()
    }

    /// Whether an event can be read.
    fn check(&self, position: Position) -> Result<(), ReadError> {
        let mut trouble = self.trouble();
        if let Some(start) = trouble.next_start.take() {
            trouble.start = start;
        }
        if trouble.gone {
            return gone_read();
        }
        if position <= trouble.start {
            return Err(ReadError::NotRetained);
        }
        if trouble.damaged == Some(position) {
            return Err(ReadError::Damaged {
                position,
                place: "a secret file".to_owned(),
            });
        }
        Ok(())
    }
}

fn gone_read<T>() -> Result<T, ReadError> {
    Err(ReadError::Unavailable("input/output error".to_owned()))
}

fn gone_append<T>() -> Result<T, AppendError> {
    Err(AppendError::Unavailable(
        "no space left on device".to_owned(),
    ))
}

#[async_trait]
impl EventLog for TroubledLog {
    fn cursor(&self, position: Position) -> Cursor {
        self.log.cursor(position)
    }

    fn resolve(&self, cursor: &Cursor) -> Result<Position, OutOfRange> {
        if cursor.position < self.start() {
            return Err(OutOfRange::NotRetained);
        }
        self.log.resolve(cursor)
    }

    fn tail(&self) -> &Tail {
        self.log.tail()
    }

    fn start(&self) -> Position {
        self.trouble().start
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.lock().unwrap().subscribe()
    }

    fn stats(&self) -> Stats {
        self.log.stats()
    }

    async fn personal_data(&self, event: &StoredEvent) -> Result<Bytes, ReadError> {
        self.log.personal_data(event).await
    }

    async fn erase(&self, events: Vec<Position>) -> Result<(), EraseError> {
        self.log.erase(events).await
    }

    async fn append(&self, event: NewEvent) -> Result<Appended, AppendError> {
        let waiting = Waiting::begin(&self.waiting);
        let _ = self.gate.subscribe().wait_for(|open| *open).await;
        drop(waiting);
        {
            let mut trouble = self.trouble();
            match &mut trouble.appends_left {
                Some(0) => trouble.gone = true,
                Some(left) => *left -= 1,
                None => {}
            }
            if trouble.gone {
                return gone_append();
            }
        }
        self.log.append(event).await
    }

    async fn read(&self, after: Position, limit: ReadLimit) -> Result<Vec<StoredEvent>, ReadError> {
        self.check(Position(after.0 + 1))?;
        let mut events = self.log.read(after, limit).await?;
        if let Some(damaged) = self.trouble().damaged {
            events.retain(|event| after >= damaged || event.position < damaged);
        }
        Ok(events)
    }

    async fn find(&self, event_id: Uuid) -> Result<Option<StoredEvent>, ReadError> {
        let waiting = Waiting::begin(&self.waiting_reads);
        let _ = self.read_gate.subscribe().wait_for(|open| *open).await;
        drop(waiting);
        let found = self.log.find(event_id).await?;
        let position = found.as_ref().map_or(Position(u64::MAX), |f| f.position);
        match self.check(position) {
            Err(ReadError::NotRetained) => Ok(None),
            checked => checked.map(|()| found),
        }
    }

    async fn position_before(&self, since: Timestamp) -> Result<Position, ReadError> {
        if self.trouble().gone {
            return gone_read();
        }
        let position = self.log.position_before(since).await?;
        Ok(position.max(self.start()))
    }

    async fn delivery(&self, position: Position) -> Result<Option<Bytes>, ReadError> {
        self.check(position)?;
        self.log.delivery(position).await
    }

    async fn verification(&self, key: [u8; 32]) -> Result<Option<VerificationState>, ReadError> {
        if self.trouble().gone {
            return gone_read();
        }
        let state = self.log.verification(key).await?;
        Ok(state.filter(|state| state.last > self.start()))
    }

    async fn history(&self, from: Position, limit: usize) -> Result<History, ReadError> {
        self.check(from)?;
        let mut history = self.log.history(from, limit).await?;
        let next_start = self.trouble().next_history_start.take();
        if let Some(start) = next_start {
            self.retain_after(start.0);
        }
        let start = self.start();
        history.events.retain(|event| event.position > start);
        history.next = history.next.filter(|next| *next > start);
        Ok(history)
    }

    async fn commit(&self, commit: Commit) -> Result<(), CommitError> {
        if self.trouble().gone {
            return Ok(gone_append()?);
        }
        self.log.commit(commit).await
    }

    async fn forget(&self, consumer: String) -> Result<(), AppendError> {
        let _ = self.gate.subscribe().wait_for(|open| *open).await;
        self.log.forget(consumer).await
    }

    fn consumers(&self) -> Vec<Consumer> {
        self.log.consumers()
    }

    async fn quarantine(&self, delivery: NewQuarantined) -> Result<(), AppendError> {
        if self.trouble().gone {
            return gone_append();
        }
        self.log.quarantine(delivery).await
    }

    async fn quarantined(
        &self,
        kind: QuarantineKind,
        after: u64,
        limit: ReadLimit,
    ) -> Result<Vec<StoredQuarantined>, ReadError> {
        if self.trouble().gone {
            return gone_read();
        }
        let _ = self.read_gate.subscribe().wait_for(|open| *open).await;
        let read = self.log.quarantined(kind, after, limit).await?;
        let damaged = self.trouble().damaged_quarantined;
        match read.iter().find(|one| Some(one.sequence) == damaged) {
            Some(damaged) => Err(ReadError::Damaged {
                position: Position(damaged.sequence),
                place: "a secret file".to_owned(),
            }),
            None => Ok(read),
        }
    }

    async fn find_quarantined(&self, id: Uuid) -> Result<Option<StoredQuarantined>, ReadError> {
        if self.trouble().gone {
            return gone_read();
        }
        self.log.find_quarantined(id).await
    }

    async fn release(&self, id: Uuid) -> Result<bool, AppendError> {
        if self.trouble().gone {
            return gone_append();
        }
        self.log.release(id).await
    }
}
