//! What is recorded in the audit log: every call of an rpc of operators, refused ones too, and every call that asks for
//! personal data. One that may change something is recorded before it begins, too.
//!
//! What cannot be recorded is not done, and not answered.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use http::{Request, Response};
use prost_types::method_options::IdempotencyLevel;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tonic::{Code as GrpcCode, Status, body::Body, codec::Streaming};
use tonic_types::StatusExt;

use super::{authorization::peer, grpc::account_or_default, now, status};
use crate::{
    allowance::Allowance,
    audit::{About, Audit, Record, RecordedCredential},
    caller::{Credential, Identity},
    error::Code,
    proto::{
        CommitCursorRequest, DESCRIPTORS, DeleteConsumerRequest, DiscardQuarantinedRequest,
        EraseSubjectRequest, GetDeliveryRequest, GetEventRequest, GetStatusRequest,
        GetVerificationRequest, IngestRequest, ListEventsRequest, ListQuarantinedRequest,
        ListSourcesRequest, QuarantineFilter, RedriveRequest, RenormalizeRequest, Scope,
        SubscribeRequest, discard_quarantined_request, erase_subject_request::Subject,
        get_delivery_request, redrive_request,
    },
};

/// How many calls of unknown callers are recorded at once, and how many more with each second: whoever can connect must
/// not fill the disk.
const UNKNOWN_AT_ONCE: u32 = 100;
const UNKNOWN_PER_SECOND: u32 = 1;

/// Records calls.
pub(super) struct Auditor {
    audit: Option<Audit>,
    calls: AtomicU64,
    unknown: Allowance,
    omitted: AtomicU64,
}

/// A call that may have to be recorded.
pub(super) struct Audited<'a> {
    auditor: &'a Auditor,
    record: Record,
    about: Told,
    /// Whether it is recorded whatever it is about.
    always: bool,
    /// Whether it may change something that operators decide on.
    changes: bool,
    is_known: bool,
}

/// What a handler has told of its call; it finds this in the extensions of the request.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<About>>);

impl Auditor {
    pub(super) fn new(audit: Option<Audit>) -> Self {
        Self {
            audit,
            calls: AtomicU64::new(0),
            unknown: Allowance::new(UNKNOWN_AT_ONCE, UNKNOWN_PER_SECOND),
            omitted: AtomicU64::new(0),
        }
    }

    /// A call of this caller, `None` when nobody knows who that is, of an rpc with this scope.
    pub(super) fn begin(
        &self,
        request: &mut Request<Body>,
        identity: Option<&Identity>,
        scope: Option<Scope>,
    ) -> Audited<'_> {
        let about = Told::default();
        request.extensions_mut().insert(about.clone());
        let path = request.uri().path();
        let always = scope == Some(Scope::Admin);
        let caller = identity.and_then(|known| known.caller.name());
        Audited {
            record: Record {
                call: self.calls.fetch_add(1, Ordering::Relaxed) + 1,
                rpc: path.trim_start_matches('/').to_owned(),
                caller: caller.map(str::to_owned),
                credential: identity.and_then(|known| recorded(&known.credential)),
                peer: peer(request).map(|address| address.to_string()),
                ..Record::default()
            },
            changes: always && may_change(path),
            is_known: identity.is_some(),
            auditor: self,
            about,
            always,
        }
    }
}

