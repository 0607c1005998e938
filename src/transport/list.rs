//! `ListEvents`: the events of the log in pages.

use tokio::task;
use tonic::Status;

use super::{
    Shared, grpc,
    page::{self, MAX_SCANNED, PAGE_BYTES, Pages, SCAN_LIMIT},
    status, subscribe,
};
use crate::{
    caller::{Caller, Reach},
    filter::Filter,
    log::{EventLog, Position, ReadError, ReadLimit, StoredEvent},
    proto::{EventOrder, ListEventsRequest, ListEventsResponse, ListedEvent, Scope},
};

impl Shared {
    /// One page of events.
    pub(super) async fn list(
        &self,
        caller: &Caller,
        request: ListEventsRequest,
    ) -> Result<ListEventsResponse, Status> {
        let (pages, oldest_first) = match EventOrder::try_from(request.order) {
            Ok(EventOrder::Unspecified | EventOrder::NewestFirst) => (Pages::NewestFirst, false),
            Ok(EventOrder::OldestFirst) => (Pages::OldestFirst, true),
            Err(_) => return Err(status::invalid("order", "is not one of its values")),
        };
        let mut page = Page {
            shared: self,
            filter: subscribe::filter(request.filter)?.within(caller.reach(Scope::Subscribe)),
            personal_data: grpc::personal_data(caller, request.include_personal_data)?,
            size: page::page_size(request.page_size)?,
            events: Vec::new(),
            bytes: 0,
            scanned: 0,
        };
        let start = self.page_start(pages, &request.page_token)?;
        let next = match oldest_first {
            true => page.fill_from_oldest(start).await?,
            false => page.fill_from_newest(start).await?,
        };
        let next = next.map(|position| self.page_token(pages, position));
        Ok(ListEventsResponse {
            events: page.events,
            next_page_token: next.unwrap_or_default(),
        })
    }
}

/// A page that is being filled.
struct Page<'a> {
    shared: &'a Shared,
    filter: Filter,
    personal_data: Reach,
    /// How many events it may hold.
    size: usize,
    events: Vec<ListedEvent>,
    bytes: usize,
    /// How many events have been looked at.
    scanned: usize,
}

impl Page<'_> {
    /// Fills the page with the events after a place. Returns the place after which the next page goes on.
    async fn fill_from_oldest(
        &mut self,
        after: Option<Position>,
    ) -> Result<Option<Position>, Status> {
        let log = &self.shared.log;
        let mut position = after.unwrap_or_else(|| log.start());
        // Nobody was told yet where the list begins, so it may begin where retention has come to.
        let mut may_move = after.is_none();
        loop {
            let read = match log.read(position, SCAN_LIMIT).await {
                Err(ReadError::NotRetained) if may_move && log.start() > position => {
                    position = log.start();
                    continue;
                }
                read => read.map_err(|failed| self.shared.read_error(failed))?,
            };
            may_move = false;
            if read.is_empty() {
                return Ok(None);
            }
            for stored in read {
                if !self.add(&stored).await? {
                    return Ok(Some(position));
                }
                position = stored.position;
            }
            task::yield_now().await;
        }
    }

    /// Fills the page with the event at a place, or the newest one, and those before it, newest first. Returns the
    /// place at which the next page goes on.
    async fn fill_from_newest(
        &mut self,
        from: Option<Position>,
    ) -> Result<Option<Position>, Status> {
        let log = &self.shared.log;
        let mut end = from.unwrap_or_else(|| log.tail().end());
        let mut width = SCAN_LIMIT.records;
        loop {
            let start = log.start();
            if end <= start {
                return Ok(None);
            }
            let after = Position(end.0.saturating_sub(width as u64)).max(start);
            let block = match read_up_to(log.as_ref(), after, end).await {
                // Retention has come closer: the list ends earlier.
                Err(ReadError::NotRetained) if log.start() > after => continue,
                block => block.map_err(|failed| self.shared.read_error(failed))?,
            };
            let Some(block) = block else {
                width /= 2;
                continue;
            };
            for stored in block.iter().rev() {
                if !self.add(stored).await? {
                    return Ok(Some(stored.position));
                }
            }
            end = after;
            task::yield_now().await;
        }
    }

    /// Looks at the next event. Returns false if the page is full, and the event is for the next one.
    async fn add(&mut self, stored: &StoredEvent) -> Result<bool, Status> {
        if self.events.len() == self.size || self.scanned == MAX_SCANNED {
            return Ok(false);
        }
        if self.filter.matches(&stored.event) {
            self.bytes += page::size_bytes(stored, &self.personal_data);
            if self.bytes > PAGE_BYTES && !self.events.is_empty() {
                return Ok(false);
            }
            self.events.push(ListedEvent {
                event: Some(self.shared.event(stored, &self.personal_data).await?),
                cursor: self.shared.cursor(stored.position).encode(),
            });
        }
        self.scanned += 1;
        Ok(true)
    }
}

/// The events after one place up to another, in log order. `None` if they are too large to be held together; a single
/// one never is.
async fn read_up_to(
    log: &dyn EventLog,
    after: Position,
    end: Position,
) -> Result<Option<Vec<StoredEvent>>, ReadError> {
    let records = (end.0 - after.0) as usize;
    let limit = ReadLimit {
        records,
        ..SCAN_LIMIT
    };
    let events = log.read(after, limit).await?;
    if events.len() == records {
        return Ok(Some(events));
    }
    if records == 1 {
        return Err(ReadError::Damaged {
            position: end,
            place: "the log ends before its newest events".to_owned(),
        });
    }
    Ok(None)
}
