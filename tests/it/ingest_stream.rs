//! The promises of IngestStream.

use std::{collections::HashMap, time::Duration};

use tokio::{sync::mpsc, time};
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;
use verdict::{
    config::ServerConfig,
    log::{EventLog, Position},
    proto::{
        IngestRequest, IngestResponse, IngestStatus, IngestStreamError, IngestStreamRequest,
        IngestStreamResponse, ListSourcesRequest, SubscribeMessage,
        ingest_stream_response::Result as Answered, verdict_service_client::VerdictServiceClient,
    },
};

use crate::{
    support::{
        PATIENCE, Server, fixture, from_earliest, gu1_body, gu1_request, memory_log, next, reason,
        request, requests, server_config,
    },
    troubled_log::TroubledLog,
};

/// One stream, from its client's side.
struct Stream {
    /// Dropped, it ends the requests.
    requests: mpsc::Sender<IngestStreamRequest>,
    answers: Streaming<IngestStreamResponse>,
}

impl Stream {
    async fn open(mut client: VerdictServiceClient<Channel>) -> Self {
        let (sender, receiver) = requests();
        // The answer's headers come before the first request.
        let opened = time::timeout(PATIENCE, client.ingest_stream(receiver)).await;
        Self {
            requests: sender,
            answers: opened.expect("an answer in time").unwrap().into_inner(),
        }
    }

    async fn send(&self, correlation_id: &str, request: impl Into<Option<IngestRequest>>) {
        let request = IngestStreamRequest {
            correlation_id: correlation_id.to_owned(),
            request: request.into(),
        };
        let sent = time::timeout(PATIENCE, self.requests.send(request)).await;
        sent.expect("sent in time").expect("an open stream");
    }

    async fn message(&mut self) -> Result<Option<IngestStreamResponse>, Status> {
        let message = time::timeout(PATIENCE, self.answers.message()).await;
        message.expect("an answer in time")
    }

    async fn next(&mut self) -> (String, Answered) {
        let answer = self.message().await.expect("no error").expect("no end");
        (answer.correlation_id, answer.result.expect("an answer"))
    }

    /// The answers that are still to come, and the end.
    async fn rest(self) -> (HashMap<String, Answered>, Result<(), Status>) {
        let Self {
            requests,
            mut answers,
        } = self;
        drop(requests);
        let mut rest = HashMap::new();
        let end = loop {
            let message = time::timeout(PATIENCE, answers.message()).await;
            match message.expect("an answer in time") {
                Ok(Some(answer)) => rest.insert(answer.correlation_id, answer.result.unwrap()),
                Ok(None) => break Ok(()),
                Err(ended) => break Err(ended),
            };
        };
        (rest, end)
    }
}

fn response(answered: &Answered) -> &IngestResponse {
    match answered {
        Answered::Response(response) => response,
        Answered::Error(error) => panic!("{error:?}"),
    }
}

fn error(answered: &Answered) -> &IngestStreamError {
    match answered {
        Answered::Error(error) => error,
        Answered::Response(response) => panic!("{response:?}"),
    }
}

fn gu1(id: impl ToString) -> IngestRequest {
    gu1_request(gu1_body(&id.to_string()))
}

