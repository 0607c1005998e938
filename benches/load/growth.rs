//! Whether anything costs more when there is more of it: events in the log, events of one verification, subscribers. And what
//! a start on a full log takes.

use crate::{
    Size,
    client::{self, INGEST_STREAM},
    ingesting::AHEAD,
    process::Server,
    reading,
    report::{Goals, median, micros},
    webhooks::Webhooks,
};

/// How many events one look at the cost is about: as many as there are, within these bounds. The index grows by 112,000 at once
/// and merges four times as many, so a look at a large log sees one of each. With ten thousand events nothing of it has begun.
const SMALL_WINDOW: u64 = 50_000;
const LARGE_WINDOW: u64 = 448_000;

/// How many events there are after the look at one verification or many.
const VERIFIED: u64 = 1_000_000;

/// How many webhooks are made beforehand.
const CHUNK: u64 = 100_000;

/// How much dearer the dearest of these is than the cheapest, in percent.
fn spread(costs: &[f64]) -> f64 {
    let most = costs.iter().copied().fold(f64::MIN, f64::max);
    let least = costs.iter().copied().fold(f64::MAX, f64::min);
    100.0 * (most / least - 1.0)
}

/// Sends webhooks, and says what each took of the server's processor, in microseconds, with what goes on behind it.
async fn ingest(verdict: &Server, webhooks: &Webhooks, from: u64, to: u64) -> f64 {
    let before = verdict.processor_time();
    let mut next = from;
    while next < to {
        let end = to.min(next + CHUNK);
        let requests = webhooks.stream(next..end);
        client::streams(&verdict.url, INGEST_STREAM, requests, AHEAD).await;
        next = end;
    }
    micros(verdict.processor_time() - before, to - from)
}

/// From ten thousand events up, each of another verification; then the start of a server that was killed.
pub(crate) async fn events(size: Size, goals: &mut Goals) {
    let mut verdict = Server::verdict();
    let webhooks = Webhooks::in_a_row(1);
    let (mut next, mut costs) = (0, Vec::new());
    println!("## Growth\n\n| events in the log | server CPU, µs for one more |\n|---|---|");
    for power in 4.. {
        let at = 10_u64.pow(power);
        if at > size.growth {
            break;
        }
        ingest(&verdict, &webhooks, next, at).await;
        let window = at.clamp(SMALL_WINDOW, LARGE_WINDOW);
        let cost = ingest(&verdict, &webhooks, at, at + window).await;
        println!("| {at} | {cost:.1} |");
        costs.push(cost);
        next = at + window;
    }
    let what = format!("spread of the cost of an event, to {} events", size.growth);
    goals.at_most(&what, 10.0, spread(&costs), " %");
    let took = verdict.start_again().as_secs_f64();
    let resident = verdict.resident_bytes() as f64 / 1_048_576.0;
    println!("\nstart on {next} events after a kill: {took:.2} s, {resident:.0} MiB resident\n");
    let what = format!("start on {next} events");
    goals.at_most(&what, 1.0, took, " s");
    goals.at_most("resident memory after that start", 150.0, resident, " MiB");
}

/// One verification for all events, and one for each.
pub(crate) async fn verifications(goals: &mut Goals) {
    let mut costs = Vec::new();
    println!("| verifications of {VERIFIED} events | server CPU, µs for one more |\n|---|---|");
    // One of each provider at least.
    for (verifications, in_a_row) in [(5, u64::MAX / 8), (VERIFIED, 1)] {
        let verdict = Server::verdict();
        let webhooks = Webhooks::in_a_row(in_a_row);
        let begin = VERIFIED - LARGE_WINDOW;
        ingest(&verdict, &webhooks, 0, begin).await;
        let cost = ingest(&verdict, &webhooks, begin, VERIFIED).await;
        println!("| {verifications} | {cost:.1} |");
        costs.push(cost);
    }
    let what = "spread of the cost of an event, from one verification to one for each event";
    goals.at_most(what, 10.0, spread(&costs), " %");
    println!();
}

/// From one subscriber to a thousand, what a delivery costs.
pub(crate) async fn subscribers(size: Size, goals: &mut Goals) {
    let mut costs = Vec::new();
    println!("| live subscribers | server CPU, µs for a delivery |\n|---|---|");
    for live in [1, 10, 100, 1000] {
        let events = (20 * size.events / live).clamp(5000, 2 * size.events);
        let mut looks = Vec::new();
        for _ in 0..size.rounds {
            let alone = reading::fan_out(events, 0).await;
            let heard = reading::fan_out(events, live as usize).await;
            let cpu = heard.cpu.saturating_sub(alone.cpu);
            looks.push(micros(cpu, heard.deliveries));
        }
        let cost = median(looks);
        println!("| {live} | {cost:.2} |");
        costs.push(cost);
    }
    let what = "spread of the cost of a delivery, from 1 to 1,000 subscribers";
    goals.at_most(what, 10.0, spread(&costs), " %");
    println!();
}
