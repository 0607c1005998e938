//! Personal data and raw deliveries at rest: in no file as they are, gone with their keys, and kept through another master
//! key.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use bytes::Bytes;
use fastrand::Rng;
use tempfile::TempDir;
use tokio::time::{self, Duration};
use uuid::Uuid;
use verdict::{
    config::{EncryptionConfig, LogConfig, Retention},
    event,
    log::{
        AppendError, Appended, EncryptionStats, EraseError, EventLog, Health, NewEvent,
        NewQuarantined, Position, QuarantineKind, StoredEvent,
        disk::Disk,
        embedded::{EmbeddedLog, OpenError, new_master_key},
    },
};

use crate::{
    backup::{copy, copy_log},
    log::{ALL, at, new_event, whole},
    simulated_disk::{EIO, EROFS, Fault, SimulatedDisk},
    support::{PATIENCE, log_config},
};

/// Small files, so that there are several.
fn config(directory: &Path) -> LogConfig {
    LogConfig {
        segment_bytes: 4000,
        ..log_config(directory)
    }
}

fn with_master_key(directory: &Path, file: &Path) -> LogConfig {
    let config = config(directory);
    LogConfig {
        encryption: EncryptionConfig {
            master_key_file: file.to_owned(),
            ..config.encryption
        },
        ..config
    }
}

fn unencrypted(directory: &Path) -> LogConfig {
    let config = config(directory);
    LogConfig {
        encryption: EncryptionConfig {
            enabled: false,
            ..config.encryption
        },
        ..config
    }
}

fn without_keys(directory: &Path) -> LogConfig {
    let config = config(directory);
    LogConfig {
        encryption: EncryptionConfig {
            without_keys: true,
            ..config.encryption
        },
        ..config
    }
}

fn open(config: &LogConfig) -> EmbeddedLog {
    EmbeddedLog::open(config, Uuid::from_u128(7)).unwrap()
}

/// Why a log cannot be opened for want of keys.
fn refused(config: &LogConfig) -> String {
    match EmbeddedLog::open(config, Uuid::from_u128(7)) {
        Err(OpenError::Keys(what)) => what,
        other => panic!("{other:?}"),
    }
}

fn event(number: u128) -> NewEvent {
    new_event(number, Some((number % 3) as u8), None)
}

async fn append(log: &EmbeddedLog, numbers: std::ops::RangeInclusive<u128>) {
    for number in numbers {
        let appended = log.append(event(number)).await.unwrap();
        assert_eq!(appended, Appended::New(Position(number as u64)));
    }
}

fn quarantined(number: u128) -> NewQuarantined {
    NewQuarantined {
        id: Uuid::from_u128(number),
        kind: QuarantineKind::Genuine,
        received_at: at(0),
        summary: Bytes::from(format!("summary {number}")),
        delivery: Bytes::from(format!("delivery {number}")),
    }
}

/// What can be read of an event.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Read {
    Everything,
    Nothing,
}

async fn read(log: &EmbeddedLog, stored: &StoredEvent) -> Read {
    let written = event(stored.position.0.into());
    let personal_data = log.personal_data(stored).await.unwrap();
    let delivery = log.delivery(stored.position).await.unwrap();
    if (&personal_data, &delivery) == (&event::erased(), &None) {
        return Read::Nothing;
    }
    assert_eq!(personal_data, written.encoded.personal_data);
    assert_eq!(delivery, Some(written.delivery));
    Read::Everything
}

/// What can be read of all events, in order.
async fn read_all(log: &EmbeddedLog) -> Vec<Read> {
    let mut all = Vec::new();
    for stored in log.read(log.start(), ALL).await.unwrap() {
        all.push(read(log, &stored).await);
    }
    all
}

/// The files of a directory and of all in it.
pub(crate) fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(self::files(&path)),
            false => files.push(path),
        }
    }
    files
}

fn contains(path: &Path, text: &str) -> bool {
    let content = fs::read(path).unwrap();
    content
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Writes a file of master keys that nobody else may read.
fn write_master_keys(path: &Path, lines: &[&str]) {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, lines.join("\n")).unwrap();
    set_mode(&temporary, 0o600);
    fs::rename(temporary, path).unwrap();
}

