//! The audit log: who called which rpc of operators, or read personal data, and with what result.
//!
//! JSON lines, only ever appended. One thread writes them, so that many share one sync. A file that was moved away, as
//! logrotate does, is made anew. What cannot be written fails whoever has to be recorded: who calls decides what that means.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
};

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

/// How many records may wait to be written.
const MAX_WAITING: usize = 1024;

/// How many records are written at once.
const MAX_BATCH: usize = 256;

/// The longest text in a record. What a caller may send is not all that long.
const MAX_TEXT_BYTES: usize = 256;

/// One line of the audit log. What is not known, or not there, is left out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Record {
    /// When, by RFC 3339.
    pub at: String,
    /// What the lines of one call have in common. It counts from 1 whenever verdict is started.
    pub call: u64,
    /// Whether the call is about to begin; else it has been answered.
    #[serde(skip_serializing_if = "is_false")]
    pub begins: bool,
    /// The full name of the rpc.
    pub rpc: String,
    /// The name of the caller; `null` when nobody knows it.
    pub caller: Option<String>,
    /// How it proved who it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential: Option<RecordedCredential>,
    /// Where the connection comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// What the call is about.
    #[serde(flatten)]
    pub about: About,
    /// The gRPC code, by its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// The reason, where it is an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many refused calls of this caller, or of all unknown callers, were not recorded before this one, because there
    /// were too many.
    #[serde(skip_serializing_if = "is_zero")]
    pub omitted: u64,
}

/// How a caller has proved who it is.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordedCredential {
    /// The id of a token.
    Token(String),
    /// The name of an issuer, and the subject.
    Jwt {
        /// The name of the issuer.
        issuer: String,
        /// The subject.
        subject: String,
    },
    /// The name of a certificate.
    Certificate(String),
}

/// What a call is about: never personal data, nor what identifies a person.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct About {
    /// Whether personal data or raw deliveries were asked for.
    #[serde(skip_serializing_if = "is_false")]
    pub personal_data: bool,
    /// A provider.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub provider: String,
    /// An account.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub account: String,
    /// An event.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub event_id: String,
    /// A delivery in the quarantine.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub quarantine_id: String,
    /// A consumer.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub consumer: String,
    /// The SHA-256, in hex, of provider, account and the id of a subject, with a zero byte after each of the first two.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subject_sha256: String,
    /// Which log lines there are to be.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub log_levels: String,
    /// Whether the call only shows what it would do.
    #[serde(skip_serializing_if = "is_false")]
    pub dry_run: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// A record could not be written. Why is in the log of the operator, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit log cannot be written")]
pub struct Unwritable;

/// The audit log.
#[derive(Clone, Debug)]
pub struct Audit {
    waiting: mpsc::Sender<Waiting>,
}

/// A record that is to be written.
struct Waiting {
    line: Vec<u8>,
    /// Whether it must survive a power cut.
    durable: bool,
    written: oneshot::Sender<bool>,
}

impl Audit {
    /// Opens the audit log, or makes it. Its thread ends with the last handle. Blocks.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut writer = Writer {
            path: path.to_owned(),
            file: None,
            torn: false,
            well: true,
        };
        writer.reopen()?;
        let (waiting, receiver) = mpsc::channel(MAX_WAITING);
        let thread = thread::Builder::new().name("audit".to_owned());
        thread.spawn(move || writer.run(receiver))?;
        Ok(Self { waiting })
    }

    /// Writes a record; a durable one to the disk.
    pub async fn write(&self, record: &Record, durable: bool) -> Result<(), Unwritable> {
        let (written, done) = oneshot::channel();
        let waiting = Waiting {
            line: line(record),
            durable,
            written,
        };
        let sent = self.waiting.send(waiting).await;
        sent.map_err(|_| Unwritable)?;
        match done.await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(Unwritable),
        }
    }
}

fn line(record: &Record) -> Vec<u8> {
    let mut record = record.clone();
    let About {
        personal_data: _,
        provider,
        account,
        event_id,
        quarantine_id,
        consumer,
        subject_sha256: _,
        log_levels,
        dry_run: _,
    } = &mut record.about;
    let texts = [
        provider,
        account,
        event_id,
        quarantine_id,
        consumer,
        log_levels,
        &mut record.rpc,
    ];
    texts.into_iter().for_each(shorten);
    match &mut record.credential {
        Some(RecordedCredential::Jwt { subject, .. }) => shorten(subject),
        Some(RecordedCredential::Certificate(name)) => shorten(name),
        Some(RecordedCredential::Token(_)) | None => {}
    }
    let mut line = serde_json::to_vec(&record).unwrap_or_default();
    line.push(b'\n');
    line
}

fn shorten(text: &mut String) {
    if text.len() > MAX_TEXT_BYTES {
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
        text.push('…');
    }
}

/// The one who writes.
struct Writer {
    path: PathBuf,
    file: Option<File>,
    /// Whether the last line may be cut off.
    torn: bool,
    well: bool,
}

