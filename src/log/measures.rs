//! What a log on disk tells of itself beside its size: how fast the disk is, and how much room it has.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    metrics::{counter::Counter, histogram::Histogram},
    registry::{Registry, Unit},
};

/// How many events a batch has: at most as many as the writer takes at once.
const BATCH_EVENTS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// A good disk takes a tenth of a millisecond; after a second something is wrong with it.
const SYNC_SECONDS: [f64; 12] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0,
];

/// What the writer measures, to be shown by others. Clones share it.
#[derive(Clone, Debug)]
pub struct Measures {
    /// How many events became durable together.
    pub batch_events: Histogram,
    /// How long the disk took to make a batch durable.
    pub sync_seconds: Histogram,
    /// How many seconds the index has waited for its tables to be merged.
    pub index_waited: Counter<f64, AtomicU64>,
}

impl Default for Measures {
    fn default() -> Self {
        Self {
            batch_events: Histogram::new(BATCH_EVENTS),
            sync_seconds: Histogram::new(SYNC_SECONDS),
            index_waited: Counter::default(),
        }
    }
}

impl Measures {
    /// Has them shown by a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "log_batch",
            "How many events became durable together",
            Unit::Other("events".to_owned()),
            self.batch_events.clone(),
        );
        registry.register_with_unit(
            "log_sync_duration",
            "How long the disk took to make a batch durable",
            Unit::Seconds,
            self.sync_seconds.clone(),
        );
        registry.register_with_unit(
            "log_index_wait",
            "How long the index waited for its tables to be merged",
            Unit::Seconds,
            self.index_waited.clone(),
        );
    }
}

/// The room on the disk of a directory of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// What lies in the directory: `log` or `keys`.
    pub directory: &'static str,
    /// How many bytes are free.
    pub free_bytes: u64,
    /// With fewer than this, nothing is written any more.
    pub min_free_bytes: u64,
}
