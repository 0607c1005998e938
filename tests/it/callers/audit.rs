//! The audit log: what is in it, what is not, and what happens when it cannot be written.

use std::{collections::BTreeSet, fs, time::Duration};

use bytes::Bytes;
use futures_util::future;
use serde_json::{Value, json};
use tonic::{Code, metadata::MetadataMap};
use verdict::proto::{
    DeleteConsumerRequest, DiscardQuarantinedRequest, EraseSubjectRequest, GetDeliveryRequest,
    GetEventRequest, GetVerificationRequest, ListEventsRequest, ListSourcesRequest,
    QuarantineFilter, RenormalizeRequest, SetLogLevelsRequest, SubscribeRequest,
    discard_quarantined_request as discard, erase_subject_request::Subject,
    get_delivery_request as get,
};

use super::{House, bearer, by, caller, rpcs};
use crate::{
    support::{PATIENCE, fixture, from_earliest, gu1_body, gu1_request, reason},
    troubled_log::TroubledLog,
};

fn callers() -> String {
    let all = caller("all", &[("ingest subscribe personal_data admin", "")]);
    format!("{all}{}", caller("reader", &[("subscribe", "")]))
}

/// The lines so far, each without its time, which must be one, and its peer.
fn lines(house: &House) -> Vec<Value> {
    let text = fs::read_to_string(&house.audit).expect("an audit log");
    let lines = text.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).expect("JSON");
        let fields = line.as_object_mut().expect("an object");
        let at = fields.remove("at").expect("a time");
        at.as_str()
            .and_then(|at| at.parse::<jiff::Timestamp>().ok())
            .expect("a time");
        assert_eq!(fields.remove("peer"), Some(json!("127.0.0.1")));
        fields.remove("call");
        line
    });
    lines.collect()
}

fn rpc(service: &str, method: &str) -> String {
    format!("verdict.v1.{service}/{method}")
}

#[tokio::test]
async fn calls_of_operators_and_reads_of_personal_data_are_recorded_and_nothing_else() {
    let house = House::open(&callers()).await;
    let (mut client, mut admin) = (house.client.clone(), house.admin.clone());
    let accepted = client
        .ingest(by("all", gu1_request(gu1_body("secret-person"))))
        .await;
    let event_id = accepted.expect("taken").into_inner().event_id;
    for include_personal_data in [false, true] {
        let get = GetEventRequest {
            event_id: event_id.clone(),
            include_personal_data,
        };
        client.get_event(by("all", get)).await.expect("an event");
        let list = ListEventsRequest {
            include_personal_data,
            ..Default::default()
        };
        client.list_events(by("all", list)).await.expect("events");
        let subscribe = SubscribeRequest {
            include_personal_data,
            consumer: "c".to_owned(),
            ..from_earliest()
        };
        let mut stream = client
            .subscribe(by("all", subscribe))
            .await
            .expect("a stream")
            .into_inner();
        stream.message().await.expect("a message");
        let get = GetVerificationRequest {
            provider: "gu1".to_owned(),
            verification_id: "secret-person".to_owned(),
            include_personal_data,
            ..Default::default()
        };
        client
            .get_verification(by("all", get))
            .await
            .expect("a verification");
    }
    let get = GetEventRequest {
        event_id: event_id.clone(),
        include_personal_data: true,
    };
    client
        .get_event(by("reader", get))
        .await
        .expect_err("it may not");
    let get = GetEventRequest {
        event_id: "secret-person".to_owned(),
        include_personal_data: true,
    };
    client.get_event(by("all", get)).await.expect_err("no id");
    admin
        .list_sources(by("all", ListSourcesRequest {}))
        .await
        .expect("a list");
    admin
        .list_sources(by("reader", ListSourcesRequest {}))
        .await
        .expect_err("it may not");
    admin
        .list_sources(by("nobody", ListSourcesRequest {}))
        .await
        .expect_err("unknown");
    let deliver = GetDeliveryRequest {
        target: Some(get::Target::EventId(event_id.clone())),
    };
    admin
        .get_delivery(by("all", deliver))
        .await
        .expect("a delivery");

    let all = |fields: Value| {
        let mut line =
            json!({ "caller": "all", "credential": { "token": "all-token" }, "code": "OK" });
        let known = line.as_object_mut().expect("an object");
        known.extend(fields.as_object().expect("an object").clone());
        line
    };
    let verdict = |method| rpc("VerdictService", method);
    let sources = rpc("AdminService", "ListSources");
    let expected = [
        all(json!({ "rpc": verdict("GetEvent"), "personal_data": true, "event_id": event_id })),
        all(json!({ "rpc": verdict("ListEvents"), "personal_data": true })),
        all(json!({ "rpc": verdict("Subscribe"), "personal_data": true, "consumer": "c" })),
        all(
            json!({ "rpc": verdict("GetVerification"), "personal_data": true, "provider": "gu1", "account": "default" }),
        ),
        json!({ "caller": "reader", "credential": { "token": "reader-token" }, "rpc": verdict("GetEvent"),
            "personal_data": true, "event_id": event_id, "code": "PERMISSION_DENIED", "reason": "SCOPE_MISSING" }),
        all(
            json!({ "rpc": verdict("GetEvent"), "personal_data": true, "event_id": "malformed",
            "code": "INVALID_ARGUMENT", "reason": "INVALID_REQUEST" }),
        ),
        all(json!({ "rpc": sources })),
        json!({ "caller": "reader", "credential": { "token": "reader-token" }, "rpc": sources,
            "code": "PERMISSION_DENIED", "reason": "SCOPE_MISSING" }),
        json!({ "caller": null, "rpc": sources, "code": "UNAUTHENTICATED", "reason": "UNAUTHENTICATED" }),
        all(
            json!({ "rpc": rpc("AdminService", "GetDelivery"), "personal_data": true, "event_id": event_id }),
        ),
    ];
    let recorded = lines(&house);
    for (recorded, expected) in recorded.iter().zip(&expected) {
        assert_eq!(recorded, expected);
    }
    assert_eq!(recorded.len(), expected.len());
    let text = fs::read_to_string(&house.audit).expect("an audit log");
    assert!(!text.contains("secret-person"), "{text}");
    house.close().await;
}

