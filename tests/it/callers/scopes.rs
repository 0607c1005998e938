//! Scopes: every rpc has one, and the layer keeps callers away who lack it.

use bytes::Bytes;
use futures_util::future;
use tonic::{Code, metadata::MetadataMap};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;
use verdict::{config::Reflection, proto::DESCRIPTORS};

use super::{House, bearer, caller, rpcs};
use crate::support::reason;

/// How reflection answers an empty request.
const REACHED: Code = Code::InvalidArgument;

const SCOPES: [&str; 5] = ["ingest", "subscribe", "personal_data", "backfill", "admin"];

/// The scope that an rpc states, as the configuration has it.
fn stated(rpc: &str) -> String {
    let (service, method) = rpc[1..].split_once('/').expect("a path");
    let service = DESCRIPTORS.get_service_by_name(service).expect("a service");
    let method = service
        .methods()
        .find(|one| one.name() == method)
        .expect("a method");
    let option = DESCRIPTORS
        .get_extension_by_name("verdict.v1.required_scope")
        .expect("an option");
    let number = method
        .options()
        .get_extension(&option)
        .as_enum_number()
        .expect("a number");
    let scope = verdict::proto::Scope::try_from(number).expect("a scope");
    let name = scope
        .as_str_name()
        .strip_prefix("SCOPE_")
        .expect("a prefix")
        .to_lowercase();
    assert!(
        ["ingest", "subscribe", "admin"].contains(&&*name),
        "{rpc} states {name}"
    );
    name
}

#[tokio::test]
async fn every_rpc_states_a_scope_and_is_closed_to_who_lacks_it() {
    // For each scope a caller who has all the others.
    let without = |scope: &str| {
        let others = SCOPES.into_iter().filter(|other| *other != scope);
        // Two scopes are of no use without another one.
        let others = others.filter(|other| !(scope == "ingest" && *other == "backfill"));
        let others: Vec<_> = others.collect();
        caller(&format!("no-{scope}"), &[(&others.join(" "), "")])
    };
    let callers: String = SCOPES.iter().map(|scope| without(scope)).collect();
    let house = House::open(&callers).await;
    let rpcs = rpcs();
    assert!(rpcs.len() >= 16, "{rpcs:?}");
    let house = &house;
    let calls = rpcs.iter().map(|rpc| async move {
        let scope = stated(rpc);
        let lacks = bearer(&format!("no-{scope}"));
        let refused = house.call(rpc, lacks, Bytes::new()).await.expect_err(rpc);
        assert_eq!(refused.code(), Code::PermissionDenied, "{rpc}: {refused:?}");
        assert_eq!(reason(&refused), "SCOPE_MISSING");
        let info = refused.get_details_error_info().expect("details");
        let name = format!("SCOPE_{}", scope.to_uppercase());
        assert_eq!(info.metadata["scope"], name);

        let has = SCOPES
            .into_iter()
            .filter(|other| **other != *scope && *other != "ingest");
        for other in has {
            let answered = house
                .call(rpc, bearer(&format!("no-{other}")), Bytes::new())
                .await;
            let denied = answered.is_err_and(|refused| refused.code() == Code::PermissionDenied);
            // What needs personal data besides is refused to who may not see it.
            assert!(!denied || other == "personal_data", "{rpc} without {other}");
        }
    });
    future::join_all(calls).await;
}

#[tokio::test]
async fn health_is_open_and_the_rest_is_not() {
    let reflection =
        |version: &str| format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
    for setting in [Reflection::Authenticated, Reflection::Open, Reflection::Off] {
        let callers = caller("risk", &[("subscribe", "")]);
        let house = House::open_with(&callers, |server| server.reflection = setting).await;
        let mut health = HealthClient::new(house.channel.clone());
        health
            .check(HealthCheckRequest::default())
            .await
            .expect("health is open");

        let code = async |path: &str, metadata| {
            let answered = house.call(path, metadata, Bytes::new()).await;
            answered.err().map_or(Code::Ok, |refused| refused.code())
        };
        for path in [
            "/",
            "/verdict.v1.VerdictService/Nothing",
            "/verdict.v1.Nothing/Ingest",
        ] {
            assert_eq!(
                code(path, MetadataMap::new()).await,
                Code::Unauthenticated,
                "{path}"
            );
            assert_eq!(
                code(path, bearer("risk")).await,
                Code::Unimplemented,
                "{path}"
            );
        }
        for path in [reflection("v1"), reflection("v1alpha")] {
            let (open, known) = (
                code(&path, MetadataMap::new()).await,
                code(&path, bearer("risk")).await,
            );
            let expected = match setting {
                Reflection::Authenticated => (Code::Unauthenticated, REACHED),
                Reflection::Open => (REACHED, REACHED),
                Reflection::Off => (Code::Unauthenticated, Code::Unimplemented),
            };
            assert_eq!((open, known), expected, "{path} with {setting:?}");
        }
        house.close().await;
    }
}
