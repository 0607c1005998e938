//! What has been stored in a format can be read for ever: directories written by earlier versions, in `tests/golden`,
//! are opened, and hold what they held.
//!
//! A new format gets a new folder beside the old ones, which stay: `VERDICT_WRITE_GOLDEN=1 cargo test --test it golden`
//! writes the one of the format of today. The index is not among the files: it follows from them.

use std::{
    env,
    fmt::Write,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use tempfile::TempDir;
use uuid::Uuid;
use verdict::{
    config::{LogConfig, Retention},
    log::{
        Appended, Commit, Consumer, EventLog, NewEvent, NewQuarantined, Origin, Position,
        QuarantineKind,
        embedded::{EmbeddedLog, FORMAT},
    },
};

use crate::{
    backup::{copy, copy_log},
    log::{ALL, at, new_event, whole},
    support::log_config,
};

fn folder(format: u32) -> PathBuf {
    Path::new("tests/golden").join(format!("format-{format}"))
}

fn open(config: &LogConfig, id: u128) -> EmbeddedLog {
    EmbeddedLog::open(config, Uuid::from_u128(id)).unwrap()
}

/// Everything that a log holds, as text.
async fn contents(log: &EmbeddedLog) -> String {
    let mut text = String::new();
    writeln!(text, "start {} end {}", log.start().0, log.tail().end().0).unwrap();
    for stored in log.read(log.start(), ALL).await.unwrap() {
        let event = whole(log, &stored).await;
        let delivery = log.delivery(stored.position).await.unwrap();
        let id = event.event_id.parse().unwrap();
        assert_eq!(log.find(id).await.unwrap().as_ref(), Some(&stored));
        writeln!(
            text,
            "event {} {} revision {} late {} personal data {:?} delivery {delivery:?} cursor {}",
            stored.position.0,
            event.event_id,
            event.revision,
            event.late,
            event.personal_data.map(|data| match data.erased {
                true => "erased".to_owned(),
                false => data.full_name,
            }),
            log.cursor(stored.position).encode(),
        )
        .unwrap();
    }
    for key in 0..3 {
        let state = log.verification([key; 32]).await.unwrap();
        writeln!(text, "verification {key} {state:?}").unwrap();
    }
    for kind in [QuarantineKind::Genuine, QuarantineKind::Unverified] {
        for stored in log.quarantined(kind, 0, ALL).await.unwrap() {
            let (summary, delivery) = (&stored.summary, &stored.delivery);
            writeln!(
                text,
                "{kind:?} {} {summary:?} {delivery:?}",
                stored.sequence
            )
            .unwrap();
        }
    }
    for consumer in log.consumers() {
        let (name, cursor) = (&consumer.name, consumer.cursor.encode());
        writeln!(text, "consumer {name} {cursor} {}", consumer.committed_at).unwrap();
    }
    text
}

fn quarantined(number: u128, kind: QuarantineKind) -> NewQuarantined {
    NewQuarantined {
        id: Uuid::from_u128(number),
        kind,
        received_at: at(1000),
        summary: Bytes::from(format!("summary {number}")),
        delivery: Bytes::from(format!("delivery {number}")),
    }
}

/// Fills a log with some of everything.
async fn fill(log: &EmbeddedLog) {
    for number in 1..=40 {
        let occurred_at = (number % 4 != 0).then_some(100 - number as i64 % 7);
        let origin = match number {
            20 => Origin::Redriven,
            21 => Origin::Correction(Uuid::from_u128(18)),
            _ => Origin::Received,
        };
        let event = NewEvent {
            origin,
            ..new_event(number, Some((number % 3) as u8), occurred_at)
        };
        let _ = log.append(event).await.unwrap();
    }
    let _ = log.append(new_event(41, None, None)).await.unwrap();
    for number in 1..=3 {
        for kind in [QuarantineKind::Genuine, QuarantineKind::Unverified] {
            log.quarantine(quarantined(number + 10 * kind as u128, kind))
                .await
                .unwrap();
        }
    }
    log.release(Uuid::from_u128(2)).await.unwrap();
    for (name, position) in [("risk", 7), ("audit", 41)] {
        let commit = Commit {
            consumer: Consumer {
                name: name.to_owned(),
                cursor: log.cursor(Position(position)),
                committed_at: at(2000),
            },
            force: false,
        };
        log.commit(commit).await.unwrap();
    }
}

/// Writes the folder of today's format: a log whose oldest events and deliveries are no longer retained.
async fn write(folder: &Path) {
    let directory = TempDir::new().unwrap();
    let config = LogConfig {
        segment_bytes: 1000,
        retention: Retention {
            events_max_bytes: 9_000,
            deliveries_max_bytes: 250,
            ..Default::default()
        },
        ..log_config(directory.path())
    };
    let log = open(&config, 7);
    fill(&log).await;
    drop(log);
    let log = open(&config, 8);
    let _ = log.append(new_event(42, None, None)).await.unwrap();
    let erased = new_event(43, Some(9), None);
    let Appended::New(position) = log.append(erased).await.unwrap() else {
        panic!("it is new");
    };
    log.erase(vec![position]).await.unwrap();
    // Retention works behind our back.
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("contents.txt"), contents(&log).await).unwrap();
    drop(log);
    copy_log(directory.path(), &folder.join("log"));
}

#[tokio::test]
async fn what_was_stored_in_any_format_is_read() {
    if env::var_os("VERDICT_WRITE_GOLDEN").is_some() {
        write(&folder(FORMAT)).await;
    }
    for format in 1..=FORMAT {
        let folder = folder(format);
        let directory = TempDir::new().unwrap();
        copy(&folder.join("log"), directory.path());
        let master_key = directory.path().join("keys/master.key");
        if master_key.exists() {
            // git knows no better mode.
            fs::set_permissions(&master_key, Permissions::from_mode(0o600)).unwrap();
        }
        let log = open(&log_config(directory.path()), 9);
        let expected = fs::read_to_string(folder.join("contents.txt")).unwrap();
        assert_eq!(contents(&log).await, expected);
        // It can be written too.
        let appended = log.append(new_event(1000, Some(1), Some(1))).await.unwrap();
        assert!(matches!(appended, Appended::New(_)));
        let again = log.append(new_event(41, None, None)).await.unwrap();
        assert!(matches!(again, Appended::Duplicate(_)));
    }
}

#[tokio::test]
async fn a_format_of_the_future_is_refused() {
    let directory = TempDir::new().unwrap();
    drop(open(&log_config(directory.path()), 9));
    // The file begins with its record's header; the number of the format is the first field after it.
    let path = directory.path().join("meta");
    let mut meta = fs::read(&path).unwrap();
    assert_eq!(meta[40..42], [0x08, FORMAT as u8]);
    meta[41] = FORMAT as u8 + 1;
    let checksum = crc32fast::hash(&meta[4..]);
    meta[..4].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&path, meta).unwrap();
    let refused = EmbeddedLog::open(&log_config(directory.path()), Uuid::from_u128(7));
    assert_eq!(
        refused.unwrap_err().to_string(),
        format!(
            "the log has format {}, and this version of verdict reads format {FORMAT}",
            FORMAT + 1
        )
    );
}