fn id(line: &str) -> &str {
    line.split(' ').next().unwrap()
}

fn encryption(log: &EmbeddedLog) -> EncryptionStats {
    log.stats().encryption.unwrap()
}

async fn eventually(mut is_true: impl FnMut() -> bool) {
    let waited = async {
        while !is_true() {
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    time::timeout(PATIENCE, waited).await.expect("in time");
}

#[tokio::test]
async fn only_its_owner_may_read_what_a_log_writes() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("log");
    let log = open(&config(&path));
    append(&log, 1..=30).await;
    log.quarantine(quarantined(1)).await.unwrap();
    assert_eq!(mode(&path.join("keys")), 0o700);
    let written = files(&path);
    let of_ours = written
        .iter()
        .filter(|path| !path.ancestors().any(|path| path.ends_with("index")));
    for file in of_ours.filter(|path| !path.ends_with("lock")) {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
    let keys = files(&path.join("keys"));
    assert!(keys.len() > 4, "{keys:?}");
    assert_eq!(encryption(&log).key_files, keys.len() as u64 - 2);
}

#[tokio::test]
async fn nothing_is_written_as_it_is_unless_that_is_asked_for() {
    for enabled in [true, false] {
        let directory = TempDir::new().unwrap();
        let config = match enabled {
            true => config(directory.path()),
            false => unencrypted(directory.path()),
        };
        let log = open(&config);
        append(&log, 1..=9).await;
        log.quarantine(quarantined(1)).await.unwrap();
        drop(log);
        for text in ["name 7", "delivery 7", "delivery 1"] {
            let found = files(directory.path())
                .iter()
                .any(|path| contains(path, text));
            assert_eq!(found, !enabled, "{text}");
        }
        let found = |text| {
            files(directory.path())
                .iter()
                .any(|path| contains(path, text))
        };
        assert!(found("summary 1"), "the test sees what is there");
        assert_eq!(read_all(&open(&config)).await, [Read::Everything; 9]);
    }
}

#[tokio::test]
async fn a_master_key_that_is_not_the_right_one_is_refused_with_its_name() {
    let directory = TempDir::new().unwrap();
    let config = config(directory.path());
    let log = open(&config);
    append(&log, 1..=3).await;
    drop(log);
    let path = directory.path().join("keys/master.key");
    let good = fs::read_to_string(&path).unwrap();
    let line = good.lines().last().unwrap();

    set_mode(&path, 0o644);
    assert!(refused(&config).contains("mode"), "{}", refused(&config));
    set_mode(&path, 0o440);
    drop(open(&config));
    fs::remove_file(&path).unwrap();
    let what = refused(&config);
    assert!(
        what.contains("master.key") && what.contains("is gone"),
        "{what}"
    );
    assert!(!path.exists(), "no other key is made in its place");

    let other = new_master_key().unwrap();
    write_master_keys(&path, &[&other]);
    let what = refused(&config);
    assert!(
        what.contains(id(line)) && what.contains("add its line again"),
        "{what}"
    );
    let same_id = other.replace(id(&other), id(line));
    write_master_keys(&path, &[&same_id]);
    let what = refused(&config);
    assert!(
        what.contains(id(line)) && what.contains("another master key"),
        "{what}"
    );
    write_master_keys(&path, &[&other, "nonsense"]);
    let what = refused(&config);
    assert!(
        what.contains("line 2") && !what.contains("nonsense"),
        "{what}"
    );
    for secret in [line, &other].map(|line| line.split(' ').nth(1).unwrap()) {
        assert!(!what.contains(secret));
    }

    write_master_keys(&path, &[&other, line]);
    assert_eq!(read_all(&open(&config)).await, [Read::Everything; 3]);
    let missing = with_master_key(directory.path(), &directory.path().join("missing"));
    assert!(refused(&missing).contains("missing"));
}

#[tokio::test]
async fn another_master_key_takes_over_while_events_come_in() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("keys.txt");
    let (old, new) = (new_master_key().unwrap(), new_master_key().unwrap());
    write_master_keys(&file, &[&old]);
    let config = with_master_key(&directory.path().join("log"), &file);
    let log = open(&config);
    append(&log, 1..=100).await;
    for number in 1..=20 {
        log.quarantine(quarantined(number)).await.unwrap();
    }
    log.erase(vec![Position(1)]).await.unwrap();
    assert_eq!(encryption(&log).master_key_id, id(&old));

    // The old one must not go before all keys are wrapped by the new one.
    write_master_keys(&file, &[&new]);
    time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(encryption(&log).master_key_id, id(&old));
    write_master_keys(&file, &[&new, &old]);
    let mut number = 101;
    let working = async {
        while encryption(&log).master_key_id != id(&new) || encryption(&log).to_rewrap > 0 {
            append(&log, number..=number).await;
            if number == 150 {
                // Of a segment whose keys may be being copied.
                log.erase(vec![Position(2)]).await.unwrap();
                assert!(log.release(Uuid::from_u128(20)).await.unwrap());
            }
            number += 1;
            time::sleep(Duration::from_millis(5)).await;
        }
    };
    time::timeout(PATIENCE, working).await.expect("in time");
    assert!(number > 150, "{number}");
    for keys in files(&config.keys_path()) {
        assert!(!contains(&keys, id(&old)), "{}", keys.display());
    }
    write_master_keys(&file, &[&new]);
    check_after_rotation(&log, number).await;
    drop(log);
    check_after_rotation(&open(&config), number).await;
}

/// Of three subjects, two had an event erased, and what lay in its segment.
async fn check_after_rotation(log: &EmbeddedLog, number: u128) {
    let all = read_all(log).await;
    assert_eq!(all.len() as u128, number - 1);
    assert_eq!(all[..2], [Read::Nothing; 2]);
    assert_eq!(all[2], Read::Everything);
    assert_eq!(all[40..], vec![Read::Everything; all.len() - 40]);
    let stored = log.quarantined(QuarantineKind::Genuine, 0, ALL).await;
    let stored = stored.unwrap();
    assert_eq!(stored.len(), 19);
    for (number, stored) in (1..).zip(stored) {
        assert_eq!(stored.delivery, quarantined(number).delivery);
    }
}

/// An event that shares its key with no other one.
fn alone(number: u128) -> NewEvent {
    NewEvent {
        subject: [number as u8; 32],
        ..event(number)
    }
}

/// A log on a disk that loses power, and what it has acknowledged.
struct Crashing {
    config: LogConfig,
    disk: SimulatedDisk,
    rng: Rng,
    appended: u128,
    erased: BTreeSet<u64>,
    /// Erased or not: the answer never came.
    doubtful: BTreeSet<u64>,
}

impl Crashing {
    /// With several key files, and as chance says with one of an active segment that is empty.
    async fn new(config: LogConfig, seed: u64) -> Self {
        let mut crashing = Self {
            config,
            disk: SimulatedDisk::new(seed),
            rng: Rng::with_seed(seed),
            appended: 0,
            erased: BTreeSet::new(),
            doubtful: BTreeSet::new(),
        };
        let log = crashing.open();
        crashing.append(&log, 50).await;
        crashing.erase(&log).await;
        if seed.is_multiple_of(2) {
            while !crashing.is_full(&log) {
                crashing.append(&log, 1).await;
            }
            drop(log);
            crashing.leave_an_empty_segment_with_keys().await;
        }
        crashing
    }

    fn open(&self) -> EmbeddedLog {
        let disk = Arc::new(self.disk.clone());
        EmbeddedLog::open_on(disk, &self.config, Uuid::from_u128(7)).unwrap()
    }

    fn newest(disk: &SimulatedDisk, extension: &str) -> Option<PathBuf> {
        let of_events = |path: &PathBuf| {
            path.parent()
                .is_some_and(|parent| parent.ends_with("events"))
                && path.extension().is_some_and(|found| found == extension)
        };
        disk.paths().into_iter().rfind(of_events)
    }

    /// Whether the next event goes into a new segment.
    fn is_full(&self, log: &EmbeddedLog) -> bool {
        let newest = Self::newest(&self.disk, "log");
        let sizes = self.disk.paths().into_iter().filter_map(|path| {
            let of_events = path.parent()?.ends_with("events");
            let finished = path.extension()? == "log" && Some(&path) != newest.as_ref();
            (of_events && finished).then(|| self.disk.contents(path).len() as u64)
        });
        log.stats().size_bytes - sizes.sum::<u64>() >= self.config.segment_bytes
    }

    /// Kills the process when it has made the key file of a new segment, and nothing else.
    async fn leave_an_empty_segment_with_keys(&mut self) {
        let before = Self::newest(&self.disk, "keys");
        let unchanged = self.disk.kill();
        for operations in 0..40 {
            self.disk = unchanged.kill();
            let log = self.open();
            let begun = self.disk.crash_points();
            self.disk.power_off_after(begun + operations);
            log.append(alone(self.appended + 1)).await.unwrap_err();
            drop(log);
            self.disk = self.disk.kill();
            if Self::newest(&self.disk, "keys") != before {
                return;
            }
        }
        panic!("no key file was made");
    }

    /// Appends events at once, those again of which nobody knows whether they are there.
    async fn append(&mut self, log: &EmbeddedLog, events: u128) {
        let first = self.appended + 1;
        let appends = (first..first + events).map(|number| log.append(alone(number)));
        let acknowledged = futures_util::future::join_all(appends).await;
        for (number, appended) in (first..).zip(acknowledged) {
            match appended {
                Ok(
                    Appended::New(position)
                    | Appended::Duplicate(position)
                    | Appended::Conflict(position),
                ) => {
                    assert_eq!(position, Position(number as u64));
                    self.appended = number;
                }
                Err(_) => return,
            }
        }
    }

    async fn erase(&mut self, log: &EmbeddedLog) {
        let number = self.rng.u64(1..=self.appended as u64);
        self.doubtful.insert(number);
        if log.erase(vec![Position(number)]).await.is_ok() {
            self.erased.insert(number);
        }
    }

    /// Lets the log work until its process or the power goes, soon, while it puts copies of key files in the place of the
    /// files, or after that.
    async fn round(&mut self) {
        let log = self.open();
        match self.rng.u8(..3) {
            0 => {
                let soon = self.disk.crash_points() + self.rng.u64(..40);
                self.disk.power_off_after(soon);
                self.erase(&log).await;
                self.append(&log, 3).await;
            }
            1 => {
                self.erase(&log).await;
                if self.rng.bool() {
                    self.append(&log, 3).await;
                }
                time::sleep(Duration::from_millis(700)).await;
                let soon = self.disk.crash_points() + self.rng.u64(..10);
                self.disk.power_off_after(soon);
                time::sleep(Duration::from_millis(500)).await;
            }
            _ => {
                self.append(&log, 3).await;
                time::sleep(Duration::from_millis(1200)).await;
                self.append(&log, 30).await;
                self.erase(&log).await;
            }
        }
        self.disk = match self.rng.bool() {
            true => self.disk.kill(),
            false => self.disk.cut(&mut self.rng),
        };
        drop(log);
    }

    async fn check(&mut self) {
        let log = self.open();
        let all = read_all(&log).await;
        assert!(all.len() as u128 >= self.appended);
        for (number, read) in (1..).zip(all) {
            let expected = match self.erased.contains(&number) {
                true => Read::Nothing,
                false if self.doubtful.contains(&number) => continue,
                false => Read::Everything,
            };
            assert_eq!(read, expected, "{number} of {}", self.appended);
        }
    }
}

#[test]
fn neither_a_kill_nor_a_power_cut_while_another_master_key_takes_over_loses_or_brings_back_anything()
 {
    let run = |seed| {
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("keys.txt");
        let keys = [(); 4].map(|()| new_master_key().unwrap());
        write_master_keys(&file, &[&keys[0]]);
        let config = with_master_key(&directory.path().join("log"), &file);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let mut crashing = Crashing::new(config, seed).await;
            for newest in 1..4 {
                let lines: Vec<&str> = keys[..=newest].iter().rev().map(|line| &***line).collect();
                write_master_keys(&file, &lines);
                for _ in 0..2 {
                    crashing.round().await;
                }
                crashing.disk = crashing.disk.cut(&mut crashing.rng);
                crashing.check().await;
            }
        });
    };
    // They wait most of the time.
    thread::scope(|scope| {
        for seed in 0..48 {
            scope.spawn(move || run(seed));
        }
    });
}

