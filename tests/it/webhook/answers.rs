//! What each provider posts arrives, and what it is answered.

use std::fs;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::net::TcpStream;
use verdict::{
    config::{ClientCertificates, ServerConfig, TlsConfig},
    proto::IngestStatus,
    provider::{PROVIDERS, RawWebhook, Success, jwe},
    source::Source,
};

use super::edge::{Answer, Edge, Wire, post, request};
use crate::{
    pki::Authority,
    support::{
        fixture, fixture_source, from_earliest, gu1_body, memory_log, next_event, real_now,
        server_config, sign,
    },
};

/// A source for each scheme of each provider; the account is the name of the scheme.
pub(super) fn sources() -> Vec<Source> {
    let schemes = PROVIDERS.iter().flat_map(|provider| {
        let schemes = provider.schemes().iter();
        schemes.map(|scheme| Source {
            schemes: vec![scheme],
            account: scheme.name.to_owned(),
            ..fixture_source(provider.name())
        })
    });
    schemes.collect()
}

/// A source's samples, signed, and encrypted where the provider encrypts.
pub(super) fn samples(source: &Source) -> Vec<RawWebhook> {
    let scheme = source.schemes[0];
    let keys = source.keys();
    let samples = source.provider.samples().iter();
    samples
        .filter(|sample| sample.scheme == scheme.name)
        .map(|sample| {
            let body = Bytes::from_static(sample.body.as_bytes());
            let body = match keys.decryption_keys.first() {
                Some(key) => jwe::encrypt(&body, key).expect("encrypted").into(),
                None => body,
            };
            let signed = scheme.sign(body, &keys.secrets[0], real_now());
            signed.expect("a body that can be signed")
        })
        .collect()
}

fn is_success(success: Success, status: u16) -> bool {
    match success {
        Success::Any2xx => (200..300).contains(&status),
        Success::Only200 => status == 200,
    }
}

#[tokio::test]
async fn every_sample_of_every_provider_arrives_as_it_was_posted() {
    let edge = Edge::start_from(sources(), server_config(), memory_log()).await;
    let mut stream = edge.subscribe(from_earliest()).await;
    for source in sources() {
        let provider = source.provider;
        let path = format!("/webhooks/{}/{}", provider.name(), source.account);
        let samples = samples(&source);
        assert!(!samples.is_empty(), "{path}");
        for webhook in samples {
            let answer = edge.post(&path, &webhook).await;
            assert!(is_success(provider.posting().success, answer.status));
            assert_eq!(answer.body, r#"{"received":true}"#, "{path}");
            assert_eq!(answer.header("content-type"), Some("application/json"));
            let event = next_event(&mut stream).await;
            let delivery = edge.delivery(event.event_id).await;
            assert_eq!(delivery.payload, webhook.payload);
            assert_eq!(delivery.account, source.account);
            assert_eq!(delivery.provider, provider.name());
            let signed = webhook.headers.iter().map(|(name, _)| name);
            for name in signed {
                let kept = delivery.headers.iter().filter(|kept| kept.name == name);
                assert_eq!(kept.count(), 1, "{name}");
            }
            // Nobody knows whose trace it was.
            assert!(event.trace.is_none());
        }
    }
    assert!(edge.answered("kayle", 200).is_some());
    edge.stop().await;
}

#[tokio::test]
async fn whatever_becomes_of_a_genuine_webhook_it_is_received() {
    let edge = Edge::start().await;
    let source = fixture_source("gu1");
    let event = sign(&source, gu1_body("1"));
    let unknown = fixture("gu1", "unknown_event");
    let ignored = fixture("gu1", "transaction_created");
    for (webhook, status) in [
        (&event, IngestStatus::Accepted),
        (&event, IngestStatus::Duplicate),
        (&unknown, IngestStatus::Quarantined),
        (&ignored, IngestStatus::Ignored),
    ] {
        let answer = edge.post("/webhooks/gu1", webhook).await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, r#"{"received":true}"#)
        );
        let counts = edge.counts("gu1").await;
        let counted = match status {
            IngestStatus::Accepted => counts.accepted,
            IngestStatus::Duplicate => counts.duplicate,
            IngestStatus::Quarantined => counts.quarantined,
            _ => counts.ignored,
        };
        assert_eq!(counted, 1, "{status:?}");
    }
    assert_eq!(edge.answered("gu1", 200).as_deref(), Some("4"));
    edge.stop().await;
}

