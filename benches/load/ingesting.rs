//! Webhooks in: unary, over streams, and one at a time to a subscriber.

use std::{
    fs::File,
    io::{Seek, Write},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hdrhistogram::Histogram;
use prost::Message;
use verdict::proto::{Latest, SubscribeRequest, subscribe_request::Start};

use crate::{
    Size,
    client::{
        self, ECHO, ECHO_STREAM, INGEST, INGEST_STREAM, SUBSCRIBE, call, connect, histogram,
        subscribe,
    },
    process::{Server, settle},
    report::{Goals, Row, head, percentiles},
    webhooks::Webhooks,
};

/// How large the messages of the baseline are: as large as the webhooks.
const ECHO_BYTES: usize = 900;

/// How many messages wait for their answers, of all streams together.
pub(crate) const AHEAD: usize = 1024;

/// `google.protobuf.BytesValue`.
pub(crate) fn bytes_value(bytes: &[u8]) -> Bytes {
    bytes.to_vec().encode_to_vec().into()
}

fn echoes(count: u64) -> Vec<Bytes> {
    vec![bytes_value(&[7; ECHO_BYTES]); count as usize]
}

/// Unary calls, this many in flight.
pub(crate) async fn unary(size: Size, in_flight: usize, goals: &mut Goals) {
    settle().await;
    let (baseline, verdict) = (Server::baseline(), Server::verdict());
    let webhooks = Webhooks::new();
    let (mut echo, mut ingest) = (Row::default(), Row::default());
    for round in 0..size.rounds {
        let requests = echoes(size.events);
        let work = client::unary(&baseline.url, ECHO, requests, in_flight);
        echo.measure(&baseline, work).await;
        let first = round * size.events;
        let requests = webhooks.unary(first..first + size.events);
        let work = client::unary(&verdict.url, INGEST, requests, in_flight);
        ingest.measure(&verdict, work).await;
    }
    head(&format!("Unary, {in_flight} in flight"));
    echo.print("echo");
    ingest.print("Ingest, durable");
    println!("\nratio **{:.2}**\n", ingest.ratio_to(&echo));
    let what = format!("durable unary Ingest to unary echo, {in_flight} in flight");
    match in_flight {
        256 => goals.at_least(&what, 0.75, ingest.ratio_to(&echo), ""),
        // Twice the 17,060 a second of UmaDB with a unique condition, on such a machine.
        _ => goals.at_least(
            "durable unary Ingest a second, 64 in flight: twice UmaDB",
            34_120.0,
            ingest.per_second(),
            "",
        ),
    }
    let most = 1.5 * echo.p99() as f64 + syncs().value_at_quantile(0.5) as f64;
    let what = format!("its p99 to 1.5 × that of echo and one sync, {in_flight} in flight");
    goals.at_most(&what, 1.0, ingest.p99() as f64 / most, "");
}

/// Streams in both directions.
pub(crate) async fn streams(size: Size, goals: &mut Goals) {
    settle().await;
    let (baseline, verdict) = (Server::baseline(), Server::verdict());
    let webhooks = Webhooks::new();
    let (mut echo, mut ingest) = (Row::default(), Row::default());
    for round in 0..size.rounds {
        let requests = echoes(5 * size.events);
        let work = client::streams(&baseline.url, ECHO_STREAM, requests, AHEAD);
        echo.measure(&baseline, work).await;
        let first = round * size.events;
        let requests = webhooks.stream(first..first + size.events);
        let work = client::streams(&verdict.url, INGEST_STREAM, requests, AHEAD);
        ingest.measure(&verdict, work).await;
    }
    head(&format!("Bidirectional streams, {AHEAD} in flight"));
    echo.print("echo stream");
    ingest.print("IngestStream, durable");
    println!("\nratio **{:.2}**\n", ingest.ratio_to(&echo));
    goals.at_least(
        "durable IngestStream to the echo stream",
        0.4,
        ingest.ratio_to(&echo),
        "",
    );
}

/// From a webhook to a subscriber, one at a time.
pub(crate) async fn latency(goals: &mut Goals) {
    const COUNT: u64 = 2000;
    settle().await;
    let (baseline, verdict) = (Server::baseline(), Server::verdict());
    let webhooks = Webhooks::new().unary(0..COUNT);
    let (echo_channel, channel) = (connect(&baseline.url).await, connect(&verdict.url).await);
    let request = SubscribeRequest {
        start: Some(Start::Latest(Latest {})),
        ..Default::default()
    };
    let subscriber = connect(&verdict.url).await;
    let mut events = subscribe(&subscriber, SUBSCRIBE, request.encode_to_vec().into()).await;
    // That it has caught up.
    events.message().await.expect("no error");
    let message = bytes_value(&[7; ECHO_BYTES]);
    let (mut echo, mut answered, mut delivered) = (histogram(), histogram(), histogram());
    for webhook in webhooks {
        let begun = Instant::now();
        call(&echo_channel, ECHO, message.clone()).await;
        echo.saturating_record(elapsed(begun));
        let begun = Instant::now();
        let ingest = async {
            call(&channel, INGEST, webhook).await;
            elapsed(begun)
        };
        let event = async {
            events.message().await.expect("no error").expect("an event");
            elapsed(begun)
        };
        let (one, other) = tokio::join!(ingest, event);
        answered.saturating_record(one);
        delivered.saturating_record(other);
    }
    let (sync, in_place) = (syncs(), syncs_in_place());
    println!("## One at a time\n\n| what | p50 / p99 / p99.9 |\n|---|---|");
    println!("| echo | {} |", percentiles(&echo));
    println!(
        "| one append and fdatasync of 2 kB | {} |",
        percentiles(&sync)
    );
    println!("| the same, over zeros | {} |", percentiles(&in_place));
    println!("| Ingest to its answer | {} |", percentiles(&answered));
    println!(
        "| Ingest to the subscriber | {} |\n",
        percentiles(&delivered)
    );
    let p50 = |latency: &Histogram<u64>| latency.value_at_quantile(0.5) as f64;
    goals.at_most(
        "Ingest to Subscribe beyond an echo and a sync, p50",
        150.0,
        p50(&delivered) - p50(&echo) - p50(&sync),
        " µs",
    );
}

fn elapsed(begun: Instant) -> u64 {
    let elapsed: Duration = begun.elapsed();
    (elapsed.as_micros() as u64).max(1)
}

/// What is synced, and how many times.
const SYNCED: [u8; 2000] = [7; 2000];
const SYNCS: usize = 1000;

/// What a sync costs here.
fn syncs() -> Histogram<u64> {
    time_syncs(&mut scratch_file())
}

/// What it costs when the file has its length already, and its bytes their place.
fn syncs_in_place() -> Histogram<u64> {
    let mut file = scratch_file();
    file.write_all(&vec![0; SYNCED.len() * SYNCS])
        .expect("room");
    file.sync_data().expect("a disk");
    file.rewind().expect("a file");
    time_syncs(&mut file)
}

fn scratch_file() -> File {
    tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("a file")
}

fn time_syncs(file: &mut File) -> Histogram<u64> {
    let mut latency = histogram();
    for _ in 0..SYNCS {
        let begun = Instant::now();
        file.write_all(&SYNCED).expect("room");
        file.sync_data().expect("a disk");
        latency.saturating_record(elapsed(begun));
    }
    latency
}
