//! The quarantines, as operators list, redrive and discard them: block by block, a bounded number in one call.

use std::collections::VecDeque;

use futures_util::future;
use prost::Message;
use tonic::Status;
use uuid::Uuid;

use super::{
    Shared,
    grpc::{parse_id, personal_data},
    page::{self, MAX_SCANNED, PAGE_BYTES, Pages, SCAN_LIMIT},
    status,
};
use crate::{
    caller::{Caller, Reach},
    error::Code,
    ingest,
    log::{AppendError, EventLog, QuarantineKind, ReadError, ReadLimit, StoredQuarantined},
    proto::{
        Delivery, DiscardQuarantinedRequest, DiscardQuarantinedResponse, IngestStatus,
        ListQuarantinedRequest, ListQuarantinedResponse, QuarantineFilter, QuarantineReason,
        QuarantinedDelivery, RedriveRequest, RedriveResponse, RedrivenDelivery, Scope,
        discard_quarantined_request, redrive_request,
    },
    redrive::Redriven,
};

/// How many deliveries one call redrives. Each of them waits for the disk.
const MAX_REDRIVEN: usize = 500;

impl Shared {
    pub(super) async fn list_quarantined(
        &self,
        caller: &Caller,
        request: ListQuarantinedRequest,
    ) -> Result<ListQuarantinedResponse, Status> {
        let page_size = page::page_size(request.page_size)?;
        let (provider, account) = (request.provider, request.account);
        let wanted = Wanted::new(caller, "reason", provider, account, request.reason)?;
        let personal_data = personal_data(caller, request.include_deliveries)?;
        let pages = Pages::Quarantined(wanted.kind);
        let after = self.quarantine_start(pages, &request.page_token)?;
        let mut scan = Scan::new(&*self.log, &wanted, after);
        let mut response = ListQuarantinedResponse::default();
        let mut page_bytes = 0;
        while scan.more().await? {
            // There is more than this page: it ends here, and the next one begins here.
            let full = response.quarantined.len() == page_size || page_bytes >= PAGE_BYTES;
            if full || scan.looked_at == MAX_SCANNED {
                response.next_page_token = self.quarantine_token(pages, scan.after);
                break;
            }
            let Some(found) = scan.look() else { continue };
            let summary = match found {
                Found::Delivery(found) => found.listed(&personal_data),
                Found::Damaged => QuarantinedDelivery {
                    detail: DAMAGED.to_owned(),
                    ..Default::default()
                },
            };
            page_bytes += summary.encoded_len();
            response.quarantined.push(summary);
        }
        Ok(response)
    }

    pub(super) async fn redrive(
        &self,
        caller: &Caller,
        request: RedriveRequest,
    ) -> Result<RedriveResponse, Status> {
        use redrive_request::Target;
        match request.target {
            None => Err(status::invalid("target", "is missing")),
            Some(Target::QuarantineId(_)) if !request.page_token.is_empty() => {
                Err(status::invalid("page_token", "belongs to a filter"))
            }
            Some(Target::QuarantineId(id)) => {
                let id = parse_id("quarantine_id", &id)?;
                let found = self.operable(caller, id).await?;
                let redriven = self.redrive_one(id, &found).await;
                let redriven = redriven.map_err(status::append_error)?;
                Ok(RedriveResponse {
                    redriven: vec![redriven],
                    next_page_token: String::new(),
                })
            }
            Some(Target::Filter(filter)) => {
                self.redrive_page(&Wanted::of(caller, filter)?, &request.page_token)
                    .await
            }
        }
    }

    /// Redrives in the order of arrival, one after another, so that events come into the log in that order too. When the
    /// log fails in between, what has been done is told, and the next page goes on where it failed.
    async fn redrive_page(
        &self,
        wanted: &Wanted,
        page_token: &str,
    ) -> Result<RedriveResponse, Status> {
        let pages = Pages::Redriven(wanted.kind);
        let after = self.quarantine_start(pages, page_token)?;
        let mut scan = Scan::new(&*self.log, wanted, after);
        let mut response = RedriveResponse::default();
        match self.redrive_into(&mut response, &mut scan).await {
            Ok(true) => {}
            Err(failed) if response.redriven.is_empty() => return Err(failed),
            Ok(false) | Err(_) => {
                response.next_page_token = self.quarantine_token(pages, scan.after)
            }
        }
        Ok(response)
    }

    /// Redrives what comes next, and says whether that was everything.
    async fn redrive_into(
        &self,
        response: &mut RedriveResponse,
        scan: &mut Scan<'_>,
    ) -> Result<bool, Status> {
        while scan.more().await? {
            let full = response.redriven.len() == MAX_REDRIVEN || scan.looked_at == MAX_SCANNED;
            if full || self.draining.is_cancelled() {
                return Ok(false);
            }
            let before = scan.after;
            match scan.look() {
                None => {}
                Some(Found::Delivery(found)) => {
                    match self.redrive_one(found.id, &found.stored).await {
                        Ok(redriven) => response.redriven.push(redriven),
                        Err(failed) => {
                            scan.after = before;
                            return Err(status::append_error(failed));
                        }
                    }
                }
                Some(Found::Damaged) => response.redriven.push(RedrivenDelivery {
                    status: IngestStatus::Quarantined.into(),
                    detail: DAMAGED.to_owned(),
                    ..Default::default()
                }),
            }
        }
        Ok(true)
    }

