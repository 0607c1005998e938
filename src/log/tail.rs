//! The newest events in memory, and the signal that there are more.

use std::{
    collections::VecDeque,
    sync::{PoisonError, RwLock},
};

use tokio::sync::watch;

use super::{Position, ReadLimit, StoredEvent};

/// The newest events of a log, for the subscribers that keep up. Bounded: who falls out of it reads the log itself.
#[derive(Debug)]
pub struct Tail {
    ring: RwLock<Ring>,
    end: watch::Sender<Position>,
}

#[derive(Debug)]
struct Ring {
    /// Every event after this place is in the ring.
    floor: Position,
    events: VecDeque<StoredEvent>,
    size_bytes: usize,
}

const MAX_EVENTS: usize = 4096;
const MAX_BYTES: usize = 16 << 20;

impl Tail {
    /// The tail of a log that ends here; empty until events are added.
    pub(super) fn new(end: Position) -> Self {
        Self {
            ring: RwLock::new(Ring {
                floor: end,
                events: VecDeque::new(),
                size_bytes: 0,
            }),
            end: watch::Sender::new(end),
        }
    }

    /// The place of the newest event.
    pub fn end(&self) -> Position {
        *self.end.borrow()
    }

    /// Tells when the end moves.
    pub fn watch(&self) -> watch::Receiver<Position> {
        self.end.subscribe()
    }

    /// The events after a place; `None` when the oldest of them are no longer here.
    pub fn read(&self, after: Position, limit: ReadLimit) -> Option<Vec<StoredEvent>> {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        if after < ring.floor {
            return None;
        }
        let first = ring.events.partition_point(|event| event.position <= after);
        let events = ring.events.range(first..).cloned().map(Ok);
        let Ok(events) = limit.take::<_, std::convert::Infallible>(events, StoredEvent::size_bytes);
        Some(events)
    }

    /// Whether the events after a place are here.
    pub fn holds(&self, after: Position) -> bool {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        after >= ring.floor
    }

    /// Adds events that have become durable, in order, and wakes who waits for them.
    pub(super) fn extend(&self, events: Vec<StoredEvent>) {
        let Some(last) = events.last() else { return };
        let end = last.position;
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            ring.size_bytes += event.size_bytes();
            ring.events.push_back(event);
        }
        while ring.events.len() > MAX_EVENTS || ring.size_bytes > MAX_BYTES {
            let Some(oldest) = ring.events.pop_front() else {
                break;
            };
            ring.size_bytes -= oldest.size_bytes();
            ring.floor = oldest.position;
        }
        // Under the lock: whoever finds the floor moved must find the end moved too.
        self.end.send_replace(end);
        drop(ring);
    }
}
