//! A subscription: a position in, a stream out. It catches up from the log, then follows the tail.
//!
//! It is pulled, never pushed: one read ahead at most of what the subscriber takes. So a slow subscriber costs twice
//! [`READ_LIMIT`] and no more, and is late, never short.

use std::{collections::VecDeque, fmt, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, future};
use tokio::{
    sync::watch,
    task,
    time::{self, Instant, Interval, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    caller::Reach,
    event,
    filter::Filter,
    log::{EventLog, Found, Position, ReadError, ReadLimit, StoredEvent},
};

/// What is read at once for a subscriber: this many events, or the last event that exceeds this many bytes.
pub const READ_LIMIT: ReadLimit = ReadLimit {
    records: 512,
    bytes: 256 << 10,
};

/// An event as someone sees it who may see the personal data of these sources.
pub async fn visible(
    log: &dyn EventLog,
    stored: StoredEvent,
    personal_data: &Reach,
) -> Result<Bytes, ReadError> {
    let may_see = match personal_data {
        Reach::Nothing => false,
        Reach::Everything => true,
        Reach::Limited(_) => event::source_of(&stored.event)
            .is_some_and(|source| personal_data.covers(&source.provider, &source.account)),
    };
    if !may_see || stored.personal_data.size_bytes() == 0 {
        return Ok(stored.event);
    }
    let personal_data = log.personal_data(&stored).await?;
    Ok(event::merge(&stored.event, &personal_data))
}

/// What a subscriber asks for.
#[derive(Debug)]
pub struct Options {
    /// Where to start.
    pub after: Position,
    /// Whether to start at the oldest retained event instead, should retention pass `after` before anything was sent.
    pub may_move: bool,
    /// Which events to send.
    pub filter: Filter,
    /// Of which sources to send personal data.
    pub personal_data: Reach,
    /// Whether to end once everything has been sent that was in the log at the start.
    pub stop_when_caught_up: bool,
    /// How often to send a heartbeat.
    pub heartbeat: Duration,
}

/// One message to a subscriber.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// Resume after this place.
    pub position: Position,
    /// The message.
    pub message: Message,
}

/// What a subscriber is told.
#[derive(Clone, PartialEq)]
pub enum Message {
    /// An encoded event.
    Event(Bytes),
    /// A sign of life.
    Heartbeat,
    /// Everything up to here has been sent.
    CaughtUp,
    /// The subscriber is being served from the log again.
    FellBehind,
    /// The server is shutting down. The last message.
    Draining,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(event) => write!(f, "Event({} bytes)", event.len()),
            Self::Heartbeat => f.write_str("Heartbeat"),
            Self::CaughtUp => f.write_str("CaughtUp"),
            Self::FellBehind => f.write_str("FellBehind"),
            Self::Draining => f.write_str("Draining"),
        }
    }
}

/// A stream of events.
pub struct Subscription {
    log: Arc<dyn EventLog>,
    filter: Arc<Filter>,
    personal_data: Reach,
    /// The place of the last event that was sent or passed over.
    position: Position,
    /// Whether nothing was sent, and nobody has asked for this very place.
    may_move: bool,
    /// Read, and not sent yet.
    pending: VecDeque<StoredEvent>,
    /// Up to here there is no other event to send.
    looked_to: Position,
    /// What comes after that, when it comes from the log itself.
    ahead: Option<ReadAhead>,
    /// When the subscription last looked after anything but events.
    looked_around: Instant,
    /// Whether the subscriber was told that it has caught up, and has not fallen behind since.
    live: bool,
    stop_at: Option<Position>,
    end: watch::Receiver<Position>,
    heartbeat: Interval,
    draining: CancellationToken,
    state: State,
}

/// A read of the log that goes on while the subscriber takes what was read before.
struct ReadAhead {
    after: Position,
    found: Pin<Box<dyn Future<Output = Result<Found, ReadError>> + Send>>,
}

/// How often to look after anything but events: not with each of a million events a second.
const LOOK_AROUND: Duration = Duration::from_millis(1);

/// How far the stream has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// The subscriber was told that the server is shutting down.
    Drained,
    Ended,
}

/// Why a stream ended before its time.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EndError {
    /// The log could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The server is shutting down. The message before was [`Message::Draining`].
    #[error("the server is shutting down")]
    Draining,
}

