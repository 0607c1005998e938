//! Hostile input: each ends in the status or error that the design names. Nothing panics, nothing is lost.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use verdict::{
    proto::{Header, IngestRequest, IngestStatus, ListQuarantinedRequest, QuarantineReason},
    provider::{RawWebhook, jwe},
};

use crate::support::{
    PATIENCE, Server, fixture_source, gu1_body, gu1_request, now, other_secret, plain_source,
    real_now, reason, request, server_config, sign,
};

/// The code and reason of a call that must fail.
async fn refused(server: &Server, request: IngestRequest) -> (Code, String) {
    let status = server.ingest(request).await.unwrap_err();
    (status.code(), reason(&status))
}

fn signature_invalid() -> (Code, String) {
    (Code::InvalidArgument, "SIGNATURE_INVALID".to_owned())
}

/// The reason for which the newest quarantined delivery is there.
async fn newest_quarantined(server: &Server) -> (QuarantineReason, String) {
    let request = ListQuarantinedRequest {
        page_size: 1000,
        ..Default::default()
    };
    let page = server
        .admin
        .clone()
        .list_quarantined(request)
        .await
        .unwrap()
        .into_inner();
    let newest = page.quarantined.last().unwrap();
    (newest.reason(), newest.detail.clone())
}

#[tokio::test]
async fn an_unknown_source_is_not_found() {
    let server = Server::start().await;
    let mut provider = gu1_request(gu1_body("1"));
    provider.provider = "no_such_provider".to_owned();
    let mut account = gu1_request(gu1_body("1"));
    account.account = "other".to_owned();
    for request in [provider, account] {
        let expected = (Code::NotFound, "SOURCE_NOT_FOUND".to_owned());
        assert_eq!(refused(&server, request).await, expected);
    }
}

#[tokio::test]
async fn a_missing_field_is_named() {
    let server = Server::start().await;
    let good = || gu1_request(gu1_body("1"));
    let header = |name: &str, bytes: usize| Header {
        name: name.to_owned(),
        value: "x".repeat(bytes),
    };
    type Spoil<'a> = Box<dyn Fn(&mut IngestRequest) + 'a>;
    let cases: [(&str, Spoil<'_>); 5] = [
        ("provider", Box::new(|request| request.provider.clear())),
        ("payload", Box::new(|request| request.payload.clear())),
        (
            "headers",
            Box::new(|request| request.headers.extend((0..100).map(|_| header("a", 1)))),
        ),
        (
            "headers",
            Box::new(|request| request.headers.push(header("a", 32 << 10))),
        ),
        (
            "headers",
            Box::new(|request| request.headers.push(header("", 1))),
        ),
    ];
    for (field, spoil) in cases {
        let mut request = good();
        spoil(&mut request);
        let status = server.ingest(request).await.unwrap_err();
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::InvalidArgument, "INVALID_REQUEST")
        );
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, field, "{}", violations[0].description);
    }
    // Up to the limit all is well.
    let mut request = good();
    request.headers.extend((0..99).map(|_| header("a", 1)));
    assert!(server.ingest(request).await.is_ok());
}

#[tokio::test]
async fn a_payload_that_is_too_large_is_told_so_however_large_it_is() {
    let server = Server::start().await;
    let limit = server_config().max_payload_bytes;
    let too_large = |status: Status| {
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::InvalidArgument, "PAYLOAD_TOO_LARGE")
        );
    };
    for bytes in [limit + 1, 2 << 20, 16 << 20] {
        too_large(
            server
                .ingest(gu1_request(vec![b' '; bytes]))
                .await
                .unwrap_err(),
        );
    }
    // A small request that becomes a large one.
    for encoding in [
        tonic::codec::CompressionEncoding::Gzip,
        tonic::codec::CompressionEncoding::Zstd,
    ] {
        let mut client = server.client.clone().send_compressed(encoding);
        too_large(
            client
                .ingest(gu1_request(vec![b' '; 64 << 20]))
                .await
                .unwrap_err(),
        );
        let small = client
            .ingest(gu1_request(gu1_body(&format!("{encoding:?}"))))
            .await
            .unwrap();
        assert_eq!(small.get_ref().status(), IngestStatus::Accepted);
    }
    // The largest that is allowed: genuine, and no JSON.
    let largest = server.ingest(gu1_request(vec![b' '; limit])).await.unwrap();
    assert_eq!(largest.status(), IngestStatus::Quarantined);
}

