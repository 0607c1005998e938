//! How often a secret or a key was needed, and for which delivery last: what tells that an old one can be retired.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use jiff::Timestamp;

/// The use of one secret or key since the server started. Copies of the secret share it.
#[derive(Debug)]
pub struct Usage {
    uses: AtomicU64,
    /// In microseconds of Unix time; `NEVER` before the first.
    last_used: AtomicI64,
}

const NEVER: i64 = i64::MIN;

impl Default for Usage {
    fn default() -> Self {
        Self {
            uses: AtomicU64::new(0),
            last_used: AtomicI64::new(NEVER),
        }
    }
}

impl Usage {
    /// Counts a use, for a delivery that was received at this time.
    pub(super) fn record(&self, received_at: Timestamp) {
        self.uses.fetch_add(1, Ordering::Relaxed);
        let micros = received_at.as_microsecond();
        self.last_used.fetch_max(micros, Ordering::Relaxed);
    }

    /// How often it was used.
    pub fn uses(&self) -> u64 {
        self.uses.load(Ordering::Relaxed)
    }

    /// When the newest delivery was received that it was used for.
    pub fn last_used_at(&self) -> Option<Timestamp> {
        Timestamp::from_microsecond(self.last_used.load(Ordering::Relaxed)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_used_has_no_time_and_an_older_delivery_changes_none() {
        let usage = Usage::default();
        assert_eq!((usage.uses(), usage.last_used_at()), (0, None));
        let [early, late] = [1, 2].map(|second| Timestamp::new(second, 0).unwrap());
        usage.record(late);
        usage.record(early);
        assert_eq!((usage.uses(), usage.last_used_at()), (2, Some(late)));
    }
}
