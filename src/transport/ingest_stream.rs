//! `IngestStream`: many webhooks over one stream, several at a time.
//!
//! It is pulled, like a subscription: a request is read only when the caller takes answers and there is room. So a
//! stream holds at most [`MAX_IN_FLIGHT`] requests and their answers, of [`MAX_IN_FLIGHT_BYTES`] and the one request
//! that exceeds them; who sends more is held back by the flow control of HTTP/2.
//!
//! All streams together take [`INGEST_STREAM_BYTES`] at once. What they hold beyond that is one request each, which waits
//! for its turn, and until then its stream reads no more. The bytes of a webhook are given back when it is taken, not when
//! its answer is: a task beside the stream takes the webhooks, so who takes no answers keeps nobody waiting but himself.

use std::{pin::Pin, sync::Arc};

use futures_util::{
    StreamExt,
    stream::{self, FuturesUnordered},
};
use prost::Message;
use tokio::sync::oneshot;
use tonic::{Status, Streaming};
use tracing::{Instrument, Span, info_span};

use super::{
    INGEST_STREAM_BYTES, Shared,
    admission::Share,
    detach::Driver,
    grpc::Responses,
    ingest::{Begun, Call, Ingested, Refused},
    observation, status,
};
use crate::{
    proto::{
        IngestRequest, IngestResponse, IngestStreamRequest, IngestStreamResponse,
        ingest_stream_response::Result as Answered,
    },
    telemetry::traces,
};

/// How many requests of a stream may wait for their answers to be taken.
const MAX_IN_FLIGHT: usize = 256;

/// How many bytes of requests may wait for their answers to be taken.
const MAX_IN_FLIGHT_BYTES: usize = 8 << 20;

const MAX_CORRELATION_ID_BYTES: usize = 128;

/// One stream.
pub(super) struct IngestStream {
    shared: Arc<Shared>,
    call: Call,
    share: Arc<Share>,
    /// The requests; `None` when no more are read.
    requests: Option<Streaming<IngestStreamRequest>>,
    /// Takes the webhooks.
    driver: Driver<Ingested>,
    /// What has been read and not answered yet.
    answers: FuturesUnordered<Pin<Box<dyn Future<Output = Answer> + Send>>>,
    /// The size of the requests that have been read and not answered yet.
    in_flight_bytes: usize,
    /// Tells when it is the turn of the request that was read last; `None` when none waits for its turn.
    waits: Option<oneshot::Receiver<()>>,
    /// How the stream ends, once everything is answered; `None` is well.
    end: Option<Status>,
}

struct Answer {
    response: IngestStreamResponse,
    request_bytes: usize,
}

impl IngestStream {
    /// A stream, if there are not too many already. It may stay open for ever, so it gives its call back.
    pub(super) fn open(
        shared: Shared,
        call: Call,
        requests: Streaming<IngestStreamRequest>,
    ) -> Result<Self, Status> {
        let share = Arc::clone(shared.shares.of(call.caller()));
        let permit = shared.rooms.ingest_streams.enter(&share.ingest_streams)?;
        Ok(Self {
            driver: Driver::new(&shared.ingests, MAX_IN_FLIGHT),
            shared: Arc::new(shared),
            call: call.with_permit(permit),
            share,
            requests: Some(requests),
            answers: FuturesUnordered::new(),
            in_flight_bytes: 0,
            waits: None,
            end: None,
        })
    }

    /// The answers, in the order in which the webhooks are done.
    pub(super) fn responses(self) -> Responses<IngestStreamResponse> {
        // In a box: it is moved with each answer.
        Box::pin(stream::unfold(Box::new(self), |mut stream| async move {
            let span = stream.call.span().clone();
            let response = stream.next().instrument(span).await?;
            Some((response, stream))
        }))
    }

    async fn next(&mut self) -> Option<Result<IngestStreamResponse, Status>> {
        loop {
            let has_room = self.has_room();
            tokio::select! {
                biased;
                Some(answer) = self.answers.next() => {
                    self.in_flight_bytes -= answer.request_bytes;
                    return Some(Ok(answer.response));
                }
                () = self.shared.draining.cancelled(), if self.requests.is_some() => {
                    self.stop_reading(Some(status::draining()));
                }
                Some(()) = turn(&mut self.waits) => self.waits = None,
                Some(request) = read(&mut self.requests), if has_room => match request {
                    Ok(Some(request)) => self.take(request),
                    Ok(None) => self.stop_reading(None),
                    Err(failed) => self.stop_reading(Some(self.shared.unreadable(failed))),
                },
                else => return self.end.take().map(Err),
            }
        }
    }

