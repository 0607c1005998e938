//! The place that an open connection takes, and who has to leave when there is none left.
//!
//! Whoever can connect can take a place, so a place is kept only by who has proved to be a caller. Until then the connection
//! is *unproved*: when all places are taken, the oldest unproved one makes room for the next, and where callers are asked
//! who they are it has to go after a while anyway. An honest client proves itself with its first call, milliseconds after it
//! has connected, so it is never the oldest for long; one that was let go connects anew when it has something to say.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::admission::Room;

/// How long a connection is left alone in any case: what its first call takes. So whoever wants to push out a client that
/// is about to prove itself must open all connections that there may be anew within this time.
const LEFT_ALONE: Duration = Duration::from_secs(1);

/// The place of one connection.
#[derive(Debug)]
pub(super) struct Seat {
    opened: Instant,
    state: Mutex<State>,
    /// Whether there was a call that takes no proof, since somebody looked the last time.
    has_called: AtomicBool,
    /// Cancelled when the place was given to another.
    given_away: CancellationToken,
}

#[derive(Debug)]
enum State {
    Unproved(OwnedSemaphorePermit),
    /// It counts for the caller who called first.
    Proved {
        _place: OwnedSemaphorePermit,
        _of_caller: OwnedSemaphorePermit,
    },
    Left,
}

impl Seat {
    fn new(place: OwnedSemaphorePermit) -> Self {
        Self {
            opened: Instant::now(),
            state: Mutex::new(State::Unproved(place)),
            has_called: AtomicBool::new(false),
            given_away: CancellationToken::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the place for a caller who is known, if he has not too many of them.
    pub(super) fn prove(&self, connections: &Room) -> Result<(), Status> {
        let mut state = self.state();
        if matches!(*state, State::Unproved(_)) {
            let of_caller = connections.take_of_caller()?;
            if let State::Unproved(place) = std::mem::replace(&mut *state, State::Left) {
                *state = State::Proved {
                    _place: place,
                    _of_caller: of_caller,
                };
            }
        }
        Ok(())
    }

    pub(super) fn is_proved(&self) -> bool {
        matches!(*self.state(), State::Proved { .. })
    }

    /// Notes a call that takes no proof, like those of a load balancer that asks how we are.
    pub(super) fn has_called(&self) {
        self.has_called.store(true, Relaxed);
    }

    /// Whether there was such a call since this was asked the last time.
    pub(super) fn take_has_called(&self) -> bool {
        self.has_called.swap(false, Relaxed)
    }

    /// Cancelled when the place was given to another.
    pub(super) fn given_away(&self) -> CancellationToken {
        self.given_away.clone()
    }

    /// Gives the place back.
    pub(super) fn leave(&self) {
        *self.state() = State::Left;
    }

    /// Takes the place from a connection that is unproved still.
    fn take_away(&self) -> Option<OwnedSemaphorePermit> {
        let mut state = self.state();
        match std::mem::replace(&mut *state, State::Left) {
            State::Unproved(place) => {
                self.given_away.cancel();
                Some(place)
            }
            other => {
                *state = other;
                None
            }
        }
    }

    fn is_unproved(&self) -> bool {
        matches!(*self.state(), State::Unproved(_))
    }
}

/// The places of all connections.
pub(super) struct Seats {
    most: usize,
    free: Arc<Semaphore>,
    /// In the order in which they were taken; some have been left or proved since.
    unproved: VecDeque<Arc<Seat>>,
}

impl Seats {
    pub(super) fn new(most: usize) -> Self {
        Self::of(&Room::new("connections are open", most))
    }

    /// The places of a room, where others can look up how many are taken.
    pub(super) fn of(room: &Room) -> Self {
        Self {
            most: room.most(),
            free: Arc::clone(room.places()),
            unproved: VecDeque::new(),
        }
    }

    /// Whether another connection could have a place.
    pub(super) fn has_room(&mut self) -> bool {
        self.free.available_permits() > 0 || self.removable().is_some()
    }

    /// A place for one more connection, if need be that of another.
    pub(super) fn take(&mut self) -> Option<Arc<Seat>> {
        let free = Arc::clone(&self.free).try_acquire_owned().ok();
        let place = free.or_else(|| self.make_room())?;
        let seat = Arc::new(Seat::new(place));
        if self.unproved.len() >= 2 * self.most {
            self.unproved.retain(|seat| seat.is_unproved());
        }
        self.unproved.push_back(Arc::clone(&seat));
        Some(seat)
    }

    fn make_room(&mut self) -> Option<OwnedSemaphorePermit> {
        // Between two looks it may have proved itself.
        while let Some(oldest) = self.removable() {
            if let Some(place) = oldest.take_away() {
                tracing::debug!("a connection is closed: nobody known has called on it");
                return Some(place);
            }
        }
        None
    }

    /// The oldest unproved connection, unless it is to be left alone.
    fn removable(&mut self) -> Option<&Seat> {
        while let Some(oldest) = self.unproved.front()
            && !oldest.is_unproved()
        {
            self.unproved.pop_front();
        }
        let oldest = self.unproved.front()?;
        (oldest.opened.elapsed() >= LEFT_ALONE).then_some(oldest)
    }
}
