//! CommitCursor, and the subscriptions that start where it says.

use tonic::{Code, Status};
use tonic_types::StatusExt;
use verdict::{
    log::{Commit, Consumer, MAX_CONSUMERS, Position},
    proto::{
        CommitCursorRequest, Committed, SubscribeMessage, SubscribeRequest,
        subscribe_request::Start,
    },
};

use crate::{
    support::{Server, append, decode, memory_log, reason, server_config},
    troubled_log::TroubledLog,
};

async fn commit(server: &Server, consumer: &str, cursor: &str, force: bool) -> Result<(), Status> {
    let request = CommitCursorRequest {
        consumer: consumer.to_owned(),
        cursor: cursor.to_owned(),
        force,
    };
    server.client.clone().commit_cursor(request).await.map(drop)
}

fn committed(consumer: &str) -> SubscribeRequest {
    SubscribeRequest {
        start: Some(Start::Committed(Committed {})),
        consumer: consumer.to_owned(),
        stop_when_caught_up: true,
        ..Default::default()
    }
}

/// The ids of the events that follow a consumer's commit.
async fn rest(server: &Server, consumer: &str) -> Vec<String> {
    let mut stream = server.subscribe(committed(consumer)).await;
    let mut ids = Vec::new();
    while let Some(response) = stream.message().await.unwrap() {
        if let Some(SubscribeMessage::Event(event)) = response.message {
            ids.push(decode(event).event_id);
        }
    }
    ids
}

#[tokio::test]
async fn a_consumer_goes_on_after_its_last_commit() {
    let server = Server::start().await;
    let mut accepted = Vec::new();
    for id in ["1", "2", "3"] {
        accepted.push(server.accept(id).await);
    }
    let ids: Vec<String> = accepted.iter().map(|a| a.event_id.clone()).collect();
    // A new one starts at the beginning.
    assert_eq!(rest(&server, "risk").await, ids);
    for (number, accepted) in (1..).zip(&accepted) {
        commit(&server, "risk", &accepted.cursor, false)
            .await
            .unwrap();
        assert_eq!(rest(&server, "risk").await, ids[number..]);
    }
    assert_eq!(rest(&server, "other").await, ids);
    // The same again is fine, less is not, unless it is meant.
    commit(&server, "risk", &accepted[2].cursor, false)
        .await
        .unwrap();
    let behind = commit(&server, "risk", &accepted[0].cursor, false)
        .await
        .unwrap_err();
    assert_eq!(
        (behind.code(), reason(&behind).as_str()),
        (Code::FailedPrecondition, "CURSOR_BEHIND")
    );
    assert_eq!(rest(&server, "risk").await, [""; 0]);
    commit(&server, "risk", &accepted[0].cursor, true)
        .await
        .unwrap();
    assert_eq!(rest(&server, "risk").await, ids[1..]);
}

#[tokio::test]
async fn wrong_wishes_are_named() {
    let server = Server::start().await;
    let cursor = server.accept("1").await.cursor;
    for (field, consumer, cursor) in [
        ("consumer", "", cursor.as_str()),
        ("consumer", &"x".repeat(129), &cursor),
        ("consumer", "a\nb", &cursor),
        ("cursor", "risk", ""),
        ("cursor", "risk", "x"),
    ] {
        let refused = commit(&server, consumer, cursor, false).await.unwrap_err();
        assert_eq!(reason(&refused), "INVALID_REQUEST");
        let violations = refused.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, field);
    }
    commit(&server, &"x".repeat(128), &cursor, false)
        .await
        .unwrap();
    for consumer in ["", "a\nb"] {
        let subscribe = committed(consumer);
        let refused = server.client.clone().subscribe(subscribe).await;
        let refused = refused.unwrap_err();
        assert_eq!(reason(&refused), "INVALID_REQUEST");
        let violations = refused.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "consumer");
    }
}

#[tokio::test]
async fn a_cursor_that_cannot_be_resumed_after_cannot_be_committed() {
    let log = TroubledLog::new();
    let server = Server::start_with(server_config(), log.clone()).await;
    let foreign = memory_log().cursor(Position(0)).encode();
    let mut cursors = vec![foreign];
    for id in ["1", "2", "3"] {
        cursors.push(server.accept(id).await.cursor);
    }
    log.retain_after(2);
    let ahead = server.log.cursor(Position(4)).encode();
    for cursor in [&cursors[0], &cursors[1], &ahead] {
        let refused = commit(&server, "risk", cursor, true).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::OutOfRange, "CURSOR_OUT_OF_RANGE")
        );
        let metadata = refused.get_details_error_info().unwrap().metadata;
        assert_eq!(metadata["first_available"], cursors[2]);
    }
    assert!(server.log.consumers().is_empty());
}

#[tokio::test]
async fn a_commit_that_retention_has_passed_is_no_silent_jump() {
    let log = TroubledLog::new();
    let server = Server::start_with(server_config(), log.clone()).await;
    let first = server.accept("1").await.cursor;
    server.accept("2").await;
    commit(&server, "risk", &first, false).await.unwrap();
    log.retain_after(1);
    assert_eq!(rest(&server, "risk").await.len(), 1);
    log.retain_after(2);
    let refused = server.client.clone().subscribe(committed("risk")).await;
    let refused = refused.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::OutOfRange, "CURSOR_OUT_OF_RANGE")
    );
    let metadata = refused.get_details_error_info().unwrap().metadata;
    let first = server.log.cursor(Position(2)).encode();
    assert_eq!(metadata["first_available"], first);
}

#[tokio::test]
async fn one_name_too_many_is_told_what_to_do() {
    let log = memory_log();
    append(&log, 1, 0).await;
    let cursor = log.cursor(Position(1));
    for number in 0..MAX_CONSUMERS {
        let consumer = Consumer {
            name: number.to_string(),
            cursor,
            committed_at: prost_types::Timestamp::default(),
        };
        let commit = Commit {
            consumer,
            force: false,
        };
        log.commit(commit).await.unwrap();
    }
    let server = Server::start_with(server_config(), log).await;
    let cursor = cursor.encode();
    commit(&server, "0", &cursor, false).await.unwrap();
    let refused = commit(&server, "new", &cursor, false).await.unwrap_err();
    assert_eq!(reason(&refused), "INVALID_REQUEST");
    let violations = refused.get_details_bad_request().unwrap().field_violations;
    assert_eq!(violations[0].field, "consumer");
    assert!(refused.message().contains("DeleteConsumer"));
}

#[tokio::test]
async fn a_commit_that_cannot_be_stored_is_to_be_sent_again() {
    let log = TroubledLog::new();
    let server = Server::start_with(server_config(), log.clone()).await;
    let cursor = server.accept("1").await.cursor;
    log.go_away();
    let refused = commit(&server, "risk", &cursor, false).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::Unavailable, "LOG_UNAVAILABLE")
    );
    assert!(refused.get_details_retry_info().is_some());
    assert!(!refused.message().contains("space"));
}
