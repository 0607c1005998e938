//! What is measured.

use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use verdict::proto::{Earliest, EventFilter, Latest, SubscribeRequest, subscribe_request::Start};

use crate::{
    Size,
    client::{
        self, ECHO, ECHO_STREAM, INGEST, INGEST_STREAM, Measured, RAW_STREAM, SUBSCRIBE, call,
        connect, drain, histogram, subscribe,
    },
    process::Server,
    report::{median, micros, percentiles},
    webhooks::Webhooks,
};

/// How large the messages of the baseline are.
const ECHO_BYTES: usize = 900;

/// `google.protobuf.BytesValue`.
fn bytes_value(bytes: &[u8]) -> Bytes {
    bytes.to_vec().encode_to_vec().into()
}

fn echoes(count: u64) -> Vec<Bytes> {
    vec![bytes_value(&[7; ECHO_BYTES]); count as usize]
}

/// One row: the rounds of a service.
#[derive(Default)]
struct Row {
    per_second: Vec<f64>,
    cpu_micros: Vec<f64>,
    latency: Option<hdrhistogram::Histogram<u64>>,
}

impl Row {
    fn add(&mut self, measured: &Measured, cpu: Duration) {
        self.per_second.push(measured.per_second());
        self.cpu_micros.push(micros(cpu, measured.count));
        let all = self.latency.get_or_insert_with(histogram);
        all.add(&measured.latency).expect("the same bounds");
    }

    fn print(&self, name: &str) {
        let latency = self.latency.as_ref().filter(|latency| !latency.is_empty());
        println!(
            "| {name} | {:.0} | {:.1} | {} |",
            median(self.per_second.iter().copied()),
            median(self.cpu_micros.iter().copied()),
            latency.map_or(String::new(), percentiles),
        );
    }
}

fn head(title: &str) {
    println!("### {title}\n");
    println!(
        "| service | per second | server CPU, µs each | p50 / p99 / p99.9 |\n|---|---|---|---|"
    );
}

fn ratio(of: &Row, to: &Row) {
    let ratios = of
        .per_second
        .iter()
        .zip(&to.per_second)
        .map(|(of, to)| of / to);
    println!("\nratio **{:.2}**\n", median(ratios));
}

/// Unary calls, this many in flight.
pub(crate) async fn unary(size: Size, in_flight: usize) {
    let (baseline, verdict) = (Server::baseline(), Server::verdict());
    let webhooks = Webhooks::new();
    let (mut echo, mut ingest) = (Row::default(), Row::default());
    for round in 0..size.rounds {
        let before = baseline.processor_time();
        let measured = client::unary(&baseline.url, ECHO, echoes(size.events), in_flight).await;
        echo.add(&measured, baseline.processor_time() - before);
        let first = round * size.events;
        let requests = webhooks.unary(first..first + size.events);
        let before = verdict.processor_time();
        let measured = client::unary(&verdict.url, INGEST, requests, in_flight).await;
        ingest.add(&measured, verdict.processor_time() - before);
    }
    head(&format!("Unary, {in_flight} in flight"));
    echo.print("echo");
    ingest.print("Ingest, durable");
    ratio(&ingest, &echo);
    println!("resident: {} MiB\n", verdict.resident_bytes() >> 20);
}

/// Streams in both directions.
pub(crate) async fn stream(size: Size) {
    const AHEAD: usize = 1024;
    let (baseline, verdict) = (Server::baseline(), Server::verdict());
    let webhooks = Webhooks::new();
    let (mut echo, mut ingest) = (Row::default(), Row::default());
    for round in 0..size.rounds {
        let before = baseline.processor_time();
        let measured =
            client::streams(&baseline.url, ECHO_STREAM, echoes(5 * size.events), AHEAD).await;
        echo.add(&measured, baseline.processor_time() - before);
        let first = round * size.events;
        let requests = webhooks.stream(first..first + size.events);
        let before = verdict.processor_time();
        let measured = client::streams(&verdict.url, INGEST_STREAM, requests, AHEAD).await;
        ingest.add(&measured, verdict.processor_time() - before);
    }
    head(&format!("Bidirectional streams, {AHEAD} in flight"));
    echo.print("echo stream");
    ingest.print("IngestStream, durable");
    ratio(&ingest, &echo);
}

/// From a webhook to a subscriber, one at a time.
pub(crate) async fn latency() {
    const COUNT: u64 = 2000;
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
    println!("### One at a time\n\n| what | p50 / p99 / p99.9 |\n|---|---|");
    println!("| echo | {} |", percentiles(&echo));
    println!(
        "| one append and fdatasync of 2 kB | {} |",
        percentiles(&syncs())
    );
    println!("| Ingest to its answer | {} |", percentiles(&answered));
    println!(
        "| Ingest to the subscriber | {} |\n",
        percentiles(&delivered)
    );
}

fn elapsed(begun: Instant) -> u64 {
    (begun.elapsed().as_micros() as u64).max(1)
}

