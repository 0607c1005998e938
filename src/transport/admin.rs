//! `verdict.v1.AdminService`.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{Stream, stream};
use jiff::Timestamp;
use prost::Message;
use tonic::{Code as GrpcCode, Request, Response, Status};

use super::{
    Shared,
    admission::Permit,
    auditing::{self, Auditable},
    grpc::{account_or_default, caller, parse_id},
    quarantine::not_found,
    status, subscribe,
};
use crate::{
    caller::{Reach, Refused},
    erase::{self, Erased, SubjectId, Target},
    error::Code,
    event::NORMALIZER_VERSION,
    ingest::proto_timestamp,
    log::{Consumer, EncryptionStats, Health, Position, QuarantineStats, ReadError},
    proto::{
        ConsumerStatus, DeleteConsumerRequest, DeleteConsumerResponse, Delivery,
        DiscardQuarantinedRequest, DiscardQuarantinedResponse, EncryptionStatus,
        EraseSubjectRequest, EraseSubjectResponse, GetDeliveryRequest, GetDeliveryResponse,
        GetStatusRequest, GetStatusResponse, ListQuarantinedRequest, ListQuarantinedResponse,
        ListSourcesRequest, ListSourcesResponse, LogStatus, OutcomeCounts, QuarantineStatus,
        RedriveRequest, RedriveResponse, RenormalizeRequest, RenormalizeResponse, Scope,
        SecretInfo, SetLogLevelsRequest, SetLogLevelsResponse, SourceInfo,
        admin_service_server::AdminService, erase_subject_request::Subject, get_delivery_request,
    },
    provider::usage::Usage,
    renormalize::Renormalization,
    source::{Counts, Source},
    telemetry::logs::{Levels, LevelsError},
};

/// The service.
pub(super) struct Admin(pub(super) Shared);

#[tonic::async_trait]
impl AdminService for Admin {
    async fn list_sources(
        &self,
        request: Request<ListSourcesRequest>,
    ) -> Result<Response<ListSourcesResponse>, Status> {
        let caller = caller(&request)?;
        let sources = self.0.ingestor.sources().iter();
        let sources = sources
            .filter(|source| caller.may(Scope::Admin, source.provider.name(), &source.account));
        Ok(Response::new(ListSourcesResponse {
            sources: sources
                .map(|source| info(source, self.0.started_at))
                .collect(),
        }))
    }

    async fn list_quarantined(
        &self,
        request: Request<ListQuarantinedRequest>,
    ) -> Result<Response<ListQuarantinedResponse>, Status> {
        let page = self
            .0
            .list_quarantined(&caller(&request)?, request.into_inner())
            .await?;
        Ok(Response::new(page))
    }

    async fn redrive(
        &self,
        request: Request<RedriveRequest>,
    ) -> Result<Response<RedriveResponse>, Status> {
        let redriven = self
            .0
            .redrive(&caller(&request)?, request.into_inner())
            .await?;
        Ok(Response::new(redriven))
    }

    async fn discard_quarantined(
        &self,
        request: Request<DiscardQuarantinedRequest>,
    ) -> Result<Response<DiscardQuarantinedResponse>, Status> {
        let discarded = self
            .0
            .discard_quarantined(&caller(&request)?, request.into_inner())
            .await?;
        Ok(Response::new(discarded))
    }

    type RenormalizeStream =
        Pin<Box<dyn Stream<Item = Result<RenormalizeResponse, Status>> + Send>>;

