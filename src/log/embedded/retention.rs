//! Deleting what need not be kept any longer, a little at a time, between writes.

use std::{io, sync::Arc, thread};

use prost::Message;

use super::{
    frame::FrameError,
    quarantine::Limits,
    record::EventRecord,
    segment::Segment,
    segments::{self, WriteError},
    writer::Writer,
};
use crate::{
    config::{LogConfig, Retention},
    log::Position,
};

/// How many events are taken out of the index at once.
const STEP: u64 = 1024;

/// How far deleting has come.
pub(super) struct Retirement {
    retention: Retention,
    /// The next event to be taken out of the index, of the oldest expired segment.
    next: Option<u64>,
    /// A finished segment is being copied without its raw deliveries.
    copying: Option<thread::JoinHandle<Result<Segment, FrameError>>>,
}

impl Retirement {
    pub(super) fn new(retention: Retention) -> Self {
        Self {
            retention,
            next: None,
            copying: None,
        }
    }
}

pub(super) fn segment_bytes(config: &LogConfig) -> u64 {
    // Whole segments are deleted: of what may be kept, each must be a small part.
    const PARTS: u64 = 8;
    const LEAST: u64 = 4096;
    let Retention {
        events_max_bytes,
        deliveries_max_bytes,
        ..
    } = config.retention;
    [events_max_bytes, deliveries_max_bytes]
        .into_iter()
        .filter(|bytes| *bytes > 0)
        .map(|bytes| (bytes / PARTS).max(LEAST))
        .fold(config.segment_bytes, u64::min)
}

pub(super) fn genuine_limits(config: &LogConfig) -> Limits {
    let limit = |value| (value > 0).then_some(value);
    Limits {
        max_age_seconds: limit(config.retention.quarantine_max_age_seconds),
        max_bytes: limit(config.retention.quarantine_max_bytes),
        max_deliveries: None,
    }
}

pub(super) fn unverified_limits(config: &LogConfig) -> Limits {
    Limits {
        max_age_seconds: None,
        max_bytes: Some(config.unverified.max_bytes),
        max_deliveries: Some(config.unverified.max_deliveries),
    }
}

/// Whether something received at `newest` is older than it may be.
fn is_older(newest: i64, max_age_seconds: u64, now: i64) -> bool {
    max_age_seconds > 0 && newest.saturating_add_unsigned(max_age_seconds) < now
}

fn now() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "the clock of retention")]
    let now = jiff::Timestamp::now();
    now.as_second()
}

impl Writer {
    /// Takes one step. What fails is tried again later.
    pub(super) fn delete_some(&mut self) {
        let step = match self.events.expired() {
            Some((first, last)) => self.take_out_of_index(first, last),
            None => self.expire_events(),
        };
        if let Err(error) = step {
            self.trouble(error);
        }
    }

    /// Hides the oldest segment from readers, if it is too old or there is too much.
    fn expire_events(&mut self) -> Result<(), WriteError> {
        let Retention {
            events_max_age_seconds: max_age,
            events_max_bytes: max_bytes,
            ..
        } = self.retirement.retention;
        if max_age == 0 && max_bytes == 0 {
            return Ok(());
        }
        let too_much = max_bytes > 0 && self.events.view.size_bytes() > max_bytes;
        let (first, last, too_old, is_only) = {
            let segments = self.events.view.segments();
            let Some(oldest) = segments.front().filter(|oldest| !oldest.is_empty()) else {
                return Ok(());
            };
            let too_old = is_older(oldest.newest, max_age, now());
            (oldest.base, oldest.end, too_old, segments.len() == 1)
        };
        if !too_old && (!too_much || is_only) {
            return Ok(());
        }
        if is_only {
            self.events.roll()?;
        }
        tracing::info!(
            log.first = first,
            log.last = last,
            "events are no longer retained"
        );
        self.events.expire()
    }

    /// Takes some events of an expired segment out of the index; deletes its file after the last of them.
    fn take_out_of_index(&mut self, first: u64, last: u64) -> Result<(), WriteError> {
        let first = self.retirement.next.unwrap_or(first);
        let frames = match self.events.read_expired(first, STEP) {
            Ok(frames) => frames,
            Err(error) => {
                // What is not taken out does no harm: it leads to a position that is no longer retained.
                tracing::warn!(%error, "an expired segment cannot be read");
                Vec::new()
            }
        };
        let mut changes = self.index.changes();
        let mut removed = Ok(());
        for frame in &frames {
            if let Ok(record) = EventRecord::decode(frame.head.clone()) {
                removed = removed
                    .and_then(|()| changes.remove(&self.index, Position(frame.number), &record));
            }
        }
        if let Err(error) = removed.and_then(|()| changes.commit()) {
            self.index_failed(&error);
            return Ok(());
        }
        match frames.last() {
            Some(reached) if reached.number < last => {
                self.retirement.next = Some(reached.number + 1);
                Ok(())
            }
            _ => {
                self.retirement.next = None;
                self.events.delete()
            }
        }
    }

    /// Lets raw deliveries go before their events: the segment is copied without them on another thread.
    pub(super) fn drop_deliveries(&mut self) {
        let retention = self.retirement.retention;
        if retention.deliveries_max_age_seconds == 0 && retention.deliveries_max_bytes == 0 {
            return;
        }
        if let Some(copying) = self
            .retirement
            .copying
            .take_if(|copying| copying.is_finished())
        {
            let copied = copying
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("copying a segment panicked").into()));
            let replaced = copied.and_then(|copy| Ok(self.events.replace(copy)?));
            if let Err(error) = replaced {
                tracing::warn!(%error, "raw deliveries could not be deleted; it is tried again");
            }
        }
        if self.retirement.copying.is_none() {
            self.copy_without_deliveries();
        }
    }

    fn copy_without_deliveries(&mut self) {
        let Retention {
            deliveries_max_age_seconds: max_age,
            deliveries_max_bytes: max_bytes,
            ..
        } = self.retirement.retention;
        let finished = self.events.finished();
        let total: u64 = finished.iter().map(|segment| segment.body_bytes).sum();
        let too_much = max_bytes > 0 && total > max_bytes;
        let now = now();
        let due = finished.into_iter().find(|segment| {
            !segment.heads_only && (too_much || is_older(segment.newest, max_age, now))
        });
        let Some(segment) = due else { return };
        let view = Arc::clone(&self.events.view);
        let copying = thread::Builder::new()
            .name("log-retention".to_owned())
            .spawn(move || segments::drop_bodies(&view, &segment));
        match copying {
            Ok(copying) => self.retirement.copying = Some(copying),
            Err(error) => tracing::warn!(%error, "raw deliveries cannot be deleted now"),
        }
    }

    /// Deletes what the quarantines need not keep.
    pub(super) fn retain_quarantines(&mut self) {
        let now = now();
        for quarantine in [&mut self.genuine, &mut self.unverified] {
            if let Err(error) = quarantine.retain(now) {
                self.health.trouble(error);
                return;
            }
        }
    }
}
