//! The public keys of an issuer of JWTs, as a JSON Web Key Set in a file or at a URL.
//!
//! A file is followed like all files. A URL is read again and again, and when somebody shows a token of a key that is not in
//! the set, but then no more than once in [`UNKNOWN_KEY_PAUSE`]. What cannot be read leaves the keys as they are, and those
//! of a URL for no longer than [`MAX_AGE`]: who keeps us from reading must not keep a withdrawn key alive. A set that can be
//! read is taken over, also when it holds no key at all: its issuer has withdrawn them.

use std::{
    convert::Infallible,
    fmt, io,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    slice,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future};
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use jiff::Timestamp;
use jsonwebtoken::Algorithm;
use tokio::{
    sync::{Notify, watch},
    task,
    time::{self, Instant},
};

use super::{
    Issuer, Refused,
    jwk::{Key, MAX_KEYS, parse},
};
use crate::reload::{FileError, Files, Fingerprint, Reload};

/// How long a token of an unknown key does not make us read the set again after one that did.
const UNKNOWN_KEY_PAUSE: Duration = Duration::from_secs(30);

/// How long a call waits for the set to be read again.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long keys from a URL are believed that cannot be read again.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// How long reading a set may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

const MAX_BYTES: usize = 256 << 10;

/// Where a set is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a file.
    File(PathBuf),
    /// At a URL, to be read at this interval.
    Url(Uri, Duration),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url(url, _) => url.fmt(f),
        }
    }
}

