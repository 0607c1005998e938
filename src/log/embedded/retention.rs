//! Deleting what need not be kept any longer, a little at a time, between writes.

use std::{collections::BTreeSet, sync::Arc, thread};

use super::{
    frame::FrameError,
    meta,
    quarantine::Limits,
    record::MetaRecord,
    segment::Segment,
    segments::{self, WriteError},
    writer::Writer,
};
use crate::{
    config::{LogConfig, Retention},
    log::Position,
};

/// How many segments are deleted before the writer looks at its requests again, or copied in a second.
pub(super) const MAX_SEGMENTS_AT_ONCE: usize = 8;

/// How far deleting has come.
pub(super) struct Retirement {
    retention: Retention,
    /// Finished segments are being copied without their raw deliveries.
    copying: Option<thread::JoinHandle<Vec<Copied>>>,
    /// Segments that could not be copied: they are left as they are until a new start.
    unreadable: BTreeSet<u64>,
}

/// What became of a segment that was to be copied.
struct Copied {
    base: u64,
    copy: Result<Segment, FrameError>,
}

impl Retirement {
    pub(super) fn new(retention: Retention) -> Self {
        Self {
            retention,
            copying: None,
            unreadable: BTreeSet::new(),
        }
    }

    /// Waits for what goes on beside the writer.
    pub(super) fn close(&mut self) {
        if let Some(copying) = self.copying.take() {
            // What it has copied is thrown away at the next start.
            let _ = copying.join();
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
    /// Deletes the oldest events, if they are too old or there are too many. What fails is tried again later.
    pub(super) fn delete_some(&mut self) {
        if self.shared.health.has_not_failed().is_err() {
            return;
        }
        for _ in 0..MAX_SEGMENTS_AT_ONCE {
            match self.delete_oldest_events() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    self.trouble(error);
                    return;
                }
            }
        }
    }

    /// Deletes the oldest segment, if it is due; says whether it was.
    fn delete_oldest_events(&mut self) -> Result<bool, WriteError> {
        let Retention {
            events_max_age_seconds: max_age,
            events_max_bytes: max_bytes,
            ..
        } = self.retirement.retention;
        if max_age == 0 && max_bytes == 0 {
            return Ok(false);
        }
        let too_much = max_bytes > 0 && self.events.view.size_bytes() > max_bytes;
        let (first, last, too_old, is_only) = {
            let segments = self.events.view.segments();
            let Some(oldest) = segments.front().filter(|oldest| !oldest.is_empty()) else {
                return Ok(false);
            };
            let too_old = is_older(oldest.newest, max_age, now());
            (oldest.base, oldest.end, too_old, segments.len() == 1)
        };
        if !too_old && (!too_much || is_only) {
            return Ok(false);
        }
        if is_only {
            self.events.roll()?;
        }
        tracing::info!(
            log.first = first,
            log.last = last,
            "events are no longer retained"
        );
        // Before the file goes: whatever is missing beyond this was not deleted by us.
        let noted = MetaRecord {
            start: last,
            ..self.meta.clone()
        };
        let stored = meta::write(self.shared.disk.as_ref(), &self.shared.directory, &noted);
        stored.map_err(WriteError::Write)?;
        self.meta = noted;
        self.events.delete_oldest()?;
        self.indexer.set_start(Position(last));
        Ok(true)
    }

    /// Lets raw deliveries go before their events: the segment is copied without them on another thread.
    pub(super) fn drop_deliveries(&mut self) {
        if self.shared.health.has_not_failed().is_err() {
            return;
        }
        let retention = self.retirement.retention;
        if retention.deliveries_max_age_seconds == 0 && retention.deliveries_max_bytes == 0 {
            return;
        }
        if let Some(copying) = self
            .retirement
            .copying
            .take_if(|copying| copying.is_finished())
        {
            for Copied { base, copy } in copying.join().unwrap_or_default() {
                match copy {
                    Ok(copy) => {
                        if let Err(error) = self.events.replace(copy) {
                            self.trouble(error);
                        }
                    }
                    Err(error) => {
                        tracing::error!(%error, "the raw deliveries of a damaged segment are kept");
                        self.retirement.unreadable.insert(base);
                    }
                }
            }
        }
        if self.retirement.copying.is_none()
            && let Err(error) = self.copy_without_deliveries()
        {
            self.trouble(error);
        }
    }

    fn copy_without_deliveries(&mut self) -> Result<(), WriteError> {
        let Retention {
            deliveries_max_age_seconds: max_age,
            deliveries_max_bytes: max_bytes,
            ..
        } = self.retirement.retention;
        let now = now();
        let due: Vec<Segment> = {
            let segments = self.events.view.segments();
            let total: u64 = segments.iter().map(|segment| segment.body_bytes).sum();
            let mut excess = total.saturating_sub(max_bytes);
            let due = |segment: &&Segment| {
                let is_active = segment.base == segments.back().map_or(0, |active| active.base);
                let too_old = is_older(segment.newest, max_age, now);
                let too_much = max_bytes > 0 && excess > 0 && !is_active;
                let due = segment.body_bytes > 0
                    && (too_old || too_much)
                    && !self.retirement.unreadable.contains(&segment.base);
                if due {
                    excess = excess.saturating_sub(segment.body_bytes);
                }
                due
            };
            let due = segments.iter().filter(due);
            due.take(MAX_SEGMENTS_AT_ONCE).cloned().collect()
        };
        let Some(last) = due.last() else {
            return Ok(());
        };
        if last.end == self.events.end() {
            self.events.roll()?;
        }
        let view = Arc::clone(&self.events.view);
        let copy = move |segment: Segment| Copied {
            base: segment.base,
            copy: segments::drop_bodies(&view, &segment),
        };
        let thread = thread::Builder::new()
            .name("log-retention".to_owned())
            .spawn(move || due.into_iter().map(copy).collect());
        match thread {
            Ok(thread) => self.retirement.copying = Some(thread),
            Err(error) => tracing::warn!(%error, "raw deliveries cannot be deleted now"),
        }
        Ok(())
    }

    /// Deletes what the quarantines need not keep.
    pub(super) fn retain_quarantines(&mut self) {
        if self.shared.health.has_not_failed().is_err() {
            return;
        }
        let now = now();
        let (shared, meta) = (&self.shared, &mut self.meta);
        let note = |last| {
            let noted = MetaRecord {
                genuine_start: last,
                ..meta.clone()
            };
            meta::write(shared.disk.as_ref(), &shared.directory, &noted)?;
            *meta = noted;
            Ok(())
        };
        let retained = self.genuine.retain(now, note);
        // What comes back of the other one is thrown away with all of it: nobody was promised anything.
        let retained = retained.and_then(|()| self.unverified.retain(now, |_| Ok(())));
        if let Err(error) = retained {
            shared.health.trouble(error);
        }
    }
}