#[tokio::test]
async fn a_backup_of_before_an_erasure_reads_the_erased_nowhere() {
    let directory = TempDir::new().unwrap();
    let backup = TempDir::new().unwrap();
    let log = open(&config(directory.path()));
    append(&log, 1..=30).await;
    for number in 1..=3 {
        log.quarantine(quarantined(number)).await.unwrap();
    }
    copy_log(directory.path(), backup.path());
    let of_one: Vec<Position> = (1..=30).step_by(3).map(Position).collect();
    log.erase(of_one.clone()).await.unwrap();
    assert!(log.release(Uuid::from_u128(2)).await.unwrap());
    append(&log, 31..=60).await;
    drop(log);

    fs::remove_dir_all(backup.path().join("keys")).unwrap();
    copy(&directory.path().join("keys"), &backup.path().join("keys"));
    let log = open(&config(backup.path()));
    for _ in 0..2 {
        for stored in log.read(Position(0), ALL).await.unwrap() {
            let expected = match of_one.contains(&stored.position) {
                true => Read::Nothing,
                false => Read::Everything,
            };
            assert_eq!(read(&log, &stored).await, expected, "{stored:?}");
        }
    }
    let stored = log.quarantined(QuarantineKind::Genuine, 0, ALL).await;
    let deliveries: Vec<Bytes> = stored.unwrap().into_iter().map(|s| s.delivery).collect();
    assert_eq!(deliveries, ["delivery 1", "", "delivery 3"]);
    // It is written on, in the places of what it never had.
    append(&log, 31..=90).await;
    drop(log);
    assert_eq!(
        read_all(&open(&config(backup.path()))).await[30..],
        [Read::Everything; 60]
    );
}