#[tokio::test]
async fn what_is_not_genuine_gets_one_answer_whatever_the_reason() {
    let edge = Edge::start().await;
    let good = sign(&fixture_source("gu1"), gu1_body("1"));
    let signature = good
        .headers
        .values("x-webhook-signature")
        .next()
        .unwrap()
        .to_owned();
    let with = |headers: &str| request("/webhooks/gu1", headers, &good.payload);
    let unsigned = edge.send(&with("")).await;
    let said = |answer: &Answer| (answer.status, answer.headers.len(), answer.body.clone());
    for headers in [
        "X-Webhook-Signature: \r\n".to_owned(),
        "X-Webhook-Signature: 00\r\n".to_owned(),
        format!("X-Webhook-Signature: {}\r\n", "0".repeat(64)),
        format!("X-Webhook-Signature: {signature}\r\nX-Webhook-Signature: {signature}\r\n"),
        format!("X-Webhook-Signature: {signature}, {signature}\r\n"),
    ] {
        let answer = edge.send(&with(&headers)).await;
        assert_eq!(said(&answer), said(&unsigned), "{headers}");
    }
    assert_eq!(
        (unsigned.status, unsigned.reason().as_str()),
        (401, "SIGNATURE_INVALID")
    );
    assert_eq!(
        unsigned.header("www-authenticate"),
        Some("Webhook-Signature")
    );
    assert!(unsigned.header("retry-after").is_none());
    assert_eq!(edge.counts("gu1").await.signature_invalid, 6);
    assert_eq!(edge.answered("gu1", 401).as_deref(), Some("6"));
    // The connection can be used again.
    let mut wire = edge.connect().await;
    for _ in 0..2 {
        wire.write(&with("")).await;
        assert_eq!(wire.answer().await.status, 401);
    }
    wire.write(&post("/webhooks/gu1", &good)).await;
    assert_eq!(wire.answer().await.status, 200);
    edge.stop().await;
}

#[tokio::test]
async fn only_the_paths_of_configured_sources_are_there() {
    let dotted = Source {
        account: "..".to_owned(),
        ..fixture_source("gu1")
    };
    let sources = vec![fixture_source("gu1"), dotted];
    let edge = Edge::start_from(sources, server_config(), memory_log()).await;
    let webhook = sign(&fixture_source("gu1"), gu1_body("1"));
    for path in [
        "/",
        "/webhooks",
        "/webhooks/",
        "/webhooks//",
        "/webhooks/gu1/",
        "/webhooks//gu1",
        "//webhooks/gu1",
        "/webhooks/gu1//default",
        "/webhooks/gu1/default/",
        "/webhooks/gu1/default/more",
        "/webhooks/gu1/other",
        "/webhooks/GU1",
        "/Webhooks/gu1",
        "/webhooks/%67u1",
        "/webhooks/gu1/%2e%2e",
        "/webhooks/gu1%2Fdefault",
        "/webhooks/../webhooks/gu1",
        "/webhooks/./gu1",
        "/webhooks/gu1/.",
        "/webhooks/gu1/%00",
        "/webhooks/gu1/%",
        "/webhooks/gu1;x",
        "/webhooks/kayle",
        "/webhooks/unknown",
        "/metrics",
    ] {
        let answer = edge.post(path, &webhook).await;
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.reason(), "SOURCE_NOT_FOUND", "{path}");
    }
    assert_eq!(edge.answered("unknown", 404).as_deref(), Some("25"));
    let rejected = edge.rejected("unknown", "source_not_found");
    assert_eq!(rejected.as_deref(), Some("25"));
    // An account may have any name of its characters; a path is never changed.
    for path in [
        "/webhooks/gu1/..",
        "/webhooks/gu1",
        "/webhooks/gu1/default",
        "/webhooks/gu1?from=gu1",
        "http://edge.test/webhooks/gu1",
    ] {
        assert_eq!(edge.post(path, &webhook).await.status, 200, "{path}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn webhooks_are_posted_and_nothing_else() {
    let edge = Edge::start().await;
    for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "BREW"] {
        let mut wire = edge.connect().await;
        let request = format!("{method} /webhooks/gu1 HTTP/1.1\r\nHost: edge.test\r\n\r\n");
        // Without a body, nothing is in the way of the next request.
        for _ in 0..2 {
            wire.write(request.as_bytes()).await;
            if method == "HEAD" {
                let head = wire.head().await;
                assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
                assert!(head.contains("allow: POST\r\n"), "{head}");
                continue;
            }
            let answer = wire.answer().await;
            assert_eq!(
                (answer.status, answer.header("allow")),
                (405, Some("POST")),
                "{method}"
            );
            assert_eq!(answer.reason(), "INVALID_REQUEST");
        }
    }
    let nowhere = edge
        .send(b"GET / HTTP/1.1\r\nHost: edge.test\r\n\r\n")
        .await;
    assert_eq!(nowhere.status, 404);
    edge.stop().await;
}