/// Why a set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    /// The file cannot be read.
    #[error("{0}")]
    File(#[from] FileError),
    /// No client for the URL could be made.
    #[error("{0}")]
    Client(#[from] io::Error),
    /// The URL does not answer.
    #[error("{0}")]
    Unreachable(String),
    /// It answers something else.
    #[error("it answers {0}, and only 200 is taken; redirections are not followed")]
    Status(StatusCode),
    /// More than a set of keys could be.
    #[error("larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// Not a set.
    #[error("not a JSON Web Key Set (an object with the member keys)")]
    Malformed,
    /// Not a set of an issuer.
    #[error("holds more than {MAX_KEYS} keys")]
    TooMany,
    /// Nothing to verify with.
    #[error("holds no key for signatures that verdict knows (RSA, P-256, P-384, Ed25519)")]
    NoKey,
}

/// The keys of an issuer.
pub struct KeySet {
    place: Place,
    keys: RwLock<Arc<Vec<Arc<Key>>>>,
    /// What the file held at first; of a URL, nothing.
    first: Fingerprint,
    /// Counts how often the set was read, well or not.
    read: watch::Sender<u64>,
    /// Asks for the set to be read.
    wanted: Notify,
    /// When that was asked for last, because of an unknown key, and how often the set had been read then.
    last_wanted: Mutex<Option<(Instant, u64)>>,
}

impl KeySet {
    /// The set at this place. A file is read, and must hold a key; a URL is not yet. Blocks.
    pub fn open(place: Place) -> Result<Self, KeySetError> {
        let (keys, first) = match &place {
            Place::File(path) => {
                let files = Files::read(slice::from_ref(path));
                let keys = read_file(&files, path)?;
                if keys.is_empty() {
                    return Err(KeySetError::NoKey);
                }
                (keys, files.fingerprint())
            }
            Place::Url(..) => (Vec::new(), Files::read(&[]).fingerprint()),
        };
        Ok(Self {
            place,
            keys: RwLock::new(Arc::new(keys)),
            first,
            read: watch::Sender::new(0),
            wanted: Notify::new(),
            last_wanted: Mutex::default(),
        })
    }

    /// The key that a token names, or the only one that fits when it names none.
    pub(super) async fn find(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Arc<Key>, Refused> {
        let read = self.read.subscribe();
        match self.choose(id, algorithm) {
            Err(Refused::UnknownKey)
                if matches!(self.place, Place::Url(..)) && self.read_again(read).await =>
            {
                self.choose(id, algorithm)
            }
            chosen => chosen,
        }
    }

    fn choose(&self, id: Option<&str>, algorithm: Algorithm) -> Result<Arc<Key>, Refused> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let named = keys
            .iter()
            .filter(|key| id.is_none() || key.id.as_deref() == id);
        let mut named = named.peekable();
        if named.peek().is_none() {
            return Err(Refused::UnknownKey);
        }
        let mut fitting = named.filter(|key| key.algorithms.contains(&algorithm));
        match (fitting.next(), fitting.next()) {
            (Some(key), None) => Ok(Arc::clone(key)),
            (Some(_), Some(_)) => Err(Refused::AmbiguousKey),
            (None, _) => Err(Refused::AlgorithmNotAllowed),
        }
    }

    /// Has the set read again, unless that was asked for just now, and waits for it. Returns whether it was read.
    async fn read_again(&self, mut read: watch::Receiver<u64>) -> bool {
        let now = Instant::now();
        {
            let last = self.last_wanted.lock();
            let mut last = last.unwrap_or_else(PoisonError::into_inner);
            let times = *self.read.borrow();
            let is_recent = |then| now.duration_since(then) < UNKNOWN_KEY_PAUSE;
            match *last {
                // It is being read, or was while we looked.
                Some((_, asked)) if asked == times => {}
                Some(_) if read.has_changed().unwrap_or(false) => {}
                Some((then, _)) if is_recent(then) => return false,
                _ => {
                    *last = Some((now, times));
                    self.wanted.notify_one();
                }
            }
        }
        matches!(time::timeout(PATIENCE, read.changed()).await, Ok(Ok(())))
    }

    /// Reads the set at a URL again and again, for ever. `name` is that of the issuer, for the log.
    pub(super) async fn keep_fresh(&self, name: &str) -> Infallible {
        let Place::Url(url, interval) = &self.place else {
            return future::pending().await;
        };
        let mut freshness = Freshness {
            well: true,
            read_at: Instant::now(),
            expired: false,
        };
        loop {
            // One set must not end the refreshing of the others, nor its own.
            let read = AssertUnwindSafe(fetch(url)).catch_unwind().await;
            let read = read.unwrap_or_else(|_| {
                let why = "reading it failed, which is a bug in verdict";
                Err(KeySetError::Unreachable(why.to_owned()))
            });
            self.refresh(name, read, &mut freshness);
            // A set that is not there yet is looked for more often.
            let interval = match freshness.well {
                true => *interval,
                false => (*interval).min(UNKNOWN_KEY_PAUSE),
            };
            tokio::select! {
                () = time::sleep(interval) => {}
                () = self.wanted.notified() => {}
            }
        }
    }

    /// Takes over what was read, if it was. What changes is logged once.
    fn refresh(
        &self,
        name: &str,
        read: Result<Vec<Arc<Key>>, KeySetError>,
        freshness: &mut Freshness,
    ) {
        let now = Instant::now();
        match read {
            Ok(keys) => {
                if !freshness.well {
                    tracing::info!(
                        issuer.name = name,
                        "the keys of an issuer can be read again"
                    );
                }
                self.replace(name, keys);
                *freshness = Freshness {
                    well: true,
                    read_at: now,
                    expired: false,
                };
            }
            Err(error) => {
                if freshness.well {
                    tracing::error!(
                        issuer.name = name,
                        issuer.jwks = %self.place,
                        %error,
                        "the keys of an issuer cannot be read; those that are known stay in use for 24 hours at most"
                    );
                }
                freshness.well = false;
                if !freshness.expired && now.duration_since(freshness.read_at) >= MAX_AGE {
                    tracing::error!(
                        issuer.name = name,
                        issuer.jwks = %self.place,
                        "the keys of an issuer could not be read for 24 hours: its tokens are refused until they can"
                    );
                    self.set(Vec::new());
                    freshness.expired = true;
                }
            }
        }
        self.read.send_modify(|times| *times += 1);
    }

    /// Puts what was read in the place of the keys.
    fn replace(&self, name: &str, keys: Vec<Arc<Key>>) {
        let has_keys = !keys.is_empty();
        let had_keys = self.set(keys);
        if had_keys && !has_keys {
            tracing::warn!(
                issuer.name = name,
                issuer.jwks = %self.place,
                "an issuer has withdrawn all its keys: its tokens are refused until it has new ones"
            );
        }
    }

    /// Puts keys in the place of others. Returns whether there were any.
    fn set(&self, keys: Vec<Arc<Key>>) -> bool {
        let mut current = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let had_keys = !current.is_empty();
        *current = Arc::new(keys);
        had_keys
    }
}

/// How well a URL can be read.
struct Freshness {
    well: bool,
    /// When it was read last; when we began, if it never was.
    read_at: Instant,
    /// Whether its keys are not believed any more.
    expired: bool,
}

impl Reload for Issuer {
    fn paths(&self) -> &[PathBuf] {
        match &self.keys.place {
            Place::File(path) => slice::from_ref(path),
            Place::Url(..) => &[],
        }
    }

    fn first(&self) -> Fingerprint {
        self.keys.first
    }

    fn reload(&self, files: &Files, _now: Timestamp) {
        let Some(path) = self.paths().first() else {
            return;
        };
        match read_file(files, path) {
            Ok(keys) => {
                tracing::info!(issuer.name = %self.name, "the keys of an issuer have changed");
                self.keys.replace(&self.name, keys);
            }
            Err(error) => tracing::error!(
                issuer.name = %self.name,
                issuer.jwks = %self.keys.place,
                %error,
                "the keys of an issuer cannot be read; those that are known stay in use"
            ),
        }
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySet({})", self.place)
    }
}

async fn fetch(url: &Uri) -> Result<Vec<Arc<Key>>, KeySetError> {
    let got = time::timeout(FETCH_TIMEOUT, get(url)).await;
    let late = |_| KeySetError::Unreachable("it does not answer in time".to_owned());
    parse(&got.map_err(late)??)
}

fn read_file(files: &Files, path: &Path) -> Result<Vec<Arc<Key>>, KeySetError> {
    let text = files.get(path)?;
    match text.len() <= MAX_BYTES {
        true => parse(text),
        false => Err(KeySetError::TooLarge),
    }
}

async fn get(url: &Uri) -> Result<Bytes, KeySetError> {
    let unreachable = |error: &dyn std::error::Error| {
        let mut why = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            why = format!("{why}: {error}");
            source = error.source();
        }
        KeySetError::Unreachable(why)
    };
    let of = url.clone();
    let client = task::spawn_blocking(move || client(&of)).await;
    let client = client.map_err(io::Error::other)??;
    let request = Request::get(url).header(header::ACCEPT, "application/json");
    let request = request.header(header::USER_AGENT, "verdict");
    let request = request.body(Empty::<Bytes>::new());
    let request = request.map_err(|error| unreachable(&error))?;
    let response = client.request(request).await;
    let response = response.map_err(|error| unreachable(&error))?;
    if response.status() != StatusCode::OK {
        return Err(KeySetError::Status(response.status()));
    }
    let body = Limited::new(response.into_body(), MAX_BYTES)
        .collect()
        .await;
    let body = body.map_err(|error| {
        if error.is::<http_body_util::LengthLimitError>() {
            return KeySetError::TooLarge;
        }
        unreachable(&*error)
    })?;
    Ok(body.to_bytes())
}

