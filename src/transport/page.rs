//! Pages of events and of quarantined deliveries: how large they may be, and the tokens that lead from one to the next.

use tonic::Status;

use super::{Shared, status};
use crate::{
    caller::Reach,
    log::{Cursor, Position, QuarantineKind, ReadLimit, StoredEvent},
};

/// The most that one page holds, unless a single record is larger: callers take 4 MiB by default.
pub(super) const PAGE_BYTES: usize = 1 << 20;

/// How much is read at once.
pub(super) const SCAN_LIMIT: ReadLimit = ReadLimit {
    records: 256,
    bytes: PAGE_BYTES,
};

/// How many records one call looks at. A filter that matches little gets short pages, not long calls.
pub(super) const MAX_SCANNED: usize = 10_000;

/// How many records the caller wants on a page.
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
pub(super) fn size_bytes(stored: &StoredEvent, personal_data: &Reach) -> usize {
    match personal_data {
        Reach::Nothing => stored.event.len(),
        Reach::Limited(_) | Reach::Everything => {
            stored.event.len() + stored.personal_data.size_bytes()
        }
    }
}

/// What comes in pages. A token is good for one of these only.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pages {
    NewestFirst,
    OldestFirst,
    History,
    Quarantined(QuarantineKind),
    Redriven(QuarantineKind),
}

impl Pages {
    /// A token is a cursor after this mark, so that neither a cursor nor another token is taken for it.
    fn mark(self) -> &'static str {
        match self {
            Self::NewestFirst => "n",
            Self::OldestFirst => "o",
            Self::History => "h",
            Self::Quarantined(QuarantineKind::Genuine) => "lg",
            Self::Quarantined(QuarantineKind::Unverified) => "lu",
            Self::Redriven(QuarantineKind::Genuine) => "rg",
            Self::Redriven(QuarantineKind::Unverified) => "ru",
        }
    }

    fn cursor(self, token: &str) -> Result<Cursor, Status> {
        let cursor = token.strip_prefix(self.mark()).map(Cursor::decode);
        cursor.and_then(Result::ok).ok_or_else(foreign)
    }
}

fn foreign() -> Status {
    status::invalid("page_token", "does not belong to this request")
}

impl Shared {
    /// The token of the page of events that begins at, or after, a place.
    pub(super) fn page_token(&self, pages: Pages, position: Position) -> String {
        format!("{}{}", pages.mark(), self.cursor(position).encode())
    }

    /// The place in a token; `None` for the first page.
    pub(super) fn page_start(&self, pages: Pages, token: &str) -> Result<Option<Position>, Status> {
        match token {
            "" => Ok(None),
            token => self.place(&pages.cursor(token)?).map(Some),
        }
    }

    /// The token of the page that begins after a record of a quarantine. Its position counts the quarantine.
    pub(super) fn quarantine_token(&self, pages: Pages, after: u64) -> String {
        let cursor = Cursor {
            position: Position(after),
            ..self.cursor(Position(0))
        };
        format!("{}{}", pages.mark(), cursor.encode())
    }

    /// The record in such a token; 0 for the first page.
    pub(super) fn quarantine_start(&self, pages: Pages, token: &str) -> Result<u64, Status> {
        if token.is_empty() {
            return Ok(0);
        }
        let cursor = pages.cursor(token)?;
        match cursor.log == self.cursor(Position(0)).log {
            true => Ok(cursor.position.0),
            false => Err(foreign()),
        }
    }
}