#[tokio::test]
async fn a_backup_without_its_keys_reads_nobody_and_can_be_used() {
    let directory = TempDir::new().unwrap();
    let log = open(&config(directory.path()));
    append(&log, 1..=30).await;
    log.quarantine(quarantined(1)).await.unwrap();
    drop(log);
    fs::remove_dir_all(directory.path().join("keys")).unwrap();
    // The volume may not be mounted.
    for _ in 0..2 {
        let what = refused(&config(directory.path()));
        assert!(
            what.contains("no key file") && what.contains("log.encryption.without_keys = true"),
            "{what}"
        );
    }
    for round in 0..2 {
        let log = open(&without_keys(directory.path()));
        let all = read_all(&log).await;
        assert_eq!(all[..30], [Read::Nothing; 30]);
        assert_eq!(all[30..], vec![Read::Everything; all.len() - 30]);
        assert!(encryption(&log).segments_without_keys > 3);
        let id = Uuid::from_u128(1);
        let stored = log.find_quarantined(id).await.unwrap().unwrap();
        assert_eq!(
            (&stored.summary[..], &stored.delivery[..]),
            (&b"summary 1"[..], &b""[..])
        );
        // What comes now is encrypted again; erasing what cannot be read is no error.
        let first = 31 + round * 10;
        append(&log, first..=first + 9).await;
        log.erase(vec![Position(5)]).await.unwrap();
        let appended = log.append(event(3)).await.unwrap();
        assert_eq!(appended, Appended::Duplicate(Position(3)));
    }
}