    /// The delivery with this id, if the caller may operate on it.
    pub(super) async fn operable(
        &self,
        caller: &Caller,
        id: Uuid,
    ) -> Result<StoredQuarantined, Status> {
        let reach = caller.reach(Scope::Admin);
        let found = match self.log.find_quarantined(id).await {
            // Nobody knows whose it is, so only who may see all is told that it is there.
            Err(ReadError::Damaged { .. }) if *reach != Reach::Everything => None,
            found => found.map_err(status::read_error)?,
        };
        let found = found.ok_or_else(not_found)?;
        let source = QuarantinedDelivery::decode(found.summary.clone()).ok();
        match source {
            Some(summary) if reach.covers(&summary.provider, &summary.account) => Ok(found),
            None if *reach == Reach::Everything => Ok(found),
            Some(_) | None => Err(not_found()),
        }
    }

    async fn redrive_one(
        &self,
        id: Uuid,
        stored: &StoredQuarantined,
    ) -> Result<RedrivenDelivery, AppendError> {
        let redriven = self.ingestor.redrive(id, stored).await?;
        let (status, event_id, detail) = match redriven {
            Redriven::Accepted(place) => (IngestStatus::Accepted, Some(place), String::new()),
            Redriven::Duplicate(place) => (IngestStatus::Duplicate, Some(place), String::new()),
            Redriven::Ignored => (IngestStatus::Ignored, None, String::new()),
            Redriven::Doubtful(detail) => (IngestStatus::Quarantined, None, detail),
            Redriven::Unproven(detail) => (IngestStatus::Unspecified, None, detail),
            Redriven::Moved { id, detail } => {
                let detail = format!("genuine, and in quarantine as {id} now: {detail}");
                (IngestStatus::Quarantined, None, detail)
            }
        };
        Ok(RedrivenDelivery {
            quarantine_id: id.to_string(),
            status: status.into(),
            event_id: event_id.map_or(String::new(), |place| place.event_id.to_string()),
            detail,
        })
    }

    pub(super) async fn discard_quarantined(
        &self,
        caller: &Caller,
        request: DiscardQuarantinedRequest,
    ) -> Result<DiscardQuarantinedResponse, Status> {
        use discard_quarantined_request::Target;
        let discarded = match request.target {
            None => return Err(status::invalid("target", "is missing")),
            Some(Target::QuarantineId(id)) => {
                let id = parse_id("quarantine_id", &id)?;
                self.operable(caller, id).await?;
                match self.discard(&[id]).await? {
                    0 => return Err(not_found()),
                    discarded => discarded,
                }
            }
            Some(Target::Filter(filter)) => self.discard_all(&Wanted::of(caller, filter)?).await?,
        };
        tracing::info!(
            quarantine.discarded = discarded,
            "deliveries were discarded"
        );
        Ok(DiscardQuarantinedResponse { discarded })
    }

    async fn discard_all(&self, wanted: &Wanted) -> Result<u64, Status> {
        let mut scan = Scan::new(&*self.log, wanted, 0);
        let mut discarded = 0;
        while scan.more().await? {
            if self.draining.is_cancelled() {
                return Err(status::draining());
            }
            let mut ids = Vec::new();
            while !scan.read.is_empty() {
                // What is damaged has no id to discard it by.
                if let Some(Found::Delivery(found)) = scan.look() {
                    ids.push(found.id);
                }
            }
            discarded += self.discard(&ids).await?;
        }
        Ok(discarded)
    }

    /// Discards all of them at once, so that the log can make it durable at once. Says how many were there.
    async fn discard(&self, ids: &[Uuid]) -> Result<u64, Status> {
        let releases = ids.iter().map(|id| self.log.release(*id));
        let released = future::try_join_all(releases).await;
        let released = released.map_err(status::append_error)?;
        Ok(released.into_iter().filter(|was_there| *was_there).count() as u64)
    }
}

/// Which deliveries a request is about.
struct Wanted {
    kind: QuarantineKind,
    provider: String,
    account: String,
    reason: QuarantineReason,
    /// Which deliveries there are for whoever asks.
    reach: Reach,
}

impl Wanted {
    fn new(
        caller: &Caller,
        reason_field: &str,
        provider: String,
        account: String,
        reason: i32,
    ) -> Result<Self, Status> {
        let reason = QuarantineReason::try_from(reason)
            .map_err(|_| status::invalid(reason_field, "is not a reason of the quarantine"))?;
        Ok(Self {
            kind: ingest::quarantine_kind(reason),
            provider,
            account,
            reason,
            reach: caller.reach(Scope::Admin).clone(),
        })
    }

