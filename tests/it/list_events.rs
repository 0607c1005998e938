//! ListEvents: pages in both orders, their limits, and what retention does to them.

use std::sync::Arc;

use prost::Message;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use uuid::Uuid;
use verdict::{
    log::{EventLog, Position},
    proto::{EventFilter, EventOrder, ListEventsRequest, ListEventsResponse},
};

use crate::{
    support::{Server, append, fixture, memory_log, reason, request, server_config},
    troubled_log::TroubledLog,
};

async fn list(server: &Server, request: ListEventsRequest) -> Result<ListEventsResponse, Status> {
    let response = server.client.clone().list_events(request).await;
    response.map(tonic::Response::into_inner)
}

async fn refused(server: &Server, request: ListEventsRequest) -> Status {
    list(server, request).await.unwrap_err()
}

fn in_order(order: EventOrder) -> ListEventsRequest {
    ListEventsRequest {
        order: order.into(),
        ..Default::default()
    }
}

/// A server whose log holds events with the ids from 1 up.
async fn server_with(log: Arc<dyn EventLog>, events: u128, size_bytes: usize) -> Server {
    for number in 1..=events {
        append(&log, number, size_bytes).await;
    }
    Server::start_with(server_config(), log).await
}

fn ids(page: &ListEventsResponse) -> Vec<u128> {
    let events = page.events.iter();
    let ids = events.map(|listed| listed.event.as_ref().unwrap().event_id.parse::<Uuid>());
    ids.map(|id| id.unwrap().as_u128()).collect()
}

/// All pages to the last one.
async fn pages(server: &Server, mut request: ListEventsRequest) -> Vec<ListEventsResponse> {
    let mut pages = Vec::new();
    loop {
        let page = list(server, request.clone()).await.unwrap();
        request.page_token = page.next_page_token.clone();
        pages.push(page);
        if request.page_token.is_empty() {
            return pages;
        }
    }
}

#[tokio::test]
async fn pages_hold_every_event_once_in_either_order() {
    let server = server_with(memory_log(), 700, 0).await;
    let oldest: Vec<u128> = (1..=700).collect();
    let newest: Vec<u128> = (1..=700).rev().collect();
    for (order, expected) in [
        (EventOrder::Unspecified, &newest),
        (EventOrder::NewestFirst, &newest),
        (EventOrder::OldestFirst, &oldest),
    ] {
        for (page_size, most) in [(0, 50), (300, 300), (700, 700), (1000, 1000)] {
            let request = ListEventsRequest {
                page_size,
                ..in_order(order)
            };
            let pages = pages(&server, request).await;
            assert!(pages.iter().all(|page| page.events.len() <= most));
            assert_eq!(pages[0].events.len(), most.min(700));
            let listed: Vec<u128> = pages.iter().flat_map(ids).collect();
            assert_eq!(&listed, expected, "{order:?} {page_size}");
        }
    }
}

#[tokio::test]
async fn an_empty_log_is_one_empty_page() {
    let server = Server::start().await;
    for order in [EventOrder::NewestFirst, EventOrder::OldestFirst] {
        let page = list(&server, in_order(order)).await.unwrap();
        assert_eq!(page, ListEventsResponse::default());
    }
}

#[tokio::test]
async fn new_events_do_not_disturb_a_list() {
    let log = memory_log();
    let server = server_with(Arc::clone(&log), 4, 0).await;
    let request = |order, page_token: &str| ListEventsRequest {
        page_size: 2,
        page_token: page_token.to_owned(),
        ..in_order(order)
    };
    let newest = list(&server, request(EventOrder::NewestFirst, "")).await;
    let newest = newest.unwrap();
    let oldest = list(&server, request(EventOrder::OldestFirst, "")).await;
    let oldest = oldest.unwrap();
    append(&log, 5, 0).await;
    let rest = |order, page: ListEventsResponse| {
        let server = &server;
        async move {
            let pages = pages(server, request(order, &page.next_page_token)).await;
            pages.iter().flat_map(ids).collect::<Vec<_>>()
        }
    };
    assert_eq!(rest(EventOrder::NewestFirst, newest).await, [2, 1]);
    assert_eq!(rest(EventOrder::OldestFirst, oldest).await, [3, 4, 5]);
}

#[tokio::test]
async fn an_event_is_listed_with_its_cursor_and_what_was_asked_for() {
    let server = Server::start().await;
    let accepted = server.accept("1").await;
    let webhook = fixture("gu1", "kyc_approved");
    let _ = server.ingest(request("gu1", &webhook)).await.unwrap();
    let first = ListEventsRequest {
        filter: Some(EventFilter {
            subject_ids: vec!["ent-1".to_owned()],
            ..Default::default()
        }),
        page_size: 1,
        ..in_order(EventOrder::OldestFirst)
    };
    let page = list(&server, first).await.unwrap();
    assert_eq!(
        page.events[0].event.as_ref().unwrap().event_id,
        accepted.event_id
    );
    assert_eq!(page.events[0].cursor, accepted.cursor);

    for include_personal_data in [false, true] {
        let newest = ListEventsRequest {
            include_personal_data,
            page_size: 1,
            ..Default::default()
        };
        let page = list(&server, newest).await.unwrap();
        let event = page.events[0].event.as_ref().unwrap();
        assert_eq!(event.personal_data.is_some(), include_personal_data);
    }

    let nothing = ListEventsRequest {
        filter: Some(EventFilter {
            providers: vec!["no_such_provider".to_owned()],
            ..Default::default()
        }),
        ..Default::default()
    };
    let page = list(&server, nothing).await.unwrap();
    assert_eq!(page, ListEventsResponse::default());
}

