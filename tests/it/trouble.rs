//! A log in trouble, and what may never be seen of an event.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prost_types::Timestamp;
use tokio::{net::TcpListener, time};
use tonic::{Code, Status, Streaming};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};
use tonic_types::StatusExt;
use uuid::Uuid;
use verdict::{
    config::ServerConfig,
    event::{self, EncodedEvent},
    log::{Appended, EventLog, Health, NewEvent, Position, QuarantineKind, StoredQuarantined},
    proto::{
        Earliest, EventOrder, GetDeliveryRequest, GetEventRequest, GetStatusRequest, Header,
        IngestRequest, IngestStatus, ListEventsRequest, ListQuarantinedRequest, ListSourcesRequest,
        PersonalData, SubscribeMessage, SubscribeRequest, SubscribeResponse, VerificationEvent,
        get_delivery_request::Target, subscribe_request::Start,
    },
    provider::{Headers, RawWebhook},
    source::Source,
    subscription::{Message, READ_LIMIT},
    telemetry::Telemetry,
    transport::{self, Access, Listeners, ServeError, Service},
};

use crate::{
    log::new_event,
    manners::SERVICES,
    support::{
        PATIENCE, Server, append, fixture, fixture_source, gu1_body, gu1_request, memory_log, next,
        reason, request, server_config,
    },
    troubled_log::TroubledLog,
};

#[tokio::test]
async fn a_webhook_that_cannot_be_stored_is_to_be_sent_again() {
    let server = Server::start_with(server_config(), TroubledLog::gone()).await;
    let event = gu1_request(gu1_body("1"));
    let quarantined = request("gu1", &fixture("gu1", "unknown_event"));
    for request in [event, quarantined] {
        let failed = server.ingest(request).await.unwrap_err();
        assert_eq!(
            (failed.code(), reason(&failed).as_str()),
            (Code::Unavailable, "LOG_UNAVAILABLE")
        );
        assert!(failed.get_details_retry_info().is_some());
        // What is wrong with our disk is our business.
        assert!(!failed.message().contains("space"), "{}", failed.message());
    }
    let sources = server
        .admin
        .clone()
        .list_sources(ListSourcesRequest {})
        .await
        .unwrap();
    let counts = sources
        .into_inner()
        .sources
        .into_iter()
        .find(|s| s.provider == "gu1")
        .unwrap()
        .counts
        .unwrap();
    assert_eq!(
        (counts.accepted, counts.quarantined, counts.log_unavailable),
        (0, 0, 2)
    );
    assert_eq!(server.log.tail().end(), Position(0));
}

#[tokio::test]
async fn what_is_not_genuine_is_refused_as_such_even_if_it_cannot_be_kept() {
    let keeping = Source {
        keep_unverified: true,
        ..fixture_source("gu1")
    };
    let log = TroubledLog::gone();
    let server = Server::start_from(vec![keeping], server_config(), log).await;
    let mut forged = gu1_request(gu1_body("1"));
    forged.payload = gu1_body("2").into();
    let refused = server.ingest(forged).await.unwrap_err();
    assert_eq!(reason(&refused), "SIGNATURE_INVALID");
    let mut admin = server.admin.clone();
    let sources = admin.list_sources(ListSourcesRequest {}).await.unwrap();
    let counts = sources.into_inner().sources[0].counts.unwrap();
    assert_eq!((counts.signature_invalid, counts.unverified_kept), (1, 0));
    assert_eq!(counts.log_unavailable, 0);
}

#[tokio::test]
async fn a_log_that_cannot_be_read_is_unavailable() {
    let server = Server::start_with(server_config(), TroubledLog::gone()).await;
    let get = GetEventRequest {
        event_id: Uuid::nil().to_string(),
        ..Default::default()
    };
    let event = server.client.clone().get_event(get).await.unwrap_err();
    let list = server
        .admin
        .clone()
        .list_quarantined(ListQuarantinedRequest::default())
        .await
        .unwrap_err();
    for failed in [event, list] {
        assert_eq!(
            (failed.code(), reason(&failed).as_str()),
            (Code::Unavailable, "LOG_UNAVAILABLE")
        );
    }
}