    fn of(caller: &Caller, filter: QuarantineFilter) -> Result<Self, Status> {
        let QuarantineFilter {
            provider,
            account,
            reason,
        } = filter;
        Self::new(caller, "filter.reason", provider, account, reason)
    }

    /// Whether a whole quarantine is meant, and with it what nobody knows of what it is.
    fn is_everything(&self) -> bool {
        let any_reason = matches!(
            self.reason,
            QuarantineReason::Unspecified | QuarantineReason::Unverified
        );
        let any_source = self.provider.is_empty() && self.account.is_empty();
        any_source && any_reason && self.reach == Reach::Everything
    }

    fn matches(&self, summary: &QuarantinedDelivery) -> bool {
        let wants = |wanted: &str, value: &str| wanted.is_empty() || wanted == value;
        let any_reason = self.reason == QuarantineReason::Unspecified;
        self.reach.covers(&summary.provider, &summary.account)
            && wants(&self.provider, &summary.provider)
            && wants(&self.account, &summary.account)
            && (any_reason || self.reason == summary.reason())
    }
}

/// What is told of a record that cannot be read.
const DAMAGED: &str = "this record is damaged";

/// A walk through a quarantine in the order of arrival.
struct Scan<'s> {
    log: &'s dyn EventLog,
    wanted: &'s Wanted,
    /// The last record that was looked at.
    after: u64,
    looked_at: usize,
    /// Read, and not looked at yet.
    read: VecDeque<Record>,
    /// Up to this damaged record they are read one by one, so that it hides nothing before it.
    damaged: u64,
}

/// One record of a quarantine.
enum Record {
    Whole(StoredQuarantined),
    /// The one with this sequence.
    Damaged(u64),
}

/// What a request is about.
enum Found {
    Delivery(Box<Delivered>),
    /// A record that cannot be read. Nobody knows of what.
    Damaged,
}

/// A delivery that a request is about.
struct Delivered {
    id: Uuid,
    summary: QuarantinedDelivery,
    stored: StoredQuarantined,
}

impl Delivered {
    fn of(stored: StoredQuarantined) -> Option<Self> {
        let summary = QuarantinedDelivery::decode(stored.summary.clone()).ok()?;
        Some(Self {
            id: Uuid::parse_str(&summary.quarantine_id).ok()?,
            summary,
            stored,
        })
    }

    /// With the raw delivery, if it is of one of these sources.
    fn listed(self, deliveries: &Reach) -> QuarantinedDelivery {
        let mut summary = self.summary;
        if deliveries.covers(&summary.provider, &summary.account) {
            match Delivery::decode(self.stored.delivery) {
                Ok(delivery) => summary.delivery = Some(delivery),
                Err(_) => summary.detail = DAMAGED.to_owned(),
            }
        }
        summary
    }
}

impl<'s> Scan<'s> {
    fn new(log: &'s dyn EventLog, wanted: &'s Wanted, after: u64) -> Self {
        Self {
            log,
            wanted,
            after,
            looked_at: 0,
            read: VecDeque::new(),
            damaged: 0,
        }
    }

    /// Whether there is another record to look at.
    async fn more(&mut self) -> Result<bool, Status> {
        while self.read.is_empty() {
            let records = match self.after < self.damaged {
                true => 1,
                false => SCAN_LIMIT.records,
            };
            let limit = ReadLimit {
                records,
                ..SCAN_LIMIT
            };
            let kind = self.wanted.kind;
            match self.log.quarantined(kind, self.after, limit).await {
                Ok(read) if read.is_empty() => return Ok(false),
                Ok(read) => self.read = read.into_iter().map(Record::Whole).collect(),
                Err(ReadError::Damaged { position, .. }) if position.0 > self.after => {
                    self.damaged = position.0;
                    if records == 1 {
                        self.read = [Record::Damaged(position.0)].into();
                    }
                }
                Err(failed) => return Err(status::read_error(failed)),
            }
        }
        Ok(true)
    }

    /// Looks at the next record that has been read, and returns what it is of if that is wanted.
    fn look(&mut self) -> Option<Found> {
        self.looked_at += 1;
        let stored = match self.read.pop_front()? {
            Record::Whole(stored) => stored,
            Record::Damaged(sequence) => {
                self.after = sequence;
                return self.wanted.is_everything().then_some(Found::Damaged);
            }
        };
        self.after = stored.sequence;
        let Some(delivered) = Delivered::of(stored) else {
            tracing::error!(
                quarantine.sequence = self.after,
                "a stored delivery cannot be decoded"
            );
            return self.wanted.is_everything().then_some(Found::Damaged);
        };
        let wanted = self.wanted.matches(&delivered.summary);
        wanted.then(|| Found::Delivery(Box::new(delivered)))
    }
}

pub(super) fn not_found() -> Status {
    let message = "there is no delivery under this id; one that was there may be erased or no longer retained";
    status::error(Code::DeliveryNotFound, message)
}