    fn has_room(&self) -> bool {
        self.waits.is_none()
            && self.answers.len() < MAX_IN_FLIGHT
            && self.in_flight_bytes < MAX_IN_FLIGHT_BYTES
    }

    /// Reads no more; what has been read is answered, then the stream ends.
    fn stop_reading(&mut self, end: Option<Status>) {
        self.requests = None;
        self.end = end;
    }

    fn take(&mut self, request: IngestStreamRequest) {
        let request_bytes = request.encoded_len();
        self.in_flight_bytes += request_bytes;
        let IngestStreamRequest {
            correlation_id,
            request,
        } = request;
        // A trace of its own: a stream stays open for days, and one decision for all of its webhooks would be none.
        let span = info_span!(parent: None, "ingest");
        traces::link(&span, self.call.span());
        let begun = self.begin(&correlation_id, request, request_bytes, &span);
        let begun = match begun {
            Ok(begun) => Ok(begun.driven_by(&self.driver)),
            Err(refused) => Err((refused, self.count_refused())),
        };
        let shared = Arc::clone(&self.shared);
        self.answers.push(Box::pin(async move {
            let result = match begun {
                Ok(begun) => shared.finish(begun).await,
                Err((refused, counted)) => {
                    counted.await;
                    Err(refused)
                }
            };
            if let Err(failed) = &result {
                observation::fault(&span, failed.code());
            }
            Answer {
                response: answer(correlation_id, result),
                request_bytes,
            }
        }));
    }

    /// Counts a request that was refused, before it is answered and another is read: it costs as much as one that is taken,
    /// or a caller could send them as fast as the wire allows.
    fn count_refused(&mut self) -> impl Future<Output = ()> + Send + use<> {
        let (has_come, waits) = oneshot::channel();
        self.waits = Some(waits);
        let share = Arc::clone(&self.share);
        async move {
            share.take_webhook().await;
            let _ = has_come.send(());
        }
    }

    fn begin(
        &mut self,
        correlation_id: &str,
        request: Option<IngestRequest>,
        request_bytes: usize,
        span: &Span,
    ) -> Result<Begun, Status> {
        if correlation_id.len() > MAX_CORRELATION_ID_BYTES {
            let description = format!("is longer than {MAX_CORRELATION_ID_BYTES} bytes");
            let refused = Refused::invalid("correlation_id", description);
            return Err(self.shared.refuse(request.as_ref(), refused));
        }
        let missing = || Refused::invalid("request", "is missing");
        let request = request.ok_or_else(|| self.shared.refuse(None, missing()))?;
        let (has_come, waits) = oneshot::channel();
        self.waits = Some(waits);
        // A request that is larger than all there is waits for all there is.
        let kib = request_bytes.min(INGEST_STREAM_BYTES).div_ceil(1024) as u32;
        let budget = Arc::clone(&self.shared.ingest_stream_kib);
        let share = Arc::clone(&self.share);
        let turn = async move {
            share.take_webhook().await;
            let taken = budget.acquire_many_owned(kib).await;
            let _ = has_come.send(());
            taken
        };
        let call = self.call.clone().within(span.clone());
        self.shared.begin(call, request, turn)
    }
}

/// Waits for the turn of a request. `None` when none waits.
async fn turn(waits: &mut Option<oneshot::Receiver<()>>) -> Option<()> {
    // What could not be begun any more has no turn, and keeps nobody waiting.
    let _ = waits.as_mut()?.await;
    Some(())
}

/// The next request, or `Ok(None)` when the caller has sent its last one. `None` when none is to be read.
async fn read(
    requests: &mut Option<Streaming<IngestStreamRequest>>,
) -> Option<Result<Option<IngestStreamRequest>, Status>> {
    match requests {
        Some(requests) => Some(requests.message().await),
        None => None,
    }
}

fn answer(correlation_id: String, result: Result<IngestResponse, Status>) -> IngestStreamResponse {
    let answered = match result {
        Ok(response) => Answered::Response(response),
        Err(failed) => Answered::Error(status::stream_error(&failed)),
    };
    IngestStreamResponse {
        correlation_id,
        result: Some(answered),
    }
}
