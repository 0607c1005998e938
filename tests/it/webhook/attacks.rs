//! Requests that were not made to be answered.

use std::time::Duration;

use tokio::time::{self, Instant};
use verdict::config::ServerConfig;

use super::edge::{Edge, post, request};
use crate::support::{PATIENCE, fixture_source, gu1_body, server_config, sign};

/// A server whose patience is short.
async fn impatient() -> Edge {
    Edge::start_with(ServerConfig {
        webhook_read_timeout_seconds: 1,
        handshake_timeout_seconds: 1,
        ..server_config()
    })
    .await
}

/// Long enough that nobody was cut off at once, and far less than any test waits.
fn is_the_timeout(took: Duration) -> bool {
    (Duration::from_millis(900)..Duration::from_secs(20)).contains(&took)
}

#[tokio::test]
async fn who_sends_headers_slowly_is_closed() {
    let edge = impatient().await;
    let webhook = post(
        "/webhooks/gu1",
        &sign(&fixture_source("gu1"), gu1_body("1")),
    );
    for beginning in [
        &b""[..],
        b"POST /we",
        b"POST /webhooks/gu1 HTTP/1.1\r\nHost: e\r\nX: ",
    ] {
        let mut wire = edge.connect().await;
        let begun = Instant::now();
        wire.write(beginning).await;
        wire.rest().await;
        assert!(is_the_timeout(begun.elapsed()), "{:?}", begun.elapsed());
    }
    // A connection that was of use may be idle for longer: a proxy keeps it for the next request.
    let mut wire = edge.connect().await;
    wire.write(&webhook).await;
    assert_eq!(wire.answer().await.status, 200);
    time::sleep(Duration::from_secs(2)).await;
    wire.write(&webhook).await;
    assert_eq!(wire.answer().await.status, 200);
    // Another request is given all of its time, and the end comes all the same.
    let mut wire = edge.connect().await;
    wire.write(&webhook).await;
    assert_eq!(wire.answer().await.status, 200);
    let begun = Instant::now();
    wire.write(&webhook[..20]).await;
    wire.rest().await;
    assert!(is_the_timeout(begun.elapsed()), "{:?}", begun.elapsed());
    edge.stop().await;
}

#[tokio::test]
async fn who_sends_a_body_slowly_is_told_and_closed() {
    let edge = impatient().await;
    // A provider that never posts again after a 4xx must not be given one.
    for (provider, status) in [("kayle", 408), ("ralio", 503)] {
        for rest in [0, 1] {
            let request = request(&format!("/webhooks/{provider}"), "", &vec![b' '; 1000]);
            let mut wire = edge.connect().await;
            let begun = Instant::now();
            wire.write(&request[..request.len() - 1 - rest]).await;
            for byte in request[request.len() - 1 - rest..].iter().take(rest) {
                wire.write(&[*byte]).await;
            }
            let answer = wire.answer().await;
            assert!(is_the_timeout(begun.elapsed()), "{:?}", begun.elapsed());
            assert_eq!(
                (answer.status, answer.header("connection")),
                (status, Some("close"))
            );
            assert_eq!(answer.reason(), "INVALID_REQUEST");
            assert_eq!(answer.header("retry-after").is_some(), status == 503);
            assert_eq!(wire.rest().await, "");
        }
        assert_eq!(edge.answered(provider, status).as_deref(), Some("2"));
        let rejected = edge.rejected(provider, "too_slow");
        assert_eq!(rejected.as_deref(), Some("2"));
    }
    edge.stop().await;
}

#[tokio::test]
async fn who_sends_a_body_slowly_is_told_before_its_patience_ends() {
    // Kayle waits for 5 s, and the server for twice that.
    let edge = Edge::start().await;
    let request = request("/webhooks/kayle", "", b"{}");
    let mut wire = edge.connect().await;
    let begun = Instant::now();
    wire.write(&request[..request.len() - 1]).await;
    let answer = wire.answer().await;
    let took = begun.elapsed();
    // What was never received could not have been stored.
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (408, "INVALID_REQUEST")
    );
    let patience = fixture_source("kayle").provider.posting().patience;
    assert!(took < patience - Duration::from_secs(1), "{took:?}");
    edge.stop().await;
}

