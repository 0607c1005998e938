//! GetVerification: where a verification stands, and its history.

use bytes::Bytes;
use prost::Message;
use prost_types::Timestamp;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use uuid::Uuid;
use verdict::{
    event,
    log::{NewEvent, Origin, Position},
    proto::{
        GetVerificationRequest, GetVerificationResponse, IngestStatus, ListEventsRequest, Source,
        Verification, VerificationEvent, verification_event::Detail,
    },
};

use crate::{
    support::{Server, fixture, gu1_request, memory_log, reason, request, server_config},
    troubled_log::TroubledLog,
};

fn of(verification_id: &str) -> GetVerificationRequest {
    GetVerificationRequest {
        provider: "gu1".to_owned(),
        verification_id: verification_id.to_owned(),
        ..Default::default()
    }
}

async fn get(
    server: &Server,
    request: GetVerificationRequest,
) -> Result<GetVerificationResponse, Status> {
    let response = server.client.clone().get_verification(request).await;
    response.map(tonic::Response::into_inner)
}

/// Accepts an event of a verification, with the provider's time of it.
async fn accept(server: &Server, verification_id: &str, day: u32) {
    let body = format!(
        r#"{{"event":"kyc.validation_approved","timestamp":"2026-05-{day:02}T10:00:00Z","payload":{{"id":"{verification_id}","entityId":"ent-{day}","status":"approved"}}}}"#
    );
    let response = server.ingest(gu1_request(body)).await.unwrap();
    assert_eq!(response.status(), IngestStatus::Accepted);
}

fn revisions(history: &[VerificationEvent]) -> Vec<u64> {
    history.iter().map(|event| event.revision).collect()
}

#[tokio::test]
async fn the_latest_event_by_the_providers_time_is_the_current_one() {
    let server = Server::start().await;
    for day in [10, 12, 11] {
        accept(&server, "val-1", day).await;
        accept(&server, &format!("other-{day}"), day).await;
    }
    let got = get(&server, of("val-1")).await.unwrap();
    assert_eq!(revisions(&got.history), [3, 2, 1]);
    let lates: Vec<bool> = got.history.iter().map(|event| event.late).collect();
    assert_eq!(lates, [true, false, false]);
    assert_eq!(got.current.as_ref(), Some(&got.history[1]));
    assert!(!got.ordered_by_log);
    assert_eq!(got.next_page_token, "");

    // At the same time as the latest: nobody but the log can tell which is later.
    let body = r#"{"event":"kyc.validation_rejected","timestamp":"2026-05-12T10:00:00Z","payload":{"id":"val-1","entityId":"ent-1","status":"rejected"}}"#;
    let _ = server.ingest(gu1_request(body)).await.unwrap();
    let got = get(&server, of("val-1")).await.unwrap();
    assert_eq!(got.current.unwrap().revision, 4);
    assert!(got.ordered_by_log);
}

#[tokio::test]
async fn the_history_comes_in_pages_with_the_current_event_on_each() {
    let server = Server::start().await;
    for day in 1..=31 {
        accept(&server, "val-1", day).await;
    }
    for (page_size, most) in [(0, 50), (1, 1), (20, 20), (31, 31), (1000, 1000)] {
        let mut request = GetVerificationRequest {
            page_size,
            account: "default".to_owned(),
            ..of("val-1")
        };
        let mut listed = Vec::new();
        loop {
            let page = get(&server, request.clone()).await.unwrap();
            assert_eq!(page.current.unwrap().revision, 31);
            assert!(!page.history.is_empty() && page.history.len() <= most);
            listed.extend(revisions(&page.history));
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        assert_eq!(listed, (1..=31).rev().collect::<Vec<_>>(), "{page_size}");
    }
}

#[tokio::test]
async fn a_page_is_no_larger_than_callers_take() {
    let log = memory_log();
    let verification = Verification {
        verification_id: "val-1".to_owned(),
        level: "x".repeat(100 << 10),
        ..Default::default()
    };
    for number in 1..=30 {
        let event = VerificationEvent {
            source: Some(Source {
                provider: "gu1".to_owned(),
                account: "default".to_owned(),
                ..Default::default()
            }),
            detail: Some(Detail::Verification(verification.clone())),
            ..Default::default()
        };
        let appended = log.append(NewEvent {
            event_id: Uuid::from_u128(number),
            content_sha256: [0; 32],
            verification: event::verification_key(&event),
            subject: [0; 32],
            occurred_at: None,
            received_at: Timestamp::default(),
            origin: Origin::Received,
            encoded: event::encode(event),
            delivery: Bytes::new(),
        });
        let _ = appended.await.unwrap();
    }
    let server = Server::start_with(server_config(), log).await;
    let mut request = GetVerificationRequest {
        page_size: 1000,
        ..of("val-1")
    };
    let mut listed = Vec::new();
    loop {
        let page = get(&server, request.clone()).await.unwrap();
        // One page, and the current event.
        assert!(page.encoded_len() < (1 << 20) + (101 << 10));
        listed.extend(revisions(&page.history));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, (1..=30).rev().collect::<Vec<_>>());
}

#[tokio::test]
async fn personal_data_is_returned_only_when_asked_for() {
    let server = Server::start().await;
    let webhook = fixture("gu1", "kyc_approved");
    let _ = server.ingest(request("gu1", &webhook)).await.unwrap();
    let newest = ListEventsRequest::default();
    let newest = server.client.clone().list_events(newest).await.unwrap();
    let event = newest.into_inner().events[0].event.clone().unwrap();
    let Some(Detail::Verification(verification)) = event.detail else {
        panic!("not a verification");
    };
    for include_personal_data in [false, true] {
        let request = GetVerificationRequest {
            include_personal_data,
            ..of(&verification.verification_id)
        };
        let got = get(&server, request).await.unwrap();
        for event in [got.current.as_ref().unwrap(), &got.history[0]] {
            assert_eq!(event.personal_data.is_some(), include_personal_data);
        }
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let server = Server::start().await;
    accept(&server, "val-1", 1).await;
    let unknown = [
        of("val-2"),
        GetVerificationRequest {
            provider: "fyatu".to_owned(),
            ..of("val-1")
        },
        GetVerificationRequest {
            account: "other".to_owned(),
            ..of("val-1")
        },
    ];
    for request in unknown {
        let refused = get(&server, request).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::NotFound, "VERIFICATION_NOT_FOUND")
        );
    }
}

