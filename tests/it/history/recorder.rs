//! Takes down what happens, while it happens.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use fastrand::Rng;
use prost::Message as _;
use verdict::proto::{SubscribeMessage, SubscribeResponse, VerificationEvent};

use super::{
    content::Content,
    record::{Commit, CursorNo, Ingest, Item, ItemNo, Message, Moment, Read, Stream},
};

/// What all clients share: the order of all that happens, and the numbers of what they read.
#[derive(Default)]
pub(crate) struct Recorder {
    clock: AtomicU64,
    hasher: RandomState,
    known: Mutex<Known>,
}

/// What one client did.
#[derive(Default)]
pub(crate) struct Records {
    pub(crate) ingests: Vec<Ingest>,
    pub(crate) reads: Vec<Read>,
    pub(crate) streams: Vec<Stream>,
    pub(crate) commits: Vec<Commit>,
}

/// Most of what is read was read before, by someone: each item and each cursor is kept once.
#[derive(Default)]
struct Known {
    cursors: Vec<Arc<str>>,
    cursor_numbers: HashMap<Arc<str>, CursorNo>,
    items: Vec<Item>,
    item_numbers: HashMap<u64, ItemNo>,
}

impl Recorder {
    /// The next moment.
    pub(crate) fn now(&self) -> Moment {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no client panics meanwhile")
    }

    pub(crate) fn cursor(&self, text: &str) -> CursorNo {
        self.known().cursor(text)
    }

    pub(crate) fn cursor_text(&self, cursor: CursorNo) -> String {
        self.known().cursors[cursor as usize].to_string()
    }

    /// Any cursor that some client was given, if there is one.
    pub(crate) fn random_cursor(&self, rng: &mut Rng) -> Option<CursorNo> {
        let count = self.known().cursors.len() as CursorNo;
        (count > 0).then(|| rng.u32(..count))
    }

    /// The time at which some event was received, if there is one.
    pub(crate) fn random_time(&self, rng: &mut Rng) -> Option<i64> {
        let known = self.known();
        rng.choice(&known.items).map(|item| item.received_at)
    }

    /// An encoded event with its cursor.
    pub(crate) fn item(&self, cursor: &str, event: &Bytes) -> ItemNo {
        // That two of a million have the same 64 bits will not happen.
        let hash = self.hasher.hash_one((cursor, event));
        let mut known = self.known();
        if let Some(number) = known.item_numbers.get(&hash) {
            return *number;
        }
        let cursor = known.cursor(cursor);
        let number = known.items.len() as ItemNo;
        let event = VerificationEvent::decode(event.clone()).expect("an event");
        let item = self.read(&event, cursor);
        known.items.push(item);
        known.item_numbers.insert(hash, number);
        number
    }

    fn read(&self, event: &VerificationEvent, cursor: CursorNo) -> Item {
        let received_at = event.received_at.unwrap_or_default();
        let event_id = uuid::Uuid::parse_str(&event.event_id);
        Item {
            sent: Content::read(event),
            event_id: event_id.map_or(0, |id| id.as_u128()),
            cursor,
            revision: event.revision,
            late: event.late,
            received_at: received_at.seconds * 1_000_000_000 + i64::from(received_at.nanos),
            // Encoded again, because a reply may hold the fields in another order than a stream.
            digest: self.hasher.hash_one(event.encode_to_vec()),
            first_seen: self.now(),
        }
    }

    /// A message of a stream, and its cursor.
    pub(crate) fn message(&self, response: SubscribeResponse) -> (Message, CursorNo) {
        let SubscribeResponse { cursor, message } = response;
        if let Some(SubscribeMessage::Event(event)) = message {
            let item = self.item(&cursor, &event);
            return (
                Message::Event(item),
                self.known().items[item as usize].cursor,
            );
        }
        let cursor = self.cursor(&cursor);
        let message = match message {
            Some(SubscribeMessage::CaughtUp(_)) => Message::CaughtUp(cursor),
            _ => Message::Sign(cursor),
        };
        (message, cursor)
    }

    pub(crate) fn take_items(&self) -> Vec<Item> {
        std::mem::take(&mut self.known().items)
    }
}

impl Known {
    fn cursor(&mut self, text: &str) -> CursorNo {
        if let Some(number) = self.cursor_numbers.get(text) {
            return *number;
        }
        let number = self.cursors.len() as CursorNo;
        let text: Arc<str> = text.into();
        self.cursors.push(Arc::clone(&text));
        self.cursor_numbers.insert(text, number);
        number
    }
}