impl Writer {
    fn run(mut self, mut waiting: mpsc::Receiver<Waiting>) {
        let mut batch = Vec::new();
        while waiting.blocking_recv_many(&mut batch, MAX_BATCH) > 0 {
            let written = self.write(&batch);
            match &written {
                Err(error) if self.well => tracing::error!(
                    audit.path = %self.path.display(),
                    %error,
                    "the audit log cannot be written: calls that must be recorded are refused"
                ),
                Ok(()) if !self.well => tracing::info!("the audit log can be written again"),
                Ok(()) | Err(_) => {}
            }
            self.well = written.is_ok();
            for one in batch.drain(..) {
                // Who waits may have gone away.
                let _ = one.written.send(self.well);
            }
        }
    }

    fn write(&mut self, batch: &[Waiting]) -> io::Result<()> {
        if self.is_gone() {
            self.reopen()?;
        }
        let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let mut lines = Vec::new();
        if self.torn {
            lines.push(b'\n');
        }
        for one in batch {
            lines.extend_from_slice(&one.line);
        }
        self.torn = true;
        file.write_all(&lines)?;
        self.torn = false;
        if batch.iter().any(|one| one.durable) {
            let synced = file.sync_data();
            if synced.is_err() {
                // Nobody knows what the disk holds: what follows is written to a file that is opened anew.
                self.file = None;
            }
            return synced;
        }
        Ok(())
    }

    /// Whether the file under the path is another one by now, or none.
    fn is_gone(&self) -> bool {
        let Some(file) = &self.file else {
            return true;
        };
        match (file.metadata(), fs::metadata(&self.path)) {
            (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) != (there.dev(), there.ino()),
            _ => true,
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600);
        let file = file.open(&self.path)?;
        self.tighten(&file)?;
        // A crash may have cut off the last line of a file that was there before.
        self.torn = file.metadata()?.len() > 0 && !ends_a_line(&self.path)?;
        let directory = self
            .path
            .parent()
            .filter(|path| !path.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
        self.file = Some(file);
        Ok(())
    }
}

impl Writer {
    /// Takes a file that was there before from all but its owner. One that is not ours, or no file, is as others want it.
    fn tighten(&self, file: &File) -> io::Result<()> {
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.mode() & 0o077 == 0 {
            return Ok(());
        }
        if let Err(error) = file.set_permissions(fs::Permissions::from_mode(0o600)) {
            tracing::warn!(
                audit.path = %self.path.display(),
                %error,
                "others may read or write the audit log, and that cannot be changed; take it from them (chmod 600)"
            );
        }
        Ok(())
    }
}

fn ends_a_line(path: &Path) -> io::Result<bool> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(path)?;
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn record(call: u64) -> Record {
        Record {
            call,
            ..Record::default()
        }
    }

    fn calls(path: &Path) -> Vec<u64> {
        let text = fs::read_to_string(path).unwrap();
        let lines = text.lines().filter_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            line["call"].as_u64()
        });
        lines.collect()
    }

    #[tokio::test]
    async fn lines_are_appended_to_a_file_for_its_owner_that_may_be_moved_away() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("audit.jsonl");
        let audit = Audit::open(&path).unwrap();
        audit.write(&record(1), false).await.unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let moved = directory.path().join("audit.1");
        fs::rename(&path, &moved).unwrap();
        audit.write(&record(2), true).await.unwrap();
        fs::remove_file(&path).unwrap();
        audit.write(&record(3), true).await.unwrap();
        drop(audit);
        assert_eq!((calls(&moved), calls(&path)), (vec![1], vec![3]));

        // A line that a crash has cut off spoils no other.
        fs::write(&path, "{\"call\":4}\n{\"ca").unwrap();
        let audit = Audit::open(&path).unwrap();
        audit.write(&record(5), true).await.unwrap();
        assert_eq!(calls(&path), [4, 5]);
        // Nor does one who could read the file until then read on.
        drop(audit);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        drop(Audit::open(&path).unwrap());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_said_and_tried_again() {
        let directory = TempDir::new().unwrap();
        let home = directory.path().join("home");
        fs::create_dir(&home).unwrap();
        let audit = Audit::open(&home.join("audit.jsonl")).unwrap();
        let away = directory.path().join("away");
        fs::rename(&home, &away).unwrap();
        assert_eq!(audit.write(&record(1), false).await, Err(Unwritable));
        fs::rename(&away, &home).unwrap();
        assert_eq!(audit.write(&record(2), false).await, Ok(()));
        assert_eq!(calls(&home.join("audit.jsonl")), [2]);
    }

    #[test]
    fn a_line_is_bounded_and_one_line() {
        let mut long = record(1);
        long.about.consumer = "ä\n".repeat(100_000);
        long.rpc = "x".repeat(100_000);
        let line = line(&long);
        assert!(line.len() < 2_000);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    }
}