#[tokio::test]
async fn nobody_is_called_erased_whose_key_file_is_only_missing() {
    let directory = TempDir::new().unwrap();
    let log = open(&config(directory.path()));
    append(&log, 1..=30).await;
    drop(log);
    let first = directory
        .path()
        .join("keys/events/00000000000000000001.keys");
    let elsewhere = directory.path().join("elsewhere");
    fs::rename(&first, &elsewhere).unwrap();
    let log = open(&config(directory.path()));
    assert_eq!(encryption(&log).segments_without_keys, 1);
    assert_eq!(read_all(&log).await[0], Read::Nothing);
    let erased = log.erase(vec![Position(1), Position(30)]).await;
    let Err(EraseError::Append(AppendError::Unavailable(why))) = erased else {
        panic!("{erased:?}");
    };
    assert!(why.contains("key files of 1 of the events"), "{why}");
    assert_eq!(read_all(&log).await[29], Read::Nothing);
    drop(log);
    let log = open(&without_keys(directory.path()));
    log.erase(vec![Position(1)]).await.unwrap();
    drop(log);
    fs::rename(&elsewhere, &first).unwrap();
    let log = open(&config(directory.path()));
    assert_eq!(read_all(&log).await[0], Read::Everything);
    log.erase(vec![Position(1)]).await.unwrap();
    assert_eq!(read_all(&log).await[0], Read::Nothing);
}

