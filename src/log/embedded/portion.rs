//! What is known of the newest events, and not in the tables of the index yet.

use std::collections::HashMap;

use uuid::Uuid;

use super::{record::EventRecord, summary::Summary};
use crate::log::{Position, VerificationState};

/// Where the event with an id lies, and what it says.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdEntry {
    pub(super) position: Position,
    content: [u8; 16],
}

impl IdEntry {
    pub(super) fn new(position: Position, content_sha256: &[u8; 32]) -> Self {
        Self {
            position,
            content: half(content_sha256),
        }
    }

    pub(super) fn has_content(&self, content_sha256: &[u8; 32]) -> bool {
        self.content == half(content_sha256)
    }

    pub(super) fn encode(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.position.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.content);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (position, content) = bytes.split_first_chunk()?;
        Some(Self {
            position: Position(u64::from_be_bytes(*position)),
            content: content.try_into().ok()?,
        })
    }
}

/// Events in a row: their ids, and where their verifications stand after them. What is looked up can be chosen by who sends
/// webhooks, so the maps keep the hasher of the standard library, which nobody can foresee.
#[derive(Debug, Default)]
pub(super) struct Portion {
    /// By event id.
    pub(super) ids: HashMap<[u8; 16], IdEntry>,
    /// By the first half of the key.
    pub(super) verifications: HashMap<[u8; 16], VerificationState>,
    /// Of the blocks that have become whole with these events.
    pub(super) summaries: Vec<Summary>,
    /// The last one of the events.
    pub(super) end: Position,
}

impl Portion {
    /// Adds an event from its record. `None` if the record does not hold what it must.
    pub(super) fn add(&mut self, position: Position, record: &EventRecord) -> Option<()> {
        let id = Uuid::from_slice(&record.event_id).ok()?;
        let content = record.content_sha256.as_ref().try_into().ok()?;
        if let Some(place) = &record.verification {
            let key = place.key.as_ref().try_into().ok()?;
            let state = place.state.clone()?.into_state()?;
            self.verifications.insert(half(key), state);
        }
        self.ids
            .insert(id.into_bytes(), IdEntry::new(position, content));
        self.end = position;
        Some(())
    }
}

/// Half of a SHA-256 still tells any two things apart, and halves what is kept in memory and what compaction moves about.
pub(super) fn half(sha256: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|at| sha256[at])
}