/// What a sync costs here.
fn syncs() -> hdrhistogram::Histogram<u64> {
    use std::io::Write;
    let mut file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
    let mut latency = histogram();
    for _ in 0..1000 {
        let begun = Instant::now();
        file.write_all(&[7; 2000]).expect("room");
        file.sync_data().expect("a disk");
        latency.saturating_record(elapsed(begun));
    }
    latency
}

fn from_earliest(filter: Option<EventFilter>) -> Bytes {
    let request = SubscribeRequest {
        start: Some(Start::Earliest(Earliest {})),
        stop_when_caught_up: true,
        filter,
        ..Default::default()
    };
    request.encode_to_vec().into()
}

/// One subscriber that reads everything, and one that wants one event in a thousand.
pub(crate) async fn catch_up(size: Size) {
    let (baseline, verdict) = (Server::baseline(), Server::verdict());
    let events = 4 * size.events;
    let webhooks = Webhooks::new().stream(0..events);
    client::streams(&verdict.url, INGEST_STREAM, webhooks, 1024).await;
    let few = EventFilter {
        external_ids: vec!["nobody".to_owned()],
        ..Default::default()
    };
    let (mut raw, mut all, mut filtered) = (Row::default(), Row::default(), Row::default());
    for _ in 0..size.rounds {
        for (row, server, path, request, count) in [
            (
                &mut raw,
                &baseline,
                RAW_STREAM,
                bytes_value(&events.to_be_bytes()),
                events,
            ),
            (&mut all, &verdict, SUBSCRIBE, from_earliest(None), events),
            (
                &mut filtered,
                &verdict,
                SUBSCRIBE,
                from_earliest(Some(few.clone())),
                0,
            ),
        ] {
            let channel = connect(&server.url).await;
            let (before, begun) = (server.processor_time(), Instant::now());
            let messages = drain(subscribe(&channel, path, request).await).await;
            assert!(messages >= count, "{messages} of {count}");
            let measured = Measured {
                count: events,
                took: begun.elapsed(),
                latency: histogram(),
            };
            row.add(&measured, server.processor_time() - before);
        }
    }
    head(&format!("Catching up with {events} events"));
    raw.print("raw stream of 600 bytes");
    all.print("Subscribe from earliest");
    filtered.print("the same, with a filter that none passes");
    ratio(&all, &raw);
    println!("filtered to unfiltered:");
    ratio(&filtered, &all);
}

/// A hundred live subscribers, and what an idle one takes.
pub(crate) async fn fan_out(size: Size) {
    const SUBSCRIBERS: usize = 100;
    const IDLE: u64 = 1000;
    let verdict = Server::verdict();
    let latest = SubscribeRequest {
        start: Some(Start::Latest(Latest {})),
        ..Default::default()
    };
    let latest = Bytes::from(latest.encode_to_vec());
    let channels = client::connections(&verdict.url).await;
    let before = verdict.resident_bytes();
    let mut idle = Vec::new();
    for index in 0..IDLE as usize {
        let channel = &channels[index % channels.len()];
        let mut events = subscribe(channel, SUBSCRIBE, latest.clone()).await;
        events.message().await.expect("no error");
        idle.push(events);
    }
    let each = (verdict.resident_bytes().saturating_sub(before)) / IDLE;
    drop(idle);
    drop(channels);

    let channels = client::connections(&verdict.url).await;
    let mut subscribers = tokio::task::JoinSet::new();
    let events = size.events / 2;
    for index in 0..SUBSCRIBERS {
        let channel = &channels[index % channels.len()];
        let mut stream = subscribe(channel, SUBSCRIBE, latest.clone()).await;
        stream.message().await.expect("no error");
        subscribers.spawn(async move {
            for _ in 0..events {
                stream.message().await.expect("no error").expect("an event");
            }
        });
    }
    let webhooks = Webhooks::new().stream(0..events);
    let (before, begun) = (verdict.processor_time(), Instant::now());
    client::streams(&verdict.url, INGEST_STREAM, webhooks, 1024).await;
    while subscribers.join_next().await.is_some() {}
    let deliveries = events * SUBSCRIBERS as u64;
    let (took, cpu) = (begun.elapsed(), verdict.processor_time() - before);
    println!("### {SUBSCRIBERS} live subscribers\n");
    println!(
        "{:.0} deliveries a second, {:.2} µs of server CPU each; an idle subscriber takes {:.1} KiB\n",
        deliveries as f64 / took.as_secs_f64(),
        micros(cpu, deliveries),
        each as f64 / 1024.0
    );
}

/// A server that nobody uses.
pub(crate) async fn idle() {
    const LOOK: Duration = Duration::from_secs(10);
    let verdict = Server::verdict();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = verdict.processor_time();
    tokio::time::sleep(LOOK).await;
    let cpu = verdict.processor_time() - before;
    println!("### Idle\n");
    println!(
        "{:.1} MiB resident, {:.2} % of one core\n",
        verdict.resident_bytes() as f64 / 1_048_576.0,
        100.0 * cpu.as_secs_f64() / LOOK.as_secs_f64()
    );
}