#[tokio::test]
async fn a_key_that_could_not_be_destroyed_is_destroyed_by_the_next_erasure() {
    let directory = TempDir::new().unwrap();
    let config = config(directory.path());
    let disk = SimulatedDisk::new(1);
    let log = EmbeddedLog::open_on(Arc::new(disk.clone()), &config, Uuid::from_u128(7)).unwrap();
    log.quarantine(quarantined(1)).await.unwrap();
    // The release is written, the slot is not overwritten.
    disk.fail_writes(Some(Fault::always(EIO).after(1)));
    let _ = log.release(Uuid::from_u128(1)).await.unwrap_err();
    let _ = log.erase(Vec::new()).await.unwrap_err();
    let slot = || {
        let path = config
            .keys_path()
            .join("quarantine/00000000000000000001.keys");
        disk.contents(path)[512..576].to_vec()
    };
    assert_ne!(slot(), [0; 64]);
    disk.fail_writes(None);
    log.erase(Vec::new()).await.unwrap();
    assert_eq!(slot(), [0; 64]);
}

#[tokio::test]
async fn a_master_key_that_was_added_and_never_synced_outlives_the_power_before_it_is_used() {
    for seed in 0..12 {
        let mut rng = Rng::with_seed(seed);
        let directory = TempDir::new().unwrap();
        let config = config(directory.path());
        let path = config.keys_path().join("master.key");
        let mut disk = SimulatedDisk::new(seed);
        let open = |disk: &SimulatedDisk| {
            let disk = Arc::new(disk.clone());
            EmbeddedLog::open_on(disk, &config, Uuid::from_u128(7)).unwrap()
        };
        drop(open(&disk));
        let known = String::from_utf8(disk.contents(&path)).unwrap();
        let lines = format!("{}\n{known}", *new_master_key().unwrap());
        let file = disk.create(&path).unwrap();
        file.write_at(lines.as_bytes(), 0).unwrap();
        let log = open(&disk);
        append(&log, 1..=3).await;
        disk = disk.cut(&mut rng);
        drop(log);
        assert_eq!(read_all(&open(&disk)).await, [Read::Everything; 3]);
    }
}

