//! Clients that send many webhooks over one stream.

use std::{collections::HashMap, sync::Arc};

use fastrand::Rng;
use tokio::{sync::mpsc, time};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use verdict::proto::{
    IngestStreamRequest, IngestStreamResponse, ingest_stream_response::Result as Ended,
    verdict_service_client::VerdictServiceClient,
};

use super::{
    content::Content,
    driver::World,
    record::{Answer, EventNo, Failure, Ingest, Moment, Span},
    recorder::Records,
    senders::answer,
};
use crate::support::PATIENCE;

/// How many webhooks of a stream wait for their answers.
const WINDOW: usize = 32;

/// One client. It has one stream after the other.
pub(crate) struct StreamSender {
    world: Arc<World>,
    rng: Rng,
    connection: usize,
    records: Records,
    /// What has no answer yet, by `correlation_id`.
    waiting: HashMap<String, Waiting>,
    /// What nobody knows of whether it was taken, to be sent again.
    unknown: Vec<(EventNo, usize)>,
}

struct Waiting {
    event: EventNo,
    variant: usize,
    invoked: Moment,
}

impl StreamSender {
    pub(crate) fn new(world: Arc<World>, rng: Rng, connection: usize) -> Self {
        Self {
            world,
            rng,
            connection,
            records: Records::default(),
            waiting: HashMap::new(),
            unknown: Vec::new(),
        }
    }

    pub(crate) async fn run(mut self) -> Records {
        while !self.world.is_done() {
            let webhooks = 1 << self.rng.u32(..12);
            let failure = self.stream(webhooks).await.err();
            // A stream that ends well has answered everything.
            let failure = failure.unwrap_or(Failure::Hung);
            let completed = self.world.recorder.now();
            for (_, waiting) in std::mem::take(&mut self.waiting) {
                if self.rng.u8(..4) > 0 {
                    self.unknown.push((waiting.event, waiting.variant));
                }
                self.ended(waiting, completed, Answer::Failed(failure));
            }
        }
        self.records
    }

    /// Sends so many webhooks, and waits for their answers.
    async fn stream(&mut self, mut webhooks: u32) -> Result<(), Failure> {
        // Room for all that waits, so that sending never waits for an answer to be read.
        let (requests, receiver) = mpsc::channel(WINDOW);
        let mut door = self.world.door.clone();
        door.mark_unchanged();
        let mut responses = self.open(receiver).await?;
        let mut requests = Some(requests);
        loop {
            while let Some(open) = &requests
                && self.waiting.len() < WINDOW
            {
                if webhooks == 0 || self.world.is_done() {
                    requests = None;
                    break;
                }
                webhooks -= 1;
                let request = self.request();
                // Whatever is sent now goes to a server that is dead; only what it was sent before may have been taken.
                if door.has_changed().unwrap_or(true) {
                    self.waiting.remove(&request.correlation_id);
                    return Err(Failure::Unknown);
                }
                // When nobody receives any more, the responses tell why.
                let _ = open.send(request).await;
            }
            match time::timeout(PATIENCE, responses.message()).await {
                Err(_) => return Err(Failure::Hung),
                Ok(Err(status)) => return Err(Failure::of(&status)),
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(response))) => self.answered(response),
            }
        }
    }

    async fn open(
        &self,
        receiver: mpsc::Receiver<IngestStreamRequest>,
    ) -> Result<Streaming<IngestStreamResponse>, Failure> {
        let channel = self.world.channel(self.connection).await;
        let mut client = VerdictServiceClient::new(channel);
        let call = client.ingest_stream(ReceiverStream::new(receiver));
        match time::timeout(PATIENCE, call).await {
            Err(_) => Err(Failure::Hung),
            Ok(response) => response
                .map(tonic::Response::into_inner)
                .map_err(|status| Failure::of(&status)),
        }
    }

    fn request(&mut self) -> IngestStreamRequest {
        let delivery = self.unknown.pop();
        let (event, variant) = delivery.unwrap_or_else(|| self.world.any_delivery(&mut self.rng));
        let content = Content::of(self.world.seed, event)[variant];
        let invoked = self.world.begin();
        let correlation_id = invoked.to_string();
        let waiting = Waiting {
            event,
            variant,
            invoked,
        };
        self.waiting.insert(correlation_id.clone(), waiting);
        IngestStreamRequest {
            correlation_id,
            request: Some(self.world.webhook(event, &content)),
        }
    }

    fn answered(&mut self, response: IngestStreamResponse) {
        let completed = self.world.recorder.now();
        let waiting = self.waiting.remove(&response.correlation_id);
        let waiting =
            waiting.expect("every answer is to something that was sent, and the only one");
        let response = match response.result.expect("an answer says how it ended") {
            Ended::Response(response) => Ok(response),
            Ended::Error(error) => Err(Status::new(error.code.into(), error.message)),
        };
        let answer = answer(&self.world.recorder, response);
        self.ended(waiting, completed, answer);
    }

    fn ended(&mut self, waiting: Waiting, completed: Moment, answer: Answer) {
        let Waiting {
            event,
            variant,
            invoked,
        } = waiting;
        self.records.ingests.push(Ingest {
            event,
            variant,
            span: Span { invoked, completed },
            answer,
        });
    }
}
