//! What is recorded in the audit log: every call of an rpc of operators, refused ones too, and every call that asks for
//! personal data. One that may change something is recorded before it begins, too.
//!
//! What cannot be recorded is not done, and not answered. How a call has ended is recorded whether or not anybody waits for
//! its answer. Of calls that are refused, only so many are recorded of each caller; the others are counted.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use http::{Request, Response, Uri};
use prost_types::method_options::IdempotencyLevel;
use tokio::{runtime::Handle, time::Instant};
use tokio_util::task::TaskTracker;
use tonic::{Code as GrpcCode, Status, body::Body};
use tonic_types::StatusExt;

pub(super) use super::about::Auditable;
use super::{authorization::peer, now, status};
use crate::{
    allowance::Allowance,
    audit::{About, Audit, Record, RecordedCredential, Unwritable},
    caller::{Callers, Credential, Identity},
    error::Code,
    proto::{DESCRIPTORS, Scope},
};

/// How many refused calls of one caller, and of all unknown callers together, are recorded at once, and how many more with
/// each second: whoever may do nothing must not fill the disk.
const REFUSED_AT_ONCE: u32 = 100;
const REFUSED_PER_SECOND: u32 = 1;

/// Records calls.
pub(super) struct Auditor {
    audit: Option<Audit>,
    calls: AtomicU64,
    refusals: HashMap<String, Refusals>,
    /// Those of callers who have no name.
    nameless: Refusals,
    /// The records that are being written: who began one may go away.
    writing: TaskTracker,
}

/// The refused calls of a caller.
struct Refusals {
    recorded: Allowance,
    /// How many were not recorded since the last record.
    omitted: AtomicU64,
}

impl Refusals {
    fn new() -> Self {
        Self {
            recorded: Allowance::new(REFUSED_AT_ONCE, REFUSED_PER_SECOND),
            omitted: AtomicU64::new(0),
        }
    }
}

/// A call that may have to be recorded. Its handler finds it in the extensions of the request.
///
/// When it is dropped, and with it all that deals with the call, and nobody has said how the call has ended, then it was
/// given up.
pub(super) struct Entry {
    auditor: Arc<Auditor>,
    number: u64,
    uri: Uri,
    identity: Option<Identity>,
    peer: Option<IpAddr>,
    about: Mutex<About>,
    /// Whether it is recorded whatever it is about.
    always: bool,
    /// Whether it may change something that operators decide on.
    changes: bool,
    /// Whether it is recorded that it begins.
    begun: AtomicBool,
    /// Whether it goes on when nobody waits for its answer.
    goes_on: AtomicBool,
    /// Whether it is recorded how it has ended, or need not be.
    ended: AtomicBool,
}

impl Auditor {
    pub(super) fn new(audit: Option<Audit>, callers: &Callers, writing: TaskTracker) -> Self {
        let names = callers.names();
        Self {
            audit,
            calls: AtomicU64::new(0),
            refusals: names
                .map(|name| (name.to_owned(), Refusals::new()))
                .collect(),
            nameless: Refusals::new(),
            writing,
        }
    }

