//! Answers, as they are taken: what a call holds is given back when its answer has been taken, or when the caller has left
//! it lying for too long.
//!
//! HTTP/2 lets a client close its window and keep the stream. Then hyper does not ask for the rest of an answer, and
//! nothing in it would ever run again. So the answer is owned here, next to what hyper has: a watchman looks at it now and
//! then, and drops it, with what it holds, when nobody has asked for it for too long. The client is told when it comes back.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{self, Instant};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Status, body::Body};

use super::status;
use crate::error::Code;

/// The most of an answer that is handed to HTTP/2 at once. What it has been handed stays in memory until the client takes
/// it, so more than this is copied: a part of a larger buffer would keep all of it.
const PIECE_BYTES: usize = 16 << 10;

/// How long an answer that is to end may lie.
const LAST_TIMEOUT: Duration = Duration::from_secs(1);

/// What is given back by dropping it.
pub(super) type Held = Box<dyn Send>;

/// The body of a response.
pub(super) struct Answer {
    rest: Arc<Mutex<Rest>>,
    _watchman: AbortOnDropHandle<()>,
}

/// What has not been taken yet.
struct Rest {
    /// `None` when it was left lying for too long.
    body: Option<Body>,
    /// Pieces of what the body gave last.
    pieces: VecDeque<Bytes>,
    held: Option<Held>,
    /// How it ends, when it was left lying.
    end: Option<Frame<Bytes>>,
    /// Whether it ends as soon as there is nothing to be taken.
    is_ending: bool,
    /// Who waits for us.
    waiting: Option<Waker>,
    /// Since when there is something that nobody asks for; `None` while the client waits for us.
    lies_since: Option<Instant>,
}

impl Answer {
    /// A body that gives back what it holds when it was taken, or when it has lain for this long.
    pub(super) fn body(body: Body, held: Option<Held>, timeout: Duration) -> Body {
        Self::until(CancellationToken::new(), body, held, timeout)
    }

    /// The same, but a stream also ends, with what it has to say at this moment, when `end` is cancelled.
    pub(super) fn until(
        end: CancellationToken,
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
            end: None,
            is_ending: false,
            waiting: None,
            lies_since: Some(Instant::now()),
        }));
        let watchman = tokio::spawn(watch(Arc::clone(&rest), end, timeout));
        Body::new(Self {
            rest,
            _watchman: AbortOnDropHandle::new(watchman),
        })
    }
}

async fn watch(rest: Arc<Mutex<Rest>>, end: CancellationToken, mut timeout: Duration) {
    let mut is_ending = false;
    loop {
        let lies_since = {
            let mut rest = rest.lock().unwrap_or_else(PoisonError::into_inner);
            if is_ending && !rest.is_ending {
                rest.is_ending = true;
                if let Some(waiting) = rest.waiting.take() {
                    waiting.wake();
                }
            }
            match rest.lies_since {
                Some(since) if since.elapsed() >= timeout => {
                    rest.end = Some(left_lying(timeout));
                    rest.give_up();
                    tracing::debug!("an answer was not taken in time");
                    return;
                }
                Some(since) => since,
                None => Instant::now(),
            }
        };
        tokio::select! {
            () = time::sleep_until(lies_since + timeout) => {}
            () = end.cancelled(), if !is_ending => {
                is_ending = true;
                timeout = timeout.min(LAST_TIMEOUT);
            }
        }
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

impl Rest {
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
            return Poll::Ready(self.end.take().map(Ok));
        };
        let frame = match Pin::new(body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Pending if self.is_ending => {
                self.give_up();
                return Poll::Ready(Some(Ok(trailers(&status::draining()))));
            }
            Poll::Pending => {
                self.waiting = Some(context.waker().clone());
                return Poll::Pending;
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

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        let polled = rest.poll_frame(context);
        // Who has been given something asks for more once there is room for it.
        rest.lies_since = polled.is_ready().then(Instant::now);
        polled
    }

    fn is_end_stream(&self) -> bool {
        let rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        rest.pieces.is_empty() && rest.body.as_ref().is_some_and(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
