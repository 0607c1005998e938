//! The webhook edge: providers post here what callers would hand over by `Ingest`.
//!
//! A webhook proves itself, so nobody is asked who they are, and nothing is believed that the signature does not prove: not
//! the trace that a request claims to belong to, and its sender's address only where a trusted proxy tells it.

mod answer;
mod body;
mod client_address;
mod fence;
mod observed;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::HttpBody,
    extract::{Request, State},
    response::Response,
};
use http::{HeaderMap, Method, header, request::Parts};
use tokio::time;
use tracing::{Instrument, Span};

pub(super) use self::body::memory_bytes;
use self::{
    answer::Refusal,
    body::{Coding, Memory, Part},
    fence::Fence,
    observed::Observed,
};
use super::{
    Shared,
    detach::{DetachOnDrop, Panicked},
    now,
};
use crate::{
    config::DEFAULT_ACCOUNT,
    ingest::{IngestError, Received},
    provider::{Headers, RawWebhook},
    source::Source,
    telemetry::traces,
};

/// How long before the end of a provider's patience it is answered at the latest.
const MARGIN: Duration = Duration::from_secs(1);

/// How long before that its webhook must have arrived: what storing it takes on a bad day.
const STORING: Duration = Duration::from_millis(500);

/// Headers that tell of the way to us and not of the webhook.
const HOP_HEADERS: [header::HeaderName; 9] = [
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::HeaderName::from_static("keep-alive"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What the edge serves with.
#[derive(Clone)]
struct Edge {
    shared: Shared,
    memory: Memory,
    fence: Arc<Fence>,
}

/// `POST /webhooks/{provider}[/{account}]`. The path is compared as it was sent: names have nothing that would have to be
/// escaped, so there is one way to write each.
pub(super) fn router(shared: &Shared) -> Router {
    let edge = Edge {
        shared: shared.clone(),
        memory: Memory::of(&shared.rooms.webhook_memory),
        fence: Arc::new(Fence::new(&shared.config)),
    };
    Router::new().fallback(answer).with_state(edge)
}

async fn answer(State(edge): State<Edge>, request: Request) -> Response {
    let begun = Instant::now();
    let has_body = !request.body().is_end_stream();
    let source = edge.source(request.uri().path());
    let metrics = &edge.shared.telemetry.metrics;
    let scheme = match edge.shared.config.webhook_tls {
        Some(_) => "https",
        None => "http",
    };
    let observed = Observed::begin(&request, source, scheme, begun);
    let taken = match source {
        Some(source) => {
            let taking = edge.take(source, request, begun, &observed);
            taking.instrument(observed.span()).await
        }
        None => {
            observed.refused(Refusal::NoSource, metrics);
            Err(Refusal::NoSource)
        }
    };
    let response = match taken {
        Ok(()) => answer::received(),
        Err(refusal) => {
            let posting = source.map(|source| source.provider.posting());
            answer::refused(refusal, posting, has_body)
        }
    };
    observed.answered(&response, metrics);
    response
}

impl Edge {
    /// The source that a path belongs to.
    fn source(&self, path: &str) -> Option<&Arc<Source>> {
        let named = path.strip_prefix("/webhooks/")?;
        let (provider, account) = named.split_once('/').unwrap_or((named, DEFAULT_ACCOUNT));
        self.shared.ingestor.source(provider, account)
    }

    /// Takes the webhook of a request, the whole way.
    async fn take(
        &self,
        source: &Arc<Source>,
        request: Request,
        begun: Instant,
        observed: &Observed,
    ) -> Result<(), Refusal> {
        let patience = source.provider.posting().patience.saturating_sub(MARGIN);
        let timeout = Duration::from_secs(self.shared.config.webhook_read_timeout_seconds);
        let read_by = begun + timeout.min(patience.saturating_sub(STORING));
        let received = self.receive(source, request, read_by).await;
        let metrics = &self.shared.telemetry.metrics;
        let (webhook, memory) =
            received.inspect_err(|refusal| observed.refused(*refusal, metrics))?;
        self.ingest(source, webhook, memory, begun + patience).await
    }

    /// Receives a webhook, with the memory that it takes.
    async fn receive(
        &self,
        source: &Source,
        request: Request,
        read_by: Instant,
    ) -> Result<(RawWebhook, [Part; 2]), Refusal> {
        let (head, body) = request.into_parts();
        self.check(source, &head)?;
        let headers = self.headers(&head.headers)?;
        let coding = Coding::of(&head.headers)?;
        let mut of_headers = self.memory.nothing();
        of_headers.take(size_bytes(&head.headers))?;
        let max_bytes = self.shared.config.max_payload_bytes;
        let received = body::receive(body, coding, max_bytes, &self.memory);
        let received = time::timeout_at(read_by.into(), received).await;
        let (payload, of_payload) = received.map_err(|_| Refusal::TooSlow)??;
        Ok((RawWebhook { payload, headers }, [of_headers, of_payload]))
    }

    /// Hands a webhook over, and waits for what becomes of it until its provider must be answered. Whatever comes of it is
    /// counted there.
    async fn ingest(
        &self,
        source: &Arc<Source>,
        webhook: RawWebhook,
        memory: [Part; 2],
        answer_by: Instant,
    ) -> Result<(), Refusal> {
        let ingestor = Arc::clone(&self.shared.ingestor);
        let source = Arc::clone(source);
        // A provider that hangs up neither stops what has begun nor keeps it from being counted.
        let taking = async move {
            let _memory = memory;
            let (provider, account) = (source.provider.name(), &source.account);
            let trace = traces::place(&Span::current());
            ingestor
                .ingest(provider, account, webhook, Received::Now(now()), trace)
                .await
        };
        let ingested = DetachOnDrop::new(&self.shared.ingests, taking.in_current_span());
        match time::timeout_at(answer_by.into(), ingested).await {
            Ok(Ok(Ok(_outcome))) => Ok(()),
            Ok(Ok(Err(error))) => Err(error.into()),
            Ok(Err(Panicked)) => {
                tracing::error!("a webhook could not be taken: taking it has panicked");
                Err(Refusal::Failed)
            }
            Err(_not_in_time) => Err(Refusal::NotStored),
        }
    }

    /// Checks what can be checked before anything is read of a body.
    fn check(&self, source: &Source, head: &Parts) -> Result<(), Refusal> {
        if head.method != Method::POST {
            return Err(Refusal::NotPosted);
        }
        if self.shared.draining.is_cancelled() {
            return Err(Refusal::Draining);
        }
        self.fence.check(source, head)
    }

    /// The headers of a webhook, if they are within the limits. One that is not UTF-8 is read as Latin-1, so that nothing
    /// of it is lost.
    fn headers(&self, headers: &HeaderMap) -> Result<Headers, Refusal> {
        let config = &self.shared.config;
        if headers.len() > config.max_headers || size_bytes(headers) > config.max_header_bytes {
            return Err(Refusal::HeadersTooLarge);
        }
        let of_webhook = |name| !HOP_HEADERS.contains(name);
        let headers = headers.iter().filter(|(name, _)| of_webhook(name));
        let text = |value: &[u8]| match str::from_utf8(value) {
            Ok(text) => text.to_owned(),
            Err(_) => value.iter().copied().map(char::from).collect(),
        };
        Ok(headers
            .map(|(name, value)| (name.as_str().to_owned(), text(value.as_bytes())))
            .collect())
    }
}

fn size_bytes(headers: &HeaderMap) -> usize {
    let sizes = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len());
    sizes.sum()
}

impl From<IngestError> for Refusal {
    fn from(error: IngestError) -> Self {
        match error {
            IngestError::SourceNotFound => Self::NoSource,
            IngestError::Signature(_) => Self::NotGenuine,
            IngestError::Append(_) => Self::NotStored,
        }
    }
}