/// A client for one request: a connection that idles for minutes would be of no use. The roots are those of the system, as
/// they are now. Blocks, because they are read from files.
fn client(url: &Uri) -> Result<Client<HttpsConnector<HttpConnector>, Empty<Bytes>>, KeySetError> {
    let builder = HttpsConnectorBuilder::new().with_native_roots();
    let builder = builder.map_err(|error| KeySetError::Unreachable(error.to_string()))?;
    // The configuration takes plain HTTP to this machine only.
    let connector = match url.scheme_str() {
        Some("http") => builder.https_or_http().enable_http1().build(),
        _ => builder.https_only().enable_http1().build(),
    };
    let mut client = Client::builder(TokioExecutor::new());
    Ok(client.pool_max_idle_per_host(0).build(connector))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &str = r#"{"keys":[{"kty":"OKP","kid":"a","crv":"Ed25519",
        "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    fn set() -> (KeySet, Freshness) {
        let url = Uri::from_static("https://login.example.com/keys");
        let set = KeySet::open(Place::Url(url, UNKNOWN_KEY_PAUSE)).unwrap();
        let freshness = Freshness {
            well: true,
            read_at: Instant::now(),
            expired: false,
        };
        (set, freshness)
    }

    fn knows(set: &KeySet) -> bool {
        set.choose(Some("a"), Algorithm::EdDSA).is_ok()
    }

    #[test]
    fn an_issuer_may_withdraw_all_its_keys() {
        for withdrawn in [r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","k":"YQ"}]}"#] {
            let (set, mut freshness) = set();
            set.refresh("corp", parse(KEYS.as_bytes()), &mut freshness);
            assert!(knows(&set));
            set.refresh("corp", parse(b"{}"), &mut freshness);
            assert!(knows(&set), "that was no set");
            set.refresh("corp", parse(withdrawn.as_bytes()), &mut freshness);
            assert!(!knows(&set), "{withdrawn}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keys_that_cannot_be_read_again_are_not_believed_for_ever() {
        let (set, mut freshness) = set();
        set.refresh("corp", parse(KEYS.as_bytes()), &mut freshness);
        let away = || Err(KeySetError::Unreachable("away".to_owned()));
        time::advance(MAX_AGE - Duration::from_secs(1)).await;
        set.refresh("corp", away(), &mut freshness);
        assert!(knows(&set));
        time::advance(Duration::from_secs(1)).await;
        set.refresh("corp", away(), &mut freshness);
        assert!(!knows(&set));
        set.refresh("corp", parse(KEYS.as_bytes()), &mut freshness);
        assert!(knows(&set));
    }
}
