//! The spans that wait to be sent: how many there may be at once, and what is told of those that are lost.
//!
//! The library throws away what its own queue has no room for, and tells nobody. So the spans are counted in front of it, and
//! it is never handed more than it can hold.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry::Context;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanExporter, SpanProcessor},
};
use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

/// How often it is told that spans are lost, and how long none must have been until it is told that this is over.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// How many spans wait, or are being sent, and what is lost.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    spans: Arc<AtomicUsize>,
    most: usize,
    lost: Counter,
    trouble: Arc<Mutex<Option<Trouble>>>,
}

/// Since when spans are lost.
#[derive(Debug)]
struct Trouble {
    told_at: Instant,
    last_at: Instant,
    /// How many were lost since it was told.
    untold: usize,
}

impl Waiting {
    /// This many may wait. What is lost is counted here.
    pub(super) fn new(most: usize, lost: Counter) -> Self {
        Self {
            spans: Arc::default(),
            most,
            lost,
            trouble: Arc::default(),
        }
    }

    /// Whether there is room for one more, which is taken.
    fn enter(&self) -> bool {
        let one_more = |spans| (spans < self.most).then_some(spans + 1);
        let (relaxed, spans) = (Ordering::Relaxed, &self.spans);
        spans.fetch_update(relaxed, relaxed, one_more).is_ok()
    }

    fn leave(&self, spans: usize) {
        self.spans.fetch_sub(spans, Ordering::Relaxed);
    }

    fn lost(&self, spans: usize, error: &dyn fmt::Display) {
        self.lost.inc_by(spans as u64);
        let now = Instant::now();
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let told = trouble.as_ref().map(|trouble| trouble.told_at);
        let told_at = told.filter(|told_at| now.duration_since(*told_at) < TOLD_EVERY);
        let untold = spans + trouble.as_ref().map_or(0, |trouble| trouble.untold);
        *trouble = Some(Trouble {
            told_at: told_at.unwrap_or(now),
            last_at: now,
            untold: told_at.map_or(0, |_| untold),
        });
        drop(trouble);
        if told_at.is_none() {
            tracing::warn!(%error, spans.lost = untold, "traces cannot be sent");
        }
    }

    fn sent(&self) {
        let now = Instant::now();
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |trouble: &mut Trouble| now.duration_since(trouble.last_at) >= TOLD_EVERY;
        let over = trouble.take_if(is_over);
        drop(trouble);
        if let Some(Trouble { untold, .. }) = over {
            tracing::info!(spans.lost = untold, "traces can be sent again");
        }
    }
}

/// Hands spans on to what sends them, as long as there is room.
#[derive(Debug)]
pub(super) struct Bounded<P> {
    pub(super) next: P,
    pub(super) waiting: Waiting,
}

impl<P: SpanProcessor> SpanProcessor for Bounded<P> {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.next.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        match self.waiting.enter() {
            true => self.next.on_end(span),
            false => self.waiting.lost(1, &"too many spans wait to be sent"),
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.next.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.next.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.next.set_resource(resource);
    }
}

/// Sends spans, which wait no longer then, and tells if that cannot be done.
pub(super) struct Reporting<E> {
    pub(super) exporter: E,
    pub(super) waiting: Waiting,
}

impl<E: SpanExporter> SpanExporter for Reporting<E> {
    async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
        let count = spans.len();
        let result = self.exporter.export(spans).await;
        self.waiting.leave(count);
        match &result {
            Ok(()) => self.waiting.sent(),
            Err(error) => self.waiting.lost(count, error),
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E> fmt::Debug for Reporting<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reporting")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use opentelemetry::trace::{Span as _, Tracer, TracerProvider};
    use opentelemetry_sdk::{
        error::OTelSdkError,
        trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider},
    };

    use super::*;

    /// Sends when it is told to, and says how many.
    #[derive(Debug)]
    struct Told {
        orders: Mutex<Receiver<OTelSdkResult>>,
        sent: Sender<usize>,
    }

    impl SpanExporter for Told {
        async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
            self.sent.send(spans.len()).unwrap();
            self.orders.lock().unwrap().recv().unwrap()
        }
    }

    #[test]
    fn what_there_is_no_room_for_and_what_cannot_be_sent_is_lost_and_counted() {
        let (order, orders) = channel();
        let (sent, sends) = channel();
        let lost = Counter::default();
        let waiting = Waiting::new(3, lost.clone());
        let exporter = Told {
            orders: Mutex::new(orders),
            sent,
        };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(3)
            .with_max_export_batch_size(3)
            .with_scheduled_delay(Duration::from_secs(3600))
            .build();
        let reporting = Reporting {
            exporter,
            waiting: waiting.clone(),
        };
        let next = BatchSpanProcessor::builder(reporting)
            .with_batch_config(batches)
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Bounded { next, waiting })
            .build();
        let end = |spans| (0..spans).for_each(|_| provider.tracer("tests").start("span").end());

        // They wait as long as they are being sent.
        end(3);
        assert_eq!(sends.recv().unwrap(), 3);
        end(2);
        assert_eq!(lost.get(), 2);
        order.send(Ok(())).unwrap();
        provider.force_flush().unwrap();
        assert_eq!(lost.get(), 2);

        end(3);
        assert_eq!(sends.recv().unwrap(), 3);
        order
            .send(Err(OTelSdkError::InternalFailure("a test".to_owned())))
            .unwrap();
        provider.force_flush().unwrap();
        assert_eq!(lost.get(), 5);
        end(1);
        assert_eq!(lost.get(), 5);
        order.send(Ok(())).unwrap();
        provider.shutdown().unwrap();
        assert_eq!(sends.recv().unwrap(), 1);
    }
}
