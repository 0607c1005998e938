//! Power cuts. Whatever is on the disk afterwards, nothing that was acknowledged is lost, and what is there is in order.
//!
//! The log runs on a simulated disk, which loses what was not synced and tears what was being written. A file system of
//! its own (LazyFS, FUSE) would need a kernel module and rights that a build machine may not give, and could not tear
//! writes; a shim under the C library would miss system calls that do not go through it. What the simulation leaves out is
//! the index: it lies on the real disk, as it is, or is gone, after each cut. It follows from the rest.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    env, fs,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use fastrand::Rng;
use prost_types::Timestamp;
use tempfile::TempDir;
use uuid::Uuid;
use verdict::{
    config::{LogConfig, Retention},
    log::{
        Appended, Commit, Consumer, EventLog, NewQuarantined, OutOfRange, Position, QuarantineKind,
        ReadError,
        embedded::{EmbeddedLog, OpenError},
    },
};

use crate::{
    backup::copy,
    log::{ALL, decode, new_event},
    simulated_disk::{EIO, ENOSPC, Fault, SimulatedDisk},
    support::log_config,
};

/// What has been done to a log so far, as those know it who were answered.
#[derive(Default)]
struct Known {
    /// Events by number: the position, once it was acknowledged.
    events: BTreeMap<u128, Option<Position>>,
    /// Whether the personal data and the delivery of an event, by number, can be read.
    erased: BTreeMap<u128, Erased>,
    /// Quarantined deliveries by number: whether they must be there.
    quarantined: BTreeMap<u128, Presence>,
    /// The positions that consumers may have committed; one, if the last commit was acknowledged.
    committed: HashMap<String, Vec<Position>>,
    acknowledged_commits: BTreeSet<String>,
    next: u128,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Erased {
    /// It, or another event of its subject, was to be erased. Nobody was told that it is.
    Perhaps,
    Yes,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Presence {
    There,
    Gone,
    Unknown,
}

/// What is acknowledged or lost, in figures.
#[derive(Debug, Default)]
struct Figures {
    cuts: u64,
    events: u64,
    /// Events that were never acknowledged and are there all the same.
    unacknowledged: u64,
    /// Events that retention has deleted.
    deleted: u64,
    /// Events that were erased, and are.
    erased: u64,
    quarantined: u64,
    commits: u64,
    /// Cuts while the log was being opened.
    cuts_while_opening: u64,
    /// Cuts after which the index was an earlier one.
    with_an_older_index: u64,
    /// Cuts after which the index had to be made anew.
    without_index: u64,
    /// Cuts after which the newest file of events ended with what was preallocated.
    preallocated: u64,
}

fn config(directory: &TempDir, rng: &mut Rng) -> LogConfig {
    LogConfig {
        // Small, so that segments are finished and begun all the time.
        segment_bytes: rng.u64(500..8000),
        retention: Retention {
            events_max_bytes: *rng.choice(&[0, 30_000]).expect("two of them"),
            deliveries_max_bytes: *rng.choice(&[0, 10_000]).expect("two of them"),
            ..Default::default()
        },
        ..log_config(directory.path())
    }
}

fn try_open(
    disk: &SimulatedDisk,
    config: &LogConfig,
    rng: &mut Rng,
) -> Result<EmbeddedLog, OpenError> {
    let id = Uuid::from_u128(rng.u128(..));
    EmbeddedLog::open_on(Arc::new(disk.clone()), config, id)
}

fn open(disk: &SimulatedDisk, config: &LogConfig, rng: &mut Rng) -> EmbeddedLog {
    try_open(disk, config, rng)
        .unwrap_or_else(|error| panic!("after a power cut the log cannot be opened: {error}"))
}

fn quarantined(number: u128) -> NewQuarantined {
    NewQuarantined {
        id: Uuid::from_u128(number),
        kind: QuarantineKind::Genuine,
        received_at: Timestamp::default(),
        summary: Bytes::from(format!("summary {number}")),
        delivery: Bytes::from(vec![7; number as usize % 700]),
    }
}

/// Works on the log until the power goes.
async fn work(log: &EmbeddedLog, known: &mut Known, rng: &mut Rng) {
    let mut failures = 0;
    for _ in 0..200 {
        let failed = match rng.u8(0..10) {
            0 => quarantine(log, known).await,
            1 => release(log, known, rng).await,
            2 => commit(log, known, rng).await,
            3 => erase(log, known, rng).await,
            _ => append(log, known, rng).await,
        };
        failures += u32::from(failed);
        // A write that failed is tried again; without power nothing succeeds any more.
        if failures > 3 {
            return;
        }
    }
}

/// Appends several events at once; says whether one could not be.
async fn append(log: &EmbeddedLog, known: &mut Known, rng: &mut Rng) -> bool {
    let numbers: Vec<u128> = (0..rng.u128(1..6))
        .map(|_| match rng.u8(0..5) {
            // A redelivery.
            0 if known.next > 0 => rng.u128(0..known.next),
            _ => {
                known.next += 1;
                known.next - 1
            }
        })
        .collect();
    let appends = numbers.iter().map(|number| log.append(event(*number)));
    let appended = futures_util::future::join_all(appends).await;
    let mut failed = false;
    for (number, appended) in numbers.into_iter().zip(appended) {
        let acknowledged = known.events.entry(number).or_default();
        match appended {
            Ok(Appended::New(position)) => {
                // New again only once it is no longer retained.
                assert!(
                    acknowledged.is_none_or(|known| known <= log.start()),
                    "event {number}"
                );
                *acknowledged = Some(position);
                // What is written again is not what was erased.
                known.erased.remove(&number);
            }
            Ok(Appended::Duplicate(position)) => {
                assert!(acknowledged.is_none_or(|known| known == position));
                *acknowledged = Some(position);
            }
            Ok(Appended::Conflict(_)) => panic!("event {number} has one content only"),
            Err(_) => failed = true,
        }
    }
    failed
}

/// An event of one of a few verifications, with a delivery of any size.
fn event(number: u128) -> verdict::log::NewEvent {
    let size = (number * 7919) % 1500;
    verdict::log::NewEvent {
        delivery: Bytes::from(vec![number as u8; size as usize + 1]),
        ..new_event(number, Some((number % 5) as u8), Some((number % 13) as i64))
    }
}

/// Erases a few events.
async fn erase(log: &EmbeddedLog, known: &mut Known, rng: &mut Rng) -> bool {
    let retained = |(number, position): (&u128, &Option<Position>)| {
        position.filter(|p| *p > log.start()).map(|p| (*number, p))
    };
    let events: Vec<(u128, Position)> = known.events.iter().filter_map(retained).collect();
    let chosen: Vec<(u128, Position)> = (0..rng.usize(0..3))
        .filter_map(|_| rng.choice(&events).copied())
        .collect();
    let subjects: BTreeSet<u128> = chosen.iter().map(|(number, _)| number % 5).collect();
    for number in known.events.keys() {
        if subjects.contains(&(number % 5)) {
            known.erased.entry(*number).or_insert(Erased::Perhaps);
        }
    }
    let positions = chosen.iter().map(|(_, position)| *position);
    let erased = log.erase(positions.collect()).await;
    if erased.is_ok() {
        for (number, _) in chosen {
            known.erased.insert(number, Erased::Yes);
        }
    }
    erased.is_err()
}

async fn quarantine(log: &EmbeddedLog, known: &mut Known) -> bool {
    known.next += 1;
    let number = known.next - 1;
    known.quarantined.insert(number, Presence::Unknown);
    let put = log.quarantine(quarantined(number)).await;
    if put.is_ok() {
        known.quarantined.insert(number, Presence::There);
    }
    put.is_err()
}

async fn release(log: &EmbeddedLog, known: &mut Known, rng: &mut Rng) -> bool {
    let numbers: Vec<u128> = known.quarantined.keys().copied().collect();
    let Some(number) = rng.choice(&numbers) else {
        return false;
    };
    let before = known.quarantined.insert(*number, Presence::Unknown);
    let released = log.release(Uuid::from_u128(*number)).await;
    if let Ok(was_there) = released {
        assert!(
            before == Some(Presence::Unknown) || was_there == (before == Some(Presence::There))
        );
        known.quarantined.insert(*number, Presence::Gone);
    }
    released.is_err()
}

async fn commit(log: &EmbeddedLog, known: &mut Known, rng: &mut Rng) -> bool {
    let name = format!("consumer {}", rng.u8(0..3));
    let position = log.tail().end();
    let possible = known.committed.entry(name.clone()).or_default();
    possible.push(position);
    let commit = Commit {
        consumer: Consumer {
            name: name.clone(),
            cursor: log.cursor(position),
            committed_at: Timestamp::default(),
        },
        force: false,
    };
    let committed = log.commit(commit).await;
    if committed.is_ok() {
        *possible = vec![position];
        known.acknowledged_commits.insert(name);
    }
    committed.is_err()
}

/// Holds the log that was opened after a cut against what is known.
async fn check(log: &EmbeddedLog, known: &mut Known, config: &LogConfig, figures: &mut Figures) {
    if config.retention.events_max_bytes == 0 {
        assert_eq!(log.start(), Position(0));
    }
    check_events(log, known, config, figures).await;
    check_quarantine(log, known, figures).await;
    let consumers: HashMap<_, _> = log
        .consumers()
        .into_iter()
        .map(|consumer| (consumer.name, consumer.cursor))
        .collect();
    for (name, possible) in &mut known.committed {
        match consumers.get(name) {
            Some(cursor) => {
                assert!(possible.contains(&cursor.position), "{name}: {cursor:?}");
                let resolved = log.resolve(cursor).err();
                assert!(
                    matches!(resolved, None | Some(OutOfRange::NotRetained)),
                    "{resolved:?}"
                );
                *possible = vec![cursor.position];
                known.acknowledged_commits.insert(name.clone());
                figures.commits += 1;
            }
            // Its first commit was never acknowledged, or it would have been the only one that is possible.
            None => assert!(!known.acknowledged_commits.contains(name), "{name} is lost"),
        }
    }
}

async fn check_events(
    log: &EmbeddedLog,
    known: &mut Known,
    config: &LogConfig,
    figures: &mut Figures,
) {
    let mut present = present_events(log).await;
    for (number, acknowledged) in &mut known.events {
        let found = present.remove(number);
        match *acknowledged {
            Some(position) if position > log.start() => {
                assert_eq!(found, Some(position), "event {number} is lost");
            }
            Some(_) => figures.deleted += 1,
            None if found.is_some() => figures.unacknowledged += 1,
            None => {}
        }
        let again = log.append(event(*number)).await.expect("the disk is well");
        let (Appended::New(position) | Appended::Duplicate(position)) = again else {
            panic!("event {number} has one content only");
        };
        // Retention goes on meanwhile: what was just here may be gone.
        let retained = found.filter(|found| *found > log.start());
        let expected = retained.map_or(again, Appended::Duplicate);
        assert_eq!(again, expected, "event {number}");
        *acknowledged = Some(position);
        if again == Appended::New(position) {
            // What is written again is not what was erased.
            known.erased.remove(number);
        }
        let erased = known.erased.get(number).copied();
        let delivery = match log.delivery(position).await {
            // An erasure that failed has overwritten a part of the key.
            Err(ReadError::Damaged { place, .. }) if erased == Some(Erased::Perhaps) => {
                assert!(place.contains(".keys"), "{place}");
                continue;
            }
            delivery => delivery.expect("readable"),
        };
        match delivery {
            Some(delivery) => {
                assert_eq!(delivery, event(*number).delivery);
                assert_ne!(erased, Some(Erased::Yes), "event {number} is back");
            }
            None => assert!(
                config.retention.deliveries_max_bytes > 0
                    || position <= log.start()
                    || erased.is_some(),
                "the delivery of event {number} is lost"
            ),
        }
        check_personal_data(log, *number, position, erased).await;
        figures.erased += u64::from(erased == Some(Erased::Yes));
        figures.events += 1;
    }
    assert!(present.is_empty(), "nobody wrote {present:?}");
}

async fn check_personal_data(
    log: &EmbeddedLog,
    number: u128,
    position: Position,
    erased: Option<Erased>,
) {
    let id = Uuid::from_u128(number);
    let Some(stored) = log.find(id).await.expect("readable") else {
        assert!(position <= log.start(), "event {number} is lost");
        return;
    };
    let personal_data = log.personal_data(&stored).await.expect("readable");
    let is_there = personal_data == event(number).encoded.personal_data;
    assert!(is_there || personal_data == verdict::event::erased());
    match erased {
        // Retention goes on meanwhile.
        None => assert!(
            is_there || position <= log.start(),
            "event {number} is lost"
        ),
        Some(Erased::Perhaps) => {}
        Some(Erased::Yes) => assert!(!is_there, "event {number} is back"),
    }
}

/// Every event of the log, with its position. They are in order, and their revisions have no holes.
async fn present_events(log: &EmbeddedLog) -> HashMap<u128, Position> {
    let stored = loop {
        match log.read(log.start(), ALL).await {
            Err(ReadError::NotRetained) => {}
            stored => break stored.expect("all events can be read"),
        }
    };
    let first = stored
        .first()
        .map_or(log.tail().end().0 + 1, |first| first.position.0);
    let mut present = HashMap::new();
    let mut revisions: HashMap<u128, u64> = HashMap::new();
    for (position, stored) in (first..).zip(&stored) {
        assert_eq!(stored.position, Position(position));
        let event = decode(stored);
        let number = event.event_id.parse::<Uuid>().expect("an id").as_u128();
        let before = revisions.insert(number % 5, event.revision);
        let expected = before.map_or(event.revision, |before| before + 1);
        assert_eq!(event.revision, expected, "event {number}");
        assert!(
            first > 1 || before.is_some() || event.revision == 1,
            "event {number}"
        );
        let twice = present.insert(number, stored.position);
        assert_eq!(twice, None, "event {number} is there twice");
    }
    assert_eq!(first + present.len() as u64, log.tail().end().0 + 1);
    present
}

async fn check_quarantine(log: &EmbeddedLog, known: &mut Known, figures: &mut Figures) {
    let stored = log.quarantined(QuarantineKind::Genuine, 0, ALL).await;
    let stored = stored.expect("the quarantine can be read");
    let present: BTreeSet<Bytes> = stored.iter().map(|stored| stored.summary.clone()).collect();
    assert_eq!(present.len(), stored.len(), "a delivery is there twice");
    for (number, presence) in &mut known.quarantined {
        let expected = quarantined(*number);
        let found = log.find_quarantined(expected.id).await.expect("readable");
        if let Some(found) = &found {
            assert_eq!(
                (&found.summary, &found.delivery),
                (&expected.summary, &expected.delivery)
            );
        }
        assert_eq!(found.is_some(), present.contains(&expected.summary));
        let now = match found {
            Some(_) => Presence::There,
            None => Presence::Gone,
        };
        assert!(
            *presence == Presence::Unknown || *presence == now,
            "delivery {number}: {now:?}"
        );
        *presence = now;
        figures.quarantined += 1;
    }
}

/// The index after a cut: as it was, gone, or as it was some time before.
fn change_index(directory: &Path, rng: &mut Rng, figures: &mut Figures) {
    let (index, older) = (directory.join("index"), directory.join("older"));
    match rng.u8(0..6) {
        0 => {
            fs::remove_dir_all(&index).expect("it is there");
            figures.without_index += 1;
        }
        1 if older.exists() => {
            fs::remove_dir_all(&index).expect("it is there");
            fs::rename(&older, &index).expect("it is there");
            figures.with_an_older_index += 1;
        }
        2 if !older.exists() => copy(&index, &older),
        _ => {}
    }
}

fn is_preallocated(disk: &SimulatedDisk, directory: &Path) -> bool {
    let events = directory.join("events");
    let mut paths = disk.paths();
    paths.retain(|path| path.starts_with(&events) && path.extension().is_some_and(|e| e == "log"));
    let newest = paths.last();
    newest.is_some_and(|path| disk.contents(path).ends_with(&[0; 32]))
}

/// One log that lives through several power cuts.
async fn live_through_cuts(seed: u64, cuts: u64, figures: &mut Figures) {
    let mut rng = Rng::with_seed(seed);
    let directory = TempDir::new().expect("a directory");
    let config = config(&directory, &mut rng);
    let mut known = Known::default();
    let mut disk = SimulatedDisk::new(seed);
    for _ in 0..cuts {
        if rng.u8(0..3) == 0 {
            // The power goes again while the log is being opened.
            disk.power_off_after(disk.crash_points() + rng.u64(0..20));
            drop(try_open(&disk, &config, &mut rng));
            disk = disk.cut(&mut rng);
            figures.cuts += 1;
            figures.cuts_while_opening += 1;
        }
        let log = open(&disk, &config, &mut rng);
        check(&log, &mut known, &config, figures).await;
        disk.power_off_after(disk.crash_points() + rng.u64(1..150));
        match rng.u8(0..4) {
            0 => disk.fail_syncs(Some(Fault::once(EIO).after(rng.u64(0..50)))),
            1 => disk.fail_writes(Some(Fault::once(ENOSPC).after(rng.u64(0..50)).short())),
            _ => {}
        }
        work(&log, &mut known, &mut rng).await;
        drop(log);
        figures.cuts += 1;
        disk = match rng.u8(0..10) {
            0 => disk.kill(),
            _ => disk.cut(&mut rng),
        };
        figures.preallocated += u64::from(is_preallocated(&disk, directory.path()));
        change_index(directory.path(), &mut rng, figures);
    }
    let log = open(&disk, &config, &mut rng);
    check(&log, &mut known, &config, figures).await;
}

/// `VERDICT_CRASH_CUTS` says how many cuts; `make crash` does many. `VERDICT_CRASH_SEED` repeats one log's life.
#[test]
#[expect(
    clippy::print_stdout,
    reason = "a failure is looked into with the seed"
)]
fn nothing_acknowledged_is_lost_in_a_power_cut() {
    const CUTS_PER_LOG: u64 = 8;
    let number = |name| {
        env::var(name)
            .ok()
            .map(|value| value.parse::<u64>().expect("a number"))
    };
    let cuts = number("VERDICT_CRASH_CUTS").unwrap_or(200);
    let seeds = match number("VERDICT_CRASH_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..cuts.div_ceil(CUTS_PER_LOG),
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut figures = Figures::default();
    for seed in seeds {
        println!("VERDICT_CRASH_SEED={seed}");
        runtime.block_on(live_through_cuts(seed, CUTS_PER_LOG, &mut figures));
    }
    println!("{figures:#?}");
    // Otherwise the cuts come too late or too early to show anything.
    let Figures {
        unacknowledged,
        deleted,
        erased,
        without_index,
        with_an_older_index,
        preallocated,
        ..
    } = figures;
    assert!(unacknowledged > 0 && deleted > 0 && erased > 0);
    assert!(without_index > 0 && with_an_older_index > 0 && preallocated > 0);
}

/// The sync of a directory may fail while a segment begins. The name of its file is in doubt then, whatever syncs follow.
#[tokio::test]
async fn a_name_whose_sync_failed_is_made_certain_again() {
    let mut failed = 0;
    for good_before in 0..40 {
        let mut rng = Rng::with_seed(good_before);
        let directory = TempDir::new().expect("a directory");
        let config = LogConfig {
            segment_bytes: 500,
            ..log_config(directory.path())
        };
        let disk = SimulatedDisk::new(good_before);
        let log = open(&disk, &config, &mut rng);
        disk.fail_syncs(Some(Fault::once(EIO).after(good_before)));
        let mut acknowledged = Vec::new();
        for number in 0..12 {
            match log.append(event(number)).await {
                Ok(_) => acknowledged.push(number),
                Err(_) => failed += 1,
            }
        }
        drop(log);

        // The process ends, the system goes on.
        let disk = disk.kill();
        let log = open(&disk, &config, &mut rng);
        for number in 12..18 {
            let _ = log.append(event(number)).await.expect("the disk is well");
            acknowledged.push(number);
        }
        drop(log);
        for _ in 0..8 {
            let cut = disk.cut(&mut rng);
            let log = open(&cut, &config, &mut rng);
            let present = present_events(&log).await;
            for number in &acknowledged {
                assert!(present.contains_key(number), "event {number} is lost");
            }
        }
    }
    assert!(failed > 100, "only {failed} appends have failed");
}
