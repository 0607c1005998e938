//! `verdict.v1.AdminService`.

use prost::Message;
use tonic::{Request, Response, Status};

use super::{Shared, grpc::parse_id, status};
use crate::{
    error::Code,
    log::{Cursor, Position, QuarantineKind, ReadLimit, StoredQuarantined},
    proto::{
        Delivery, GetDeliveryRequest, GetDeliveryResponse, ListQuarantinedRequest,
        ListQuarantinedResponse, ListSourcesRequest, ListSourcesResponse, OutcomeCounts,
        QuarantinedDelivery, SourceInfo, admin_service_server::AdminService,
        get_delivery_request::Target,
    },
    source::{Counts, Source},
};

/// The service.
pub(super) struct Admin(pub(super) Shared);

/// Roughly the most that one response holds: callers take 4 MiB by default.
const PAGE_BYTES: usize = 1 << 20;

/// How much of the quarantine is read at once.
const SCAN_LIMIT: ReadLimit = ReadLimit {
    records: 256,
    bytes: PAGE_BYTES,
};

/// How many deliveries one call looks at.
const MAX_SCANNED: usize = 10_000;

const PAGE_MARK: char = 'q';

const DEFAULT_PAGE_SIZE: usize = 50;
const MAX_PAGE_SIZE: usize = 1000;

#[tonic::async_trait]
impl AdminService for Admin {
    async fn list_sources(
        &self,
        _request: Request<ListSourcesRequest>,
    ) -> Result<Response<ListSourcesResponse>, Status> {
        let sources = self.0.ingestor.sources().iter();
        Ok(Response::new(ListSourcesResponse {
            sources: sources.map(|source| info(source)).collect(),
        }))
    }

    async fn list_quarantined(
        &self,
        request: Request<ListQuarantinedRequest>,
    ) -> Result<Response<ListQuarantinedResponse>, Status> {
        let shared = &self.0;
        let request = request.into_inner();
        let page_size = match request.page_size as usize {
            0 => DEFAULT_PAGE_SIZE,
            size if size <= MAX_PAGE_SIZE => size,
            _ => return Err(status::invalid("page_size", "is more than 1000")),
        };
        let mut after = shared.page_start(&request.page_token)?;
        let (mut page, mut page_bytes, mut scanned) = (Vec::new(), 0, 0);
        let mut next_page_token = String::new();
        'scan: loop {
            let read = shared
                .log
                .quarantined(QuarantineKind::Genuine, after, SCAN_LIMIT)
                .await;
            let read = read.map_err(status::read_error)?;
            if read.is_empty() {
                break;
            }
            for stored in read {
                // There is more than this page: it ends here, and the next one begins here.
                if page.len() == page_size || page_bytes >= PAGE_BYTES || scanned == MAX_SCANNED {
                    next_page_token = shared.page_token(after);
                    break 'scan;
                }
                after = stored.sequence;
                scanned += 1;
                let listed = listed(&stored, request.include_deliveries)?;
                if request.provider.is_empty() || request.provider == listed.provider {
                    page_bytes += listed.encoded_len();
                    page.push(listed);
                }
            }
        }
        Ok(Response::new(ListQuarantinedResponse {
            quarantined: page,
            next_page_token,
        }))
    }

    async fn redrive(
        &self,
        _request: Request<crate::proto::RedriveRequest>,
    ) -> Result<Response<crate::proto::RedriveResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn discard_quarantined(
        &self,
        _request: Request<crate::proto::DiscardQuarantinedRequest>,
    ) -> Result<Response<crate::proto::DiscardQuarantinedResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    type RenormalizeStream =
        futures_util::stream::Empty<Result<crate::proto::RenormalizeResponse, Status>>;

    async fn renormalize(
        &self,
        _request: Request<crate::proto::RenormalizeRequest>,
    ) -> Result<Response<Self::RenormalizeStream>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn get_status(
        &self,
        _request: Request<crate::proto::GetStatusRequest>,
    ) -> Result<Response<crate::proto::GetStatusResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn delete_consumer(
        &self,
        _request: Request<crate::proto::DeleteConsumerRequest>,
    ) -> Result<Response<crate::proto::DeleteConsumerResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn get_delivery(
        &self,
        request: Request<GetDeliveryRequest>,
    ) -> Result<Response<GetDeliveryResponse>, Status> {
        let shared = &self.0;
        let not_found =
            || status::error(Code::DeliveryNotFound, "there is no delivery under this id");
        let delivery = match request.into_inner().target {
            None => return Err(status::invalid("target", "is missing")),
            Some(Target::EventId(id)) => {
                let id = parse_id("event_id", &id)?;
                let event = shared.log.find(id).await.map_err(status::read_error)?;
                let position = event.ok_or_else(not_found)?.position;
                shared
                    .log
                    .delivery(position)
                    .await
                    .map_err(status::read_error)?
            }
            Some(Target::QuarantineId(id)) => {
                let id = parse_id("quarantine_id", &id)?;
                let found = shared
                    .log
                    .find_quarantined(id)
                    .await
                    .map_err(status::read_error)?;
                found.map(|quarantined| quarantined.delivery)
            }
        };
        let delivery = delivery.ok_or_else(not_found)?;
        Ok(Response::new(GetDeliveryResponse {
            delivery: Some(Delivery::decode(delivery).map_err(damaged)?),
        }))
    }
}