#[tokio::test]
async fn what_is_not_a_request_is_told_so() {
    let server = Server::start().await;
    let mut client = tonic::client::Grpc::new(server.channel.clone());
    client.ready().await.unwrap();
    // The same method with a message whose first field is a number, where Ingest has bytes.
    let codec = tonic_prost::ProstCodec::<u64, ()>::default();
    let path = http::uri::PathAndQuery::from_static("/verdict.v1.VerdictService/Ingest");
    let status = client
        .unary(tonic::Request::new(7_u64), path, codec)
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "INVALID_REQUEST");
}

#[tokio::test]
async fn a_signature_that_does_not_prove_anything_gets_one_answer() {
    let server = Server::start().await;
    let kayle = fixture_source("kayle");
    let jwe = || jwe::encrypt(b"{}", &kayle.keys().decryption_keys[0]).unwrap();
    let good = || gu1_request(gu1_body("1"));
    let with_signature = |value: &str| {
        let mut request = good();
        request.headers[0].value = value.to_owned();
        request
    };
    let missing = IngestRequest {
        headers: Vec::new(),
        ..good()
    };
    let mut twice = good();
    twice.headers.push(twice.headers[0].clone());
    let right = good().headers[0].value.clone();
    let another = {
        let scheme = fixture_source("gu1").schemes[0];
        request(
            "gu1",
            &scheme
                .sign(gu1_body("1").into(), &other_secret(), real_now())
                .unwrap(),
        )
    };
    let changed = IngestRequest {
        payload: gu1_body("2").into(),
        ..good()
    };
    // Recorded in May 2026, which is more than 300 s ago.
    let stale = request(
        "kayle",
        &crate::support::fixture("kayle", "session_expired"),
    );
    let of_the_future = {
        let later = real_now() + jiff::SignedDuration::from_secs(400);
        request(
            "kayle",
            &kayle.schemes[0]
                .sign(jwe().into(), &kayle.keys().secrets[0], later)
                .unwrap(),
        )
    };
    let cases = [
        missing,
        twice,
        another,
        changed,
        stale,
        of_the_future,
        with_signature(""),
        with_signature("not hex"),
        with_signature(&right[1..]),
        with_signature(&format!("sha512={right}")),
    ];
    let mut messages = std::collections::BTreeSet::new();
    for request in cases {
        let status = server.ingest(request).await.unwrap_err();
        assert_eq!((status.code(), reason(&status)), signature_invalid());
        messages.insert(status.message().to_owned());
    }
    assert_eq!(messages.len(), 1, "the sender learns why: {messages:?}");
    assert_eq!(server.log.tail().end().0, 0);

    // Hex of either case is the same signature, and header names have no case.
    let mut upper = with_signature(&right.to_uppercase());
    upper.headers[0].name = "X-WEBHOOK-SIGNATURE".to_owned();
    assert_eq!(
        server.ingest(upper).await.unwrap().status(),
        IngestStatus::Accepted
    );
}

#[tokio::test]
async fn a_forged_call_neither_reveals_nor_poisons_anything() {
    let server = Server::start().await;
    server.accept("1").await;
    // Of an event that is there and of one that is not: the same answer.
    for id in ["1", "2"] {
        let mut forged = gu1_request(gu1_body(id));
        forged.headers[0].value = "00".repeat(32);
        assert_eq!(refused(&server, forged).await, signature_invalid());
    }
    // And the one that was forged is still new when it comes.
    server.accept("2").await;
}