impl Audited<'_> {
    /// Before a permitted call begins.
    pub(super) async fn before(&self) -> Result<(), Status> {
        match &self.auditor.audit {
            Some(audit) if self.changes => {
                let record = Record {
                    at: now().to_string(),
                    begins: true,
                    ..self.record.clone()
                };
                audit.write(&record, true).await.map_err(|_| unwritable())
            }
            _ => Ok(()),
        }
    }

    /// When a call has its answer, which is passed on if what must be recorded of it is.
    pub(super) async fn answered(self, response: Response<Body>) -> Response<Body> {
        let Some(audit) = &self.auditor.audit else {
            return response;
        };
        let about = self.about.0.lock();
        let about = about.unwrap_or_else(PoisonError::into_inner).clone();
        if !self.always && !about.personal_data {
            return response;
        }
        if !self.is_known && !self.auditor.unknown.take(Instant::now()) {
            self.auditor.omitted.fetch_add(1, Ordering::Relaxed);
            return response;
        }
        let failed = Status::from_header_map(response.headers());
        let failed = failed.filter(|status| status.code() != GrpcCode::Ok);
        let info = failed.as_ref().and_then(StatusExt::get_details_error_info);
        let record = Record {
            at: now().to_string(),
            about,
            code: Some(name(failed.as_ref().map_or(GrpcCode::Ok, Status::code))),
            reason: info.map(|info| info.reason),
            omitted: match self.is_known {
                true => 0,
                false => self.auditor.omitted.swap(0, Ordering::Relaxed),
            },
            ..self.record
        };
        match audit.write(&record, self.changes).await {
            // What was refused reveals nothing.
            Err(_) if failed.is_none() => unwritable().into_http(),
            _ => response,
        }
    }
}

fn unwritable() -> Status {
    let message = "the call cannot be recorded in the audit log, so it is not answered; try again";
    status::error(Code::LogUnavailable, message)
}

/// Whether an rpc may change something. One that does not say that it never does, may.
fn may_change(path: &str) -> bool {
    let (service, method) = path
        .trim_start_matches('/')
        .split_once('/')
        .unwrap_or_default();
    let Some(service) = DESCRIPTORS.get_service_by_name(service) else {
        return false;
    };
    let found = service
        .methods()
        .find(|candidate| candidate.name() == method);
    found.is_some_and(|method| {
        let options = method.method_descriptor_proto().options.as_ref();
        let level = options.map(|options| options.idempotency_level());
        level != Some(IdempotencyLevel::NoSideEffects)
    })
}

fn recorded(credential: &Credential) -> Option<RecordedCredential> {
    match credential {
        Credential::None => None,
        Credential::Token { id } => Some(RecordedCredential::Token(id.as_ref().to_owned())),
        Credential::Certificate { name } => {
            Some(RecordedCredential::Certificate(name.as_ref().to_owned()))
        }
        Credential::Subject { issuer, subject } => Some(RecordedCredential::Jwt {
            issuer: issuer.as_ref().to_owned(),
            subject: subject.as_ref().to_owned(),
        }),
    }
}