#[tokio::test]
async fn wrong_wishes_are_named() {
    let server = Server::start().await;
    for day in 1..=3 {
        accept(&server, "val-1", day).await;
        accept(&server, "val-2", day).await;
    }
    let page = GetVerificationRequest {
        page_size: 1,
        ..of("val-2")
    };
    let of_other = get(&server, page).await.unwrap().next_page_token;
    let list = ListEventsRequest {
        page_size: 1,
        ..Default::default()
    };
    let list = server.client.clone().list_events(list).await.unwrap();
    let of_list = list.into_inner().next_page_token;
    let before_all = format!("h{}", server.log.cursor(Position(0)).encode());
    let with_token = |page_token: String| GetVerificationRequest {
        page_token,
        ..of("val-1")
    };
    let wrong = [
        (
            "provider",
            GetVerificationRequest {
                provider: String::new(),
                ..of("val-1")
            },
        ),
        ("verification_id", of("")),
        (
            "page_size",
            GetVerificationRequest {
                page_size: 1001,
                ..of("val-1")
            },
        ),
        ("page_token", with_token(of_other)),
        ("page_token", with_token(of_list)),
    ];
    for (field, request) in wrong {
        let refused = get(&server, request).await.unwrap_err();
        assert_eq!(reason(&refused), "INVALID_REQUEST");
        let violations = refused.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, field);
    }
    let refused = get(&server, with_token(before_all)).await.unwrap_err();
    assert_eq!(reason(&refused), "CURSOR_OUT_OF_RANGE");
}

#[tokio::test]
async fn a_history_ends_where_retention_has_come_to() {
    let log = TroubledLog::new();
    let server = Server::start_with(server_config(), log.clone()).await;
    // The newest but one is the current one.
    for day in [1, 2, 4, 3] {
        accept(&server, "val-1", day).await;
    }
    let page = GetVerificationRequest {
        page_size: 2,
        ..of("val-1")
    };
    let token = get(&server, page.clone()).await.unwrap().next_page_token;
    log.retain_after(1);
    let got = get(&server, of("val-1")).await.unwrap();
    assert_eq!(revisions(&got.history), [4, 3, 2]);
    assert_eq!(got.current.unwrap().revision, 3);
    // Only a late event is left.
    log.retain_after(3);
    let got = get(&server, page.clone()).await.unwrap();
    assert_eq!(revisions(&got.history), [4]);
    assert_eq!((got.current, got.next_page_token.as_str()), (None, ""));
    let next = GetVerificationRequest {
        page_token: token,
        ..page
    };
    let refused = get(&server, next).await.unwrap_err();
    assert_eq!(reason(&refused), "CURSOR_OUT_OF_RANGE");
    log.retain_after_at_next_history(4);
    let gone = get(&server, of("val-1")).await.unwrap_err();
    assert_eq!(reason(&gone), "VERIFICATION_NOT_FOUND");
    log.retain_after(3);
    log.retain_after_at_next_read(4);
    let gone = get(&server, of("val-1")).await.unwrap_err();
    assert_eq!(reason(&gone), "VERIFICATION_NOT_FOUND");
    let gone = get(&server, of("val-1")).await.unwrap_err();
    assert_eq!(reason(&gone), "VERIFICATION_NOT_FOUND");
}
