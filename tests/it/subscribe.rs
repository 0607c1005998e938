//! The promises of Subscribe.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use prost::Message as _;
use prost_types::Timestamp;
use tempfile::TempDir;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic_types::StatusExt;
use uuid::Uuid;
use verdict::{
    caller::Reach,
    event,
    filter::Filter,
    log::{Appended, EventLog, NewEvent, Position},
    proto::{
        Environment, EventFilter, EventKind, Latest, Outcome, Source, SubscribeMessage,
        SubscribeRequest, SubscribeResponse, VerificationEvent, subscribe_request::Start,
    },
    subscription::{Delivery, EndError, Message, Options, READ_LIMIT, Subscription},
};

use crate::{
    log::new_event,
    support::{
        PATIENCE, Server, append, decode, embedded_log, from_earliest, memory_log, next,
        next_event, reason, request,
    },
};

fn from(start: Start) -> SubscribeRequest {
    SubscribeRequest {
        start: Some(start),
        ..Default::default()
    }
}

/// The ids of all events that there are, in the order of the stream.
async fn ids(server: &Server, subscribe: SubscribeRequest) -> Vec<String> {
    let subscribe = SubscribeRequest {
        stop_when_caught_up: true,
        ..subscribe
    };
    let mut stream = server.subscribe(subscribe).await;
    let mut ids = Vec::new();
    while let Some(response) = stream.message().await.unwrap() {
        if let Some(SubscribeMessage::Event(event)) = response.message {
            ids.push(decode(event).event_id);
        }
    }
    ids
}

#[tokio::test]
async fn a_stream_starts_where_it_is_told_to() {
    let server = Server::start().await;
    let mut accepted = Vec::new();
    for id in ["1", "2", "3"] {
        accepted.push(server.accept(id).await);
    }
    let all: Vec<String> = accepted
        .iter()
        .map(|response| response.event_id.clone())
        .collect();
    assert_eq!(ids(&server, from_earliest()).await, all);
    assert_eq!(
        ids(
            &server,
            from(Start::AfterCursor(accepted[0].cursor.clone()))
        )
        .await,
        all[1..]
    );
    assert_eq!(
        ids(
            &server,
            from(Start::AfterCursor(accepted[2].cursor.clone()))
        )
        .await,
        [""; 0]
    );
    assert_eq!(ids(&server, SubscribeRequest::default()).await, [""; 0]);
    assert_eq!(
        ids(
            &server,
            from(Start::Since(Timestamp {
                seconds: 0,
                nanos: 0
            }))
        )
        .await,
        all
    );
    let future = Timestamp {
        seconds: 4_000_000_000,
        nanos: 0,
    };
    assert_eq!(ids(&server, from(Start::Since(future))).await, [""; 0]);

    for (id, start) in [("4", None), ("5", Some(Start::Latest(Latest {})))] {
        let mut stream = server
            .subscribe(SubscribeRequest {
                start,
                ..Default::default()
            })
            .await;
        assert!(matches!(
            next(&mut stream).await.message,
            Some(SubscribeMessage::CaughtUp(_))
        ));
        let response = server.accept(id).await;
        assert_eq!(next_event(&mut stream).await.event_id, response.event_id);
    }
}

#[tokio::test]
async fn an_event_is_sent_as_it_lies_in_the_log() {
    let server = Server::start().await;
    let webhook = crate::support::fixture("gu1", "kyc_approved");
    let _ = server.ingest(request("gu1", &webhook)).await.unwrap();
    let stored = server
        .log
        .read(Position(0), READ_LIMIT)
        .await
        .unwrap()
        .remove(0);
    let personal_data = server.log.personal_data(&stored).await.unwrap();
    assert!(!personal_data.is_empty());
    for include_personal_data in [false, true] {
        let subscribe = SubscribeRequest {
            include_personal_data,
            ..from_earliest()
        };
        let sent = next(&mut server.subscribe(subscribe).await).await.message;
        let mut expected = stored.event.to_vec();
        if include_personal_data {
            expected.extend_from_slice(&personal_data);
        }
        assert_eq!(sent, Some(SubscribeMessage::Event(expected.into())));
    }
}

#[test]
fn bytes_that_are_no_event_are_an_error_and_no_panic() {
    for event in [
        &b"\xff"[..],
        b"\x1a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    ] {
        let response = SubscribeResponse {
            cursor: String::new(),
            message: Some(SubscribeMessage::Event(Bytes::from_static(event))),
        };
        assert!(event::to_json(&response).is_err(), "{event:?}");
    }
}