    /// A call of this caller, `None` when nobody knows who that is, of an rpc with this scope.
    pub(super) fn begin(
        self: &Arc<Self>,
        request: &mut Request<Body>,
        identity: Option<&Identity>,
        scope: Option<Scope>,
    ) -> Arc<Entry> {
        let always = scope == Some(Scope::Admin);
        let entry = Arc::new(Entry {
            number: self.calls.fetch_add(1, Ordering::Relaxed) + 1,
            uri: request.uri().clone(),
            identity: identity.cloned(),
            peer: peer(request),
            about: Mutex::default(),
            changes: always && may_change(request.uri().path()),
            auditor: Arc::clone(self),
            always,
            begun: AtomicBool::new(false),
            goes_on: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        request.extensions_mut().insert(Arc::clone(&entry));
        entry
    }

    fn refusals(&self, caller: Option<&str>) -> &Refusals {
        let named = caller.and_then(|caller| self.refusals.get(caller));
        named.unwrap_or(&self.nameless)
    }

    /// Writes a record, also when who waits for that goes away.
    async fn write(&self, record: Record, durable: bool) -> Result<(), Unwritable> {
        let Some(audit) = self.audit.clone() else {
            return Ok(());
        };
        let writing = self
            .writing
            .spawn(async move { audit.write(&record, durable).await });
        writing.await.unwrap_or(Err(Unwritable))
    }
}

impl Entry {
    fn caller(&self) -> Option<&str> {
        self.identity.as_ref()?.caller.name()
    }

    /// What all records of the call say.
    fn record(&self) -> Record {
        let credential = self.identity.as_ref().map(|known| &known.credential);
        Record {
            at: now().to_string(),
            call: self.number,
            rpc: self.uri.path().trim_start_matches('/').to_owned(),
            caller: self.caller().map(str::to_owned),
            credential: credential.and_then(recorded),
            peer: self.peer.map(|address| address.to_string()),
            ..Record::default()
        }
    }

    /// Before a permitted call begins.
    pub(super) async fn before(&self) -> Result<(), Status> {
        if self.auditor.audit.is_none() || !self.changes {
            return Ok(());
        }
        self.begun.store(true, Ordering::Relaxed);
        let record = Record {
            begins: true,
            ..self.record()
        };
        let written = self.auditor.write(record, true).await;
        written.map_err(|Unwritable| unwritable())
    }

    /// Whether the call goes on when nobody waits for its answer.
    pub(super) fn goes_on(&self) -> bool {
        self.goes_on.load(Ordering::Relaxed)
    }

    /// When a call has its answer, which is passed on if what must be recorded of it is.
    pub(super) async fn answered(&self, response: Response<Body>) -> Response<Body> {
        let failed = Status::from_header_map(response.headers());
        let failed = failed.filter(|status| status.code() != GrpcCode::Ok);
        match self.ended(failed.as_ref()).await {
            Ok(()) => response,
            Err(unwritable) => unwritable.into_http(),
        }
    }

    /// Records how the call has ended: well, or failed. Fails if it has ended well and that cannot be recorded; what was
    /// refused reveals nothing.
    pub(super) async fn ended(&self, failed: Option<&Status>) -> Result<(), Status> {
        let code = failed.map_or(GrpcCode::Ok, Status::code);
        let info = failed.and_then(StatusExt::get_details_error_info);
        let Some((record, durable)) = self.end(code, info.map(|info| info.reason)) else {
            return Ok(());
        };
        match self.auditor.write(record, durable).await {
            Err(Unwritable) if failed.is_none() => Err(unwritable()),
            _ => Ok(()),
        }
    }

    /// What is to be recorded of how the call has ended, and whether it must survive a power cut. `None` when nothing is.
    fn end(&self, code: GrpcCode, reason: Option<String>) -> Option<(Record, bool)> {
        if self.ended.swap(true, Ordering::Relaxed) || self.auditor.audit.is_none() {
            return None;
        }
        let about = self.about.lock();
        let about = about.unwrap_or_else(PoisonError::into_inner).clone();
        if !self.always && !about.personal_data {
            return None;
        }
        let refusals = self.auditor.refusals(self.caller());
        let must = code == GrpcCode::Ok || self.begun.load(Ordering::Relaxed);
        if !must && !refusals.recorded.take(Instant::now()) {
            refusals.omitted.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let durable = self.changes || about.personal_data;
        let record = Record {
            about,
            code: Some(name(code)),
            reason,
            omitted: refusals.omitted.swap(0, Ordering::Relaxed),
            ..self.record()
        };
        Some((record, durable))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let code = match thread::panicking() {
            true => GrpcCode::Internal,
            false => GrpcCode::Cancelled,
        };
        // Without a runtime the server is gone, and all its calls with it.
        if let Some((record, durable)) = self.end(code, None)
            && Handle::try_current().is_ok()
        {
            let auditor = Arc::clone(&self.auditor);
            let write = async move { auditor.write(record, durable).await };
            self.auditor.writing.spawn(write);
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
pub(super) fn name(code: GrpcCode) -> &'static str {
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
    if let Some(entry) = request.extensions().get::<Arc<Entry>>() {
        let about = request.get_ref().about();
        *entry.about.lock().unwrap_or_else(PoisonError::into_inner) = about;
    }
}

/// The call, for a handler that does its work to the end whoever waits, and that says itself how it has ended.
pub(super) fn goes_on<T>(request: &tonic::Request<T>) -> Option<Arc<Entry>> {
    let entry = request.extensions().get::<Arc<Entry>>()?;
    entry.goes_on.store(true, Ordering::Relaxed);
    Some(Arc::clone(entry))
}