#[test]
fn what_is_erased_after_a_master_key_could_not_take_over_everywhere_stays_erased() {
    let run = async |seed| {
        let mut rng = Rng::with_seed(seed);
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("keys.txt");
        let (old, new) = (new_master_key().unwrap(), new_master_key().unwrap());
        write_master_keys(&file, &[&old]);
        let config = with_master_key(&directory.path().join("log"), &file);
        let open = |disk: &SimulatedDisk| {
            let disk = Arc::new(disk.clone());
            EmbeddedLog::open_on(disk, &config, Uuid::from_u128(7)).unwrap()
        };
        let disk = SimulatedDisk::new(seed);
        let log = open(&disk);
        append(&log, 1..=60).await;
        drop(log);
        write_master_keys(&file, &[&new, &old]);
        let log = open(&disk);
        time::sleep(Duration::from_millis(600)).await;
        // The first copy takes the place of its file, the second cannot.
        disk.fail_writes(Some(Fault::always(EROFS).after(1)));
        eventually(|| *log.health().borrow() != Health::Well).await;
        disk.fail_writes(None);
        log.erase(vec![Position(1)]).await.unwrap();
        let disk = disk.cut(&mut rng);
        drop(log);
        let log = open(&disk);
        let all = read_all(&log).await;
        assert_eq!((all[0], all[59]), (Read::Nothing, Read::Everything));
        eventually(|| encryption(&log).to_rewrap == 0).await;
    };
    thread::scope(|scope| {
        for seed in 0..12 {
            scope.spawn(move || tokio::runtime::Runtime::new().unwrap().block_on(run(seed)));
        }
    });
}

#[tokio::test]
async fn a_key_file_that_cannot_be_copied_does_not_stop_the_others() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("keys.txt");
    let (old, new) = (new_master_key().unwrap(), new_master_key().unwrap());
    write_master_keys(&file, &[&old]);
    let config = with_master_key(&directory.path().join("log"), &file);
    let log = open(&config);
    append(&log, 1..=100).await;
    drop(log);
    // Its copy cannot be made where a directory is.
    let blocked = config.keys_path().join("events/00000000000000000001.tmp");
    fs::create_dir(&blocked).unwrap();
    write_master_keys(&file, &[&new, &old]);
    let log = open(&config);
    eventually(|| encryption(&log).to_rewrap == 1).await;
    append(&log, 101..=110).await;
    time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(encryption(&log).to_rewrap, 1);
    drop(log);
    fs::remove_dir(&blocked).unwrap();
    let log = open(&config);
    eventually(|| encryption(&log).to_rewrap == 0).await;
    assert_eq!(read_all(&log).await, [Read::Everything; 110]);
}

#[tokio::test]
async fn a_segment_in_which_nothing_was_sealed_lacks_no_keys() {
    let directory = TempDir::new().unwrap();
    let log = open(&config(directory.path()));
    // Larger than a segment of the quarantine.
    for number in 1..=2 {
        let large = NewQuarantined {
            delivery: Bytes::from(vec![b'x'; 5 << 20]),
            ..quarantined(number)
        };
        log.quarantine(large).await.unwrap();
    }
    assert!(log.release(Uuid::from_u128(2)).await.unwrap());
    drop(log);
    let log = open(&config(directory.path()));
    assert_eq!(encryption(&log).segments_without_keys, 0);
}

#[tokio::test]
async fn keys_that_are_older_than_the_events_open_only_what_they_know() {
    let directory = TempDir::new().unwrap();
    let config = LogConfig {
        // One segment, whose key file grows.
        segment_bytes: 64 << 10,
        ..log_config(directory.path())
    };
    let log = open(&config);
    let of_nobody_else = |number: u128| NewEvent {
        subject: [number as u8; 32],
        ..event(number)
    };
    let older = TempDir::new().unwrap();
    for number in 1..=100 {
        if number == 60 {
            copy(&config.keys_path(), older.path());
        }
        let _ = log.append(of_nobody_else(number)).await.unwrap();
    }
    drop(log);
    fs::remove_dir_all(config.keys_path()).unwrap();
    copy(older.path(), &config.keys_path());
    let log = open(&config);
    assert_eq!(encryption(&log).segments_without_keys, 1);
    for number in 101..=140 {
        let _ = log.append(of_nobody_else(number)).await.unwrap();
    }
    let all = read_all(&log).await;
    let known = all
        .iter()
        .take_while(|read| **read == Read::Everything)
        .count();
    assert!((59..100).contains(&known), "{known}");
    assert_eq!(all[known..100], vec![Read::Nothing; 100 - known]);
    assert_eq!(all[100..], [Read::Everything; 40]);
    // Nobody has got the key of somebody else.
    log.erase((1..=100).map(Position).collect()).await.unwrap();
    assert_eq!(read_all(&log).await[100..], [Read::Everything; 40]);
}