/// A code as the specification of gRPC writes it.
fn name(code: GrpcCode) -> &'static str {
    match code {
        GrpcCode::Ok => "OK",
        GrpcCode::Cancelled => "CANCELLED",
        GrpcCode::Unknown => "UNKNOWN",
        GrpcCode::InvalidArgument => "INVALID_ARGUMENT",
        GrpcCode::DeadlineExceeded => "DEADLINE_EXCEEDED",
        GrpcCode::NotFound => "NOT_FOUND",
        GrpcCode::AlreadyExists => "ALREADY_EXISTS",
        GrpcCode::PermissionDenied => "PERMISSION_DENIED",
        GrpcCode::ResourceExhausted => "RESOURCE_EXHAUSTED",
        GrpcCode::FailedPrecondition => "FAILED_PRECONDITION",
        GrpcCode::Aborted => "ABORTED",
        GrpcCode::OutOfRange => "OUT_OF_RANGE",
        GrpcCode::Unimplemented => "UNIMPLEMENTED",
        GrpcCode::Internal => "INTERNAL",
        GrpcCode::Unavailable => "UNAVAILABLE",
        GrpcCode::DataLoss => "DATA_LOSS",
        GrpcCode::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Tells the auditor what a call is about.
pub(super) fn tell<T: Auditable>(request: &tonic::Request<T>) {
    if let Some(Told(about)) = request.extensions().get() {
        *about.lock().unwrap_or_else(PoisonError::into_inner) = request.get_ref().about();
    }
}

/// Requests, as the audit log tells of them.
pub(super) trait Auditable {
    /// What is told.
    fn about(&self) -> About;
}

impl Auditable for IngestRequest {
    fn about(&self) -> About {
        About::default()
    }
}

impl<T> Auditable for Streaming<T> {
    fn about(&self) -> About {
        About::default()
    }
}

impl Auditable for SubscribeRequest {
    fn about(&self) -> About {
        About {
            personal_data: self.include_personal_data,
            consumer: self.consumer.clone(),
            ..About::default()
        }
    }
}

impl Auditable for GetEventRequest {
    fn about(&self) -> About {
        About {
            personal_data: self.include_personal_data,
            event_id: id(&self.event_id),
            ..About::default()
        }
    }
}

impl Auditable for ListEventsRequest {
    fn about(&self) -> About {
        About {
            personal_data: self.include_personal_data,
            ..About::default()
        }
    }
}

impl Auditable for GetVerificationRequest {
    // The id of a verification may be that of a subject, so it is not told.
    fn about(&self) -> About {
        About {
            personal_data: self.include_personal_data,
            provider: self.provider.clone(),
            account: account_or_default(&self.account).to_owned(),
            ..About::default()
        }
    }
}

impl Auditable for CommitCursorRequest {
    fn about(&self) -> About {
        About {
            consumer: self.consumer.clone(),
            ..About::default()
        }
    }
}

impl Auditable for ListSourcesRequest {
    fn about(&self) -> About {
        About::default()
    }
}

impl Auditable for GetStatusRequest {
    fn about(&self) -> About {
        About::default()
    }
}

impl Auditable for ListQuarantinedRequest {
    fn about(&self) -> About {
        About {
            personal_data: self.include_deliveries,
            provider: self.provider.clone(),
            account: self.account.clone(),
            ..About::default()
        }
    }
}

impl Auditable for GetDeliveryRequest {
    fn about(&self) -> About {
        use get_delivery_request::Target;
        let about = About {
            personal_data: true,
            ..About::default()
        };
        match &self.target {
            Some(Target::EventId(event)) => About {
                event_id: id(event),
                ..about
            },
            Some(Target::QuarantineId(delivery)) => About {
                quarantine_id: id(delivery),
                ..about
            },
            None => about,
        }
    }
}

impl Auditable for RedriveRequest {
    fn about(&self) -> About {
        use redrive_request::Target;
        match &self.target {
            Some(Target::QuarantineId(delivery)) => delivery_with(delivery),
            Some(Target::Filter(filter)) => deliveries_of(filter),
            None => About::default(),
        }
    }
}

impl Auditable for DiscardQuarantinedRequest {
    fn about(&self) -> About {
        use discard_quarantined_request::Target;
        match &self.target {
            Some(Target::QuarantineId(delivery)) => delivery_with(delivery),
            Some(Target::Filter(filter)) => deliveries_of(filter),
            None => About::default(),
        }
    }
}

impl Auditable for RenormalizeRequest {
    fn about(&self) -> About {
        About {
            dry_run: self.dry_run,
            ..About::default()
        }
    }
}

impl Auditable for DeleteConsumerRequest {
    fn about(&self) -> About {
        About {
            consumer: self.consumer.clone(),
            ..About::default()
        }
    }
}

impl Auditable for EraseSubjectRequest {
    fn about(&self) -> About {
        let account = account_or_default(&self.account);
        let subject = match &self.subject {
            Some(
                Subject::ProviderSubjectId(id)
                | Subject::ExternalId(id)
                | Subject::VerificationId(id),
            ) => id.as_str(),
            None => "",
        };
        let text = [&self.provider, account, subject].join("\0");
        About {
            provider: self.provider.clone(),
            account: account.to_owned(),
            subject_sha256: hex::encode(Sha256::digest(text)),
            ..About::default()
        }
    }
}

fn delivery_with(quarantine_id: &str) -> About {
    About {
        quarantine_id: id(quarantine_id),
        ..About::default()
    }
}

fn deliveries_of(filter: &QuarantineFilter) -> About {
    About {
        provider: filter.provider.clone(),
        account: filter.account.clone(),
        ..About::default()
    }
}

/// An id, if it is one: anything may stand where one is expected.
fn id(text: &str) -> String {
    match uuid::Uuid::parse_str(text) {
        Ok(id) => id.to_string(),
        Err(_) => "malformed".to_owned(),
    }
}