impl Shared {
    /// A page token is a cursor whose position counts the quarantine, marked so that it is taken for nothing else.
    fn page_token(&self, after: u64) -> String {
        format!("{PAGE_MARK}{}", self.cursor(Position(after)).encode())
    }

    fn page_start(&self, token: &str) -> Result<u64, Status> {
        if token.is_empty() {
            return Ok(0);
        }
        let cursor = token.strip_prefix(PAGE_MARK).map(Cursor::decode);
        match cursor {
            Some(Ok(cursor)) if cursor.log == self.log.cursor(Position(0)).log => {
                Ok(cursor.position.0)
            }
            _ => Err(status::invalid("page_token", "is not one of this server")),
        }
    }
}

fn listed(
    stored: &StoredQuarantined,
    include_delivery: bool,
) -> Result<QuarantinedDelivery, Status> {
    let mut listed = QuarantinedDelivery::decode(stored.summary.clone()).map_err(damaged)?;
    if include_delivery {
        listed.delivery = Some(Delivery::decode(stored.delivery.clone()).map_err(damaged)?);
    }
    Ok(listed)
}

fn damaged(error: prost::DecodeError) -> Status {
    tracing::error!(%error, "a stored delivery cannot be decoded");
    status::error(Code::LogUnavailable, "the log cannot be read")
}

fn info(source: &Source) -> SourceInfo {
    let Source {
        provider,
        account,
        environment,
        schemes,
        secrets,
        decryption_keys,
        tolerance,
        keep_unverified: _,
        options: _,
        counts,
    } = source;
    let Counts {
        accepted,
        duplicate,
        quarantined,
        ignored,
        signature_invalid,
        unverified_kept,
        log_unavailable,
    } = counts;
    SourceInfo {
        provider: provider.name().to_owned(),
        account: account.clone(),
        environment: (*environment).into(),
        signature_schemes: schemes
            .iter()
            .map(|scheme| scheme.name.to_owned())
            .collect(),
        secret_ids: secrets
            .iter()
            .map(|secret| secret.id().to_owned())
            .collect(),
        decryption_key_ids: decryption_keys
            .iter()
            .map(|key| key.id().to_owned())
            .collect(),
        tolerance_seconds: u32::try_from(tolerance.as_secs()).unwrap_or(u32::MAX),
        counts: Some(OutcomeCounts {
            accepted: accepted.get(),
            duplicate: duplicate.get(),
            quarantined: quarantined.get(),
            ignored: ignored.get(),
            signature_invalid: signature_invalid.get(),
            unverified_kept: unverified_kept.get(),
            log_unavailable: log_unavailable.get(),
        }),
    }
}
