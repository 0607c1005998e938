//! Files that are read again while the server runs: certificates and secrets.
//!
//! The files are polled and compared by content. Notifications of the kernel would be quicker, but each way of replacing a
//! file needs its own care with them: a watch on a file stays with the old one when another is renamed over it; Kubernetes
//! swaps a symbolic link two directories away (`..data`); network file systems notify of nothing. A poll sees the same
//! whatever was done, and costs a few reads of small files.
//!
//! A change is taken over when two polls in a row have read the same. So a file that is caught half-written, or a pair of
//! which only one is new yet, is given time to become whole.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};
use tokio::{
    task,
    time::{self, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

/// The largest file that is read: no certificate and no secret comes near it.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Something that follows the content of files.
pub trait Reload: Send + Sync {
    /// The files.
    fn paths(&self) -> &[PathBuf];

    /// What the files held when they were read first.
    fn first(&self) -> Fingerprint;

    /// Takes over what the files hold now. What cannot be used is logged, and the old stays in use. Blocks.
    fn reload(&self, files: &Files, now: Timestamp);
}

/// Files, as they were read one after the other. Wiped on drop.
pub struct Files(Vec<(PathBuf, io::Result<Zeroizing<Vec<u8>>>)>);

/// Tells contents of files apart, without holding them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// A path on one line, whatever it holds.
pub(crate) fn shown(path: &Path) -> String {
    path.display().to_string().escape_debug().to_string()
}

/// Which file cannot be read, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {0}")]
pub struct FileError(String);

impl Files {
    /// Reads these files. Blocks.
    pub fn read(paths: &[PathBuf]) -> Self {
        let read = |path: &PathBuf| (path.clone(), read_file(path));
        Self(paths.iter().map(read).collect())
    }

    /// What one of the files holds.
    pub fn get(&self, path: &Path) -> Result<&[u8], FileError> {
        let error = |why: &dyn fmt::Display| FileError(format!("{}: {why}", shown(path)));
        match self.0.iter().find(|(known, _)| known == path) {
            Some((_, Ok(content))) => Ok(content),
            Some((_, Err(failed))) => Err(error(failed)),
            None => Err(error(&"it was not asked for")),
        }
    }

    /// What tells these contents from others. A file that cannot be read counts as a content too.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut all = Sha256::new();
        for (_, content) in &self.0 {
            let one: [u8; 32] = match content {
                Ok(content) => Sha256::digest(content).into(),
                Err(failed) => Sha256::digest(failed.to_string()).into(),
            };
            all.update([u8::from(content.is_ok())]);
            all.update(one);
        }
        Fingerprint(all.finalize().into())
    }
}

/// Reads a file into memory that is wiped on drop, and that never moves, because what it leaves behind would not be.
fn read_file(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    // Else a pipe would have us wait for whoever writes to it.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    let mut file = File::options()
        .read(true)
        .custom_flags(flags.cast_signed())
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a file"));
    }
    if metadata.len() > MAX_FILE_BYTES {
        let why = format!("larger than {MAX_FILE_BYTES} bytes");
        return Err(io::Error::other(why));
    }
    // One byte more, to see the end.
    let mut content = Zeroizing::new(vec![0; metadata.len() as usize + 1]);
    let mut filled = 0;
    while filled < content.len() {
        match file.read(&mut content[filled..]) {
            Ok(0) => {
                content.truncate(filled);
                return Ok(content);
            }
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("it grows while it is read"))
}

/// Polls the files of all targets until it is told to stop.
pub async fn watch(
    targets: Vec<Arc<dyn Reload>>,
    interval: Duration,
    now: fn() -> Timestamp,
    stop: CancellationToken,
) {
    let mut watched: Vec<Watched> = targets.into_iter().map(Watched::new).collect();
    let mut ticks = time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        // A disk that does not answer must hold up neither the async threads nor the shutdown.
        let polled = task::spawn_blocking(move || {
            for one in &mut watched {
                one.poll(now());
            }
            watched
        });
        watched = tokio::select! {
            () = stop.cancelled() => return,
            polled = polled => match polled {
                Ok(watched) => watched,
                // The runtime is going away.
                Err(_) => return,
            },
        };
    }
}

/// A target, with what is known of its files.
struct Watched {
    target: Arc<dyn Reload>,
    /// What was taken over last.
    taken: Fingerprint,
    /// What the last poll read.
    seen: Fingerprint,
}

impl Watched {
    fn new(target: Arc<dyn Reload>) -> Self {
        let first = target.first();
        Self {
            target,
            taken: first,
            seen: first,
        }
    }

