//! Trouble of ours: the provider must post again.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use verdict::{config::ServerConfig, source::Source};

use super::{
    answers::{samples, sources},
    edge::{Answer, Edge, post},
};
use crate::{
    ingest::Panicking,
    support::{
        fixture_source, fixture_sources, from_earliest, gu1_body, memory_log, next_event,
        server_config, sign,
    },
    troubled_log::TroubledLog,
};

fn assert_to_be_posted_again(answer: &Answer, reason: &str) {
    assert_eq!((answer.status, answer.reason().as_str()), (503, reason));
    assert_eq!(answer.header("retry-after"), Some("10"));
}

#[tokio::test]
async fn what_cannot_be_stored_is_to_be_posted_again() {
    let log = TroubledLog::new();
    let edge = Edge::start_from(sources(), server_config(), log.clone()).await;
    log.go_away();
    for source in sources() {
        let path = format!("/webhooks/{}/{}", source.provider.name(), source.account);
        let webhook = samples(&source).remove(0);
        let answer = edge.post(&path, &webhook).await;
        assert_to_be_posted_again(&answer, "LOG_UNAVAILABLE");
        // What is wrong with our disk is our business.
        assert!(!answer.body.contains("space"), "{}", answer.body);
        log.come_back();
        assert_eq!(edge.post(&path, &webhook).await.status, 200);
        log.go_away();
    }
    assert!(edge.answered("kayle", 503).is_some());
    edge.stop().await;
}

#[tokio::test]
async fn a_bug_of_ours_is_trouble_of_ours() {
    let gu1 = fixture_source("gu1");
    let panicking = Source {
        provider: &Panicking,
        ..fixture_source("gu1")
    };
    let edge = Edge::start_from(vec![panicking], server_config(), memory_log()).await;
    let mut wire = edge.connect().await;
    for _ in 0..2 {
        wire.write(&post("/webhooks/gu1", &sign(&gu1, gu1_body("1"))))
            .await;
        assert_to_be_posted_again(&wire.answer().await, "LOG_UNAVAILABLE");
    }
    assert_eq!(edge.counts("gu1").await.failed, 2);
    edge.stop().await;
}

/// A server whose log holds appends back, and a webhook that waits there.
async fn held_back() -> (Arc<TroubledLog>, Edge) {
    let log = TroubledLog::new();
    log.set_gate(false);
    let edge = Edge::start_from(fixture_sources(), server_config(), log.clone()).await;
    (log, edge)
}

#[tokio::test]
async fn a_provider_that_hangs_up_stops_nothing() {
    let (log, edge) = held_back().await;
    let mut stream = edge.subscribe(from_earliest()).await;
    let webhook = sign(&fixture_source("gu1"), gu1_body("1"));
    let mut wire = edge.connect().await;
    wire.write(&post("/webhooks/gu1", &webhook)).await;
    log.held_back(1).await;
    drop(wire);
    // The server has seen it once another request was answered.
    assert_eq!(
        edge.send(b"GET / HTTP/1.1\r\nHost: e\r\n\r\n").await.status,
        404
    );
    log.set_gate(true);
    next_event(&mut stream).await;
    assert_eq!(edge.post("/webhooks/gu1", &webhook).await.status, 200);
    let counts = edge.counts("gu1").await;
    assert_eq!((counts.accepted, counts.duplicate), (1, 1));
    edge.stop().await;
}

#[tokio::test]
async fn who_half_closes_after_a_request_hears_the_answer() {
    let (log, edge) = held_back().await;
    let source = fixture_source("gu1");
    let webhook = post("/webhooks/gu1", &sign(&source, gu1_body("1")));
    let mut wire = edge.connect().await;
    wire.write(&webhook).await;
    log.held_back(1).await;
    wire.shut_down().await;
    // The server has seen it once other requests were answered.
    for _ in 0..2 {
        let other = edge.send(b"GET / HTTP/1.1\r\nHost: e\r\n\r\n").await;
        assert_eq!(other.status, 404);
    }
    log.set_gate(true);
    assert_eq!(wire.answer().await.status, 200);
    assert_eq!(wire.rest().await, "");
    // What was not said to the end is not waited for.
    let mut wire = edge.connect().await;
    wire.write(&webhook[..webhook.len() - 1]).await;
    wire.shut_down().await;
    assert_eq!(wire.answer().await.status, 400);
    edge.stop().await;
}

#[tokio::test]
async fn a_provider_is_answered_before_its_patience_ends() {
    let (log, edge) = held_back().await;
    let kayle = fixture_source("kayle");
    let webhook = samples(&kayle).remove(0);
    let begun = Instant::now();
    let answer = edge.post("/webhooks/kayle", &webhook).await;
    assert_to_be_posted_again(&answer, "LOG_UNAVAILABLE");
    let took = begun.elapsed();
    assert!(took < kayle.provider.posting().patience, "{took:?}");
    // It was taken all the same, and is recognized when it comes again.
    log.set_gate(true);
    assert_eq!(edge.post("/webhooks/kayle", &webhook).await.status, 200);
    let counts = edge.counts("kayle").await;
    assert_eq!((counts.accepted, counts.duplicate), (1, 1));
    edge.stop().await;
}

#[tokio::test]
async fn at_the_end_what_was_begun_is_answered_and_nothing_new_is_taken() {
    let (log, edge) = held_back().await;
    let request = post(
        "/webhooks/gu1",
        &sign(&fixture_source("gu1"), gu1_body("1")),
    );
    let mut begun = edge.connect().await;
    begun.write(&request).await;
    log.held_back(1).await;
    let mut idle = edge.connect().await;
    idle.write(b"GET / HTTP/1.1\r\nHost: e\r\n\r\n").await;
    assert_eq!(idle.answer().await.status, 404);
    let mut half = edge.connect().await;
    half.write(&request[..request.len() / 2]).await;
    let mut early = edge.connect().await;
    early.write(&request[..30]).await;
    // The server has read what came before.
    idle.write(b"GET / HTTP/1.1\r\nHost: e\r\n\r\n").await;
    assert_eq!(idle.answer().await.status, 404);

    edge.begin_stop();
    assert_eq!(idle.rest().await, "");
    // Whoever has begun to send may hear why it is not taken, or is closed.
    early.try_write(&request[30..]).await;
    let said = early.rest().await;
    assert!(said.is_empty() || said.contains("DRAINING"), "{said}");
    log.set_gate(true);
    let answer = begun.answer().await;
    assert_eq!(
        (answer.status, answer.header("connection")),
        (200, Some("close"))
    );
    assert_eq!(begun.rest().await, "");
    half.try_write(&request[request.len() / 2..]).await;
    let said = half.rest().await;
    assert!(
        said.is_empty() || said.contains(" 200 OK") || said.contains("DRAINING"),
        "{said}"
    );
    let stopped = Instant::now();
    edge.stop().await;
    assert!(stopped.elapsed() < Duration::from_secs(15));
}

#[tokio::test]
async fn a_request_that_was_never_made_holds_up_no_stop() {
    let edge = Edge::start_with(ServerConfig {
        webhook_read_timeout_seconds: 600,
        shutdown_grace_seconds: 600,
        ..server_config()
    })
    .await;
    let mut half = edge.connect().await;
    half.write(b"POST /webhooks/gu1 HTTP/1.1\r\nHo").await;
    // The server has read that.
    assert_eq!(
        edge.send(b"GET / HTTP/1.1\r\nHost: e\r\n\r\n").await.status,
        404
    );
    edge.stop().await;
    assert_eq!(half.rest().await, "");
}
