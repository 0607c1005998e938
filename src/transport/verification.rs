//! `GetVerification`: where a verification stands, and how it got there.

use prost::Message;
use tonic::Status;

use super::{
    Shared,
    grpc::{account_or_default, personal_data},
    page::{self, PAGE_BYTES, Pages},
    status,
};
use crate::{
    caller::{Caller, Reach},
    error::Code,
    event,
    log::{Position, ReadError, ReadLimit, StoredEvent, VerificationState},
    proto::{GetVerificationRequest, GetVerificationResponse, Scope, VerificationEvent},
};

/// How many events of a history are read at once. They may be large.
const CHUNK: usize = 16;

impl Shared {
    /// Where a verification stands, and one page of its history.
    pub(super) async fn verification(
        &self,
        caller: &Caller,
        request: GetVerificationRequest,
    ) -> Result<GetVerificationResponse, Status> {
        let key = key(&request)?;
        let account = account_or_default(&request.account);
        if !caller.may(Scope::Subscribe, &request.provider, account) {
            return Err(not_found());
        }
        let page_size = page::page_size(request.page_size)?;
        let personal_data = &personal_data(caller, request.include_personal_data)?;
        let start = self.page_start(Pages::History, &request.page_token)?;
        let state = self.log.verification(key).await;
        let state = state
            .map_err(|failed| self.read_error(failed))?
            .ok_or_else(not_found)?;

        let history = self
            .history(start.unwrap_or(state.last), page_size, personal_data)
            .await;
        let (stored, next) = match history {
            Ok((stored, next)) if !stored.is_empty() => (stored, next),
            // Nor is an event that a token leads to, damaged or not, of anything that the caller may see.
            Ok(_) | Err(ReadError::Damaged { .. })
                if start.is_some_and(|start| start > self.log.start()) =>
            {
                return Err(foreign_token());
            }
            Ok(_) | Err(ReadError::NotRetained) => {
                return Err(match start {
                    // The last of it went while we were looking.
                    None => not_found(),
                    Some(_) => self.read_error(ReadError::NotRetained),
                });
            }
            Err(failed) => return Err(self.read_error(failed)),
        };
        // A token leads to a place in the log; it must be one of this verification.
        let first = VerificationEvent::decode(stored[0].event.clone()).ok();
        if first.as_ref().and_then(event::verification_key) != Some(key) {
            return Err(foreign_token());
        }
        let mut history = Vec::with_capacity(stored.len());
        for stored in &stored {
            history.push(self.event(stored, personal_data).await?);
        }
        Ok(GetVerificationResponse {
            current: self.current(&state, personal_data).await?,
            ordered_by_log: state.ordered_by_log,
            history,
            next_page_token: next
                .map(|position| self.page_token(Pages::History, position))
                .unwrap_or_default(),
        })
    }

    /// The event that says where a verification stands, if it is still retained.
    async fn current(
        &self,
        state: &VerificationState,
        personal_data: &Reach,
    ) -> Result<Option<VerificationEvent>, Status> {
        const ONE: ReadLimit = ReadLimit {
            records: 1,
            bytes: 0,
        };
        if state.current <= self.log.start() {
            return Ok(None);
        }
        let before = Position(state.current.0 - 1);
        let read = match self.log.read(before, ONE).await {
            Err(ReadError::NotRetained) => return Ok(None),
            read => read.map_err(|failed| self.read_error(failed))?,
        };
        match read.first() {
            Some(stored) => self.event(stored, personal_data).await.map(Some),
            None => Ok(None),
        }
    }

    /// One page of a history, and where the next one begins. It ends where retention has come to.
    async fn history(
        &self,
        from: Position,
        page_size: usize,
        personal_data: &Reach,
    ) -> Result<(Vec<StoredEvent>, Option<Position>), ReadError> {
        let mut events: Vec<StoredEvent> = Vec::new();
        let mut bytes = 0;
        let mut next = Some(from);
        while let Some(from) = next
            && events.len() < page_size
        {
            let limit = CHUNK.min(page_size - events.len());
            let read = match self.log.history(from, limit).await {
                Err(ReadError::NotRetained) if !events.is_empty() => return Ok((events, None)),
                read => read?,
            };
            if read.events.is_empty() {
                return Ok((events, None));
            }
            for stored in read.events {
                bytes += page::size_bytes(&stored, personal_data);
                if bytes > PAGE_BYTES && !events.is_empty() {
                    return Ok((events, Some(stored.position)));
                }
                events.push(stored);
            }
            next = read.next;
        }
        Ok((events, next.filter(|next| *next > self.log.start())))
    }
}

fn key(request: &GetVerificationRequest) -> Result<[u8; 32], Status> {
    if request.provider.is_empty() {
        return Err(status::invalid("provider", "is missing"));
    }
    if request.verification_id.is_empty() {
        return Err(status::invalid("verification_id", "is missing"));
    }
    Ok(event::key_of_verification(
        &request.provider,
        account_or_default(&request.account),
        &request.verification_id,
    ))
}

fn foreign_token() -> Status {
    status::invalid("page_token", "is of another verification")
}

fn not_found() -> Status {
    status::error(
        Code::VerificationNotFound,
        "the log holds no event of this verification",
    )
}