    fn poll(&mut self, now: Timestamp) {
        let files = Files::read(self.target.paths());
        let fingerprint = files.fingerprint();
        let settled = self.seen == fingerprint;
        self.seen = fingerprint;
        if self.taken == fingerprint || !settled {
            return;
        }
        self.taken = fingerprint;
        // One target must not end the reloading of the others.
        let reload = AssertUnwindSafe(|| self.target.reload(&files, now));
        if panic::catch_unwind(reload).is_err() {
            tracing::error!("reloading failed, which is a bug in verdict; the old stays in use");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, sync::Mutex};

    use rustix::fs::{CWD, FileType, Mode};
    use tempfile::TempDir;

    use super::*;

    /// A target that writes down what it is given.
    struct Recorder {
        paths: Vec<PathBuf>,
        first: Fingerprint,
        taken: Mutex<Vec<Result<Vec<u8>, String>>>,
    }

    impl Reload for Recorder {
        fn paths(&self) -> &[PathBuf] {
            &self.paths
        }

        fn first(&self) -> Fingerprint {
            self.first
        }

        fn reload(&self, files: &Files, _now: Timestamp) {
            let read = files.get(&self.paths[0]);
            let read = read.map(<[u8]>::to_vec).map_err(|error| error.to_string());
            self.taken.lock().unwrap().push(read);
        }
    }

    fn watched(path: PathBuf) -> (Arc<Recorder>, Watched) {
        let recorder = Arc::new(Recorder {
            first: Files::read(std::slice::from_ref(&path)).fingerprint(),
            paths: vec![path],
            taken: Mutex::default(),
        });
        let target: Arc<dyn Reload> = Arc::<Recorder>::clone(&recorder);
        (recorder, Watched::new(target))
    }

    fn poll(watched: &mut Watched) {
        watched.poll(Timestamp::UNIX_EPOCH);
    }

    #[test]
    fn a_change_is_taken_when_it_was_read_twice_and_once_only() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("secret");
        fs::write(&path, "one").unwrap();
        let (recorder, mut watched) = watched(path.clone());
        poll(&mut watched);
        fs::write(&path, "tw").unwrap();
        poll(&mut watched);
        fs::write(&path, "two").unwrap();
        poll(&mut watched);
        assert!(recorder.taken.lock().unwrap().is_empty());
        poll(&mut watched);
        poll(&mut watched);
        poll(&mut watched);
        assert_eq!(*recorder.taken.lock().unwrap(), [Ok(b"two".to_vec())]);
    }

    #[test]
    fn what_was_taken_back_at_once_is_no_change() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("secret");
        fs::write(&path, "one").unwrap();
        let (recorder, mut watched) = watched(path.clone());
        fs::write(&path, "two").unwrap();
        poll(&mut watched);
        fs::write(&path, "one").unwrap();
        poll(&mut watched);
        poll(&mut watched);
        assert!(recorder.taken.lock().unwrap().is_empty());
    }

    #[test]
    fn a_file_that_is_gone_is_told_once_and_found_again() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("secret");
        fs::write(&path, "one").unwrap();
        let (recorder, mut watched) = watched(path.clone());
        fs::remove_file(&path).unwrap();
        for _ in 0..5 {
            poll(&mut watched);
        }
        fs::write(&path, "one").unwrap();
        for _ in 0..5 {
            poll(&mut watched);
        }
        let taken = recorder.taken.lock().unwrap();
        assert_eq!(taken.len(), 2);
        let gone = taken[0].clone().unwrap_err();
        assert!(gone.contains("No such file"), "{gone}");
        assert_eq!(taken[1], Ok(b"one".to_vec()));
    }

    #[test]
    fn every_way_of_replacing_a_file_is_seen() {
        let directory = TempDir::new().unwrap();
        let at = |name: &str| directory.path().join(name);
        // A Secret as Kubernetes mounts it: secret -> ..data/secret, ..data -> ..1.
        for (version, content) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("secret"), content).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/secret", at("secret")).unwrap();
        let (recorder, mut watched) = watched(at("secret"));

        symlink("..2", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        poll(&mut watched);
        poll(&mut watched);
        fs::write(at("new"), "three").unwrap();
        fs::rename(at("new"), at("secret")).unwrap();
        poll(&mut watched);
        poll(&mut watched);
        fs::write(at("secret"), "four").unwrap();
        poll(&mut watched);
        poll(&mut watched);
        let expected = ["two", "three", "four"].map(|content| Ok(content.into()));
        assert_eq!(*recorder.taken.lock().unwrap(), expected);
    }

    #[test]
    fn what_is_no_file_or_too_large_is_not_read() {
        let directory = TempDir::new().unwrap();
        let large = directory.path().join("large");
        File::create(&large)
            .unwrap()
            .set_len(MAX_FILE_BYTES + 1)
            .unwrap();
        let why = read_file(&large).unwrap_err().to_string();
        assert!(why.contains("larger than"), "{why}");
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        for other in [directory.path(), &pipe, Path::new("/dev/zero")] {
            let why = read_file(other).unwrap_err().to_string();
            assert!(why.contains("not a file"), "{why}");
        }
    }
}