#[tokio::test]
async fn what_is_no_longer_retained_is_out_of_range() {
    let server = Server::start_with(server_config(), TroubledLog::gone()).await;
    let cursor = |position| server.log.cursor(Position(position)).encode();
    let subscribe = SubscribeRequest {
        start: Some(Start::AfterCursor(cursor(4))),
        ..Default::default()
    };
    let refused = server
        .client
        .clone()
        .subscribe(subscribe)
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::OutOfRange, "CURSOR_OUT_OF_RANGE")
    );
    let metadata = refused.get_details_error_info().unwrap().metadata;
    assert_eq!(metadata["first_available"], cursor(5));
}

async fn server_with(log: &Arc<TroubledLog>, events: u128) -> Server {
    let log: Arc<dyn EventLog> = log.clone();
    for number in 1..=events {
        append(&log, number, 0).await;
    }
    Server::start_with(server_config(), log).await
}

fn after(server: &Server, position: u64) -> SubscribeRequest {
    let cursor = server.log.cursor(Position(position)).encode();
    SubscribeRequest {
        start: Some(Start::AfterCursor(cursor)),
        ..Default::default()
    }
}

/// The place of the next event, or how the stream ended.
async fn next_place(stream: &mut Streaming<SubscribeResponse>) -> Result<String, Status> {
    loop {
        let message = time::timeout(PATIENCE, stream.message()).await;
        let response = message.expect("a message in time")?.expect("no end");
        if matches!(response.message, Some(SubscribeMessage::Event(_))) {
            return Ok(response.cursor);
        }
    }
}

// More events than the tail holds, so that the first ones are read from the log.

#[tokio::test]
async fn a_subscriber_that_retention_overtakes_is_told_where_the_log_begins() {
    let log = TroubledLog::new();
    let server = server_with(&log, 5000).await;
    let cursor = |position| server.log.cursor(Position(position)).encode();
    log.retain_after_at_next_read(500);
    let mut stream = server.subscribe(after(&server, 1)).await;
    let ended = next_place(&mut stream).await.unwrap_err();
    assert_eq!(
        (ended.code(), reason(&ended).as_str()),
        (Code::OutOfRange, "CURSOR_OUT_OF_RANGE")
    );
    let metadata = ended.get_details_error_info().unwrap().metadata;
    assert_eq!(metadata["first_available"], cursor(500));

    // Who asks for no certain place is given the first that there is.
    let since = Timestamp::default();
    for start in [Start::Earliest(Earliest {}), Start::Since(since)] {
        let begin = log.start().0 + 100;
        log.retain_after_at_next_read(begin);
        let subscribe = SubscribeRequest {
            start: Some(start),
            ..Default::default()
        };
        let mut stream = server.subscribe(subscribe).await;
        assert_eq!(next_place(&mut stream).await.unwrap(), cursor(begin + 1));
    }
}

#[tokio::test]
async fn damage_ends_a_stream_where_it_is_and_is_no_secret_of_a_call() {
    let log = TroubledLog::new();
    let server = server_with(&log, 5000).await;
    let mut client = server.client.clone();
    log.damage(3);
    let mut stream = server.subscribe(after(&server, 0)).await;
    for position in 1..=2 {
        let place = next_place(&mut stream).await.unwrap();
        assert_eq!(place, server.log.cursor(Position(position)).encode());
    }
    let streamed = next_place(&mut stream).await.unwrap_err();
    let get = GetEventRequest {
        event_id: Uuid::from_u128(3).to_string(),
        ..Default::default()
    };
    let got = client.get_event(get).await.unwrap_err();
    let list = ListEventsRequest {
        order: EventOrder::OldestFirst.into(),
        ..Default::default()
    };
    let listed = client.list_events(list).await.unwrap_err();
    for failed in [streamed, got, listed] {
        assert_eq!(
            (failed.code(), reason(&failed).as_str()),
            (Code::DataLoss, "LOG_DAMAGED")
        );
        let metadata = failed.get_details_error_info().unwrap().metadata;
        assert_eq!(metadata["position"], "3");
        assert!(failed.get_details_retry_info().is_none());
        assert!(!failed.message().contains("secret"), "{}", failed.message());
    }
    // Who starts after it does not need it.
    let mut stream = server.subscribe(after(&server, 3)).await;
    next_place(&mut stream).await.unwrap();
}

