//! What operators see of a running server: logs, traces and metrics.
//!
//! Nothing that identifies a person is in any of them, and no label or attribute has values that a sender controls without
//! bound.

pub mod exposition;
pub(crate) mod figures;
pub mod logs;
pub mod metrics;
pub mod process;
mod queue;
pub mod traces;

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{Instrument, Level, Span, info_span};
use tracing_subscriber::{layer::SubscriberExt, registry, util::SubscriberInitExt};

use self::{
    logs::LogLevels,
    metrics::{Metrics, Step},
    traces::{ExportError, Exporter},
};
use crate::config;

/// What a server tells operators by.
#[derive(Clone, Debug, Default)]
pub struct Telemetry {
    /// What is counted and timed.
    pub metrics: Arc<Metrics>,
    /// Which log lines there are.
    pub log_levels: LogLevels,
    /// Whether traces are sent.
    pub traces: bool,
}

impl Telemetry {
    /// Starts to write log lines and to send traces, for the whole process and once. It needs a runtime.
    ///
    /// What the exporter still holds is sent when it is dropped.
    pub fn start(config: &config::Telemetry) -> Result<(Self, Option<Exporter>), ExportError> {
        let (log_levels, lines) = logs::lines(config);
        let metrics = Arc::<Metrics>::default();
        let exporter = config.otlp.as_ref();
        let exporter = exporter.map(|otlp| Exporter::new(otlp, metrics.spans_lost()));
        let exporter = exporter.transpose()?;
        let telemetry = Self {
            metrics,
            log_levels,
            traces: exporter.is_some(),
        };
        let registry = registry().with(lines);
        // Not as an `Option`: a layer that is `None` is taken to want every span, which the registry then keeps for nobody.
        match &exporter {
            Some(exporter) => registry.with(exporter.layer()).init(),
            None => registry.init(),
        }
        Ok((telemetry, exporter))
    }

    /// Whether there are log lines of verdict of this level.
    pub fn shows(&self, level: Level) -> bool {
        self.log_levels.show(level)
    }
}

/// A step on the way of a webhook: a span of its own, and a measurement once it is over, however that is.
pub(crate) struct BegunStep<'m> {
    step: Step,
    metrics: &'m Metrics,
    began: Instant,
    span: Span,
}

impl Metrics {
    /// Begins a step.
    pub(crate) fn begin(&self, step: Step) -> BegunStep<'_> {
        BegunStep {
            step,
            metrics: self,
            began: Instant::now(),
            span: info_span!("step", otel.name = step.name()),
        }
    }
}

impl BegunStep<'_> {
    /// Does what is to be done in this step.
    pub(crate) fn run<T>(self, work: impl FnOnce() -> T) -> T {
        self.span.in_scope(work)
    }

    /// Waits for what is done in this step.
    pub(crate) async fn of<T>(self, work: impl Future<Output = T>) -> T {
        work.instrument(self.span.clone()).await
    }
}

impl Drop for BegunStep<'_> {
    fn drop(&mut self) {
        self.metrics.step(self.step, self.began.elapsed());
    }
}