#[tokio::test]
async fn every_rpc_of_operators_is_recorded_and_before_it_begins_if_it_may_change_something() {
    let house = House::open(&callers()).await;
    let rpcs = rpcs()
        .into_iter()
        .filter(|rpc| rpc.contains("AdminService"));
    let rpcs: Vec<_> = rpcs.collect();
    for rpc in &rpcs {
        let _ = house.call(rpc, bearer("all"), Bytes::new()).await;
        let _ = house.call(rpc, MetadataMap::new(), Bytes::new()).await;
    }
    let lines = lines(&house);
    let of = |wanted: &dyn Fn(&Value) -> bool| {
        let lines = lines.iter().filter(|line| wanted(line));
        let names = lines.map(|line| line["rpc"].as_str().expect("a name").to_owned());
        names.collect::<BTreeSet<_>>()
    };
    let named: BTreeSet<_> = rpcs.iter().map(|rpc| rpc[1..].to_owned()).collect();
    assert_eq!(of(&|line| line["code"] == "UNAUTHENTICATED"), named);
    assert_eq!(
        of(&|line| line["caller"] == "all" && line["begins"] != true),
        named
    );
    let changing = [
        "Redrive",
        "DiscardQuarantined",
        "Renormalize",
        "DeleteConsumer",
        "EraseSubject",
        "SetLogLevels",
    ];
    let changing = changing.map(|method| rpc("AdminService", method));
    assert_eq!(of(&|line| line["begins"] == true), changing.into());

    // So that it is known who has silenced the log.
    for levels in ["off", "", "person-1"] {
        let request = SetLogLevelsRequest {
            levels: Some(levels.to_owned()),
        };
        let _ = house.admin.clone().set_log_levels(by("all", request)).await;
    }

    // A subject that is erased is named by its hash.
    let erase = EraseSubjectRequest {
        provider: "gu1".to_owned(),
        subject: Some(Subject::ProviderSubjectId("person-1".to_owned())),
        ..Default::default()
    };
    let _ = house.admin.clone().erase_subject(by("all", erase)).await;
    let renormalize = RenormalizeRequest {
        dry_run: true,
        ..Default::default()
    };
    house
        .admin
        .clone()
        .renormalize(by("all", renormalize))
        .await
        .expect("a walk");
    let text = fs::read_to_string(&house.audit).expect("an audit log");
    let hash = base16ct::lower::encode_string(&verdict::provider::signature::sha256(
        b"gu1\0default\0person-1",
    ));
    assert!(text.contains(&hash) && !text.contains("person-1"));
    assert!(text.contains("\"dry_run\":true"));
    for levels in ["off", "as configured", "malformed"] {
        assert!(text.contains(&format!("\"log_levels\":\"{levels}\"")));
    }
    house.close().await;
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_done() {
    let house = House::open(&callers()).await;
    let (mut client, mut admin) = (house.client.clone(), house.admin.clone());
    let accepted = client.ingest(by("all", gu1_request(gu1_body("1")))).await;
    let event_id = accepted.expect("taken").into_inner().event_id;
    let unknown = gu1_request(fixture("gu1", "unknown_event").payload);
    client
        .ingest(by("all", unknown))
        .await
        .expect("quarantined");
    assert_eq!(house.log.stats().genuine.deliveries, 1);

    let home = house.audit.parent().expect("a directory").to_owned();
    let away = home.with_extension("away");
    fs::rename(&home, &away).expect("moved away");
    let unavailable = |refused: tonic::Status| {
        assert_eq!(
            (refused.code(), reason(&refused)),
            (Code::Unavailable, "LOG_UNAVAILABLE".to_owned())
        );
    };
    let list = || by("all", ListSourcesRequest {});
    unavailable(admin.list_sources(list()).await.expect_err("not recorded"));
    let discard = || {
        let target = discard::Target::Filter(QuarantineFilter::default());
        by(
            "all",
            DiscardQuarantinedRequest {
                target: Some(target),
            },
        )
    };
    unavailable(
        admin
            .discard_quarantined(discard())
            .await
            .expect_err("not recorded"),
    );
    assert_eq!(house.log.stats().genuine.deliveries, 1, "nothing was done");
    let get = |include_personal_data| {
        by(
            "all",
            GetEventRequest {
                event_id: event_id.clone(),
                include_personal_data,
            },
        )
    };
    unavailable(client.get_event(get(true)).await.expect_err("not recorded"));
    let subscribe = || {
        by(
            "all",
            SubscribeRequest {
                include_personal_data: true,
                ..from_earliest()
            },
        )
    };
    unavailable(
        client
            .subscribe(subscribe())
            .await
            .expect_err("not recorded"),
    );
    // The rest goes on, and what is refused is refused for its own reason.
    client.get_event(get(false)).await.expect("an event");
    client
        .ingest(by("all", gu1_request(gu1_body("2"))))
        .await
        .expect("taken");
    let refused = admin
        .list_sources(by("nobody", ListSourcesRequest {}))
        .await;
    assert_eq!(refused.expect_err("unknown").code(), Code::Unauthenticated);

    fs::rename(&away, &home).expect("moved back");
    admin.list_sources(list()).await.expect("recorded");
    assert_eq!(
        admin
            .discard_quarantined(discard())
            .await
            .expect("recorded")
            .into_inner()
            .discarded,
        1
    );
    house.close().await;
}

#[tokio::test]
async fn strangers_cannot_fill_the_disk() {
    let house = House::open(&callers()).await;
    let path = "/verdict.v1.AdminService/ListSources";
    let calls = (0..400).map(|_| house.call(path, bearer("nobody"), Bytes::new()));
    future::join_all(calls).await;
    let recorded = lines(&house).len();
    assert!((100..130).contains(&recorded), "{recorded}");
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    let _ = house.call(path, bearer("nobody"), Bytes::new()).await;
    let all = lines(&house);
    let omitted: u64 = all.iter().filter_map(|line| line["omitted"].as_u64()).sum();
    assert_eq!(
        omitted as usize + all.len(),
        401,
        "each is recorded or counted"
    );
    house.close().await;
}

#[tokio::test]
async fn nor_can_a_caller_with_what_it_may_not_do() {
    let house = House::open(&callers()).await;
    let sources = "/verdict.v1.AdminService/ListSources";
    let calls = (0..200).map(|_| house.call(sources, bearer("reader"), Bytes::new()));
    future::join_all(calls).await;
    let reads = (0..200).map(|_| {
        let mut client = house.client.clone();
        let get = GetEventRequest {
            event_id: String::new(),
            include_personal_data: true,
        };
        async move {
            client
                .get_event(by("reader", get))
                .await
                .expect_err("refused")
        }
    });
    future::join_all(reads).await;
    let recorded = lines(&house).len();
    assert!((100..130).contains(&recorded), "{recorded}");
    // What others do is recorded, and so is all that is done.
    let others = (0..150).map(|_| house.call(sources, bearer("all"), Bytes::new()));
    future::join_all(others).await;
    let done = lines(&house);
    let done = done.iter().filter(|line| line["caller"] == "all");
    assert_eq!(done.count(), 150);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let _ = house.call(sources, bearer("reader"), Bytes::new()).await;
    let all = lines(&house);
    let all = all.iter().filter(|line| line["caller"] == "reader");
    let all: Vec<_> = all.collect();
    let omitted: u64 = all.iter().filter_map(|line| line["omitted"].as_u64()).sum();
    assert_eq!(omitted as usize + all.len(), 401);
    house.close().await;
}

#[tokio::test]
async fn a_caller_that_makes_too_many_calls_is_recorded() {
    let house = House::open_with(&callers(), |server| {
        server.max_calls_per_second_per_caller = 1;
    })
    .await;
    let path = "/verdict.v1.AdminService/ListSources";
    let calls = (0..5).map(|_| house.call(path, bearer("all"), Bytes::new()));
    future::join_all(calls).await;
    let lines = lines(&house);
    assert_eq!(lines.len(), 5);
    assert!(lines.iter().any(|line| line["reason"] == "OVERLOADED"));
    house.close().await;
}

/// The lines of calls that have ended, once there are so many of them.
async fn endings(house: &House, count: usize) -> Vec<Value> {
    let endings = async {
        loop {
            let lines = lines(house);
            let ended = lines.into_iter().filter(|line| line["begins"] != true);
            let ended: Vec<_> = ended.collect();
            if ended.len() >= count {
                return ended;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, endings)
        .await
        .expect("they are recorded")
}

#[tokio::test]
async fn how_a_call_ends_is_recorded_whoever_waits_for_it() {
    let log = TroubledLog::new();
    let house = House::open_on(&callers(), log.clone(), |server| {
        server.call_timeout_seconds = 1;
    })
    .await;
    log.set_gate(false);
    let delete = |consumer: &str| {
        let consumer = consumer.to_owned();
        by("all", DeleteConsumerRequest { consumer })
    };
    let mut admin = house.admin.clone();
    // The server gives it up, and then a caller does.
    let late = admin.delete_consumer(delete("late")).await;
    assert_eq!(late.expect_err("late").code(), Code::DeadlineExceeded);
    let mut given_up = delete("given-up");
    given_up.set_timeout(Duration::from_millis(100));
    admin.delete_consumer(given_up).await.expect_err("given up");
    let ended = endings(&house, 2).await;
    assert_eq!(
        (&ended[0]["code"], &ended[0]["consumer"]),
        (&json!("DEADLINE_EXCEEDED"), &json!("late"))
    );
    assert_eq!(
        (&ended[1]["code"], &ended[1]["consumer"]),
        (&json!("CANCELLED"), &json!("given-up"))
    );
    log.set_gate(true);
    house.close().await;
}

#[tokio::test]
async fn an_erasure_goes_on_alone_and_says_how_it_has_ended() {
    let log = TroubledLog::new();
    let house = House::open_on(&callers(), log.clone(), |server| {
        server.call_timeout_seconds = 1;
    })
    .await;
    let erase = |id: &str| {
        let subject = Some(Subject::ProviderSubjectId(id.to_owned()));
        let provider = "gu1".to_owned();
        let request = EraseSubjectRequest {
            provider,
            subject,
            ..Default::default()
        };
        by("all", request)
    };
    let mut admin = house.admin.clone();
    log.set_read_gate(false);
    let mut left = erase("left");
    left.set_timeout(Duration::from_millis(100));
    admin.erase_subject(left).await.expect_err("given up");
    // It goes on, so nobody begins it anew.
    let again = admin.erase_subject(erase("left")).await;
    assert_eq!(reason(&again.expect_err("at work")), "OVERLOADED");
    // The timeout of calls does not end one either.
    let mut waiting = house.admin.clone();
    let waiting = tokio::spawn(async move { waiting.erase_subject(erase("waited")).await });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!waiting.is_finished());
    assert_eq!(endings(&house, 1).await.len(), 1);
    log.set_read_gate(true);
    waiting.await.expect("no panic").expect("erased");
    let ended = endings(&house, 3).await;
    let well = ended.iter().filter(|line| line["code"] == "OK");
    assert_eq!(well.count(), 2, "{ended:?}");
    admin.erase_subject(erase("left")).await.expect("again");
    house.close().await;
}