/// A genuine webhook of about this size.
fn large(id: usize, size_bytes: usize) -> IngestRequest {
    let padding = format!(r#""padding":"{}","entityId""#, "x".repeat(size_bytes));
    gu1_request(gu1_body(&id.to_string()).replacen(r#""entityId""#, &padding, 1))
}

/// Gives the server every chance to read what it was sent before, on the same connection.
async fn every_chance(server: &Server) {
    let mut admin = server.admin.clone();
    for _ in 0..10 {
        let _ = admin.list_sources(ListSourcesRequest {}).await.unwrap();
    }
}

#[tokio::test]
async fn each_webhook_is_answered_as_by_ingest_and_the_stream_goes_on() {
    let server = Server::start().await;
    let stream = Stream::open(server.client.clone()).await;
    let mut forged = gu1("forged");
    forged.headers[0].value = "00".repeat(32);
    let unknown = IngestRequest {
        provider: "acme".to_owned(),
        ..gu1("1")
    };
    let too_large = IngestRequest {
        payload: vec![b' '; (1 << 20) + 1].into(),
        ..gu1("1")
    };
    let with_event = IngestRequest {
        return_event: true,
        ..gu1("2")
    };
    let wrong = [
        ("forged", forged),
        ("unknown", unknown),
        ("empty", IngestRequest::default()),
        ("too_large", too_large),
    ];
    for (id, request) in &wrong {
        stream.send(id, request.clone()).await;
    }
    let quarantined = request("gu1", &fixture("gu1", "unknown_event"));
    stream.send("quarantined", quarantined).await;
    stream.send("missing", None).await;
    let longest = "i".repeat(128);
    stream.send(&longest, gu1("1")).await;
    let too_long = "i".repeat(129);
    stream.send(&too_long, gu1("3")).await;
    stream.send("", with_event).await;
    let (answers, end) = stream.rest().await;
    end.unwrap();
    assert_eq!(answers.len(), 9);

    let accepted = response(&answers[&longest]);
    assert_eq!(accepted.status(), IngestStatus::Accepted);
    let again = server.ingest(gu1("1")).await.unwrap();
    assert_eq!(again.status(), IngestStatus::Duplicate);
    assert_eq!(
        (&again.event_id, &again.cursor),
        (&accepted.event_id, &accepted.cursor)
    );
    let with_event = response(&answers[""]);
    assert_eq!(
        with_event.event.as_ref().unwrap().event_id,
        with_event.event_id
    );
    let quarantined = response(&answers["quarantined"]);
    assert_eq!(quarantined.status(), IngestStatus::Quarantined);

    for (id, request) in wrong {
        let told = error(&answers[id]);
        let expected = server.ingest(request).await.unwrap_err();
        assert_eq!(told.code, i32::from(expected.code()), "{id}");
        assert_eq!(
            (&told.reason, told.message.as_str()),
            (&reason(&expected), expected.message())
        );
        assert_eq!(told.retry_delay, None);
    }
    for (id, field) in [
        ("missing", "request"),
        (too_long.as_str(), "correlation_id"),
    ] {
        let told = error(&answers[id]);
        assert_eq!(
            (told.code, told.reason.as_str()),
            (i32::from(Code::InvalidArgument), "INVALID_REQUEST")
        );
        assert!(told.message.starts_with(field), "{}", told.message);
    }
    // The one whose correlation id is too long was not taken.
    assert_eq!(server.log.tail().end(), Position(2));
}

#[tokio::test]
async fn what_may_succeed_later_is_told_so() {
    let server = Server::start_with(server_config(), TroubledLog::gone()).await;
    let mut stream = Stream::open(server.client.clone()).await;
    stream.send("1", gu1("1")).await;
    let (_, answered) = stream.next().await;
    let told = error(&answered);
    assert_eq!(
        (told.code, told.reason.as_str()),
        (i32::from(Code::Unavailable), "LOG_UNAVAILABLE")
    );
    let delay = told.retry_delay.as_ref().unwrap();
    assert_eq!((delay.seconds, delay.nanos), (1, 0));
}

#[tokio::test]
async fn a_stream_opens_before_anything_is_sent_and_outlives_the_timeout_of_calls() {
    let config = ServerConfig {
        call_timeout_seconds: 1,
        ..server_config()
    };
    let log = TroubledLog::new();
    let server = Server::start_with(config, log.clone()).await;
    let mut stream = Stream::open(server.client.clone()).await;
    // A call that is never answered shows that the timeout is over.
    log.set_gate(false);
    let timed_out = server.ingest(gu1("1")).await.unwrap_err();
    assert!(!matches!(timed_out.code(), Code::Ok | Code::NotFound));
    log.set_gate(true);
    stream.send("2", gu1("2")).await;
    assert_eq!(stream.next().await.0, "2");
}

#[tokio::test]
async fn answers_come_in_the_order_in_which_webhooks_are_done() {
    let log = TroubledLog::new();
    let server = Server::start_with(server_config(), log.clone()).await;
    let mut stream = Stream::open(server.client.clone()).await;
    log.set_gate(false);
    stream.send("first", gu1("1")).await;
    stream.send("second", IngestRequest::default()).await;
    assert_eq!(stream.next().await.0, "second");
    log.set_gate(true);
    assert_eq!(stream.next().await.0, "first");
}

#[tokio::test]
async fn at_most_256_webhooks_of_a_stream_are_taken_at_once() {
    let log = TroubledLog::new();
    let server = Server::start_with(server_config(), log.clone()).await;
    let stream = Stream::open(server.client.clone()).await;
    log.set_gate(false);
    for id in 0..300 {
        stream.send(&id.to_string(), gu1(id)).await;
    }
    log.held_back(256).await;
    every_chance(&server).await;
    assert_eq!(log.waiting(), 256);
    log.set_gate(true);
    let (answers, end) = stream.rest().await;
    end.unwrap();
    assert_eq!(answers.len(), 300);
    assert_eq!(server.log.tail().end(), Position(300));
}

#[tokio::test]
async fn a_stream_holds_8_mib_of_webhooks_and_one_more_at_once() {
    let log = TroubledLog::new();
    let server = Server::start_with(server_config(), log.clone()).await;
    let stream = Stream::open(server.client.clone()).await;
    log.set_gate(false);
    let sent = async {
        for id in 0..12 {
            stream.send(&id.to_string(), large(id, 1_000_000)).await;
        }
    };
    let watched = async {
        log.held_back(9).await;
        every_chance(&server).await;
        assert_eq!(log.waiting(), 9);
        log.set_gate(true);
    };
    tokio::join!(sent, watched);
    let (answers, end) = stream.rest().await;
    end.unwrap();
    assert_eq!(answers.len(), 12);
}

#[tokio::test]
async fn who_takes_no_answers_is_held_back_and_others_are_not() {
    let server = Server::start().await;
    // Room for about 600 answers.
    let endpoint = Endpoint::from_shared(server.url.clone())
        .unwrap()
        .initial_stream_window_size(64 << 10);
    let channel = endpoint.connect().await.unwrap();
    let mut client = VerdictServiceClient::new(channel);
    let mut stream = Stream::open(client.clone()).await;
    let webhooks = 4000;
    let mut sent = 0;
    while sent < webhooks {
        let request = IngestStreamRequest {
            correlation_id: sent.to_string(),
            request: Some(large(sent, 1024)),
        };
        // Nothing can tell that a sender waits for good but time.
        let permit = time::timeout(Duration::from_secs(1), stream.requests.send(request)).await;
        if permit.is_err() {
            break;
        }
        sent += 1;
    }
    assert!(sent < webhooks, "nothing held the sender back");
    // Other calls on the same connection go on.
    let other = time::timeout(PATIENCE, client.ingest(gu1("other"))).await;
    assert_eq!(
        other.unwrap().unwrap().into_inner().status(),
        IngestStatus::Accepted
    );
    // Once the answers are taken, the stream goes on, and nothing is lost. (What was being sent was never sent.)
    for _ in 0..sent {
        stream.next().await;
    }
    stream.send("last", gu1("last")).await;
    assert_eq!(stream.next().await.0, "last");
}

#[tokio::test]
async fn what_has_begun_goes_on_without_its_caller() {
    let log = TroubledLog::new();
    let server = Server::start_with(server_config(), log.clone()).await;
    let stream = Stream::open(server.client.clone()).await;
    log.set_gate(false);
    for id in 0..3 {
        stream.send(&id.to_string(), gu1(id)).await;
    }
    log.held_back(3).await;
    drop(stream);
    server.begin_stop();
    log.set_gate(true);
    server.stop().await;
    assert_eq!(log.tail().end(), Position(3));
}

#[tokio::test]
async fn on_shutdown_what_was_read_is_answered_and_nothing_else_is_read() {
    let log = TroubledLog::new();
    let server = Server::start_with(server_config(), log.clone()).await;
    let mut stream = Stream::open(server.client.clone()).await;
    let mut subscriber = server.subscribe(from_earliest()).await;
    log.set_gate(false);
    for id in ["1", "2"] {
        stream.send(id, gu1(id)).await;
    }
    log.held_back(2).await;
    server.begin_stop();
    while !matches!(
        next(&mut subscriber).await.message,
        Some(SubscribeMessage::Draining(_))
    ) {}
    // Refused is as good as not read.
    let late = IngestStreamRequest {
        correlation_id: "3".to_owned(),
        request: Some(gu1("3")),
    };
    let _ = stream.requests.try_send(late);
    log.set_gate(true);
    let mut answered = [stream.next().await.0, stream.next().await.0];
    answered.sort();
    assert_eq!(answered, ["1", "2"]);
    let end = stream.message().await.unwrap_err();
    assert_eq!(
        (end.code(), reason(&end).as_str()),
        (Code::Unavailable, "DRAINING")
    );
    assert!(end.get_details_retry_info().is_some());
    assert_eq!(server.log.tail().end(), Position(2));
    server.stop().await;
}

#[tokio::test]
async fn a_message_over_the_limit_ends_the_stream_after_the_answers() {
    let log = TroubledLog::new();
    let server = Server::start_with(server_config(), log.clone()).await;
    let mut stream = Stream::open(server.client.clone()).await;
    log.set_gate(false);
    stream.send("1", gu1("1")).await;
    log.held_back(1).await;
    stream.send("2", large(2, 2 << 20)).await;
    log.set_gate(true);
    assert_eq!(stream.next().await.0, "1");
    let end = stream.message().await.unwrap_err();
    assert_eq!(
        (end.code(), reason(&end).as_str()),
        (Code::InvalidArgument, "PAYLOAD_TOO_LARGE")
    );
    assert_eq!(server.log.tail().end(), Position(1));
}

#[tokio::test]
async fn what_is_no_request_ends_the_stream() {
    let server = Server::start().await;
    let mut client = tonic::client::Grpc::new(server.channel.clone());
    client.ready().await.unwrap();
    // A message whose first field is a number, where the request has a text.
    let codec = tonic_prost::ProstCodec::<u64, ()>::default();
    let path = http::uri::PathAndQuery::from_static("/verdict.v1.VerdictService/IngestStream");
    let messages = tonic::Request::new(tokio_stream::once(7_u64));
    let mut answers = client.streaming(messages, path, codec).await.unwrap();
    let end = answers.get_mut().message().await.unwrap_err();
    assert_eq!(
        (end.code(), reason(&end).as_str()),
        (Code::InvalidArgument, "INVALID_REQUEST")
    );
}

#[tokio::test]
async fn at_most_64_streams_are_open_at_once_and_take_no_calls() {
    let config = ServerConfig {
        max_concurrent_calls: 1,
        ..server_config()
    };
    let server = Server::start_with(config, memory_log()).await;
    let mut streams = Vec::new();
    for id in 0..64 {
        let mut stream = Stream::open(server.client.clone()).await;
        stream.send("", gu1(id)).await;
        stream.next().await;
        streams.push(stream);
    }
    let mut client = server.client.clone();
    let refused = client.ingest_stream(tokio_stream::empty()).await;
    assert_eq!(reason(&refused.unwrap_err()), "OVERLOADED");
    server.accept("other").await;

    let (_, end) = streams.pop().unwrap().rest().await;
    end.unwrap();
    time::timeout(PATIENCE, async {
        while client.ingest_stream(tokio_stream::empty()).await.is_err() {
            time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn streams_whose_answers_nobody_takes_hold_no_webhooks() {
    let log = TroubledLog::new();
    let server = Server::start_with(server_config(), log.clone()).await;
    log.set_gate(false);
    let mut streams = Vec::new();
    for _ in 0..9 {
        // No room for two answers.
        let endpoint = Endpoint::from_shared(server.url.clone()).unwrap();
        let endpoint = endpoint.initial_stream_window_size(64);
        let client = VerdictServiceClient::new(endpoint.connect().await.unwrap());
        streams.push(Stream::open(client).await);
    }
    const EACH: usize = 8;
    let request_bytes = 1_000_000;
    let sent = streams
        .iter()
        .enumerate()
        .map(|(number, stream)| async move {
            for id in 0..EACH {
                let id = number * EACH + id;
                stream.send(&id.to_string(), large(id, request_bytes)).await;
            }
        });
    let stored = async {
        log.held_back((64 << 20) / request_bytes - 1).await;
        log.set_gate(true);
    };
    let all = async { tokio::join!(futures_util::future::join_all(sent), stored) };
    time::timeout(PATIENCE, all).await.expect("all are taken");
    let mut honest = Stream::open(server.client.clone()).await;
    honest.send("honest", gu1("honest")).await;
    let answered = time::timeout(PATIENCE, honest.next()).await;
    assert_eq!(answered.expect("an answer in time").0, "honest");
    // And theirs wait for them.
    for stream in streams {
        let (answers, end) = stream.rest().await;
        end.unwrap();
        assert_eq!(answers.len(), EACH);
    }
}

#[tokio::test]
async fn all_streams_together_take_64_mib_of_webhooks_at_once() {
    let log = TroubledLog::new();
    let server = Server::start_with(server_config(), log.clone()).await;
    log.set_gate(false);
    let mut streams = Vec::new();
    for _ in 0..9 {
        // Each has a connection of its own, so that none is held back by the window of another.
        let channel = crate::support::connect(&server.url).await;
        let stream = Stream::open(VerdictServiceClient::new(channel)).await;
        streams.push(stream);
    }
    const EACH: usize = 8;
    let request_bytes = 1_000_000;
    let sent = streams
        .iter()
        .enumerate()
        .map(|(number, stream)| async move {
            for id in 0..EACH {
                let id = number * EACH + id;
                stream.send(&id.to_string(), large(id, request_bytes)).await;
            }
        });
    let watched = async {
        let most = (64 << 20) / request_bytes;
        log.held_back(most - 1).await;
        every_chance(&server).await;
        assert!(log.waiting() <= most, "{}", log.waiting());
        // What is no stream is not held back.
        let other = server.ingest(gu1("other"));
        let seen = async {
            log.held_back(log.waiting() + 1).await;
            log.set_gate(true);
        };
        let (other, ()) = tokio::join!(other, seen);
        other.unwrap();
    };
    tokio::join!(futures_util::future::join_all(sent), watched);
    for stream in streams {
        let (answers, end) = stream.rest().await;
        end.unwrap();
        assert_eq!(answers.len(), EACH);
    }
}