#[tokio::test]
async fn what_is_durable_is_accepted_even_if_it_cannot_be_read_back() {
    let log = TroubledLog::new();
    let server = Server::start_with(server_config(), log.clone()).await;
    log.damage(1);
    let request = IngestRequest {
        return_event: true,
        ..gu1_request(gu1_body("1"))
    };
    for expected in [IngestStatus::Accepted, IngestStatus::Duplicate] {
        let answered = server.ingest(request.clone()).await.unwrap();
        assert_eq!((answered.status(), &answered.event), (expected, &None));
        assert!(!answered.event_id.is_empty() && !answered.cursor.is_empty());
    }
}

#[tokio::test]
async fn a_read_that_goes_on_is_a_call_that_is_being_served() {
    let log = TroubledLog::new();
    let config = ServerConfig {
        max_concurrent_calls: 1,
        ..server_config()
    };
    let server = Server::start_with(config, log.clone()).await;
    let event_id = server.accept("1").await.event_id;
    let (mut client, mut admin) = (server.client.clone(), server.admin.clone());
    let get = GetEventRequest {
        event_id: event_id.clone(),
        ..Default::default()
    };
    let delivery = GetDeliveryRequest {
        target: Some(Target::EventId(event_id)),
    };
    let reads: [BoxFuture<'_, Result<(), Status>>; 2] = [
        Box::pin(async { client.get_event(get).await.map(drop) }),
        Box::pin(async { admin.get_delivery(delivery).await.map(drop) }),
    ];
    for read in reads {
        log.set_read_gate(false);
        let others = async {
            log.reads_held_back(1).await;
            let refused = server.ingest(gu1_request(gu1_body("2"))).await.unwrap_err();
            let status = server.admin.clone().get_status(GetStatusRequest {}).await;
            for refused in [refused, status.unwrap_err()] {
                assert_eq!(reason(&refused), "OVERLOADED");
            }
            log.set_read_gate(true);
        };
        let (read, ()) = tokio::join!(read, others);
        read.unwrap();
    }
}

/// A watch on the health of each service, which is well so far.
async fn health(server: &Server) -> Vec<Streaming<HealthCheckResponse>> {
    let mut watches = Vec::new();
    for service in SERVICES {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let mut client = HealthClient::new(server.channel.clone());
        let mut watch = client.watch(request).await.unwrap().into_inner();
        assert_eq!(next_health(&mut watch).await, ServingStatus::Serving);
        watches.push(watch);
    }
    watches
}

async fn next_health(watch: &mut Streaming<HealthCheckResponse>) -> ServingStatus {
    let message = time::timeout(PATIENCE, watch.message()).await;
    message.expect("news in time").unwrap().unwrap().status()
}

#[tokio::test]
async fn a_server_whose_log_cannot_write_is_not_well_until_it_can() {
    let log = TroubledLog::new();
    let server = server_with(&log, 1).await;
    let mut watches = health(&server).await;
    for (health, status) in [
        (
            Health::Unwritable("disk full".to_owned()),
            ServingStatus::NotServing,
        ),
        (Health::Well, ServingStatus::Serving),
    ] {
        log.set_health(health);
        for watch in &mut watches {
            assert_eq!(next_health(watch).await, status);
        }
    }
    // It could be read all along, and can be stopped.
    server.stop().await;
}

