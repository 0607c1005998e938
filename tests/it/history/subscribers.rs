//! Clients that follow the stream: from anywhere, with any filter, fast or slow, and again after whatever ended it.

use std::{sync::Arc, time::Duration};

use fastrand::Rng;
use tokio::time;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};
use verdict::proto::{
    Committed, Earliest, Latest, SubscribeRequest, SubscribeResponse, subscribe_request,
    verdict_service_client::VerdictServiceClient,
};

use super::{
    consumers::consumer_name,
    content::Filter,
    driver::World,
    record::{CursorNo, End, Failure, Message, Start, Stream},
    recorder::Records,
};
use crate::support::PATIENCE;

/// One subscriber. It has one stream after the other.
pub(crate) struct Subscriber {
    world: Arc<World>,
    rng: Rng,
    records: Records,
    /// The last cursor that it was given.
    last: Option<CursorNo>,
}

/// How a subscriber means to use a stream.
struct Plan {
    start: Start,
    filter: Filter,
    stop_when_caught_up: bool,
    /// After so many messages it leaves.
    patience: u32,
    /// Whether it stops reading now and then, for long enough to fall behind.
    stalls: bool,
}

impl Subscriber {
    pub(crate) fn new(world: Arc<World>, rng: Rng) -> Self {
        Self {
            world,
            rng,
            records: Records::default(),
            last: None,
        }
    }

    /// Subscribes until the run ends, and then until it has come to the end of the log.
    pub(crate) async fn run(mut self) -> Records {
        let mut filter = Filter::default();
        loop {
            self.world.pace().await;
            let plan = self.plan(&filter);
            filter.clone_from(&plan.filter);
            self.subscribe(plan).await;
            if self.world.end().is_some_and(|end| self.last == Some(end)) {
                return self.records;
            }
        }
    }

    /// Often goes on where it was.
    fn plan(&mut self, filter: &Filter) -> Plan {
        let resumes = self.world.end().is_some() || self.rng.bool();
        if let (true, Some(last)) = (resumes, self.last) {
            self.world.count_reconnect();
            return Plan {
                start: Start::Resume(last),
                filter: filter.clone(),
                ..self.any_plan()
            };
        }
        self.any_plan()
    }

    fn any_plan(&mut self) -> Plan {
        let (rng, recorder) = (&mut self.rng, &self.world.recorder);
        let start = match rng.u8(..8) {
            0 => Some(Start::Earliest),
            1 | 2 => Some(Start::Latest),
            3 | 4 => {
                let time = recorder.random_time(rng);
                time.map(|time| Start::Since(time + rng.i64(-5_000_000..50_000_000)))
            }
            _ => recorder.random_cursor(rng).map(Start::After),
        };
        Plan {
            start: start.unwrap_or(Start::Earliest),
            filter: Filter::random(rng, self.world.newest_event()),
            stop_when_caught_up: rng.u8(..4) == 0,
            patience: 1 << rng.u32(..14),
            stalls: rng.u8(..4) == 0,
        }
    }

    async fn subscribe(&mut self, plan: Plan) {
        let mut stream = self.world.stream(plan.start, plan.filter.clone());
        stream.stop_when_caught_up = plan.stop_when_caught_up;
        stream.end = match self.world.open(&stream).await {
            Err(failure) => End::Failed(failure),
            Ok(mut responses) => {
                stream.opened = Some(self.world.recorder.now());
                self.read(&mut responses, &plan, &mut stream.messages).await
            }
        };
        stream.span.completed = self.world.recorder.now();
        stream.messages.shrink_to_fit();
        self.records.streams.push(stream);
    }

    async fn read(
        &mut self,
        responses: &mut Streaming<SubscribeResponse>,
        plan: &Plan,
        messages: &mut Vec<Message>,
    ) -> End {
        let mut patience = plan.patience;
        loop {
            let response = match next(responses).await {
                Ok(Some(response)) => response,
                Ok(None) => return End::Done,
                Err(failure) => return End::Failed(failure),
            };
            let (message, cursor) = self.world.recorder.message(response);
            self.world.count_delivery();
            messages.push(message);
            self.last = Some(cursor);
            match self.world.end() {
                Some(end) if cursor == end && !plan.stop_when_caught_up => return End::Left,
                Some(_) => continue,
                None => {}
            }
            patience -= 1;
            if patience == 0 {
                return End::Left;
            }
            if plan.stalls && self.rng.u32(..1_000) == 0 {
                self.world.stall(&mut self.rng).await;
            }
        }
    }
}

/// The next message of a stream. A heartbeat comes every second, so none for long is a stream that hangs.
pub(crate) async fn next(
    responses: &mut Streaming<SubscribeResponse>,
) -> Result<Option<SubscribeResponse>, Failure> {
    match time::timeout(PATIENCE, responses.message()).await {
        Err(_) => Err(Failure::Hung),
        Ok(message) => message.map_err(|status| Failure::of(&status)),
    }
}

impl World {
    /// Opens a stream on a connection of its own.
    pub(crate) async fn open(
        &self,
        stream: &Stream,
    ) -> Result<Streaming<SubscribeResponse>, Failure> {
        let consumer = match stream.start {
            Start::Committed(consumer) => consumer_name(consumer),
            _ => String::new(),
        };
        let request = SubscribeRequest {
            start: Some(self.start(stream.start)),
            consumer,
            filter: Some(stream.filter.to_proto()),
            stop_when_caught_up: stream.stop_when_caught_up,
            heartbeat_interval: Some(prost_types::Duration {
                seconds: 1,
                nanos: 0,
            }),
            ..Default::default()
        };
        let call = async {
            let channel = self.narrow_channel().await?;
            VerdictServiceClient::new(channel).subscribe(request).await
        };
        match time::timeout(PATIENCE, call).await {
            Err(_) => Err(Failure::Hung),
            Ok(response) => response
                .map(tonic::Response::into_inner)
                .map_err(|status| Failure::of(&status)),
        }
    }

    fn start(&self, start: Start) -> subscribe_request::Start {
        match start {
            Start::Earliest => subscribe_request::Start::Earliest(Earliest {}),
            Start::Latest => subscribe_request::Start::Latest(Latest {}),
            Start::After(cursor) | Start::Resume(cursor) => {
                subscribe_request::Start::AfterCursor(self.recorder.cursor_text(cursor))
            }
            Start::Since(time) => subscribe_request::Start::Since(prost_types::Timestamp {
                seconds: time.div_euclid(1_000_000_000),
                nanos: time.rem_euclid(1_000_000_000) as i32,
            }),
            Start::Committed(_) => subscribe_request::Start::Committed(Committed {}),
        }
    }

    /// A connection that holds few messages on their way, so that a subscriber that does not read is felt by the server.
    async fn narrow_channel(&self) -> Result<Channel, Status> {
        const WINDOW: u32 = 64 << 10;
        let _ = self.channel(0).await;
        let endpoint = Endpoint::from_shared(self.url.clone()).expect("a URL");
        let connected = endpoint
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .connect()
            .await;
        connected.map_err(|error| Status::unavailable(error.to_string()))
    }

    /// Waits until so many events have come that the reader has fallen out of the live window, as a rule.
    async fn stall(&self, rng: &mut Rng) {
        const WINDOW: u32 = 4096;
        self.count_stall();
        let until = self.newest_event() + rng.u32(..2 * WINDOW);
        while self.newest_event() < until && !self.is_done() {
            time::sleep(Duration::from_millis(10)).await;
        }
    }
}