impl Subscription {
    /// Starts a stream. `draining` is cancelled when the server shuts down.
    pub fn new(log: Arc<dyn EventLog>, options: Options, draining: CancellationToken) -> Self {
        let now = Instant::now();
        let mut heartbeat = time::interval_at(now + options.heartbeat, options.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop_at = options.stop_when_caught_up.then(|| log.tail().end());
        Self {
            end: log.tail().watch(),
            log,
            filter: Arc::new(options.filter),
            personal_data: options.personal_data,
            position: options.after,
            may_move: options.may_move,
            pending: VecDeque::new(),
            looked_to: options.after,
            ahead: None,
            looked_around: now,
            live: false,
            stop_at,
            heartbeat,
            draining,
            state: State::Running,
        }
    }

    /// Whether the subscriber has caught up and is given what has just come.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// The next message; `None` when the stream has ended. An error ends it too.
    pub async fn next(&mut self) -> Option<Result<Delivery, EndError>> {
        match self.state {
            State::Running => {}
            State::Drained => {
                self.state = State::Ended;
                return Some(Err(EndError::Draining));
            }
            State::Ended => return None,
        }
        let message = self.next_message().await;
        self.may_move = false;
        self.state = match &message {
            Ok(Message::Draining) => State::Drained,
            Ok(Message::CaughtUp) if self.stop_at.is_some() => State::Ended,
            Ok(_) => State::Running,
            Err(_) => State::Ended,
        };
        Some(message.map_err(EndError::Read).map(|message| Delivery {
            position: self.position,
            message,
        }))
    }

    async fn next_message(&mut self) -> Result<Message, ReadError> {
        loop {
            if let Some(message) = self.look_around() {
                return Ok(message);
            }
            if self.stop_at.is_some_and(|stop| self.position >= stop) {
                return Ok(Message::CaughtUp);
            }
            if let Some(event) = self.next_pending().await? {
                return Ok(Message::Event(event));
            }
            // Seen before the tail is read, so that what comes in between wakes us.
            self.end.borrow_and_update();
            match self.log.tail().read(self.position, READ_LIMIT) {
                Some(events) if !events.is_empty() => {
                    self.pending = events.into();
                    self.looked_to = self.position;
                    // A filter that matches nothing must not keep the thread from others.
                    task::yield_now().await;
                }
                Some(_) if !self.live => {
                    self.live = true;
                    return Ok(Message::CaughtUp);
                }
                Some(_) if self.wait().await => return Ok(Message::Heartbeat),
                Some(_) => {}
                None if self.live => {
                    self.live = false;
                    return Ok(Message::FellBehind);
                }
                None => match self.read_log().await {
                    Err(ReadError::NotRetained)
                        if self.may_move && self.log.start() > self.position =>
                    {
                        self.position = self.log.start();
                    }
                    read => self.take(read?),
                },
            }
        }
    }

    /// What is to be said whether there are events or not.
    fn look_around(&mut self) -> Option<Message> {
        let now = Instant::now();
        if !self.pending.is_empty() && now < self.looked_around + LOOK_AROUND {
            return None;
        }
        self.looked_around = now;
        if self.draining.is_cancelled() {
            return Some(Message::Draining);
        }
        let tick = self.heartbeat.tick().now_or_never();
        tick.map(|_| Message::Heartbeat)
    }

    /// The next event of what was read that the filter lets pass. Stops where the stream is to stop.
    async fn next_pending(&mut self) -> Result<Option<Bytes>, ReadError> {
        let stop = self.stop_at.unwrap_or(Position(u64::MAX));
        while let Some(event) = self.pending.pop_front_if(|event| event.position <= stop) {
            self.position = event.position;
            if self.filter.matches(&event.event) {
                let log = self.log.as_ref();
                return visible(log, event, &self.personal_data).await.map(Some);
            }
        }
        self.position = self.position.max(self.looked_to.min(stop));
        Ok(None)
    }

    fn take(&mut self, found: Found) {
        self.pending = found.events.into();
        self.looked_to = found.to;
        self.read_ahead();
    }

    async fn read_log(&mut self) -> Result<Found, ReadError> {
        let ahead = self
            .ahead
            .take()
            .filter(|ahead| ahead.after == self.position);
        let read = match ahead {
            Some(ahead) => ahead.found.await,
            None => {
                search(
                    Arc::clone(&self.log),
                    Arc::clone(&self.filter),
                    self.position,
                )
                .await
            }
        };
        let found = read?;
        if found.to <= self.position {
            // The tail no longer holds what comes next, so the log must.
            return Err(ReadError::Damaged {
                position: Position(self.position.0 + 1),
                place: "the log ends before its newest events".to_owned(),
            });
        }
        Ok(found)
    }

    /// Begins to read what comes after what is pending, unless the tail has it by now.
    fn read_ahead(&mut self) {
        let after = self.looked_to;
        let is_last = self.stop_at.is_some_and(|stop| after >= stop);
        if is_last || self.log.tail().holds(after) {
            return;
        }
        let found = search(Arc::clone(&self.log), Arc::clone(&self.filter), after);
        let mut found: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(found);
        // Asked once, it goes on on the thread that reads.
        if let Some(read) = (&mut found).now_or_never() {
            found = Box::pin(future::ready(read));
        }
        self.ahead = Some(ReadAhead { after, found });
    }

    /// Waits until there may be something to send. Returns whether that is a heartbeat: a tick that has been taken does not
    /// come again, and one that is put back is not due before the next millisecond.
    async fn wait(&mut self) -> bool {
        tokio::select! {
            // The log outlives its subscriptions, so its end can always be watched.
            _ = self.end.changed() => false,
            _ = self.draining.cancelled() => false,
            _ = self.heartbeat.tick() => true,
        }
    }
}

/// Reads what comes after a place, and leaves out what no filter lets pass.
async fn search(
    log: Arc<dyn EventLog>,
    filter: Arc<Filter>,
    after: Position,
) -> Result<Found, ReadError> {
    if filter.wants_everything() {
        let events = log.read(after, READ_LIMIT).await?;
        let to = events.last().map_or(after, |last| last.position);
        return Ok(Found { events, to });
    }
    log.search(after, &filter.wanted(), READ_LIMIT).await
}
