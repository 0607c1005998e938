//! What the writer is asked to do.

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{
    log::{
        AppendError, Appended, Commit, CommitError, EraseError, NewEvent, NewQuarantined, Position,
    },
    marks::Marks,
};

/// Where an answer goes.
pub(super) type Reply<T, E = AppendError> = oneshot::Sender<Result<T, E>>;

/// What the writer is asked to do.
pub(super) enum Request {
    /// The event, and its marks if it can be read.
    Append(Box<(NewEvent, Option<Marks>)>, Reply<Appended>),
    Erase(Vec<Position>, Reply<(), EraseError>),
    Quarantine(NewQuarantined, Reply<()>),
    Release(Uuid, Reply<bool>),
    Commit(Commit, Reply<(), CommitError>),
    Forget(String, Reply<()>),
}

impl Request {
    /// Answers that it failed.
    pub(super) fn fail(self, error: AppendError) {
        match self {
            Self::Append(_, reply) => answer(reply, Err(error)),
            Self::Quarantine(_, reply) | Self::Forget(_, reply) => answer(reply, Err(error)),
            Self::Erase(_, reply) => answer(reply, Err(error.into())),
            Self::Release(_, reply) => answer(reply, Err(error)),
            Self::Commit(_, reply) => answer(reply, Err(error.into())),
        }
    }
}

/// Whoever asked may have gone away; what was written stays written.
pub(super) fn answer<T, E>(reply: Reply<T, E>, answer: Result<T, E>) {
    let _ = reply.send(answer);
}