    async fn renormalize(
        &self,
        request: Request<RenormalizeRequest>,
    ) -> Result<Response<Self::RenormalizeStream>, Status> {
        let shared = &self.0;
        // The stream keeps the permit of its call as long as it runs.
        let permit = request.extensions().get::<Permit>().cloned();
        let caller = caller(&request)?;
        let request = request.into_inner();
        let filter = subscribe::filter(request.filter)?.within(caller.reach(Scope::Admin));
        let walk = Renormalization::new(
            Arc::clone(&shared.ingestor),
            filter,
            request.dry_run,
            shared.draining.clone(),
        );
        let responses = stream::unfold((walk, permit), |(mut walk, permit)| async move {
            let response = match walk.next().await? {
                Ok(message) => Ok(RenormalizeResponse {
                    message: Some(message),
                }),
                Err(ended) => Err(Status::from(ended)),
            };
            Some((response, (walk, permit)))
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn get_status(
        &self,
        request: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        unlimited(&request)?;
        let shared = &self.0;
        let stats = shared.log.stats();
        let consumers = shared.log.consumers().into_iter();
        Ok(Response::new(GetStatusResponse {
            version: NORMALIZER_VERSION.to_owned(),
            started_at: Some(proto_timestamp(shared.started_at)),
            log: Some(shared.log_status()),
            consumers: consumers.map(|one| shared.consumer_status(one)).collect(),
            quarantine: Some(quarantine_status(stats.genuine)),
            unverified: Some(quarantine_status(stats.unverified)),
            refused_callers: shared.refused_callers(),
        }))
    }

    async fn delete_consumer(
        &self,
        request: Request<DeleteConsumerRequest>,
    ) -> Result<Response<DeleteConsumerResponse>, Status> {
        unlimited(&request)?;
        let consumer = request.into_inner().consumer;
        if consumer.is_empty() {
            return Err(status::invalid("consumer", "is missing"));
        }
        let forgotten = self.0.log.forget(consumer).await;
        forgotten.map_err(status::append_error)?;
        Ok(Response::new(DeleteConsumerResponse {}))
    }

    async fn set_log_levels(
        &self,
        request: Request<SetLogLevelsRequest>,
    ) -> Result<Response<SetLogLevelsResponse>, Status> {
        unlimited(&request)?;
        let log_levels = &self.0.telemetry.log_levels;
        let (previous, levels) = match request.into_inner().levels.as_deref() {
            None => (log_levels.current(), log_levels.current()),
            Some("") => log_levels.set(None),
            Some(text) => {
                let levels: Levels = text
                    .parse()
                    .map_err(|error: LevelsError| status::invalid("levels", error.to_string()))?;
                log_levels.set(Some(levels))
            }
        };
        Ok(Response::new(SetLogLevelsResponse {
            previous_levels: previous.to_string(),
            levels: levels.to_string(),
        }))
    }

    async fn erase_subject(
        &self,
        request: Request<EraseSubjectRequest>,
    ) -> Result<Response<EraseSubjectResponse>, Status> {
        let shared = &self.0;
        let caller = caller(&request)?;
        let permit = request.extensions().get::<Permit>().cloned();
        let entry = auditing::goes_on(&request);
        let target = erasure_target(request.into_inner())?;
        if !caller.may(Scope::Admin, &target.provider, &target.account) {
            return Err(status::scope_missing(Scope::Admin));
        }
        let only = shared.erasing.begin(&target)?;
        let erasure = erase::erase(
            Arc::clone(&shared.ingestor),
            target,
            shared.draining.clone(),
        );
        // A caller that goes away does not stop it, and how it ends is recorded all the same.
        let erasure = shared.ingests.spawn(async move {
            let _held = (permit, only);
            let erased = erasure.await.map_err(Status::from);
            if let Some(entry) = entry {
                entry.ended(erased.as_ref().err()).await?;
            }
            erased
        });
        let erased = erasure.await.map_err(|_| {
            let message = "the subject could not be erased; try again";
            status::error(Code::LogUnavailable, message)
        })??;
        let Erased {
            events,
            quarantined_discarded,
            quarantined_unattributed,
        } = erased;
        Ok(Response::new(EraseSubjectResponse {
            events,
            quarantined_discarded,
            quarantined_unattributed,
        }))
    }

    async fn get_delivery(
        &self,
        request: Request<GetDeliveryRequest>,
    ) -> Result<Response<GetDeliveryResponse>, Status> {
        let shared = &self.0;
        let caller = caller(&request)?;
        let (position, delivery) = match request.into_inner().target {
            None => return Err(status::invalid("target", "is missing")),
            Some(get_delivery_request::Target::EventId(id)) => {
                let id = parse_id("event_id", &id)?;
                // Whether others have such an event is nothing that an error may tell.
                let found = shared.find(id, caller.reach(Scope::Admin)).await;
                let found = found.map_err(|failed| match failed.code() {
                    GrpcCode::NotFound => not_found(),
                    _ => failed,
                })?;
                let position = found.position;
                let delivery = match shared.log.delivery(position).await {
                    // It went while we were looking.
                    Err(ReadError::NotRetained) => None,
                    delivery => delivery.map_err(status::read_error)?,
                };
                (position, delivery)
            }
            Some(get_delivery_request::Target::QuarantineId(id)) => {
                let id = parse_id("quarantine_id", &id)?;
                let found = shared.operable(&caller, id).await?;
                let delivery = Some(found.delivery).filter(|delivery| !delivery.is_empty());
                (Position(found.sequence), delivery)
            }
        };
        let delivery = Delivery::decode(delivery.ok_or_else(not_found)?);
        let delivery = delivery.map_err(|error| status::undecodable(position, &error))?;
        let may = |scope| caller.may(scope, &delivery.provider, &delivery.account);
        if !may(Scope::Admin) {
            return Err(not_found());
        }
        if !may(Scope::PersonalData) {
            return Err(status::scope_missing(Scope::PersonalData));
        }
        Ok(Response::new(GetDeliveryResponse {
            delivery: Some(delivery),
        }))
    }
}

/// Who is being erased: each subject once at a time, because erasing reads the whole log.
#[derive(Clone, Default)]
pub(super) struct Erasing(Arc<Mutex<Vec<Target>>>);

/// Someone who is being erased.
struct Erasure {
    target: Target,
    among: Erasing,
}

impl Erasing {
    fn begin(&self, target: &Target) -> Result<Erasure, Status> {
        let mut targets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if targets.contains(target) {
            let message = "this subject is being erased already; ask again when that has ended";
            return Err(status::error(Code::Overloaded, message));
        }
        targets.push(target.clone());
        Ok(Erasure {
            target: target.clone(),
            among: self.clone(),
        })
    }
}

impl Drop for Erasure {
    fn drop(&mut self) {
        let mut targets = self.among.0.lock().unwrap_or_else(PoisonError::into_inner);
        targets.retain(|target| *target != self.target);
    }
}

/// Whom a request is to erase.
fn erasure_target(request: EraseSubjectRequest) -> Result<Target, Status> {
    let EraseSubjectRequest {
        provider,
        account,
        subject,
    } = request;
    if provider.is_empty() {
        return Err(status::invalid("provider", "is missing"));
    }
    let (field, id) = match subject {
        None => return Err(status::invalid("subject", "is missing")),
        Some(Subject::ProviderSubjectId(id)) => ("provider_subject_id", SubjectId::Provider(id)),
        Some(Subject::ExternalId(id)) => ("external_id", SubjectId::External(id)),
        Some(Subject::VerificationId(id)) => ("verification_id", SubjectId::Verification(id)),
    };
    if id.as_str().is_empty() {
        return Err(status::invalid(field, "is empty"));
    }
    Ok(Target {
        account: account_or_default(&account).to_owned(),
        provider,
        id,
    })
}

/// Refuses a caller whose scope is limited: the call is about all sources.
fn unlimited<T: Auditable>(request: &Request<T>) -> Result<(), Status> {
    match caller(request)?.reach(Scope::Admin) {
        Reach::Everything => Ok(()),
        Reach::Nothing | Reach::Limited(_) => Err(status::scope_missing(Scope::Admin)),
    }
}

impl Shared {
    /// How many calls of unknown callers were refused, by why.
    fn refused_callers(&self) -> HashMap<String, u64> {
        let counts = Refused::ALL.map(|why| (why.name().to_owned(), self.callers.refused(why)));
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    fn log_status(&self) -> LogStatus {
        let log = &self.log;
        let (start, end, stats) = (log.start(), log.tail().end(), log.stats());
        LogStatus {
            first_cursor: self.cursor(start).encode(),
            last_cursor: self.cursor(end).encode(),
            events: end.0.saturating_sub(start.0),
            size_bytes: stats.size_bytes,
            trouble: match &*log.health().borrow() {
                Health::Well => String::new(),
                Health::Unwritable(why) | Health::Failed(why) => why.clone(),
            },
            format: stats.format,
            encryption: stats.encryption.map(encryption_status),
        }
    }

    fn consumer_status(&self, consumer: Consumer) -> ConsumerStatus {
        let Consumer {
            name,
            cursor,
            committed_at,
        } = consumer;
        ConsumerStatus {
            consumer: name,
            lag_events: self.log.lag(&cursor),
            cursor: cursor.encode(),
            committed_at: Some(committed_at),
        }
    }
}

fn secret_info(id: &str, loaded_at: Timestamp, usage: &Usage) -> SecretInfo {
    SecretInfo {
        id: id.to_owned(),
        loaded_at: Some(proto_timestamp(loaded_at)),
        last_used_at: usage.last_used_at().map(proto_timestamp),
        uses: usage.uses(),
    }
}

fn encryption_status(stats: EncryptionStats) -> EncryptionStatus {
    let EncryptionStats {
        enabled,
        master_key_id,
        key_files,
        to_rewrap,
        segments_without_keys,
    } = stats;
    EncryptionStatus {
        enabled,
        master_key_id,
        key_files,
        segments_to_rewrap: to_rewrap,
        segments_without_keys,
    }
}

fn quarantine_status(stats: QuarantineStats) -> QuarantineStatus {
    let QuarantineStats {
        deliveries,
        size_bytes,
        dropped,
    } = stats;
    QuarantineStatus {
        deliveries,
        size_bytes,
        dropped,
    }
}

fn info(source: &Source, started_at: Timestamp) -> SourceInfo {
    let Source {
        provider,
        account,
        environment,
        schemes,
        keyring,
        tolerance,
        keep_unverified,
        allowed_ips: _,
        max_json_depth: _,
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
        unverified_dropped,
        log_unavailable,
        failed,
    } = counts;
    let keys = keyring.keys();
    let secrets = keys.secrets.iter().map(|secret| {
        secret_info(
            secret.id(),
            secret.loaded_at().unwrap_or(started_at),
            secret.usage(),
        )
    });
    let decryption_keys = keys
        .decryption_keys
        .iter()
        .map(|key| secret_info(key.id(), key.loaded_at().unwrap_or(started_at), key.usage()));
    SourceInfo {
        provider: provider.name().to_owned(),
        account: account.clone(),
        environment: (*environment).into(),
        signature_schemes: schemes
            .iter()
            .map(|scheme| scheme.name.to_owned())
            .collect(),
        secrets: secrets.collect(),
        decryption_keys: decryption_keys.collect(),
        tolerance_seconds: u32::try_from(tolerance.as_secs()).unwrap_or(u32::MAX),
        keep_unverified: *keep_unverified,
        counts: Some(OutcomeCounts {
            accepted: accepted.get(),
            duplicate: duplicate.get(),
            quarantined: quarantined.get(),
            ignored: ignored.get(),
            signature_invalid: signature_invalid.get(),
            unverified_kept: unverified_kept.get(),
            unverified_dropped: unverified_dropped.get(),
            log_unavailable: log_unavailable.get(),
            failed: failed.get(),
        }),
    }
}
