//! Clients that send webhooks and ask for events by their ids.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use fastrand::Rng;
use prost::Message as _;
use tokio::time;
use tonic::Status;
use uuid::Uuid;
use verdict::proto::{
    GetEventRequest, GetEventResponse, IngestRequest, IngestResponse, IngestStatus,
    verdict_service_client::VerdictServiceClient,
};

use super::{
    content::Content,
    driver::World,
    record::{Answer, EventNo, Failure, Ingest, ItemNo, Place, Read, Span},
    recorder::{Recorder, Records},
};
use crate::support::{PATIENCE, request, sign};

/// How far back an event may be in flight.
const IN_FLIGHT: EventNo = 64;

/// One client. It does one thing after the other; many of them share a connection.
pub(crate) struct Sender {
    world: Arc<World>,
    rng: Rng,
    connection: usize,
    records: Records,
    /// Events that the server has told the place of.
    known: VecDeque<(EventNo, u128)>,
}

impl Sender {
    pub(crate) fn new(world: Arc<World>, rng: Rng, connection: usize) -> Self {
        Self {
            world,
            rng,
            connection,
            records: Records::default(),
            known: VecDeque::new(),
        }
    }

    pub(crate) async fn run(mut self) -> Records {
        while !self.world.is_done() {
            if self.rng.u8(..10) == 0 {
                self.read().await;
            } else {
                let (event, variant) = self.world.any_delivery(&mut self.rng);
                self.deliver(event, variant).await;
            }
        }
        self.records
    }

    /// Delivers, and as a rule delivers again when nobody knows what became of it.
    async fn deliver(&mut self, event: EventNo, variant: usize) {
        let content = Content::of(self.world.seed, event)[variant];
        let webhook = self.world.webhook(event, &content);
        loop {
            let invoked = self.world.begin();
            let answer = self.ingest(webhook.clone()).await;
            let completed = self.world.recorder.now();
            self.records.ingests.push(Ingest {
                event,
                variant,
                span: Span { invoked, completed },
                answer,
            });
            if let Some(place) = answer.place() {
                self.known.push_back((event, place.event_id));
                if self.known.len() > 32 {
                    self.known.pop_front();
                }
            }
            if answer != Answer::Failed(Failure::Unknown) || self.rng.u8(..4) == 0 {
                return;
            }
        }
    }

    async fn ingest(&self, webhook: IngestRequest) -> Answer {
        let channel = self.world.channel(self.connection).await;
        let mut client = VerdictServiceClient::new(channel);
        match time::timeout(PATIENCE, client.ingest(webhook)).await {
            Err(_) => Answer::Failed(Failure::Hung),
            Ok(response) => answer(&self.world.recorder, response.map(|r| r.into_inner())),
        }
    }

    async fn read(&mut self) {
        let Some((event, event_id)) = self.known.pop_front() else {
            return;
        };
        let invoked = self.world.begin();
        let channel = self.world.channel(self.connection).await;
        let mut client = VerdictServiceClient::new(channel);
        let request = GetEventRequest {
            event_id: Uuid::from_u128(event_id).to_string(),
            include_personal_data: false,
        };
        let found = match time::timeout(PATIENCE, client.get_event(request)).await {
            Err(_) => Err(Failure::Hung),
            Ok(response) => found(&self.world.recorder, response.map(|r| r.into_inner())),
        };
        let completed = self.world.recorder.now();
        self.records.reads.push(Read {
            event,
            span: Span { invoked, completed },
            found,
        });
    }
}

pub(crate) fn answer(recorder: &Recorder, response: Result<IngestResponse, Status>) -> Answer {
    let response = match response {
        Ok(response) => response,
        Err(status) => return Answer::Failed(Failure::of(&status)),
    };
    let place = || Place {
        event_id: Uuid::parse_str(&response.event_id).map_or(0, |id| id.as_u128()),
        cursor: recorder.cursor(&response.cursor),
    };
    match response.status() {
        IngestStatus::Accepted => Answer::Accepted(place()),
        IngestStatus::Duplicate => Answer::Duplicate(place()),
        IngestStatus::Quarantined => Answer::Quarantined,
        IngestStatus::Ignored | IngestStatus::Unspecified => Answer::Ignored,
    }
}

fn found(
    recorder: &Recorder,
    response: Result<GetEventResponse, Status>,
) -> Result<Option<ItemNo>, Failure> {
    match response {
        Ok(GetEventResponse { event, cursor }) => {
            let event = Bytes::from(event.unwrap_or_default().encode_to_vec());
            Ok(Some(recorder.item(&cursor, &event)))
        }
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(Failure::of(&status)),
    }
}

impl World {
    /// What to deliver next, and with which content: mostly new events, and many that are sent again.
    pub(crate) fn any_delivery(&self, rng: &mut Rng) -> (EventNo, usize) {
        let any = |rng: &mut Rng| rng.u32(..=self.newest_event());
        // Some other client may be sending it right now.
        let recent = |rng: &mut Rng| self.newest_event().saturating_sub(rng.u32(..IN_FLIGHT));
        match rng.u8(..90) {
            0..60 => (self.new_event(), 0),
            60..72 => (recent(rng), 0),
            72..86 => (any(rng), 0),
            // With the wrong content, where the event can have one.
            choice => {
                let event = if choice < 88 { recent(rng) } else { any(rng) };
                let [right, wrong] = Content::of(self.seed, event);
                (event, usize::from(right != wrong))
            }
        }
    }

    /// The signed webhook of an event.
    pub(crate) fn webhook(&self, event: EventNo, content: &Content) -> IngestRequest {
        let source = &self.sources[content.source as usize];
        let webhook = sign(source, content.body(event));
        IngestRequest {
            account: content.source.account().to_owned(),
            ..request(content.source.provider(), &webhook)
        }
    }
}
