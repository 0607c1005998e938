//! What the log knows of its events, while that wanders from memory into tables: nothing passes for new that is there, and no
//! verification falls back, whenever the log is closed or killed.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use fastrand::Rng;
use tempfile::TempDir;
use tokio::task::JoinSet;
use uuid::Uuid;
use verdict::{
    config::LogConfig,
    log::{Appended, EventLog, Position, embedded::EmbeddedLog},
};

use crate::{
    log::{ALL, decode, new_event},
    simulated_disk::SimulatedDisk,
    support::log_config,
};

const VERIFICATIONS: u128 = 7;

fn verification(number: u128) -> Option<u8> {
    Some((number % VERIFICATIONS) as u8)
}

/// Small segments make small portions: of 64 events.
fn open(disk: &SimulatedDisk, directory: &TempDir) -> Arc<EmbeddedLog> {
    let config = LogConfig {
        segment_bytes: 4000,
        ..log_config(directory.path())
    };
    let log = EmbeddedLog::open_on(Arc::new(disk.clone()), &config, Uuid::from_u128(7));
    Arc::new(log.expect("a log"))
}

/// Appends events, many at once, each of them twice. Those that were acknowledged.
async fn append(log: &Arc<EmbeddedLog>, numbers: std::ops::Range<u128>) -> Vec<u128> {
    let mut appending = JoinSet::new();
    for number in numbers.clone().chain(numbers) {
        let log = Arc::clone(log);
        appending.spawn(async move {
            let appended = log.append(new_event(number, verification(number), None));
            (number, appended.await)
        });
    }
    let mut new = Vec::new();
    while let Some(appended) = appending.join_next().await {
        match appended.expect("no panic") {
            (number, Ok(Appended::New(_))) => new.push(number),
            (_, Ok(Appended::Conflict(_))) => panic!("they are the same"),
            (_, Ok(Appended::Duplicate(_)) | Err(_)) => {}
        }
    }
    new
}

/// Everything that was acknowledged is known, once, and each verification stands at its newest event.
async fn check(log: &EmbeddedLog, acknowledged: &[u128]) {
    let mut positions = HashMap::new();
    let mut verifications: BTreeMap<u8, (u64, Position)> = BTreeMap::new();
    for event in log.read(Position(0), ALL).await.expect("events") {
        let id = Uuid::parse_str(&decode(&event).event_id).expect("an id");
        let before = positions.insert(id.as_u128(), event.position);
        assert_eq!(before, None, "event {id} is there twice");
        let key = verification(id.as_u128()).expect("one");
        let (revision, last) = verifications.entry(key).or_default();
        (*revision, *last) = (*revision + 1, event.position);
    }
    for number in acknowledged {
        let position = positions.get(number).copied();
        let position = position.unwrap_or_else(|| panic!("event {number} is lost"));
        let again = log.append(new_event(*number, verification(*number), None));
        assert_eq!(
            again.await.expect("a log that is well"),
            Appended::Duplicate(position)
        );
        let found = log.find(Uuid::from_u128(*number)).await.expect("an index");
        assert_eq!(found.map(|found| found.position), Some(position));
    }
    for (key, expected) in verifications {
        let state = log.verification([key; 32]).await.expect("an index");
        let state = state.expect("it has events");
        assert_eq!((state.revision, state.last), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_known_whether_they_are_in_memory_or_in_tables() {
    let directory = TempDir::new().expect("a directory");
    let disk = SimulatedDisk::new(1);
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let log = open(&disk, &directory);
        check(&log, &acknowledged).await;
        for step in 0..5 {
            let first = round * 1000 + step * 100;
            // From none to several portions more.
            acknowledged.extend(append(&log, first..first + 10 + step * 20).await);
            check(&log, &acknowledged).await;
        }
    }
    assert_eq!(acknowledged.len(), 3 * (5 * 10 + 10 * 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_while_tables_are_being_written_loses_no_knowledge() {
    let (mut killed, mut rng) = (0, Rng::with_seed(3));
    for _ in 0..4 {
        let directory = TempDir::new().expect("a directory");
        let mut disk = SimulatedDisk::new(rng.u64(..));
        let (mut acknowledged, mut next) = (Vec::new(), 0);
        for _ in 0..5 {
            let log = open(&disk, &directory);
            check(&log, &acknowledged).await;
            // A log without power writes nothing more, its index neither.
            disk.power_off_after(disk.crash_points() + rng.u64(1..60));
            while next < 5000 {
                let new = append(&log, next..next + 40).await;
                next += 40;
                acknowledged.extend(&new);
                if new.len() < 40 {
                    killed += 1;
                    break;
                }
            }
            drop(log);
            disk = disk.kill();
        }
        check(&open(&disk, &directory), &acknowledged).await;
    }
    assert_eq!(killed, 20);
}
