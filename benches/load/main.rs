//! How fast verdict is, next to services that do nothing: the real server and the baseline, each a process of its own, are
//! measured in turns, and what counts is the ratio of the two in one run.
//!
//! `cargo bench --bench load` prints tables, and the goals. `VERDICT_BENCH_ROUNDS`, `VERDICT_BENCH_EVENTS` (of each measurement)
//! and `VERDICT_BENCH_GROWTH` (events in the log) make it shorter or longer; `VERDICT_BENCH_ONLY` names the parts that are to
//! run: unary, stream, latency, catch-up, fan-out, idle, growth.

#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

mod baseline;
mod client;
mod growth;
mod ingesting;
mod process;
mod reading;
mod report;
mod webhooks;

use std::env;

use mimalloc::MiMalloc;

/// The same as that of verdict: the baseline is to differ in what it does.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The argument by which this program is the baseline.
const BASELINE: &str = "--serve-the-baseline";

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// How much is measured.
#[derive(Clone, Copy)]
struct Size {
    rounds: u64,
    events: u64,
    /// How many events the log comes to have.
    growth: u64,
}

#[tokio::main]
async fn main() {
    if env::args().any(|argument| argument == BASELINE) {
        return baseline::serve().await;
    }
    let size = Size {
        rounds: number("VERDICT_BENCH_ROUNDS", 5),
        events: number("VERDICT_BENCH_EVENTS", 100_000),
        growth: number("VERDICT_BENCH_GROWTH", 1_000_000),
    };
    let only = env::var("VERDICT_BENCH_ONLY").unwrap_or_default();
    let wanted = |part: &str| only.is_empty() || only.split(',').any(|name| name == part);
    let mut goals = report::Goals::default();
    report::machine();
    if wanted("unary") {
        ingesting::unary(size, 256, &mut goals).await;
        ingesting::unary(size, 64, &mut goals).await;
    }
    if wanted("stream") {
        ingesting::streams(size, &mut goals).await;
    }
    if wanted("latency") {
        ingesting::latency(&mut goals).await;
    }
    if wanted("catch-up") {
        reading::catch_up(size, &mut goals).await;
    }
    if wanted("fan-out") {
        reading::subscribers(size, &mut goals).await;
    }
    if wanted("idle") {
        reading::idle(&mut goals).await;
    }
    if wanted("growth") {
        growth::events(size, &mut goals).await;
        growth::verifications(&mut goals).await;
        growth::subscribers(size, &mut goals).await;
    }
    goals.print();
}