#[tokio::test]
async fn a_genuine_body_that_cannot_be_read_is_quarantined() {
    let server = Server::start().await;
    let nested = format!(
        r#"{{"event":"kyc.validation_approved","payload":{}{}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let deep_extra = format!(
        r#"{{"extra":{}{},"payload":1}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let bodies: [&[u8]; 16] = [
        b" ",
        b"{",
        br#"{"event":"kyc.validation_approved","payload":{"id":"1","sta"#,
        b"\xff\xfe{}",
        b"{\"event\":\"\xff\"}",
        b"[]",
        b"null",
        b"\"kyc.validation_approved\"",
        b"1e999",
        br#"{"event":"kyc.validation_approved","payload":{"id":"1","extractedData":1e999}}"#,
        br#"{"event":"kyc.validation_approved","event":"kyc.validation_rejected","payload":{"id":"1"}}"#,
        br#"{"event":"kyc.validation_approved","payload":{"id":"1","status":"approved","status":"rejected"}}"#,
        br#"{"event":"kyc.validation_approved","payload":{"status":"approved"}}"#,
        br#"{"event":"kyc.validation_approved","payload":{"id":""}}"#,
        nested.as_bytes(),
        deep_extra.as_bytes(),
    ];
    for body in bodies {
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        let response = server.ingest(gu1_request(body.to_vec())).await.unwrap();
        assert_eq!(response.status(), IngestStatus::Quarantined, "{shown}");
        let (reason, _) = newest_quarantined(&server).await;
        assert_eq!(reason, QuarantineReason::Unparseable, "{shown}");
    }
    assert_eq!(server.log.tail().end().0, 0);
}

/// Signed bodies of every provider, under every scheme.
#[test]
fn every_adapter_survives_hostile_bodies() {
    let nested = "[".repeat(100_000);
    for provider in verdict::provider::PROVIDERS {
        for scheme in provider.schemes() {
            let source = plain_source(*provider, scheme.name);
            let data = [
                "null",
                "0",
                "\"\"",
                "[]",
                "{}",
                "{",
                "1e999",
                &nested,
                "{\"cardholderId\":\"c\",\"cardholderId\":\"c\"}",
                "{\"claims\":{\"a\":1,\"a\":2}}",
            ];
            let around = [
                "",
                "\"type\":1,",
                "\"event\":\"x\",",
                "\"metadata\":{},",
                "\"id\":\"\",\"status\":\"approved\",",
            ];
            let mut bodies: Vec<Vec<u8>> = vec![
                b"\xff".to_vec(),
                b"null".to_vec(),
                b"[]".to_vec(),
                nested.clone().into(),
            ];
            for (data, around) in data
                .iter()
                .flat_map(|data| around.map(|around| (data, around)))
            {
                bodies.push(format!("{{{around}\"sign\":\"\",\"data\":{data}}}").into());
            }
            for body in bodies {
                // Some schemes find nothing to sign in it; the others get to read it.
                let Ok(signed) = scheme.sign(body.clone().into(), &source.keys().secrets[0], now())
                else {
                    continue;
                };
                let Ok(verified) = source.verify(signed, now()) else {
                    continue;
                };
                let read = source.normalize(&verified);
                // Kraken's whole event is an id and a status.
                let kraken = scheme.name == "kraken_sha256" && body.starts_with(b"{\"id\"");
                let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
                assert!(read.is_err() || kraken, "{} {shown}", scheme.name);
            }
        }
    }
}

#[tokio::test]
async fn what_is_given_twice_or_not_at_all_is_quarantined() {
    let server = Server::start().await;
    let kayle = fixture_source("kayle");
    let gu1 = fixture_source("gu1");
    let ralio = fixture_source("ralio");
    let claims = r#"{"type":"verification.session.succeeded","metadata":{"event_id":"e","verification_session_id":"s"},"data":{"claims":{"kayle_human_id":"a","kayle_human_id":"b"}}}"#;
    let empty_id = r#"{"type":"verification.session.expired","metadata":{"event_id":"","verification_session_id":"s"},"data":{}}"#;
    let kayle_body =
        |body: &str| jwe::encrypt(body.as_bytes(), &kayle.keys().decryption_keys[0]).unwrap();
    let decision = r#"{"event":"kyc.validation_approved","payload":{"id":"v","status":"approved","decision":{"face_match":{"status":"Approved","status":"Declined"}}}}"#;
    let names = r#"{"event":"kyc.validation_approved","type":"kyc.validation_rejected","payload":{"id":"v"}}"#;
    let ids = r#"{"event":"kyc.validation_approved","payload":{"id":"v","validationId":"w"}}"#;
    let no_id = r#"{"eventId":"","eventType":"kyc_session_verified","timestamp":"2026-05-04T09:30:00Z","data":{"sessionId":"s","userId":"u"}}"#;
    let calls = [
        request("kayle", &sign(&kayle, kayle_body(claims))),
        request("kayle", &sign(&kayle, kayle_body(empty_id))),
        request("gu1", &sign(&gu1, decision)),
        request("gu1", &sign(&gu1, names)),
        request("gu1", &sign(&gu1, ids)),
        request("ralio", &sign(&ralio, no_id)),
    ];
    for (number, call) in calls.into_iter().enumerate() {
        let answer = server.ingest(call).await.unwrap();
        assert_eq!(answer.status(), IngestStatus::Quarantined, "call {number}");
    }
}

