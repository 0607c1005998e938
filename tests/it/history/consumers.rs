//! Clients that leave it to the server to know how far they have come.

use std::sync::Arc;

use fastrand::Rng;
use tokio::time;
use tonic::{Code, Status};
use verdict::proto::{CommitCursorRequest, verdict_service_client::VerdictServiceClient};

use super::{
    content::Filter,
    driver::World,
    record::{Commit, CommitAnswer, ConsumerNo, CursorNo, End, Failure, Span, Start},
    recorder::Records,
    subscribers::next,
};
use crate::support::PATIENCE;

/// One consumer. It goes on after its last commit, whatever became of it.
pub(crate) struct Consumer {
    world: Arc<World>,
    rng: Rng,
    number: ConsumerNo,
    records: Records,
    last: Option<CursorNo>,
}

impl Consumer {
    pub(crate) fn new(world: Arc<World>, rng: Rng, number: ConsumerNo) -> Self {
        Self {
            world,
            rng,
            number,
            records: Records::default(),
            last: None,
        }
    }

    /// Consumes until the run ends, and then until the end of the log.
    pub(crate) async fn run(mut self) -> Records {
        loop {
            self.world.pace().await;
            self.subscribe().await;
            if self.world.end().is_some_and(|end| self.last == Some(end)) {
                return self.records;
            }
        }
    }

    async fn subscribe(&mut self) {
        let filter = Filter::random(&mut self.rng, self.world.newest_event());
        let mut stream = self.world.stream(Start::Committed(self.number), filter);
        stream.end = match self.world.open(&stream).await {
            Err(failure) => End::Failed(failure),
            Ok(mut responses) => {
                stream.opened = Some(self.world.recorder.now());
                loop {
                    match next(&mut responses).await {
                        Ok(Some(response)) => {
                            let (message, cursor) = self.world.recorder.message(response);
                            stream.messages.push(message);
                            if self.is_enough(cursor).await {
                                break End::Left;
                            }
                        }
                        Ok(None) => break End::Done,
                        Err(failure) => break End::Failed(failure),
                    }
                }
            }
        };
        stream.span.completed = self.world.recorder.now();
        self.records.streams.push(stream);
    }

    /// Takes note of how far the stream has come, and commits now and then. Returns whether to leave.
    async fn is_enough(&mut self, cursor: CursorNo) -> bool {
        self.world.count_delivery();
        let before = self.last.replace(cursor);
        if let Some(end) = self.world.end() {
            return cursor == end;
        }
        match self.rng.u32(..400) {
            0 => return true,
            1..20 => self.commit(cursor).await,
            // Behind, as a rule: what was committed before.
            20..22 => {
                let stored = self.records.commits.last().map(|commit| commit.cursor);
                let earlier = self.records.commits.first().map(|commit| commit.cursor);
                for cursor in [stored, earlier, before].into_iter().flatten() {
                    self.commit(cursor).await;
                }
            }
            _ => {}
        }
        false
    }

    async fn commit(&mut self, cursor: CursorNo) {
        let invoked = self.world.begin();
        let request = CommitCursorRequest {
            consumer: consumer_name(self.number),
            cursor: self.world.recorder.cursor_text(cursor),
            force: false,
        };
        let channel = self.world.channel(self.number as usize).await;
        let mut client = VerdictServiceClient::new(channel);
        let answer = match time::timeout(PATIENCE, client.commit_cursor(request)).await {
            Err(_) => CommitAnswer::Failed(Failure::Hung),
            Ok(response) => answer(response.err()),
        };
        let completed = self.world.recorder.now();
        self.records.commits.push(Commit {
            consumer: self.number,
            cursor,
            span: Span { invoked, completed },
            answer,
        });
    }
}

pub(crate) fn consumer_name(consumer: ConsumerNo) -> String {
    format!("consumer-{consumer}")
}

fn answer(refused: Option<Status>) -> CommitAnswer {
    match refused {
        None => CommitAnswer::Stored,
        Some(status) if status.code() == Code::FailedPrecondition => CommitAnswer::Behind,
        Some(status) => CommitAnswer::Failed(Failure::of(&status)),
    }
}
