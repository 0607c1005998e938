//! Bodies that are coded for the way. What a provider signs is what they were before.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use verdict::{config::ServerConfig, provider::RawWebhook};

use super::{
    answers::{samples, sources},
    edge::{Answer, Edge, request},
};
use crate::support::{
    fixture_source, from_earliest, gu1_body, memory_log, next_event, server_config, sign,
};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Posts a webhook with another body than the one that was signed.
async fn coded(edge: &Edge, path: &str, webhook: &RawWebhook, coding: &str, body: &[u8]) -> Answer {
    let mut headers = coding.to_owned();
    for (name, value) in webhook.headers.iter() {
        headers.push_str(&format!("{name}: {value}\r\n"));
    }
    edge.send(&request(path, &headers, body)).await
}

const GZIP: &str = "Content-Encoding: gzip\r\n";

#[tokio::test]
async fn each_provider_signs_its_body_as_it_was_before_it_was_compressed() {
    let edge = Edge::start_from(sources(), server_config(), memory_log()).await;
    let mut stream = edge.subscribe(from_earliest()).await;
    for source in sources() {
        let path = format!("/webhooks/{}/{}", source.provider.name(), source.account);
        let webhook = samples(&source).remove(0);
        let compressed = gzip(&webhook.payload);
        let answer = coded(&edge, &path, &webhook, GZIP, &compressed).await;
        assert_eq!(answer.status, 200, "{path}");
        let event = next_event(&mut stream).await;
        let delivery = edge.delivery(event.event_id).await;
        assert_eq!(delivery.payload, webhook.payload, "{path}");
        for hop in ["content-encoding", "content-length"] {
            assert!(delivery.headers.iter().all(|header| header.name != hop));
        }
        // It is the same webhook without it.
        assert_eq!(edge.post(&path, &webhook).await.status, 200);
        // A signature over the compressed body would be another.
        if source.provider.name() != "fyatu" {
            let forged = sign(&source, compressed.clone());
            let answer = coded(&edge, &path, &forged, GZIP, &compressed).await;
            assert_eq!(answer.status, 401, "{path}");
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn codings_other_than_gzip_are_refused_by_name() {
    let edge = Edge::start().await;
    let webhook = sign(&fixture_source("gu1"), gu1_body("1"));
    let body = gzip(&webhook.payload);
    for coding in [
        "br",
        "deflate",
        "zstd",
        "gzip, gzip",
        "gzip, br",
        "gzip\r\nContent-Encoding: gzip",
        "gzip;q=1",
        "caf\u{e9}",
    ] {
        let coding = format!("Content-Encoding: {coding}\r\n");
        let answer = coded(&edge, "/webhooks/gu1", &webhook, &coding, &body).await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (415, "INVALID_REQUEST"),
            "{coding}"
        );
        assert_eq!(answer.header("accept-encoding"), Some("gzip"));
    }
    for (coding, body) in [
        ("GZIP", &body[..]),
        ("x-gzip", &body),
        ("identity, gzip", &body),
        ("identity", &webhook.payload),
        ("", &webhook.payload),
    ] {
        let coding = format!("Content-Encoding: {coding}\r\n");
        let answer = coded(&edge, "/webhooks/gu1", &webhook, &coding, body).await;
        assert_eq!(answer.status, 200, "{coding}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn what_cannot_be_decoded_is_malformed() {
    let edge = Edge::start().await;
    let webhook = sign(&fixture_source("gu1"), gu1_body("1"));
    let whole = gzip(&webhook.payload);
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    // The header is ten bytes, of which the fourth tells which fields there are behind it.
    let with_fields = |flags: u8, fields: &[u8]| {
        let header = [&whole[..3], &[flags], &whole[4..10]].concat();
        [&header, fields, &whole[10..]].concat()
    };
    let whole_header = |flags: u8| with_fields(flags, &[b'n'; 100])[..110].to_vec();
    let long = [vec![b'n'; 4096], vec![0]].concat();
    let (first, second) = webhook.payload.split_at(10);
    let members = [gzip(first), gzip(second)];
    for (what, body) in [
        ("not compressed", webhook.payload.to_vec()),
        ("nothing", Vec::new()),
        ("an empty text", gzip(b"")),
        ("cut off in the header", whole[..5].to_vec()),
        ("cut off", whole[..whole.len() / 2].to_vec()),
        ("without its checksum", whole[..whole.len() - 8].to_vec()),
        ("without its last byte", whole[..whole.len() - 1].to_vec()),
        ("with another checksum", flipped(whole.len() - 8)),
        ("with another length", flipped(whole.len() - 1)),
        ("with something behind it", [&whole[..], b"{}"].concat()),
        ("in two members", members.concat()),
        (
            "with nothing before it",
            [gzip(b""), whole.clone()].concat(),
        ),
        ("with a field of extras", with_fields(4, b"\x02\0\0\0")),
        ("with a long name", with_fields(8, &long)),
        (
            "with a long comment",
            with_fields(24, &[b"n\0", &long[..]].concat()),
        ),
        ("with a name that does not end", whole_header(8)),
    ] {
        let answer = coded(&edge, "/webhooks/gu1", &webhook, GZIP, &body).await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (400, "INVALID_REQUEST"),
            "{what}"
        );
    }
    let rejected = edge.rejected("gu1", "body_malformed");
    assert_eq!(rejected.as_deref(), Some("16"));
    // What `gzip` writes of a file has its name.
    for body in [
        with_fields(8, b"body.json\0"),
        with_fields(24, b"body.json\0comment\0"),
        with_fields(
            24,
            &[vec![b'n'; 2000], vec![0], vec![b'c'; 2000], vec![0]].concat(),
        ),
    ] {
        let answer = coded(&edge, "/webhooks/gu1", &webhook, GZIP, &body).await;
        assert_eq!(answer.status, 200);
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_bomb_is_given_up_as_soon_as_it_is_too_large() {
    let edge = Edge::start_with(ServerConfig {
        max_payload_bytes: 60_000,
        ..server_config()
    })
    .await;
    let source = fixture_source("gu1");
    let fitting = sign(&source, format!("{:60000}", gu1_body("1")));
    let large = sign(&source, format!("{:60001}", gu1_body("2")));
    let answer = coded(
        &edge,
        "/webhooks/gu1",
        &fitting,
        GZIP,
        &gzip(&fitting.payload),
    )
    .await;
    assert_eq!(answer.status, 200);
    let answer = coded(&edge, "/webhooks/gu1", &large, GZIP, &gzip(&large.payload)).await;
    // A limit of ours, after which Gu1 might never post again if it were told so.
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (503, "PAYLOAD_TOO_LARGE")
    );
    // 32 MiB in 32 KiB.
    let bomb = gzip(&vec![b' '; 32 << 20]);
    assert!(bomb.len() < 60_000, "{}", bomb.len());
    let answer = coded(&edge, "/webhooks/kayle", &large, GZIP, &bomb).await;
    assert_eq!(answer.status, 413);
    edge.stop().await;
}

#[tokio::test]
async fn what_is_not_complete_yet_is_not_decoded() {
    const HOLDERS: usize = 100;
    let edge = Edge::start().await;
    // A MiB each, of which the last byte is missing: decoded they would take more than there is.
    let bomb = gzip(&vec![b' '; 1 << 20]);
    assert!(bomb.len() < 2_000, "{}", bomb.len());
    let request = request("/webhooks/kayle", GZIP, &bomb);
    let (held_back, last) = request.split_at(request.len() - 1);
    let mut holders = Vec::new();
    for _ in 0..HOLDERS {
        let mut holder = edge.connect().await;
        holder.write(held_back).await;
        holders.push(holder);
    }
    let webhook = sign(&fixture_source("gu1"), gu1_body("1"));
    let large = vec![b' '; 1 << 20];
    for _ in 0..10 {
        assert_eq!(edge.post("/webhooks/gu1", &webhook).await.status, 200);
        let whole = coded(&edge, "/webhooks/kayle", &webhook, "", &large).await;
        assert_eq!(whole.status, 401);
    }
    for mut holder in holders {
        holder.write(last).await;
        assert_eq!(holder.answer().await.status, 401);
    }
    edge.stop().await;
}
