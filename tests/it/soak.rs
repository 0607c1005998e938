//! Millions of events through the real server, with retention on: memory and disk stay bounded, and nothing gets slower.

use std::{
    env,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use verdict::proto::{
    IngestStatus, IngestStreamRequest, ingest_stream_response::Result as Answered,
    verdict_service_client::VerdictServiceClient,
};

use crate::{
    cli::{Place, Serving},
    support::{connect, fixture_source, request, sign},
};

/// How many streams send at once.
const STREAMS: u64 = 4;

/// How many webhooks a stream sends ahead.
const AHEAD: usize = 200;

/// The goals of a long run, on a quiet machine in release mode.
const MAX_RESIDENT_BYTES: usize = 200 << 20;
const MAX_START: Duration = Duration::from_secs(1);
const MIN_LAST_TO_FIRST: f64 = 0.8;

/// From how many events on the throughput at the end is held against that at the beginning.
const LONG: u64 = 1_000_000;

/// A webhook of Gu1 of the usual size, one of three of its verification.
fn body(number: u64) -> String {
    let verification = number / 3;
    format!(
        r#"{{"event":"kyc.validation_approved","timestamp":"2026-05-28T20:{:02}:{:02}Z","organizationId":"org-soak","payload":{{"id":"val-{verification}","entityId":"ent-{verification}","entityName":"Somebody {number}","validationSessionId":"session-{number}","status":"approved","previousStatus":"in_progress","verifiedFields":["name","dateOfBirth","documentNumber","address"],"extractedData":{{"firstName":"Some","lastName":"Body {number}","dateOfBirth":"1990-01-01","documentNumber":"X{number:09}","nationality":"ARG","address":"Example Street {number}, Example Town"}},"warnings":[],"decision":{{"score":0.97,"provider":"internal","notes":"{}"}},"metadata":{{"flow":"onboarding","channel":"mobile"}}}}}}"#,
        number % 60,
        number / 60 % 60,
        "x".repeat(200),
    )
}

/// Sends one event in `STREAMS` over a stream of its own, and tells of each answer.
async fn send(endpoint: String, stream: u64, events: u64, accepted: mpsc::Sender<()>) {
    let mut client = VerdictServiceClient::new(connect(&endpoint).await);
    let (requests, queue) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        let source = fixture_source("gu1");
        for number in (stream..events).step_by(STREAMS as usize) {
            let webhook = sign(&source, body(number));
            let request = IngestStreamRequest {
                correlation_id: String::new(),
                request: Some(request("gu1", &webhook)),
            };
            if requests.send(request).await.is_err() {
                return;
            }
        }
    });
    let answers = client.ingest_stream(ReceiverStream::new(queue)).await;
    let mut answers = answers.expect("the server takes streams").into_inner();
    while let Some(answer) = answers.next().await {
        match answer.expect("the stream goes on").result {
            Some(Answered::Response(response)) => {
                assert_eq!(response.status(), IngestStatus::Accepted);
            }
            other => panic!("not taken: {other:?}"),
        }
        accepted.send(()).await.expect("somebody counts");
    }
}

/// How fast the first and the last tenth were, in events a second. The very first hundredth warms up.
struct Throughput {
    first: f64,
    last: f64,
    whole: f64,
}

async fn throughput(endpoint: &str, events: u64) -> Throughput {
    let (accepted, mut answers) = mpsc::channel(4096);
    for stream in 0..STREAMS {
        tokio::spawn(send(endpoint.to_owned(), stream, events, accepted.clone()));
    }
    drop(accepted);
    let marks = [
        0,
        events / 100,
        events / 100 + events / 10,
        events - events / 10,
        events,
    ];
    let mut times = vec![Instant::now()];
    let mut count = 0;
    while answers.recv().await.is_some() {
        count += 1;
        if marks[1..].contains(&count) {
            times.push(Instant::now());
        }
    }
    assert_eq!(count, events, "events were accepted");
    let rate = |from: usize, to: usize| {
        (marks[to] - marks[from]) as f64 / (times[to] - times[from]).as_secs_f64()
    };
    Throughput {
        first: rate(1, 2),
        last: rate(3, 4),
        whole: rate(0, 4),
    }
}

/// What the files take on the disk. (fjall's journal is longer than that: it has holes.)
fn size_bytes(directory: &Path) -> u64 {
    let mut size = 0;
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let entry = entry.expect("an entry");
        size += match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_bytes(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            // Deleted meanwhile.
            Err(_) => 0,
        };
    }
    size
}

/// Kills the server and starts it again on the full log.
fn start_again(place: &Place, mut serving: Serving) -> (Serving, Duration) {
    serving.kill();
    let begun = Instant::now();
    (place.serve(), begun.elapsed())
}

/// `VERDICT_SOAK_EVENTS` says how many events; `make soak` does ten million.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
async fn memory_and_disk_stay_bounded_and_nothing_gets_slower() {
    let events = env::var("VERDICT_SOAK_EVENTS").map_or(20_000, |events| {
        events.parse::<u64>().expect("a number of events")
    });
    // About a quarter of what comes, and at most 4 GiB.
    let max_bytes = (events * 600).min(4 << 30);
    let place = Place::new();
    place.configure(&format!(
        "[log.retention]\nevents_max_bytes = {max_bytes}\n"
    ));
    let serving = place.serve();
    let throughput = throughput(&serving.endpoint, events).await;
    let resident_bytes = serving.resident_bytes();
    let log_bytes = size_bytes(&place.path("log"));
    let (serving, start) = start_again(&place, serving);
    let resident_after_start = serving.resident_bytes();

    let ratio = throughput.last / throughput.first;
    println!("events                {events}");
    println!("events/s              {:.0}", throughput.whole);
    println!(
        "first and last tenth  {:.0} and {:.0} events/s, ratio {ratio:.2}",
        throughput.first, throughput.last
    );
    println!("resident at the end   {} MiB", resident_bytes >> 20);
    println!(
        "log on disk           {} MiB, of {} MiB retained events",
        log_bytes >> 20,
        max_bytes >> 20
    );
    println!(
        "start on the full log {start:?} after SIGKILL, {} MiB resident",
        resident_after_start >> 20
    );

    assert!(resident_bytes < MAX_RESIDENT_BYTES);
    // Beside the events: the index, and a segment that is not finished.
    assert!(
        log_bytes < max_bytes + max_bytes / 2 + (80 << 20),
        "{log_bytes} bytes"
    );
    if events >= LONG {
        assert!(ratio >= MIN_LAST_TO_FIRST, "it gets slower");
        assert!(start < MAX_START, "it starts slowly");
    }
}