#[tokio::test]
async fn what_follows_is_live_and_each_message_can_be_resumed_after() {
    let server = Server::start().await;
    server.accept("0").await;
    let mut stream = server.subscribe(from_earliest()).await;
    let first = next(&mut stream).await;
    assert!(matches!(first.message, Some(SubscribeMessage::Event(_))));
    let caught_up = next(&mut stream).await;
    assert!(matches!(
        caught_up.message,
        Some(SubscribeMessage::CaughtUp(_))
    ));
    assert_eq!(caught_up.cursor, first.cursor);

    let mut live = Vec::new();
    for id in ["1", "2", "3", "4"] {
        let accepted = server.accept(id).await;
        let response = next(&mut stream).await;
        assert_eq!(response.cursor, accepted.cursor);
        live.push(accepted.event_id);
    }
    drop(stream);
    let resumed = ids(&server, from(Start::AfterCursor(first.cursor))).await;
    assert_eq!(resumed, live);
}

#[tokio::test]
async fn a_cursor_that_cannot_be_resumed_after_is_never_a_silent_jump() {
    let server = Server::start().await;
    let other = Server::start().await;
    let foreign = other.accept("1").await.cursor;
    server.accept("1").await;
    let ahead = server.log.cursor(Position(2)).encode();
    for cursor in [foreign, ahead] {
        let refused = server
            .client
            .clone()
            .subscribe(from(Start::AfterCursor(cursor)))
            .await;
        let refused = refused.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::OutOfRange, "CURSOR_OUT_OF_RANGE")
        );
        let metadata = refused.get_details_error_info().unwrap().metadata;
        let first = metadata["first_available"].clone();
        assert_eq!(ids(&server, from(Start::AfterCursor(first))).await.len(), 1);
    }
    for cursor in ["", "x", "ää", &"A".repeat(100_000)] {
        let refused = server
            .client
            .clone()
            .subscribe(from(Start::AfterCursor(cursor.to_owned())))
            .await;
        assert_eq!(reason(&refused.unwrap_err()), "INVALID_REQUEST");
    }
}