#[tokio::test]
async fn a_log_that_has_failed_ends_the_server_in_order() {
    let log = TroubledLog::new();
    let server = server_with(&log, 1).await;
    let mut watches = health(&server).await;
    let mut stream = server.subscribe(after(&server, 0)).await;
    log.set_health(Health::Failed("sync: input/output error".to_owned()));
    for watch in &mut watches {
        assert_eq!(next_health(watch).await, ServingStatus::NotServing);
    }
    while !matches!(
        next(&mut stream).await.message,
        Some(SubscribeMessage::Draining(_))
    ) {}
    let end = stream.message().await.unwrap_err();
    assert_eq!(reason(&end), "DRAINING");
    drop((watches, stream));
    let failed = server.ended().await.unwrap_err();
    assert_eq!(
        failed.to_string(),
        "the log failed and cannot be written any more: sync: input/output error; restart verdict, which reads the disk \
         again"
    );
}

#[tokio::test]
async fn a_log_whose_writer_has_ended_ends_the_server() {
    let log = TroubledLog::new();
    let server = server_with(&log, 1).await;
    log.end_writer();
    let failed = server.ended().await.unwrap_err();
    assert!(matches!(failed, ServeError::Log(why) if why == "the log's writer has ended"));
}

#[tokio::test]
async fn a_log_that_failed_before_the_start_ends_the_server_at_once() {
    let log = TroubledLog::new();
    log.set_health(Health::Failed("sync".to_owned()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let never = std::future::pending();
    let run = transport::run(
        Service {
            config: server_config(),
            sources: Vec::new(),
            log,
            access: Access::anyone(),
            telemetry: Telemetry::default(),
        },
        Listeners::grpc(listener),
        never,
    );
    let ended = time::timeout(PATIENCE, run).await.unwrap();
    assert!(matches!(ended, Err(ServeError::Log(why)) if why == "sync"));
}

/// Formats everything that carries a webhook or an event, with a name in each of its fields.
#[tokio::test]
async fn no_person_is_seen_in_debug_output() {
    const NAME: &str = "Erika Mustermann";
    let bytes = || Bytes::from(NAME);
    let log = memory_log();
    let appended = log.append(NewEvent {
        encoded: EncodedEvent {
            event: bytes(),
            personal_data: bytes(),
        },
        ..new_event(1, None, None)
    });
    assert_eq!(appended.await.unwrap(), Appended::New(Position(1)));
    let stored = log.read(Position(0), READ_LIMIT).await.unwrap();
    let personal_data = PersonalData {
        full_name: NAME.to_owned(),
        ..Default::default()
    };
    let event = VerificationEvent {
        personal_data: Some(personal_data),
        ..Default::default()
    };
    let header = Header {
        name: "x-name".to_owned(),
        value: NAME.to_owned(),
    };
    let response = SubscribeResponse {
        cursor: String::new(),
        message: Some(SubscribeMessage::Event(bytes())),
    };
    let webhook = RawWebhook {
        payload: bytes(),
        headers: Headers::from_iter([("x-name".to_owned(), NAME.to_owned())]),
    };
    let shown = [
        format!("{:?}", event::encode(event.clone())),
        format!("{event:?}"),
        format!("{stored:?}"),
        format!(
            "{:?}",
            StoredQuarantined {
                kind: QuarantineKind::Genuine,
                sequence: 1,
                summary: bytes(),
                delivery: bytes()
            }
        ),
        format!(
            "{:?}",
            IngestRequest {
                payload: bytes(),
                headers: vec![header],
                ..Default::default()
            }
        ),
        format!("{response:?}"),
        format!("{:?}", Message::Event(bytes())),
        format!("{webhook:?}"),
    ];
    for shown in shown {
        assert!(
            !shown.contains("Erika") && !shown.contains("69, 114, 105, 107, 97"),
            "{shown}"
        );
    }
}
