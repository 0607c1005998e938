//! Answers, as they are taken: what a call holds is given back when its answer has been taken, or when the caller has left
//! it lying for too long.
//!
//! HTTP/2 lets a client close its window and keep the stream. Then hyper does not ask for the rest of an answer, and
//! nothing in it would ever run again. So the answer is owned here, next to what hyper has: a [`Watchman`] looks at all of
//! them now and then, and drops what nobody has asked for for too long, with what it holds. The client is told when it comes
//! back.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use slab::Slab;
use tokio::time::{self, Instant};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Status, body::Body};

use super::status;
use crate::error::Code;

/// The most of an answer that is handed to HTTP/2 at once. What it has been handed stays in memory until the client takes
/// it, so more than this is copied: a part of a larger buffer would keep all of it.
pub(super) const PIECE_BYTES: usize = 16 << 10;

/// How long an answer that is to end may lie.
const LAST_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the watchman looks. A task for each answer would see to it at once, and cost a tenth of a whole call.
const ROUND: Duration = Duration::from_secs(1);

/// What is given back by dropping it.
pub(super) type Held = Box<dyn Send>;

/// Looks after the answers that are being taken.
#[derive(Default)]
pub(super) struct Watchman {
    answers: Mutex<Slab<Weak<Mutex<Rest>>>>,
}

impl Watchman {
    /// Makes his rounds for ever.
    pub(super) async fn watch(self: Arc<Self>) {
        loop {
            time::sleep(ROUND).await;
            let answers: Vec<_> = self
                .answers()
                .iter()
                .filter_map(|(_, rest)| rest.upgrade())
                .collect();
            for rest in answers {
                // Who is being asked does not lie; and whatever goes wrong in one answer, the round goes on.
                if let Ok(mut rest) = rest.try_lock() {
                    let _ = catch_unwind(AssertUnwindSafe(|| rest.look()));
                }
            }
        }
    }

    /// The body of an answer that gives back what it holds when it was taken, or when it has lain for this long.
    pub(super) fn guard(
        self: &Arc<Self>,
        body: Body,
        held: Option<Held>,
        timeout: Duration,
    ) -> Body {
        self.guard_to(None, body, held, timeout)
    }

    /// The same, but a stream also ends, with what it has to say at this moment, when `end` is cancelled.
    pub(super) fn guard_until(
        self: &Arc<Self>,
        end: CancellationToken,
        body: Body,
        held: Option<Held>,
        timeout: Duration,
    ) -> Body {
        self.guard_to(Some(End::new(end)), body, held, timeout)
    }

    fn guard_to(
        self: &Arc<Self>,
        end: Option<End>,
        body: Body,
        held: Option<Held>,
        timeout: Duration,
    ) -> Body {
        if body.is_end_stream() {
            return body;
        }
        let rest = Arc::new(Mutex::new(Rest {
            body: Some(body),
            pieces: VecDeque::new(),
            held,
            end,
            last: None,
            timeout,
            lies_since: Some(Instant::now()),
        }));
        let number = self.answers().insert(Arc::downgrade(&rest));
        Body::new(Answer {
            rest,
            number,
            watchman: Arc::clone(self),
        })
    }

    fn answers(&self) -> MutexGuard<'_, Slab<Weak<Mutex<Rest>>>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(rest: &Mutex<Rest>) -> MutexGuard<'_, Rest> {
    rest.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The body of a response.
struct Answer {
    rest: Arc<Mutex<Rest>>,
    /// Its number with the watchman.
    number: usize,
    watchman: Arc<Watchman>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.watchman.answers().remove(self.number);
    }
}

/// What has not been taken yet.
struct Rest {
    /// `None` when it was left lying for too long.
    body: Option<Body>,
    /// Pieces of what the body gave last.
    pieces: VecDeque<Bytes>,
    held: Option<Held>,
    /// When it is to end, if that may be before it has nothing more to say.
    end: Option<End>,
    /// How it ends, when it was left lying.
    last: Option<Frame<Bytes>>,
    /// How long it may lie.
    timeout: Duration,
    /// Since when there is something that nobody asks for; `None` while the client waits for us.
    lies_since: Option<Instant>,
}

/// When a stream is to end.
struct End {
    token: CancellationToken,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl End {
    fn new(token: CancellationToken) -> Self {
        let cancelled = Box::pin(token.clone().cancelled_owned());
        Self { token, cancelled }
    }
}

impl Rest {
    /// Drops it if it has lain for too long.
    fn look(&mut self) {
        let is_ending = self
            .end
            .as_ref()
            .is_some_and(|end| end.token.is_cancelled());
        let timeout = match is_ending {
            true => self.timeout.min(LAST_TIMEOUT),
            false => self.timeout,
        };
        if self.body.is_some()
            && self
                .lies_since
                .is_some_and(|since| since.elapsed() >= timeout)
        {
            self.last = Some(left_lying(timeout));
            self.give_up();
            tracing::debug!("an answer was not taken in time");
        }
    }

    fn give_up(&mut self) {
        self.body = None;
        self.pieces = VecDeque::new();
        self.held = None;
    }

    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(piece) = self.pieces.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let Some(body) = &mut self.body else {
            return Poll::Ready(self.last.take().map(Ok));
        };
        let frame = match Pin::new(body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Pending => {
                let end = self.end.as_mut();
                let ends = end.is_some_and(|end| end.cancelled.as_mut().poll(context).is_ready());
                if !ends {
                    return Poll::Pending;
                }
                self.give_up();
                return Poll::Ready(Some(Ok(trailers(&status::draining()))));
            }
            ended => return ended,
        };
        Poll::Ready(Some(Ok(match frame.into_data() {
            Ok(data) if data.len() > PIECE_BYTES => {
                let pieces = data.chunks(PIECE_BYTES);
                self.pieces.extend(pieces.map(Bytes::copy_from_slice));
                Frame::data(self.pieces.pop_front().unwrap_or_default())
            }
            Ok(data) => Frame::data(data),
            Err(frame) => frame,
        })))
    }
}

/// What the client is told when it comes back.
fn left_lying(timeout: Duration) -> Frame<Bytes> {
    let message = format!(
        "nothing of the answer was taken for {} s",
        timeout.as_secs()
    );
    trailers(&status::error(Code::Overloaded, message))
}

fn trailers(status: &Status) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    // The message is one that a header can hold.
    let _ = status.add_header(&mut trailers);
    Frame::trailers(trailers)
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut rest = lock(&self.rest);
        let polled = rest.poll_frame(context);
        // Who has been given something asks for more once there is room for it.
        rest.lies_since = polled.is_ready().then(Instant::now);
        polled
    }

    fn is_end_stream(&self) -> bool {
        let rest = lock(&self.rest);
        rest.pieces.is_empty() && rest.body.as_ref().is_some_and(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
