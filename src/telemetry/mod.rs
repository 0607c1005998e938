//! What operators see of a running server: logs, traces and metrics.
//!
//! Nothing that identifies a person is in any of them, and no label or attribute has values that a sender controls.

pub mod exposition;
pub(crate) mod figures;
pub mod metrics;
pub mod process;

use std::sync::Arc;

use metrics::Metrics;

/// What a server tells operators by.
#[derive(Clone, Debug, Default)]
pub struct Telemetry {
    /// What is counted and timed.
    pub metrics: Arc<Metrics>,
}
