//! `verdict.v1.VerdictService`: its rpcs, a few lines each, and what they share.

use std::pin::Pin;

use futures_util::{Stream, future};
use prost::Message as _;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::{
    Shared,
    admission::StaysOpen,
    auditing::{self, Auditable},
    ingest::Call,
    ingest_stream::IngestStream,
    status,
};
use crate::{
    caller::{Caller, Reach},
    config::DEFAULT_ACCOUNT,
    error::Code,
    event,
    log::{Cursor, Position, ReadError, StoredEvent},
    proto::{
        CommitCursorRequest, CommitCursorResponse, GetEventRequest, GetEventResponse,
        GetVerificationRequest, GetVerificationResponse, IngestRequest, IngestResponse,
        IngestStreamRequest, IngestStreamResponse, ListEventsRequest, ListEventsResponse, Scope,
        SubscribeRequest, SubscribeResponse, VerificationEvent,
        verdict_service_server::VerdictService,
    },
    subscription,
};

/// The service.
pub(super) struct Verdict(pub(super) Shared);

/// What a streaming rpc answers.
pub(super) type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl VerdictService for Verdict {
    async fn ingest(
        &self,
        request: Request<IngestRequest>,
    ) -> Result<Response<IngestResponse>, Status> {
        let call = Call::of(&request)?;
        let begun = self
            .0
            .begin(call, request.into_inner(), future::ready(()))?;
        Ok(Response::new(self.0.finish(begun).await?))
    }

    type IngestStreamStream = Responses<IngestStreamResponse>;

    async fn ingest_stream(
        &self,
        request: Request<Streaming<IngestStreamRequest>>,
    ) -> Result<Response<Self::IngestStreamStream>, Status> {
        let call = Call::of(&request)?;
        let shared = self.0.for_stream_of(&request);
        let stream = IngestStream::open(shared, call, request.into_inner())?;
        Ok(staying_open(stream.responses()))
    }

    type SubscribeStream = Responses<SubscribeResponse>;

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let caller = caller(&request)?;
        let shared = self.0.for_stream_of(&request);
        let responses = shared.subscribe(&caller, request.into_inner()).await?;
        Ok(staying_open(responses))
    }

    async fn get_event(
        &self,
        request: Request<GetEventRequest>,
    ) -> Result<Response<GetEventResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let personal_data = personal_data(&caller, request.include_personal_data)?;
        let event_id = parse_id("event_id", &request.event_id)?;
        let stored = self
            .0
            .find(event_id, caller.reach(Scope::Subscribe))
            .await?;
        Ok(Response::new(GetEventResponse {
            event: Some(self.0.event(&stored, &personal_data).await?),
            cursor: self.0.cursor(stored.position).encode(),
        }))
    }

    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        let caller = caller(&request)?;
        let page = self.0.list(&caller, request.into_inner()).await?;
        Ok(Response::new(page))
    }

    async fn get_verification(
        &self,
        request: Request<GetVerificationRequest>,
    ) -> Result<Response<GetVerificationResponse>, Status> {
        let caller = caller(&request)?;
        let verification = self.0.verification(&caller, request.into_inner()).await;
        Ok(Response::new(verification?))
    }

    async fn commit_cursor(
        &self,
        request: Request<CommitCursorRequest>,
    ) -> Result<Response<CommitCursorResponse>, Status> {
        let caller = caller(&request)?;
        self.0.commit(&caller, request.into_inner()).await?;
        Ok(Response::new(CommitCursorResponse {}))
    }
}

/// The answer of an rpc whose stream may stay open for ever, and so gives its permit back.
fn staying_open<T>(responses: Responses<T>) -> Response<Responses<T>> {
    let mut response = Response::new(responses);
    response.extensions_mut().insert(StaysOpen);
    response
}

impl Shared {
    /// The cursor of a position in this log.
    pub(super) fn cursor(&self, position: Position) -> Cursor {
        self.log.cursor(position)
    }

    /// The first cursor that can be resumed after.
    pub(super) fn first(&self) -> Cursor {
        self.cursor(self.log.start())
    }

    /// The place of a cursor that can be resumed after.
    pub(super) fn place(&self, cursor: &Cursor) -> Result<Position, Status> {
        let resolved = self.log.resolve(cursor);
        resolved.map_err(|refused| status::out_of_range(&refused.to_string(), &self.first()))
    }

    /// The event with this id, for someone who may see no more than this.
    pub(super) async fn find(&self, event_id: Uuid, reach: &Reach) -> Result<StoredEvent, Status> {
        let found = match self.log.find(event_id).await {
            // Nobody knows whose it is, so only who may see all is told that it is there.
            Err(ReadError::Damaged { .. }) if *reach != Reach::Everything => None,
            found => found.map_err(|failed| self.read_error(failed))?,
        };
        let visible = found.filter(|stored| match event::source_of(&stored.event) {
            Some(source) => reach.covers(&source.provider, &source.account),
            None => *reach == Reach::Everything,
        });
        visible.ok_or_else(|| {
            status::error(Code::EventNotFound, "the log holds no event with this id")
        })
    }

    /// A stored event, with its personal data if it is of one of these sources.
    pub(super) async fn event(
        &self,
        stored: &StoredEvent,
        personal_data: &Reach,
    ) -> Result<VerificationEvent, Status> {
        let event = subscription::visible(self.log.as_ref(), stored.clone(), personal_data).await;
        let event = event.map_err(|failed| self.read_error(failed))?;
        VerificationEvent::decode(event)
            .map_err(|error| status::undecodable(stored.position, &error))
    }

    /// A read that failed. Who was overtaken by retention is told where the log begins.
    pub(super) fn read_error(&self, failed: ReadError) -> Status {
        match failed {
            ReadError::NotRetained => {
                let message = "what comes next is older than what is retained";
                status::out_of_range(message, &self.first())
            }
            failed => status::read_error(failed),
        }
    }
}

/// Who makes a call, and what it is about, for the audit log.
pub(super) fn caller<T: Auditable>(request: &Request<T>) -> Result<Caller, Status> {
    auditing::tell(request);
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(status::nobody)
}

/// Of which sources a caller is given the personal data, as far as it is asked for.
pub(super) fn personal_data(caller: &Caller, asked: bool) -> Result<Reach, Status> {
    match asked {
        false => Ok(Reach::Nothing),
        true if caller.has(Scope::PersonalData) => Ok(caller.reach(Scope::PersonalData).clone()),
        true => Err(status::scope_missing(Scope::PersonalData)),
    }
}

/// The id in a field of a request.
pub(super) fn parse_id(field: &str, text: &str) -> Result<Uuid, Status> {
    Uuid::parse_str(text).map_err(|_| status::invalid(field, "is not a UUID"))
}

/// The account that a request names.
pub(super) fn account_or_default(account: &str) -> &str {
    match account {
        "" => DEFAULT_ACCOUNT,
        account => account,
    }
}
