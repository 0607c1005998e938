//! Recorded histories, in the manner of Jepsen: clients do what they like while the server is killed again and again, and
//! afterwards a checker asks whether what they saw keeps verdict's promises.
//!
//! `make test` does a short run, `make history` one of a million operations. A run prints its seed; with
//! `VERDICT_HISTORY_SEED` its clients make the same choices again, though not at the same moments.

mod checker;
mod consumers;
mod content;
mod driver;
mod planted;
mod record;
mod recorder;
mod senders;
mod server;
mod story;
mod stream_senders;
mod subscribers;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

use self::{
    checker::{Evidence, Violation},
    driver::{Settings, World},
    record::{Answer, EventNo, History},
};

/// Enough for half a minute of a debug build.
const OPERATIONS: u64 = 30_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(
    clippy::print_stdout,
    reason = "a failure is looked into with the seed"
)]
async fn no_promise_is_broken_while_the_server_is_killed() {
    let settings = Settings::from_environment(OPERATIONS);
    println!("VERDICT_HISTORY_SEED={}", settings.seed);
    let begin = Instant::now();
    let (history, world) = driver::run(settings).await;
    let ran = begin.elapsed();
    let violations = checker::check(&history);
    println!("{}", summary(&history, &world, &violations));
    println!(
        "ran for {ran:.1?}, checked in {:.1?}",
        begin.elapsed() - ran
    );
    for violation in violations.iter().take(5) {
        println!("{}", explain(&history, violation));
    }
    assert_eq!(violations.len(), 0, "seed {}", settings.seed);
}

fn summary(history: &History, world: &World, violations: &[Violation]) -> String {
    let History {
        ingests,
        reads,
        streams,
        commits,
        ..
    } = history;
    let operations = ingests.len() + reads.len() + streams.len() + commits.len();
    let mut kinds: BTreeMap<_, u64> = BTreeMap::new();
    for violation in violations {
        *kinds.entry(violation.kind).or_default() += 1;
    }
    let mut answers = [0; 4];
    for ingest in ingests {
        let answer = match ingest.answer {
            Answer::Accepted(_) => 0,
            Answer::Duplicate(_) => 1,
            Answer::Quarantined => 2,
            Answer::Ignored | Answer::Failed(_) => 3,
        };
        answers[answer] += 1;
    }
    let [accepted, duplicate, quarantined, unknown] = answers;
    let count = |counter: &AtomicU64| counter.load(Relaxed);
    format!(
        "operations: {operations} ({} ingests: {accepted} accepted, {duplicate} duplicate, {quarantined} quarantined, \
         {unknown} without an answer; {} subscriptions, {} reads, {} commits)\n\
         events in the log: {}\n\
         events delivered to subscribers: {}\n\
         faults: {} kills, {} reconnects, {} stalls\n\
         violations: {} {kinds:?}",
        ingests.len(),
        streams.len(),
        reads.len(),
        commits.len(),
        history.log.len(),
        count(&world.delivered),
        history.downtimes.len(),
        count(&world.reconnects),
        count(&world.stalls),
        violations.len(),
    )
}

/// A violation with what the history says about it.
fn explain(history: &History, violation: &Violation) -> String {
    let Violation { kind, evidence } = violation;
    let mut text = format!("{kind:?}, {evidence:?}");
    let event = match *evidence {
        Evidence::Ingest(ingest) => Some(history.ingests[ingest].event),
        Evidence::Read(read) => Some(history.reads[read].event),
        Evidence::Item(item) => sent(history, item),
        Evidence::Log(index) => sent(history, history.log[index]),
        Evidence::Commit(commit) => {
            text.push_str(&format!("\n  {:?}", history.commits[commit]));
            None
        }
        Evidence::Stream {
            stream,
            message,
            event,
        } => {
            let stream = &history.streams[stream];
            let around = message.saturating_sub(3)..stream.messages.len().min(message + 3);
            text.push_str(&format!(
                "\n  {:?} {:?} stop: {} {:?} opened: {:?} {:?}\n  around: {:?}",
                stream.start,
                stream.filter,
                stream.stop_when_caught_up,
                stream.span,
                stream.opened,
                stream.end,
                &stream.messages[around],
            ));
            event
        }
    };
    if let Some(event) = event {
        text.push_str(&of_event(history, event));
    }
    text
}

fn sent(history: &History, item: record::ItemNo) -> Option<EventNo> {
    let (event, _) = history.items[item as usize].sent?;
    Some(event)
}

/// All that is known of an event.
fn of_event(history: &History, event: EventNo) -> String {
    let contents = history.events.get(event as usize);
    let mut text = format!("\n  event {event}: {contents:?}");
    for ingest in history
        .ingests
        .iter()
        .filter(|ingest| ingest.event == event)
    {
        text.push_str(&format!("\n  {ingest:?}"));
    }
    for (number, item) in (0..).zip(&history.items) {
        if item.sent.is_some_and(|(sent, _)| sent == event) {
            let index = history.log.iter().position(|other| *other == number);
            text.push_str(&format!(
                "\n  item {number}, at {index:?} of the log: {item:?}"
            ));
        }
    }
    text
}