#[tokio::test]
async fn what_is_being_received_is_bounded_over_all_connections() {
    // All together may take as much as two of this size, and their headers are more.
    const LARGEST: usize = 40 << 20;
    let edge = Edge::start_with(ServerConfig {
        max_payload_bytes: LARGEST,
        webhook_read_timeout_seconds: 600,
        ..server_config()
    })
    .await;
    let body = vec![b' '; LARGEST];
    let held_back = request("/webhooks/gu1", "", &body);
    let held_back = &held_back[..39 << 20];
    let begun = Instant::now();
    for (provider, status) in [("kayle", 429), ("ralio", 503), ("gu1", 503)] {
        let path = format!("/webhooks/{provider}");
        let (_holder, answer) = loop {
            let mut holder = edge.connect().await;
            holder.try_write(held_back).await;
            let answer = edge.send(&request(&path, "", &body)).await;
            // It came first: what the holder has sent is taken a moment later.
            if answer.status != 401 {
                break (holder, answer);
            }
            assert!(begun.elapsed() < PATIENCE, "it is never full");
        };
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (status, "OVERLOADED")
        );
        assert_eq!(answer.header("retry-after"), Some("10"));
        assert_eq!(answer.header("connection"), Some("close"));
    }
    assert!(edge.rejected("kayle", "overloaded").is_some());
    // What was taken is given back when its sender goes away.
    let large = request("/webhooks/kayle", "", &body);
    while edge.send(&large).await.status != 401 {
        assert!(begun.elapsed() < PATIENCE, "it is never given back");
    }
    let small = sign(&fixture_source("gu1"), gu1_body("1"));
    assert_eq!(edge.post("/webhooks/gu1", &small).await.status, 200);
    edge.stop().await;
}

#[tokio::test]
async fn a_refused_request_is_not_asked_to_continue() {
    let edge = Edge::start().await;
    let expect = |method: &str, path: &str, length: usize, headers: &str| {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: e\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n{headers}\r\n"
        )
    };
    for (head, status) in [
        (expect("POST", "/webhooks/unknown", 10, ""), 404),
        (expect("PUT", "/webhooks/gu1", 10, ""), 405),
        (expect("POST", "/webhooks/kayle", 10_000_000, ""), 413),
        (
            expect("POST", "/webhooks/gu1", 10, "Content-Encoding: br\r\n"),
            415,
        ),
        (
            expect("POST", "/webhooks/kayle", 10, &"X: 1\r\n".repeat(98)),
            431,
        ),
    ] {
        let mut wire = edge.connect().await;
        wire.write(head.as_bytes()).await;
        // The first that comes is the answer, and nothing comes behind it.
        assert_eq!(wire.answer().await.status, status, "{head}");
        assert_eq!(wire.rest().await, "");
    }
    let webhook = sign(&fixture_source("gu1"), gu1_body("1"));
    let signature = webhook
        .headers
        .values("x-webhook-signature")
        .next()
        .unwrap();
    let signature = format!("X-Webhook-Signature: {signature}\r\n");
    let mut wire = edge.connect().await;
    // Twice, on one connection; the second body does not wait to be asked for.
    wire.write(expect("POST", "/webhooks/gu1", webhook.payload.len(), &signature).as_bytes())
        .await;
    assert_eq!(wire.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    wire.write(&webhook.payload).await;
    assert_eq!(wire.answer().await.status, 200);
    let head = expect("POST", "/webhooks/gu1", webhook.payload.len(), &signature);
    wire.write(&[head.as_bytes(), &webhook.payload].concat())
        .await;
    let mut answer = wire.answer().await;
    if answer.status == 100 {
        answer = wire.answer().await;
    }
    assert_eq!(answer.status, 200);
    // Nobody is asked in HTTP/1.0.
    let old = expect("POST", "/webhooks/gu1", webhook.payload.len(), &signature);
    let old = old.replace("HTTP/1.1", "HTTP/1.0");
    let mut wire = edge.connect().await;
    wire.write(&[old.as_bytes(), &webhook.payload].concat())
        .await;
    assert_eq!(wire.answer().await.status, 200);
    assert_eq!(wire.rest().await, "");
    edge.stop().await;
}