#[tokio::test]
async fn a_member_that_is_given_twice_cannot_be_what_is_signed() {
    let server = Server::start().await;
    let source = fixture_source("fyatu");
    let body = r#"{"event":"cardholder.kyc.approved","sign":"","data":{"cardholderId":"c","kycStatus":"APPROVED"}}"#;
    let signed = sign(&source, body.to_owned());
    let text = String::from_utf8(signed.payload.to_vec()).unwrap();
    let other = r#""data":{"cardholderId":"other","kycStatus":"APPROVED"}"#;
    let nested = format!(
        r#"{{"data":{},"sign":"{}"}}"#,
        "[".repeat(100_000),
        "00".repeat(32)
    );
    let bodies = [
        text.replacen('{', &format!("{{{other},"), 1),
        format!("{},{other}}}", &text[..text.len() - 1]),
        text.replace("\"data\"", "\"d\\u0061ta\"")
            .replacen('{', &format!("{{{other},"), 1),
        text.replacen('{', r#"{"sign":"00","#, 1),
        nested,
        "[]".to_owned(),
        "\u{0}".to_owned(),
    ];
    for body in bodies {
        let webhook = RawWebhook {
            payload: body.into(),
            headers: signed.headers.clone(),
        };
        assert_eq!(
            refused(&server, request("fyatu", &webhook)).await,
            signature_invalid()
        );
    }
    let response = server.ingest(request("fyatu", &signed)).await.unwrap();
    assert_eq!(response.status(), IngestStatus::Accepted);
}

#[tokio::test]
async fn a_jwe_that_cannot_be_opened_is_quarantined() {
    let server = Server::start().await;
    let kayle = fixture_source("kayle");
    let good = jwe::encrypt(b"{}", &kayle.keys().decryption_keys[0]).unwrap();
    let parts: Vec<&str> = good.split('.').collect();
    let with_header = |header: &str| {
        let header = BASE64_URL_SAFE_NO_PAD.encode(header);
        format!("{header}.{}", parts[1..].join("."))
    };
    let stranger = jwe::DecryptionKey::generate("k1".to_owned()).unwrap();
    let unknown = jwe::DecryptionKey::generate("k9".to_owned()).unwrap();
    // One character of the nonce, and still base64url: any other is found out before anything is decrypted.
    let mut other_nonce = good.clone().into_bytes();
    let changed = other_nonce.len() - 30;
    other_nonce[changed] = if other_nonce[changed] == b'A' {
        b'B'
    } else {
        b'A'
    };
    use QuarantineReason::{DecryptionKeyMissing, Undecryptable, Unparseable};
    let cases = [
        (jwe::encrypt(b"{}", &stranger).unwrap(), Undecryptable),
        (jwe::encrypt(b"{}", &unknown).unwrap(), DecryptionKeyMissing),
        (
            with_header(r#"{"alg":"RSA-OAEP-256","enc":"A256GCM"}"#),
            DecryptionKeyMissing,
        ),
        (
            with_header(r#"{"alg":"RSA1_5","enc":"A256GCM","kid":"k1"}"#),
            Undecryptable,
        ),
        (
            with_header(r#"{"alg":"none","enc":"A256GCM","kid":"k1"}"#),
            Undecryptable,
        ),
        (
            with_header(r#"{"alg":"dir","enc":"A256GCM","kid":"k1"}"#),
            Undecryptable,
        ),
        (
            with_header(r#"{"alg":"RSA-OAEP-256","enc":"A128CBC-HS256","kid":"k1"}"#),
            Undecryptable,
        ),
        (
            with_header(r#"{"alg":"RSA-OAEP-256","enc":"A256GCM","kid":"k1","zip":"DEF"}"#),
            Undecryptable,
        ),
        (
            with_header(r#"{"alg":"RSA-OAEP-256","enc":"A256GCM","kid":"k1","crit":["x"]}"#),
            Undecryptable,
        ),
        (
            with_header(r#"{"alg":"RSA-OAEP-256","enc":"A256GCM","kid":"k1","x":1}"#),
            Undecryptable,
        ),
        (with_header("{"), Unparseable),
        (good[..good.len() / 2].to_owned(), Unparseable),
        (format!("{good}.x"), Unparseable),
        (parts[..4].join("."), Unparseable),
        (format!("{}.AA", parts[..4].join(".")), Unparseable),
        ("....".to_owned(), Unparseable),
        ("not a jwe".to_owned(), Unparseable),
        (String::from_utf8(other_nonce).unwrap(), Undecryptable),
        // Plain JSON, which only a source with allow_plaintext takes.
        (
            r#"{"type":"verification.session.expired"}"#.to_owned(),
            Unparseable,
        ),
    ];
    for (payload, expected) in cases {
        let shown = payload[..payload.len().min(40)].to_owned();
        let response = server
            .ingest(request("kayle", &sign(&kayle, payload)))
            .await
            .unwrap();
        assert_eq!(response.status(), IngestStatus::Quarantined, "{shown}");
        let (reason, detail) = newest_quarantined(&server).await;
        assert_eq!(reason, expected, "{shown}: {detail}");
    }
}

#[tokio::test]
async fn what_is_told_of_a_bad_body_holds_nothing_of_it() {
    let server = Server::start().await;
    const MARKER: &str = "Erika Mustermann";
    let bodies = [
        format!(r#"{{"event":"{MARKER}","payload":{{"id":"1"}}}}"#),
        format!(
            r#"{{"event":"kyc.validation_approved","payload":{{"id":"1","status":"{MARKER}"}}}}"#
        ),
        format!(
            r#"{{"event":"kyc.validation_approved","timestamp":"{MARKER}","payload":{{"id":"1"}}}}"#
        ),
        format!(r#"{{"event":"kyc.validation_approved","payload":"{MARKER}"}}"#),
        format!(r#"{{"event":"kyc.validation_approved","payload":{{"isCurrent":"{MARKER}"}}}}"#),
        format!(r#"{{"event":{MARKER}}}"#),
    ];
    for body in bodies {
        let response = server.ingest(gu1_request(body.clone())).await.unwrap();
        assert_eq!(response.status(), IngestStatus::Quarantined, "{body}");
        let (_, detail) = newest_quarantined(&server).await;
        assert!(!detail.contains("Erika"), "{detail}");
    }
}

#[tokio::test]
async fn more_at_once_than_allowed_is_told_to_wait() {
    let mut config = server_config();
    config.max_concurrent_calls = 1;
    let server = Server::start_with(config, crate::support::memory_log()).await;
    // Each of these keeps the one place for as long as its RSA decryption takes.
    let kayle = fixture_source("kayle");
    let body = jwe::encrypt(b"{}", &kayle.keys().decryption_keys[0]).unwrap();
    let call = request("kayle", &sign(&kayle, body));
    let calls = (0..64).map(|_| server.ingest(call.clone()));
    let answers = futures_util::future::join_all(calls).await;
    let refused: Vec<Status> = answers.into_iter().filter_map(Result::err).collect();
    assert!(!refused.is_empty(), "64 calls at once found one place");
    for status in refused {
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::ResourceExhausted, "OVERLOADED")
        );
        assert!(status.get_details_retry_info().is_some());
    }
}

#[tokio::test]
async fn half_a_request_keeps_its_place_only_for_a_while() {
    let mut config = server_config();
    config.max_concurrent_calls = 1;
    config.call_timeout_seconds = 3;
    let server = Server::start_with(config, crate::support::memory_log()).await;
    // Headers, and then nothing: the body never ends.
    let mut client = tonic::client::Grpc::new(server.channel.clone());
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<IngestRequest, ()>::default();
    let path = http::uri::PathAndQuery::from_static("/verdict.v1.VerdictService/Ingest");
    let silence = tonic::Request::new(tokio_stream::pending::<IngestRequest>());
    let half = client.client_streaming(silence, path, codec);
    // It takes the only place, and loses it when its time is over.
    let others = async {
        while server.ingest(gu1_request(gu1_body("1"))).await.is_ok() {}
        while server.ingest(gu1_request(gu1_body("1"))).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let (half, others) = tokio::join!(half, tokio::time::timeout(PATIENCE, others));
    assert!(half.is_err());
    assert!(
        others.is_ok(),
        "the place was never taken, or never given back"
    );
}
