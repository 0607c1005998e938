//! Pages of events: how large they may be, and the tokens that lead from one to the next.

use tonic::Status;

use super::{Shared, status};
use crate::log::{Cursor, Position, StoredEvent};

/// The most that the events of one page hold, unless a single one is larger: callers take 4 MiB by default.
pub(super) const PAGE_BYTES: usize = 1 << 20;

/// How many events the caller wants on a page.
pub(super) fn page_size(asked: u32) -> Result<usize, Status> {
    const DEFAULT: usize = 50;
    const MOST: usize = 1000;
    match asked as usize {
        0 => Ok(DEFAULT),
        size if size <= MOST => Ok(size),
        _ => Err(status::invalid("page_size", format!("is more than {MOST}"))),
    }
}

/// How much of a page an event takes up.
pub(super) fn size_bytes(stored: &StoredEvent, with_personal_data: bool) -> usize {
    let personal_data = match with_personal_data {
        true => stored.encoded.personal_data.len(),
        false => 0,
    };
    stored.encoded.event.len() + personal_data
}

/// What is listed in pages. A token is good for one of these only.
#[derive(Clone, Copy, Debug)]
pub(super) enum List {
    NewestFirst,
    OldestFirst,
    History,
}

impl List {
    /// A token is a cursor after this mark, so that neither a cursor nor the token of another list is taken for it.
    fn mark(self) -> char {
        match self {
            Self::NewestFirst => 'n',
            Self::OldestFirst => 'o',
            Self::History => 'h',
        }
    }
}

impl Shared {
    /// The token of the page that begins at, or after, a place.
    pub(super) fn list_token(&self, list: List, position: Position) -> String {
        format!("{}{}", list.mark(), self.cursor(position).encode())
    }

    /// The place in a token; `None` for the first page.
    pub(super) fn list_start(&self, list: List, token: &str) -> Result<Option<Position>, Status> {
        if token.is_empty() {
            return Ok(None);
        }
        match token.strip_prefix(list.mark()).map(Cursor::decode) {
            Some(Ok(cursor)) => self.place(&cursor).map(Some),
            _ => Err(status::invalid("page_token", "is not one of this list")),
        }
    }
}
