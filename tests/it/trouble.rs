//! A log in trouble, and what may never be seen of an event.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use prost_types::Timestamp;
use tonic::Code;
use tonic_types::StatusExt;
use uuid::Uuid;
use verdict::{
    event::{self, EncodedEvent},
    log::{
        AppendError, Appended, Cursor, EventLog, NewEvent, NewQuarantined, Position, ReadError,
        ReadLimit, StoredEvent, StoredQuarantined, Tail,
    },
    proto::{
        GetEventRequest, Header, IngestRequest, ListQuarantinedRequest, ListSourcesRequest,
        PersonalData, SubscribeMessage, SubscribeRequest, SubscribeResponse, VerificationEvent,
        subscribe_request::Start,
    },
    provider::{Headers, RawWebhook},
    subscription::Message,
};

use crate::support::{
    Server, fixture, gu1_body, gu1_request, memory_log, reason, request, server_config,
};

/// A log on a disk that has gone away. It says that its first five events are no longer retained.
struct GoneLog(Arc<dyn EventLog>);

fn gone_read<T>() -> Result<T, ReadError> {
    Err(ReadError::Unavailable("input/output error".to_owned()))
}

fn gone_append<T>() -> Result<T, AppendError> {
    Err(AppendError::Unavailable(
        "no space left on device".to_owned(),
    ))
}

#[async_trait]
impl EventLog for GoneLog {
    fn id(&self) -> Uuid {
        self.0.id()
    }

    fn tail(&self) -> &Tail {
        self.0.tail()
    }

    fn start(&self) -> Position {
        Position(5)
    }

    async fn append(&self, _: NewEvent) -> Result<Appended, AppendError> {
        gone_append()
    }

    async fn read(&self, _: Position, _: ReadLimit) -> Result<Vec<StoredEvent>, ReadError> {
        gone_read()
    }

    async fn find(&self, _: Uuid) -> Result<Option<StoredEvent>, ReadError> {
        gone_read()
    }

    async fn position_before(&self, _: Timestamp) -> Result<Position, ReadError> {
        gone_read()
    }

    async fn delivery(&self, _: Position) -> Result<Option<Bytes>, ReadError> {
        gone_read()
    }

    async fn quarantine(&self, _: NewQuarantined) -> Result<(), AppendError> {
        gone_append()
    }

    async fn quarantined(&self, _: u64, _: ReadLimit) -> Result<Vec<StoredQuarantined>, ReadError> {
        gone_read()
    }

    async fn find_quarantined(&self, _: Uuid) -> Result<Option<StoredQuarantined>, ReadError> {
        gone_read()
    }
}

#[tokio::test]
async fn a_webhook_that_cannot_be_stored_is_to_be_sent_again() {
    let server = Server::start_with(server_config(), Arc::new(GoneLog(memory_log()))).await;
    let event = gu1_request(gu1_body("1"));
    let quarantined = request("gu1", &fixture("gu1", "unknown_event"));
    for request in [event, quarantined] {
        let failed = server.ingest(request).await.unwrap_err();
        assert_eq!(
            (failed.code(), reason(&failed).as_str()),
            (Code::Unavailable, "LOG_UNAVAILABLE")
        );
        assert!(failed.get_details_retry_info().is_some());
        // What is wrong with our disk is our business.
        assert!(!failed.message().contains("space"), "{}", failed.message());
    }
    let sources = server
        .admin
        .clone()
        .list_sources(ListSourcesRequest {})
        .await
        .unwrap();
    let counts = sources
        .into_inner()
        .sources
        .into_iter()
        .find(|s| s.provider == "gu1")
        .unwrap()
        .counts
        .unwrap();
    assert_eq!(
        (counts.accepted, counts.quarantined, counts.log_unavailable),
        (0, 0, 2)
    );
    assert_eq!(server.log.tail().end(), Position(0));
}

#[tokio::test]
async fn a_log_that_cannot_be_read_is_unavailable() {
    let server = Server::start_with(server_config(), Arc::new(GoneLog(memory_log()))).await;
    let get = GetEventRequest {
        event_id: Uuid::nil().to_string(),
        ..Default::default()
    };
    let event = server.client.clone().get_event(get).await.unwrap_err();
    let list = server
        .admin
        .clone()
        .list_quarantined(ListQuarantinedRequest::default())
        .await
        .unwrap_err();
    for failed in [event, list] {
        assert_eq!(
            (failed.code(), reason(&failed).as_str()),
            (Code::Unavailable, "LOG_UNAVAILABLE")
        );
    }
}

#[tokio::test]
async fn what_is_no_longer_retained_is_out_of_range() {
    let server = Server::start_with(server_config(), Arc::new(GoneLog(memory_log()))).await;
    let cursor = |position| {
        Cursor {
            log: server.log.id(),
            position: Position(position),
        }
        .encode()
    };
    let subscribe = SubscribeRequest {
        start: Some(Start::AfterCursor(cursor(4))),
        ..Default::default()
    };
    let refused = server
        .client
        .clone()
        .subscribe(subscribe)
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::OutOfRange, "CURSOR_OUT_OF_RANGE")
    );
    let metadata = refused.get_details_error_info().unwrap().metadata;
    assert_eq!(metadata["first_available"], cursor(5));
}

/// Formats everything that carries a webhook or an event, with a name in each of its fields.
#[test]
fn no_person_is_seen_in_debug_output() {
    const NAME: &str = "Erika Mustermann";
    let bytes = || Bytes::from(NAME);
    let encoded = || EncodedEvent {
        event: bytes(),
        personal_data: bytes(),
    };
    let stored = StoredEvent {
        position: Position(1),
        encoded: encoded(),
    };
    let personal_data = PersonalData {
        full_name: NAME.to_owned(),
        ..Default::default()
    };
    let event = VerificationEvent {
        personal_data: Some(personal_data),
        ..Default::default()
    };
    let header = Header {
        name: "x-name".to_owned(),
        value: NAME.to_owned(),
    };
    let response = SubscribeResponse {
        cursor: String::new(),
        message: Some(SubscribeMessage::Event(bytes())),
    };
    let webhook = RawWebhook {
        payload: bytes(),
        headers: Headers::from_iter([("x-name".to_owned(), NAME.to_owned())]),
    };
    let shown = [
        format!("{:?}", event::encode(event.clone())),
        format!("{event:?}"),
        format!("{stored:?}"),
        format!(
            "{:?}",
            StoredQuarantined {
                sequence: 1,
                summary: bytes(),
                delivery: bytes()
            }
        ),
        format!(
            "{:?}",
            IngestRequest {
                payload: bytes(),
                headers: vec![header],
                ..Default::default()
            }
        ),
        format!("{response:?}"),
        format!("{:?}", Message::Event(bytes())),
        format!("{webhook:?}"),
    ];
    for shown in shown {
        assert!(
            !shown.contains("Erika") && !shown.contains("69, 114, 105, 107, 97"),
            "{shown}"
        );
    }
}
