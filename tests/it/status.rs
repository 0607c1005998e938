//! What operators are told about the server, and the consumers that they can forget.

use tonic::Request;
use verdict::{
    event,
    log::{Commit, Consumer, Position},
    proto::{DeleteConsumerRequest, GetStatusRequest, GetStatusResponse},
};

use crate::support::{Server, fixture, real_now, reason, request};

async fn status(server: &Server) -> GetStatusResponse {
    let status = server.admin.clone().get_status(GetStatusRequest {}).await;
    status.unwrap().into_inner()
}

/// Says that a consumer has come so far.
async fn commit(server: &Server, name: &str, position: u64) {
    let consumer = Consumer {
        name: name.to_owned(),
        cursor: server.log.cursor(Position(position)),
        committed_at: prost_types::Timestamp {
            seconds: 1_000 + position as i64,
            nanos: 0,
        },
    };
    let commit = Commit {
        consumer,
        force: false,
    };
    server.log.commit(commit).await.unwrap();
}

#[tokio::test]
async fn a_new_server_has_nothing_to_tell() {
    let before = real_now().as_second();
    let server = Server::start().await;
    let status = status(&server).await;
    assert_eq!(status.version, event::NORMALIZER_VERSION);
    let started_at = status.started_at.unwrap().seconds;
    assert!((before..=real_now().as_second()).contains(&started_at));
    let log = status.log.unwrap();
    assert_eq!(log.first_cursor, server.log.cursor(Position(0)).encode());
    assert_eq!(log.last_cursor, log.first_cursor);
    assert_eq!((log.events, log.size_bytes, log.format), (0, 0, 0));
    assert_eq!(log.trouble, "");
    assert!(status.consumers.is_empty());
    for quarantine in [status.quarantine.unwrap(), status.unverified.unwrap()] {
        assert_eq!(quarantine, Default::default());
    }
}

#[tokio::test]
async fn the_status_tells_sizes_and_how_far_consumers_lag() {
    let server = Server::start().await;
    let mut last = String::new();
    for id in ["1", "2", "3"] {
        last = server.accept(id).await.cursor;
    }
    let unknown = request("gu1", &fixture("gu1", "unknown_event"));
    server.ingest(unknown).await.unwrap();
    commit(&server, "risk", 1).await;
    commit(&server, "audit", 3).await;

    let status = status(&server).await;
    let log = status.log.unwrap();
    assert_eq!((log.events, log.last_cursor), (3, last));
    assert!(log.size_bytes > 0);
    let quarantine = status.quarantine.unwrap();
    assert_eq!((quarantine.deliveries, quarantine.dropped), (1, 0));
    assert!(quarantine.size_bytes > 0);
    assert_eq!(status.unverified, Some(Default::default()));
    let consumers: Vec<(&str, u64, i64, &str)> = status
        .consumers
        .iter()
        .map(|one| {
            let at = one.committed_at.unwrap().seconds;
            (&*one.consumer, one.lag_events, at, &*one.cursor)
        })
        .collect();
    let cursor = |position| server.log.cursor(Position(position)).encode();
    assert_eq!(
        consumers,
        [
            ("audit", 0, 1_003, &*cursor(3)),
            ("risk", 2, 1_001, &*cursor(1))
        ]
    );
}

#[tokio::test]
async fn a_consumer_is_forgotten_whether_it_is_known_or_not() {
    let server = Server::start().await;
    server.accept("1").await;
    commit(&server, "risk", 1).await;
    commit(&server, "audit", 1).await;
    let mut admin = server.admin.clone();
    let mut delete = async |consumer: &str| {
        let consumer = consumer.to_owned();
        let request = Request::new(DeleteConsumerRequest { consumer });
        admin.delete_consumer(request).await
    };
    for name in ["risk", "risk", "nobody"] {
        delete(name).await.unwrap();
    }
    let unnamed = delete("").await.unwrap_err();
    assert_eq!(reason(&unnamed), "INVALID_REQUEST");
    let consumers = status(&server).await.consumers;
    let names: Vec<&str> = consumers.iter().map(|one| &*one.consumer).collect();
    assert_eq!(names, ["audit"]);
}