#[tokio::test]
async fn one_request_is_never_taken_for_two() {
    let edge = Edge::start().await;
    let webhook = sign(&fixture_source("gu1"), gu1_body("1"));
    let inner = "POST /webhooks/gu1 HTTP/1.1\r\nHost: e\r\nContent-Length: 2\r\n\r\n{}";
    let head = |lines: &str| format!("POST /webhooks/gu1 HTTP/1.1\r\nHost: e\r\n{lines}\r\n");
    // Whose length could be read in two ways: what comes behind is not answered.
    for (lines, status) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 401),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 401),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        ("Content-Length: 5, 6\r\n", 400),
        ("Content-Length: +5\r\n", 400),
        ("Content-Length: -5\r\n", 400),
        ("Content-Length: 99999999999999999999\r\n", 400),
        ("Transfer-Encoding: chunked, identity\r\n", 400),
        ("Transfer-Encoding: gzip\r\n", 400),
        ("Transfer-Encoding : chunked\r\n", 400),
        (" Transfer-Encoding: chunked\r\n", 400),
    ] {
        let mut wire = edge.connect().await;
        wire.write(format!("{}2\r\n{{}}\r\n0\r\n\r\n{inner}", head(lines)).as_bytes())
            .await;
        assert_eq!(wire.answer().await.status, status, "{lines}");
        let rest = wire.rest().await;
        assert!(!rest.contains("HTTP/1.1"), "{lines}: {rest}");
    }
    // Chunks that are not what they say.
    for chunks in [
        "x\r\n{}\r\n0\r\n\r\n",
        "-2\r\n{}\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n{}",
        "2\r\n{}x",
    ] {
        let mut wire = edge.connect().await;
        let request = format!("{}{chunks}{inner}", head("Transfer-Encoding: chunked\r\n"));
        wire.write(request.as_bytes()).await;
        let said = wire.rest().await;
        assert!(!said.contains("HTTP/1.1 401"), "{chunks}: {said}");
        assert!(said.matches("HTTP/1.1").count() <= 1, "{chunks}: {said}");
    }
    // Of an older version: no chunks, and one request for each connection.
    let old = head("Transfer-Encoding: chunked\r\n").replace("HTTP/1.1", "HTTP/1.0");
    let mut wire = edge.connect().await;
    wire.write(format!("{old}2\r\n{{}}\r\n0\r\n\r\n").as_bytes())
        .await;
    assert_eq!(wire.answer().await.status, 400);
    assert_eq!(wire.rest().await, "");
    // Sent ahead: each is answered, in its turn.
    let good = post("/webhooks/gu1", &webhook);
    let mut wire = edge.connect().await;
    wire.write(&[&good[..], inner.as_bytes(), &good, inner.as_bytes()].concat())
        .await;
    for status in [200, 401, 200, 401] {
        assert_eq!(wire.answer().await.status, status);
    }
    // What is refused unread is not read as the next request.
    let mut wire = edge.connect().await;
    let unread = request("/webhooks/unknown", "", inner.as_bytes());
    wire.write(&[&unread[..], &good].concat()).await;
    assert_eq!(wire.answer().await.status, 404);
    assert_eq!(wire.rest().await, "");
    assert_eq!(edge.counts("gu1").await.duplicate, 1);
    edge.stop().await;
}

#[tokio::test]
async fn what_is_no_http_at_all_is_closed() {
    let edge = Edge::start().await;
    for rubbish in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 tls"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\0\0\0\0",
        b"GET /webhooks/gu1\r\n\r\n",
        b"POST /webhooks/gu1 HTTP/9.9\r\n\r\n",
        b"POST /webhooks/\xff HTTP/1.1\r\n\r\n",
        b"POST /webhooks/gu1 HTTP/1.1\r\nNo colon\r\n\r\n",
        b"POST /webhooks/gu1 HTTP/1.1\r\nX: a\0b\r\n\r\n",
    ] {
        let mut wire = edge.connect().await;
        wire.write(rubbish).await;
        let said = wire.rest().await;
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said}");
    }
    let good = post(
        "/webhooks/gu1",
        &sign(&fixture_source("gu1"), gu1_body("1")),
    );
    assert_eq!(edge.send(&good).await.status, 200);
    edge.stop().await;
}

#[tokio::test]
async fn an_early_answer_reaches_who_is_still_sending() {
    let edge = Edge::start().await;
    // More than the system takes without the server reading it.
    let large = request("/webhooks/kayle", "", &vec![b' '; 16 << 20]);
    let mut wire = edge.connect().await;
    assert!(wire.try_write(&large).await);
    assert_eq!(wire.answer().await.status, 413);
    edge.stop().await;
}

#[tokio::test]
async fn connections_that_are_of_no_use_keep_nobody_out() {
    let edge = Edge::start_with(ServerConfig {
        webhook_max_connections: 4,
        webhook_read_timeout_seconds: 600,
        ..server_config()
    })
    .await;
    let mut silent = Vec::new();
    for _ in 0..4 {
        let mut wire = edge.connect().await;
        wire.write(b"POST /webhooks/gu1 HTTP/1.1\r\n").await;
        silent.push(wire);
    }
    let webhook = post(
        "/webhooks/gu1",
        &sign(&fixture_source("gu1"), gu1_body("1")),
    );
    let begun = Instant::now();
    loop {
        let mut wire = edge.connect().await;
        // Whoever has just come is left alone for a second.
        if wire.try_write(&webhook).await
            && wire.try_answer().await.is_some_and(|a| a.status == 200)
        {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "there is no room for a webhook");
    }
    // The oldest had to go.
    assert_eq!(silent[0].rest().await, "");
    edge.stop().await;
}