#[tokio::test]
async fn headers_are_kept_as_they_came_but_for_those_of_the_hop() {
    let edge = Edge::start().await;
    let mut stream = edge.subscribe(from_earliest()).await;
    let webhook = sign(&fixture_source("gu1"), gu1_body("1"));
    let mut request = post("/webhooks/gu1", &webhook);
    let more = b"X-Twice: a\r\nX-Twice: b\r\nX-Latin: caf\xe9\r\nX-Utf8: caf\xc3\xa9\r\nConnection: keep-alive\r\n\
        Keep-Alive: 5\r\nTE: trailers\r\nTraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    let first_line = request.windows(2).position(|end| end == b"\r\n").unwrap() + 2;
    request.splice(first_line..first_line, more.iter().copied());
    assert_eq!(edge.send(&request).await.status, 200);
    let event = next_event(&mut stream).await;
    // Who posts over the internet does not decide to which trace an event belongs.
    assert!(event.trace.is_none());
    let delivery = edge.delivery(event.event_id).await;
    let values = |name: &str| {
        let of_name = delivery
            .headers
            .iter()
            .filter(move |header| header.name == name);
        of_name
            .map(|header| header.value.as_str())
            .collect::<Vec<_>>()
    };
    assert_eq!(values("x-twice"), ["a", "b"]);
    assert_eq!(values("x-latin"), ["café"]);
    assert_eq!(values("x-utf8"), ["café"]);
    for hop in ["connection", "keep-alive", "te", "content-length"] {
        assert_eq!(values(hop), [""; 0], "{hop}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn limits_are_kept_and_named() {
    let edge = Edge::start_with(ServerConfig {
        max_payload_bytes: 1000,
        max_headers: 10,
        max_header_bytes: 9000,
        ..server_config()
    })
    .await;
    let source = fixture_source("gu1");
    let small = sign(&source, gu1_body("1"));
    let fitting = sign(&source, format!("{:1000}", gu1_body("2")));
    let large = sign(&source, format!("{:1001}", gu1_body("3")));
    assert_eq!(edge.post("/webhooks/gu1", &fitting).await.status, 200);
    // A limit of ours can be raised: who would never post it again is asked to.
    for (path, status) in [("/webhooks/gu1", 503), ("/webhooks/kayle", 413)] {
        let answer = edge.post(path, &large).await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (status, "PAYLOAD_TOO_LARGE")
        );
        assert_eq!(answer.header("connection"), Some("close"));
        assert_eq!(answer.header("retry-after").is_some(), status == 503);
    }

    // The same without a length that tells it beforehand.
    let chunked = |webhook: &RawWebhook| {
        let headers = webhook.headers.iter();
        let headers = headers.map(|(name, value)| format!("{name}: {value}\r\n"));
        let headers = headers.collect::<String>();
        let head = format!(
            "POST /webhooks/gu1 HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n{headers}\r\n"
        );
        let mut request = head.into_bytes();
        for chunk in webhook.payload.chunks(7) {
            request.extend_from_slice(format!("{:x};extension=1\r\n", chunk.len()).as_bytes());
            request.extend_from_slice(chunk);
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"0\r\nX-Webhook-Signature: of a trailer\r\n\r\n");
        request
    };
    assert_eq!(edge.send(&chunked(&small)).await.status, 200);
    assert_eq!(edge.send(&chunked(&large)).await.status, 503);

    // Host and Content-Length are two of the ten.
    for (headers, is_within) in [
        ("X: 1\r\n".repeat(8), true),
        ("X: 1\r\n".repeat(9), false),
        ("X: 1\r\n".repeat(18), false),
        (format!("X: {}\r\n", "x".repeat(8900)), true),
        (format!("X: {}\r\n", "x".repeat(9000)), false),
        (format!("X: {}\r\n", "x".repeat(16_000)), false),
    ] {
        for (path, too_large) in [("/webhooks/gu1", 503), ("/webhooks/kayle", 431)] {
            let answer = edge.send(&request(path, &headers, &small.payload)).await;
            let expected = match is_within {
                true => (401, "SIGNATURE_INVALID"),
                false => (too_large, "INVALID_REQUEST"),
            };
            let said = (answer.status, answer.reason());
            assert_eq!((said.0, said.1.as_str()), expected, "{}", headers.len());
        }
    }
    // What is far beyond is refused without a word.
    for headers in [
        "X: 1\r\n".repeat(30),
        format!("X: {}\r\n", "x".repeat(90_000)),
    ] {
        let mut wire = edge.connect().await;
        wire.try_write(&request("/webhooks/gu1", &headers, b"{}"))
            .await;
        assert_eq!(wire.answer().await.status, 431, "{}", headers.len());
    }
    let empty = edge.send(&request("/webhooks/gu1", "", b"")).await;
    assert_eq!(
        (empty.status, empty.reason().as_str()),
        (400, "INVALID_REQUEST")
    );
    for (provider, reason, count) in [
        ("gu1", "payload_too_large", "2"),
        ("kayle", "payload_too_large", "1"),
        ("gu1", "headers_too_large", "4"),
        ("kayle", "headers_too_large", "4"),
        ("gu1", "body_malformed", "1"),
    ] {
        let counted = edge.rejected(provider, reason);
        assert_eq!(counted.as_deref(), Some(count), "{provider} {reason}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn webhooks_are_posted_over_tls() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new("tests");
    let (cert_file, key_file) = authority.server().write(directory.path(), "tls");
    let edge = Edge::start_with(ServerConfig {
        webhook_tls: Some(TlsConfig {
            cert_file,
            key_file,
            client_certificates: ClientCertificates::None,
        }),
        ..server_config()
    })
    .await;
    let webhook = sign(&fixture_source("gu1"), gu1_body("1"));
    // Whoever names no protocol means the usual one.
    for protocols in [&[&b"h2"[..], b"http/1.1"][..], &[]] {
        let tcp = TcpStream::connect(edge.address).await.unwrap();
        let mut wire = Wire::new(authority.handshake_for(protocols, tcp).await);
        for _ in 0..2 {
            wire.write(&post("/webhooks/gu1", &webhook)).await;
            assert_eq!(wire.answer().await.status, 200);
        }
    }
    assert_eq!(edge.counts("gu1").await.duplicate, 3);
    edge.stop().await;
}

#[test]
fn the_readme_says_of_each_provider_how_it_posts() {
    let readme = fs::read_to_string("README.md").unwrap();
    for provider in PROVIDERS {
        let posting = provider.posting();
        let row = format!(
            "| `{}` | {} s | {} | ",
            provider.name(),
            posting.patience.as_secs(),
            match posting.success {
                Success::Any2xx => "any 2xx",
                Success::Only200 => "200",
            },
        );
        let (_, after) = readme.split_once(&row).unwrap_or_else(|| panic!("{row}"));
        let again_after_4xx = after.starts_with("everything else |");
        assert_eq!(posting.again_after_4xx, again_after_4xx, "{row}");
    }
}
