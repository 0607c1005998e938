//! How fast verdict is, next to services that do nothing: the real server and the baseline, each a process of its own, are
//! measured in turns, and what counts is the ratio of the two in one run.
//!
//! `cargo bench --bench load` prints tables. `VERDICT_BENCH_ROUNDS` and `VERDICT_BENCH_EVENTS` (of each measurement) make it
//! shorter or longer; `VERDICT_BENCH_ONLY` names the parts that are to run: unary, stream, latency, catch-up, fan-out, idle.

#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

mod baseline;
mod client;
mod parts;
mod process;
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
}

#[tokio::main]
async fn main() {
    if env::args().any(|argument| argument == BASELINE) {
        return baseline::serve().await;
    }
    let size = Size {
        rounds: number("VERDICT_BENCH_ROUNDS", 5),
        events: number("VERDICT_BENCH_EVENTS", 100_000),
    };
    let only = env::var("VERDICT_BENCH_ONLY").unwrap_or_default();
    let wanted = |part: &str| only.is_empty() || only.split(',').any(|name| name == part);
    report::machine();
    if wanted("unary") {
        parts::unary(size, 256).await;
        parts::unary(size, 64).await;
    }
    if wanted("stream") {
        parts::stream(size).await;
    }
    if wanted("latency") {
        parts::latency().await;
    }
    if wanted("catch-up") {
        parts::catch_up(size).await;
    }
    if wanted("fan-out") {
        parts::fan_out(size).await;
    }
    if wanted("idle") {
        parts::idle().await;
    }
}
