//! Events out: to one subscriber that catches up, to many that follow, and to none.

use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use verdict::proto::{Earliest, EventFilter, Latest, SubscribeRequest, subscribe_request::Start};

use crate::{
    Size,
    client::{self, INGEST_STREAM, Measured, RAW_STREAM, SUBSCRIBE, connect, drain, subscribe},
    ingesting::{AHEAD, bytes_value},
    process::{Server, settle},
    report::{Goals, Row, head, micros},
    webhooks::Webhooks,
};

fn from_earliest(filter: Option<EventFilter>) -> Bytes {
    let request = SubscribeRequest {
        start: Some(Start::Earliest(Earliest {})),
        stop_when_caught_up: true,
        filter,
        ..Default::default()
    };
    request.encode_to_vec().into()
}

fn from_latest() -> Bytes {
    let request = SubscribeRequest {
        start: Some(Start::Latest(Latest {})),
        ..Default::default()
    };
    request.encode_to_vec().into()
}

/// One subscriber that reads everything, and one that wants one event in a thousand.
pub(crate) async fn catch_up(size: Size, goals: &mut Goals) {
    settle().await;
    let (baseline, verdict) = (Server::baseline(), Server::verdict());
    let events = 4 * size.events;
    // Each verification has three events.
    let verifications = Webhooks::new();
    let wanted: Vec<String> = (0..events / 15)
        .step_by(200)
        .map(|verification| format!("val-{verification}"))
        .collect();
    let few = EventFilter {
        verification_ids: wanted,
        ..Default::default()
    };
    let webhooks = verifications.stream(0..events);
    client::streams(&verdict.url, INGEST_STREAM, webhooks, AHEAD).await;
    let (mut raw, mut all, mut filtered) = (Row::default(), Row::default(), Row::default());
    let mut found = 0;
    for _ in 0..size.rounds {
        let request = bytes_value(&events.to_be_bytes());
        read(&baseline, RAW_STREAM, request, events, &mut raw).await;
        let read_all = read(&verdict, SUBSCRIBE, from_earliest(None), events, &mut all).await;
        assert!(read_all >= events, "{read_all} of {events}");
        let request = from_earliest(Some(few.clone()));
        found = read(&verdict, SUBSCRIBE, request, events, &mut filtered).await;
    }
    head(&format!("Catching up with {events} events"));
    raw.print("raw stream of 600 bytes");
    all.print("Subscribe from earliest");
    filtered.print(&format!("the same, filtered: {} match", found - 1));
    println!("\nratio **{:.2}**", all.ratio_to(&raw));
    println!(
        "filtered to unfiltered: **{:.2}**\n",
        filtered.ratio_to(&all)
    );
    goals.at_least(
        "catch-up of one subscriber to the raw stream",
        0.6,
        all.ratio_to(&raw),
        "",
    );
    let what = "a filter that one event in a thousand passes to none";
    goals.at_least(what, 3.0, filtered.ratio_to(&all), " ×");
}

/// Takes all messages of a stream that passes so many events.
async fn read(
    server: &Server,
    path: &'static str,
    request: Bytes,
    events: u64,
    row: &mut Row,
) -> u64 {
    let channel = connect(&server.url).await;
    let mut messages = 0;
    let work = async {
        let begun = Instant::now();
        messages = drain(subscribe(&channel, path, request).await).await;
        Measured {
            count: events,
            took: begun.elapsed(),
            // Of none: nobody waits for a certain event.
            latency: client::histogram(),
        }
    };
    row.measure(server, work).await;
    messages
}

/// Opens a stream that has caught up.
async fn follow(channel: &Channel) -> tonic::Streaming<Bytes> {
    let mut events = subscribe(channel, SUBSCRIBE, from_latest()).await;
    events.message().await.expect("no error");
    events
}

/// What it takes to hand events to so many live subscribers.
pub(crate) struct FanOut {
    pub(crate) per_second: f64,
    pub(crate) cpu: Duration,
    pub(crate) deliveries: u64,
    resident_bytes: u64,
}

/// Sends so many events to so many live subscribers.
pub(crate) async fn fan_out(events: u64, subscribers: usize) -> FanOut {
    let verdict = Server::verdict();
    let channels = client::connections(&verdict.url).await;
    let mut following = JoinSet::new();
    for index in 0..subscribers {
        let mut stream = follow(&channels[index % channels.len()]).await;
        following.spawn(async move {
            for _ in 0..events {
                stream.message().await.expect("no error").expect("an event");
            }
        });
    }
    let webhooks = Webhooks::new().stream(0..events);
    let (before, begun) = (verdict.processor_time(), Instant::now());
    client::streams(&verdict.url, INGEST_STREAM, webhooks, AHEAD).await;
    while following.join_next().await.is_some() {}
    let deliveries = events * subscribers as u64;
    FanOut {
        per_second: deliveries as f64 / begun.elapsed().as_secs_f64(),
        cpu: verdict.processor_time() - before,
        deliveries,
        resident_bytes: verdict.resident_bytes(),
    }
}

/// A hundred live subscribers, and what an idle one takes.
pub(crate) async fn subscribers(size: Size, goals: &mut Goals) {
    const LIVE: usize = 100;
    settle().await;
    let live = fan_out(size.events / 2, LIVE).await;
    let idle = idle_subscriber_bytes().await;
    println!("## {LIVE} live subscribers\n");
    println!(
        "{:.0} deliveries a second, {:.2} µs of server CPU each, {} MiB resident; an idle subscriber takes {:.1} KiB\n",
        live.per_second,
        micros(live.cpu, live.deliveries),
        live.resident_bytes >> 20,
        idle / 1024.0
    );
    let what = "deliveries a second to 100 live subscribers";
    goals.at_least(what, 1e6, live.per_second, "");
    goals.at_most("memory of an idle subscriber", 32.0, idle / 1024.0, " KiB");
}

async fn idle_subscriber_bytes() -> f64 {
    const IDLE: usize = 1000;
    let verdict = Server::verdict();
    let channels = client::connections(&verdict.url).await;
    let before = verdict.resident_bytes();
    let mut idle = Vec::new();
    for index in 0..IDLE {
        idle.push(follow(&channels[index % channels.len()]).await);
    }
    verdict.resident_bytes().saturating_sub(before) as f64 / IDLE as f64
}

/// A server that nobody uses.
pub(crate) async fn idle(goals: &mut Goals) {
    const LOOK: Duration = Duration::from_secs(20);
    let verdict = Server::verdict();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = verdict.processor_time();
    tokio::time::sleep(LOOK).await;
    let cpu = verdict.processor_time() - before;
    let resident = verdict.resident_bytes() as f64 / 1_048_576.0;
    let percent = 100.0 * cpu.as_secs_f64() / LOOK.as_secs_f64();
    println!("## Idle\n\n{resident:.1} MiB resident, {percent:.2} % of one core\n");
    goals.at_most("resident memory of an idle server", 25.0, resident, " MiB");
    goals.at_most("processor of an idle server", 0.1, percent, " %");
}