#[tokio::test]
async fn one_call_looks_at_a_bounded_part_of_the_log() {
    let server = server_with(memory_log(), 10_050, 0).await;
    for order in [EventOrder::NewestFirst, EventOrder::OldestFirst] {
        let request = ListEventsRequest {
            filter: Some(EventFilter {
                providers: vec!["no_such_provider".to_owned()],
                ..Default::default()
            }),
            ..in_order(order)
        };
        let pages = pages(&server, request).await;
        assert_eq!(pages.len(), 2, "{order:?}");
        assert!(pages.iter().all(|page| page.events.is_empty()));
    }
}

#[tokio::test]
async fn a_page_is_no_larger_than_callers_take() {
    // The last one alone is larger than a page.
    let log = memory_log();
    for number in 1..=30 {
        append(&log, number, 100 << 10).await;
    }
    append(&log, 31, 2 << 20).await;
    for number in 32..=40 {
        append(&log, number, 100 << 10).await;
    }
    let server = server_with(log, 0, 0).await;
    let all: Vec<u128> = (1..=40).collect();
    for order in [EventOrder::NewestFirst, EventOrder::OldestFirst] {
        let request = ListEventsRequest {
            page_size: 1000,
            ..in_order(order)
        };
        let pages = pages(&server, request).await;
        for page in &pages {
            let small = page.encoded_len() <= (1 << 20) + 1024;
            assert!(small || ids(page) == [31], "{}", page.encoded_len());
        }
        let mut listed: Vec<u128> = pages.iter().flat_map(ids).collect();
        if order == EventOrder::NewestFirst {
            listed.reverse();
        }
        assert_eq!(listed, all);
    }
}

#[tokio::test]
async fn wrong_wishes_are_named() {
    let server = server_with(memory_log(), 4, 0).await;
    let other = server_with(memory_log(), 4, 0).await;
    let token = |page: ListEventsResponse| page.next_page_token;
    let two = |order| ListEventsRequest {
        page_size: 2,
        ..in_order(order)
    };
    let newest = token(list(&server, two(EventOrder::NewestFirst)).await.unwrap());
    let oldest = token(list(&server, two(EventOrder::OldestFirst)).await.unwrap());
    let with_token = |order, page_token: &str| ListEventsRequest {
        page_token: page_token.to_owned(),
        ..in_order(order)
    };
    let cursor = server.log.cursor(Position(2)).encode();
    let wrong = [
        (
            "page_size",
            ListEventsRequest {
                page_size: 1001,
                ..Default::default()
            },
        ),
        (
            "order",
            ListEventsRequest {
                order: 3,
                ..Default::default()
            },
        ),
        (
            "filter.kinds",
            ListEventsRequest {
                filter: Some(EventFilter {
                    kinds: vec![9],
                    ..Default::default()
                }),
                ..Default::default()
            },
        ),
        ("page_token", with_token(EventOrder::OldestFirst, &newest)),
        ("page_token", with_token(EventOrder::NewestFirst, &oldest)),
        ("page_token", with_token(EventOrder::NewestFirst, &cursor)),
        ("page_token", with_token(EventOrder::NewestFirst, "n")),
        ("page_token", with_token(EventOrder::NewestFirst, "ü")),
    ];
    for (field, request) in wrong {
        let refused = refused(&server, request).await;
        assert_eq!(reason(&refused), "INVALID_REQUEST");
        let violations = refused.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, field);
    }
    let foreign = refused(&other, with_token(EventOrder::NewestFirst, &newest)).await;
    assert_eq!(reason(&foreign), "CURSOR_OUT_OF_RANGE");
}

#[tokio::test]
async fn a_list_ends_where_retention_has_come_to() {
    for order in [EventOrder::NewestFirst, EventOrder::OldestFirst] {
        let log = TroubledLog::new();
        let server = server_with(log.clone(), 10, 0).await;
        let listed = async || {
            let mut listed = ids(&list(&server, in_order(order)).await.unwrap());
            listed.sort();
            listed
        };
        log.retain_after(3);
        assert_eq!(listed().await, [4, 5, 6, 7, 8, 9, 10]);
        // It comes closer while the list is made.
        log.retain_after_at_next_read(8);
        assert_eq!(listed().await, [9, 10]);
        log.retain_after(10);
        assert_eq!(listed().await, [0; 0]);
    }
}

#[tokio::test]
async fn a_token_that_retention_has_passed_is_out_of_range() {
    for (order, good, bad) in [
        (EventOrder::NewestFirst, 8, 9),
        (EventOrder::OldestFirst, 2, 3),
    ] {
        let log = TroubledLog::new();
        let server = server_with(log.clone(), 10, 0).await;
        let request = ListEventsRequest {
            page_size: 2,
            ..in_order(order)
        };
        let page = list(&server, request.clone()).await.unwrap();
        let next = ListEventsRequest {
            page_token: page.next_page_token,
            ..request
        };
        log.retain_after(good);
        let _ = list(&server, next.clone()).await.unwrap();
        let check = |refused: Status| {
            assert_eq!(
                (refused.code(), reason(&refused).as_str()),
                (Code::OutOfRange, "CURSOR_OUT_OF_RANGE")
            );
            let metadata = refused.get_details_error_info().unwrap().metadata;
            let first = server.log.cursor(Position(bad)).encode();
            assert_eq!(metadata["first_available"], first);
        };
        if order == EventOrder::OldestFirst {
            log.retain_after_at_next_read(bad);
            check(refused(&server, next.clone()).await);
        }
        log.retain_after(bad);
        check(refused(&server, next).await);
    }
}