#[tokio::test]
async fn more_subscriptions_than_allowed_are_told_to_wait() {
    let config = verdict::config::ServerConfig {
        max_subscriptions: 2,
        ..crate::support::server_config()
    };
    let server = Server::start_with(config, memory_log()).await;
    let first = server.subscribe(from_earliest()).await;
    let mut second = server.subscribe(from_earliest()).await;
    let refused = server
        .client
        .clone()
        .subscribe(from_earliest())
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::ResourceExhausted, "OVERLOADED")
    );
    // One that ends makes room.
    drop(first);
    time::timeout(PATIENCE, async {
        while server
            .client
            .clone()
            .subscribe(from_earliest())
            .await
            .is_err()
        {
            time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    server.accept("1").await;
    next_event(&mut second).await;
}

#[tokio::test]
async fn wrong_wishes_are_named() {
    let server = Server::start().await;
    let heartbeat = |seconds: i64, nanos: i32| SubscribeRequest {
        heartbeat_interval: Some(prost_types::Duration { seconds, nanos }),
        ..Default::default()
    };
    let filter = |filter: EventFilter| SubscribeRequest {
        filter: Some(filter),
        ..Default::default()
    };
    let wrong = [
        ("heartbeat_interval", heartbeat(0, 0)),
        ("heartbeat_interval", heartbeat(0, 999_999_999)),
        ("heartbeat_interval", heartbeat(56, 0)),
        ("heartbeat_interval", heartbeat(-15, 0)),
        ("heartbeat_interval", heartbeat(i64::MAX, i32::MAX)),
        (
            "consumer",
            SubscribeRequest {
                consumer: "x".repeat(129),
                ..Default::default()
            },
        ),
        (
            "since",
            from(Start::Since(Timestamp {
                seconds: i64::MAX,
                nanos: -1,
            })),
        ),
        (
            "filter",
            filter(EventFilter {
                subject_ids: vec![String::new(); 1001],
                ..Default::default()
            }),
        ),
        (
            "filter.kinds",
            filter(EventFilter {
                kinds: vec![0],
                ..Default::default()
            }),
        ),
        (
            "filter.outcomes",
            filter(EventFilter {
                outcomes: vec![99],
                ..Default::default()
            }),
        ),
        (
            "filter.environments",
            filter(EventFilter {
                environments: vec![-1],
                ..Default::default()
            }),
        ),
    ];
    for (field, request) in wrong {
        let refused = server.client.clone().subscribe(request).await.unwrap_err();
        assert_eq!(reason(&refused), "INVALID_REQUEST");
        let violations = refused.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, field);
    }
}

#[tokio::test]
async fn a_filter_lets_through_what_is_asked_for_and_all_of_it() {
    let server = Server::start().await;
    // Everything that the fixtures hold and whose signature has no time.
    for fixture in crate::support::fixtures() {
        let name = fixture.provider.name();
        if name != "kayle" {
            let _ = server.ingest(request(name, &fixture.webhook)).await;
        }
    }
    let events = events(&server, EventFilter::default()).await;
    assert!(events.len() > 40, "{}", events.len());

    let verification = |event: &VerificationEvent| match &event.detail {
        Some(verdict::proto::verification_event::Detail::Verification(verification)) => {
            Some(verification.clone())
        }
        _ => None,
    };
    let source = |event: &VerificationEvent| event.source.clone().unwrap();
    let subject = |event: &VerificationEvent| event.subject.clone().unwrap_or_default();
    let strings = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
    type Wanted<'a> = Box<dyn Fn(&VerificationEvent) -> bool + 'a>;
    let cases: Vec<(EventFilter, Wanted<'_>)> = vec![
        (
            EventFilter {
                providers: strings(&["ralio", "fractal"]),
                ..Default::default()
            },
            Box::new(|event| ["ralio", "fractal"].contains(&source(event).provider.as_str())),
        ),
        (
            EventFilter {
                accounts: strings(&["default"]),
                ..Default::default()
            },
            Box::new(|_| true),
        ),
        (
            EventFilter {
                environments: vec![Environment::Live.into()],
                ..Default::default()
            },
            Box::new(|event| source(event).environment() == Environment::Live),
        ),
        (
            EventFilter {
                kinds: vec![
                    EventKind::SubjectChange.into(),
                    EventKind::CredentialShare.into(),
                ],
                ..Default::default()
            },
            Box::new(|event| verification(event).is_none()),
        ),
        (
            EventFilter {
                outcomes: vec![Outcome::Approved.into(), Outcome::Rejected.into()],
                ..Default::default()
            },
            Box::new(|event| {
                verification(event)
                    .is_some_and(|v| [Outcome::Approved, Outcome::Rejected].contains(&v.outcome()))
            }),
        ),
        (
            EventFilter {
                subject_ids: strings(&["ent-1"]),
                ..Default::default()
            },
            Box::new(|event| subject(event).provider_subject_id == "ent-1"),
        ),
        (
            EventFilter {
                external_ids: strings(&["customer-1", "customer-2"]),
                ..Default::default()
            },
            Box::new(|event| {
                ["customer-1", "customer-2"].contains(&subject(event).external_id.as_str())
            }),
        ),
        (
            EventFilter {
                verification_ids: strings(&["val-1"]),
                ..Default::default()
            },
            Box::new(|event| verification(event).is_some_and(|v| v.verification_id == "val-1")),
        ),
        (
            EventFilter {
                final_only: true,
                providers: strings(&["gu1"]),
                ..Default::default()
            },
            Box::new(|event| {
                source(event).provider == "gu1"
                    && verification(event)
                        .is_some_and(|v| v.finality() == verdict::proto::Finality::Final)
            }),
        ),
    ];
    for (filter, wanted) in cases {
        let expected: Vec<_> = events
            .iter()
            .filter(|event| wanted(event))
            .cloned()
            .collect();
        assert!(
            !expected.is_empty(),
            "{filter:?} asks for nothing that is there"
        );
        assert_eq!(self::events(&server, filter).await, expected);
    }
    let nothing = EventFilter {
        providers: strings(&["no_such_provider"]),
        ..Default::default()
    };
    assert!(self::events(&server, nothing).await.is_empty());
}

async fn events(server: &Server, filter: EventFilter) -> Vec<VerificationEvent> {
    let subscribe = SubscribeRequest {
        filter: Some(filter),
        stop_when_caught_up: true,
        ..from_earliest()
    };
    let mut stream = server.subscribe(subscribe).await;
    let mut events = Vec::new();
    while let Some(response) = stream.message().await.unwrap() {
        if let Some(SubscribeMessage::Event(event)) = response.message {
            events.push(decode(event));
        }
    }
    events
}

#[tokio::test]
async fn a_filtered_stream_ends_with_a_cursor_after_all_that_it_passed_over() {
    let server = Server::start().await;
    let mut last = String::new();
    for id in ["1", "2", "3"] {
        last = server.accept(id).await.cursor;
    }
    let subscribe = SubscribeRequest {
        filter: Some(EventFilter {
            providers: vec!["no_such_provider".to_owned()],
            ..Default::default()
        }),
        stop_when_caught_up: true,
        ..from_earliest()
    };
    let mut stream = server.subscribe(subscribe).await;
    let caught_up: SubscribeResponse = next(&mut stream).await;
    assert!(matches!(
        caught_up.message,
        Some(SubscribeMessage::CaughtUp(_))
    ));
    assert_eq!(caught_up.cursor, last);
    assert!(stream.message().await.unwrap().is_none());
}

#[tokio::test]
async fn on_shutdown_a_stream_is_told_where_it_was_and_ends() {
    let server = Server::start().await;
    let accepted = server.accept("1").await;
    let mut stream = server.subscribe(from_earliest()).await;
    next_event(&mut stream).await;
    server.begin_stop();
    let cursor = loop {
        let response = next(&mut stream).await;
        if let Some(SubscribeMessage::Draining(_)) = response.message {
            break response.cursor;
        }
    };
    assert_eq!(cursor, accepted.cursor);
    let end = time::timeout(PATIENCE, stream.message())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(
        (end.code(), reason(&end).as_str()),
        (Code::Unavailable, "DRAINING")
    );
    assert!(end.get_details_retry_info().is_some());
    server.stop().await;
}

// What follows needs no network, so time can be paused.

fn subscribe(log: &Arc<dyn EventLog>, options: Options) -> (Subscription, CancellationToken) {
    let draining = CancellationToken::new();
    (
        Subscription::new(Arc::clone(log), options, draining.clone()),
        draining,
    )
}

fn options() -> Options {
    Options {
        after: Position(0),
        may_move: false,
        filter: Filter::try_from(EventFilter::default()).unwrap(),
        personal_data: Reach::Nothing,
        stop_when_caught_up: false,
        heartbeat: Duration::from_secs(15),
    }
}

fn delivery(position: u64, message: Message) -> Delivery {
    Delivery {
        position: Position(position),
        message,
    }
}

async fn next_of(subscription: &mut Subscription) -> Delivery {
    let next = time::timeout(PATIENCE, subscription.next()).await;
    next.expect("a message in time")
        .expect("no end")
        .expect("no error")
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_sends_heartbeats() {
    let log = memory_log();
    let (mut subscription, _draining) = subscribe(&log, options());
    assert_eq!(
        next_of(&mut subscription).await,
        delivery(0, Message::CaughtUp)
    );
    let start = time::Instant::now();
    for beat in 1..=3 {
        assert_eq!(
            next_of(&mut subscription).await,
            delivery(0, Message::Heartbeat)
        );
        assert_eq!(start.elapsed().as_secs(), 15 * beat);
    }
}

/// By the real clock: a paused one hides that timers of tokio are never due at once.
#[tokio::test]
async fn a_silent_stream_sends_heartbeats_by_the_real_clock() {
    let server = Server::start().await;
    let heartbeat_interval = prost_types::Duration {
        seconds: 1,
        nanos: 0,
    };
    let mut stream = server
        .subscribe(SubscribeRequest {
            heartbeat_interval: Some(heartbeat_interval),
            ..Default::default()
        })
        .await;
    let caught_up = next(&mut stream).await.message;
    assert!(matches!(caught_up, Some(SubscribeMessage::CaughtUp(_))));
    let heartbeat = next(&mut stream).await.message;
    assert!(matches!(heartbeat, Some(SubscribeMessage::Heartbeat(_))));
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_moves_the_cursor_of_a_stream_that_matches_nothing() {
    let log = memory_log();
    let filter = EventFilter {
        providers: vec!["no_such_provider".to_owned()],
        ..Default::default()
    };
    let heartbeat = Duration::from_secs(1);
    let (mut subscription, _draining) = subscribe(
        &log,
        Options {
            filter: Filter::try_from(filter).unwrap(),
            heartbeat,
            ..options()
        },
    );
    assert_eq!(
        next_of(&mut subscription).await,
        delivery(0, Message::CaughtUp)
    );
    for number in 1..=3 {
        append(&log, number, 0).await;
    }
    assert_eq!(
        next_of(&mut subscription).await,
        delivery(3, Message::Heartbeat)
    );
}

#[tokio::test(start_paused = true)]
async fn a_busy_stream_sends_heartbeats_too() {
    let log = memory_log();
    for number in 1..=100 {
        append(&log, number, 0).await;
    }
    let (mut subscription, _draining) = subscribe(&log, options());
    let mut beats = 0;
    for _ in 0..100 {
        time::advance(Duration::from_secs(1)).await;
        beats += usize::from(next_of(&mut subscription).await.message == Message::Heartbeat);
    }
    assert_eq!(beats, 6);
}

#[tokio::test]
async fn who_stops_reading_is_told_and_loses_nothing() {
    let log = memory_log();
    let (mut subscription, _draining) = subscribe(&log, options());
    assert_eq!(next_of(&mut subscription).await.message, Message::CaughtUp);
    append(&log, 1, 0).await;
    assert!(matches!(
        next_of(&mut subscription).await.message,
        Message::Event(_)
    ));

    // Far more than the live window holds, while nobody reads.
    let last = 10_000;
    for number in 2..=last {
        append(&log, number, 0).await;
    }
    assert_eq!(
        next_of(&mut subscription).await,
        delivery(1, Message::FellBehind)
    );
    let mut position = 1;
    loop {
        let next = next_of(&mut subscription).await;
        match next.message {
            Message::Event(event) => {
                position += 1;
                assert_eq!(next.position, Position(position));
                let event = VerificationEvent::decode(event).unwrap();
                assert_eq!(event.event_id, Uuid::from_u128(position.into()).to_string());
            }
            Message::CaughtUp => break,
            Message::Heartbeat => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(u128::from(position), last);
}

#[tokio::test]
async fn a_stream_that_stops_ends_at_what_was_there_when_it_began() {
    let log = memory_log();
    append(&log, 1, 0).await;
    let (mut subscription, _draining) = subscribe(
        &log,
        Options {
            stop_when_caught_up: true,
            ..options()
        },
    );
    append(&log, 2, 0).await;
    assert!(matches!(
        next_of(&mut subscription).await.message,
        Message::Event(_)
    ));
    assert_eq!(
        next_of(&mut subscription).await,
        delivery(1, Message::CaughtUp)
    );
    assert!(subscription.next().await.is_none());
    assert!(subscription.next().await.is_none());
}

/// An event of which one in a thousand is of the provider `rare`.
fn rare(number: u128) -> NewEvent {
    let provider = match number % 1000 {
        0 => "rare",
        _ => "common",
    };
    NewEvent {
        encoded: event::encode(VerificationEvent {
            event_id: Uuid::from_u128(number).to_string(),
            source: Some(Source {
                provider: provider.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..new_event(number, None, None)
    }
}

#[tokio::test]
async fn a_filtered_stream_from_the_log_skips_nothing_and_stops_where_it_is_to() {
    // More than a search looks at before it tells how far it has come.
    const EVENTS: u64 = 17_500;
    let directory = TempDir::new().unwrap();
    let log = embedded_log(&directory);
    for first in (1..=u128::from(EVENTS)).step_by(500) {
        let appends = (first..first + 500).map(|number| log.append(rare(number)));
        for appended in join_all(appends).await {
            assert!(matches!(appended, Ok(Appended::New(_))));
        }
    }
    drop(log);
    // Opened again, so that nothing is in memory.
    let log = embedded_log(&directory);
    for (provider, step) in [("rare", 1000), ("nobody", u64::MAX)] {
        let filter = EventFilter {
            providers: vec![provider.to_owned()],
            ..Default::default()
        };
        let options = Options {
            filter: Filter::try_from(filter).unwrap(),
            stop_when_caught_up: true,
            ..options()
        };
        let (mut subscription, _draining) = subscribe(&log, options);
        let end = log.tail().end();
        // What comes after the beginning is not sent.
        let late = log.append(rare(1000 * u128::from(end.0))).await;
        assert_eq!(late.unwrap(), Appended::New(Position(end.0 + 1)));
        let mut found = Vec::new();
        let last = loop {
            match next_of(&mut subscription).await {
                Delivery {
                    position,
                    message: Message::Event(event),
                } => {
                    let number = VerificationEvent::decode(event).unwrap().event_id;
                    found.push((position, Uuid::parse_str(&number).unwrap().as_u128()));
                }
                last => break last,
            }
        };
        assert_eq!(last, delivery(end.0, Message::CaughtUp));
        let numbers: BTreeSet<u128> = found.iter().map(|(_, number)| *number).collect();
        let rares = (1..=EVENTS).filter(|number| number.is_multiple_of(step));
        assert_eq!(numbers, rares.map(u128::from).collect());
        assert!(found.is_sorted() && found.len() == numbers.len());
        assert!(subscription.next().await.is_none());
    }
}

#[tokio::test]
async fn draining_comes_before_anything_else_and_is_the_last_message() {
    let log = memory_log();
    append(&log, 1, 0).await;
    let (mut subscription, draining) = subscribe(&log, options());
    draining.cancel();
    assert_eq!(
        next_of(&mut subscription).await,
        delivery(0, Message::Draining)
    );
    assert!(matches!(
        subscription.next().await,
        Some(Err(EndError::Draining))
    ));
    assert!(subscription.next().await.is_none());
}