#[tokio::test]
async fn what_was_not_encrypted_is_told_when_it_is_to_be_erased() {
    let directory = TempDir::new().unwrap();
    let (plain, encrypted) = (unencrypted(directory.path()), config(directory.path()));
    let log = open(&plain);
    append(&log, 1..=4).await;
    assert_eq!(encryption(&log), EncryptionStats::default());
    drop(log);
    let log = open(&encrypted);
    append(&log, 5..=8).await;
    drop(log);
    let log = open(&plain);
    append(&log, 9..=12).await;
    let id = encryption(&log).master_key_id;
    assert!(!id.is_empty(), "old keys are still needed");
    drop(log);
    let log = open(&encrypted);
    append(&log, 13..=16).await;
    assert_eq!(read_all(&log).await, [Read::Everything; 16]);
    let all = (1..=16).map(Position).collect();
    let erased = log.erase(all).await;
    assert!(
        matches!(erased, Err(EraseError::NotEncrypted(8))),
        "{erased:?}"
    );
    drop(log);
    let log = open(&encrypted);
    for (number, read) in (1..).zip(read_all(&log).await) {
        let expected = match (1..=4).contains(&number) || (9..=12).contains(&number) {
            true => Read::Everything,
            false => Read::Nothing,
        };
        assert_eq!(read, expected, "{number}");
    }
}

#[tokio::test]
async fn keys_go_with_what_they_open() {
    let directory = TempDir::new().unwrap();
    let config = LogConfig {
        retention: Retention {
            events_max_bytes: 40_000,
            ..Default::default()
        },
        ..log_config(directory.path())
    };
    let log = open(&config);
    append(&log, 1..=10).await;
    let keys = config.keys_path().join("events");
    let first = keys.join("00000000000000000001.keys");
    let kept = fs::read(&first).unwrap();
    append(&log, 11..=300).await;
    eventually(|| log.start() > Position(100)).await;
    let segments = |directory: &Path, extension: &str| {
        let names = files(directory).into_iter().filter_map(|path| {
            let is_one = path.extension().is_some_and(|found| found == extension);
            is_one.then(|| path.file_stem().unwrap().to_owned())
        });
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    let events = directory.path().join("events");
    eventually(|| segments(&keys, "keys") == segments(&events, "log")).await;
    assert!(!first.exists());
    drop(log);
    // As after a power cut in between.
    fs::write(&first, kept).unwrap();
    let log = open(&config);
    assert!(!first.exists());
    assert!(
        read_all(&log)
            .await
            .iter()
            .all(|read| *read == Read::Everything)
    );
}

#[tokio::test]
async fn keys_may_lie_elsewhere_and_serve_one_log_only() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| {
        let config = config(&directory.path().join(name));
        LogConfig {
            encryption: EncryptionConfig {
                keys_path: directory.path().join("safe"),
                ..config.encryption
            },
            ..config
        }
    };
    let refused = || match EmbeddedLog::open(&at("two"), Uuid::from_u128(8)) {
        Err(OpenError::Keys(what)) => what,
        other => panic!("{other:?}"),
    };
    let log = open(&at("one"));
    // Not even while there are no keys yet.
    assert!(refused().contains("in use by another log"));
    append(&log, 1..=3).await;
    assert!(!directory.path().join("one/keys").exists());
    drop(log);
    let what = refused();
    assert!(what.contains("belongs to another log"), "{what}");
    let log = open(&at("one"));
    assert_eq!(read_all(&log).await, [Read::Everything; 3]);
    let stored = log.read(Position(0), ALL).await.unwrap();
    let shown = format!("{:?} {:?}", stored[0], log);
    assert!(!shown.contains("name 1"), "{shown}");
    assert_eq!(
        whole(&log, &stored[0])
            .await
            .personal_data
            .unwrap()
            .full_name,
        "name 1"
    );
}
