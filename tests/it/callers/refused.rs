//! Attempts to get in that must fail: every rpc with every kind of wrong credentials. Nothing gets in, all of them are told
//! the same, and nothing changes but the count of why.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::future;
use serde_json::json;
use tempfile::TempDir;
use tonic::{Code, metadata::MetadataMap};
use verdict::{
    caller::Refused,
    log::{EventLog, Stats},
    proto::GetStatusRequest,
};

use super::{
    House, bearer, caller,
    issuer::{Issuer, claims, claims_but, unsigned, with_secret},
    metadata, rpcs,
};
use crate::support::{real_now, reason};

struct Attempt {
    name: &'static str,
    metadata: MetadataMap,
    why: Refused,
}

fn attempt(name: &'static str, metadata: MetadataMap, why: Refused) -> Attempt {
    Attempt {
        name,
        metadata,
        why,
    }
}

fn attempts(issuer: &Issuer) -> Vec<Attempt> {
    let stranger = Issuer::new();
    let authorization = |value: &str| metadata(&[("authorization", value)]);
    let rs256 = json!({ "alg": "RS256", "kid": "rsa" });
    let good = issuer.token("engine");
    let now = real_now().as_second();
    let jwt = |name, token: String, why| attempt(name, bearer(&token), why);
    let header = |name, header: serde_json::Value, why| {
        jwt(name, issuer.sign(&header, &claims("engine")), why)
    };
    let claim =
        |name, claim, value, why| jwt(name, issuer.sign(&rs256, &claims_but(claim, value)), why);
    let (signed, signature) = good.rsplit_once('.').expect("a token");
    let tampered = unsigned(&rs256, &claims("admin"));
    let mut flipped = good.clone();
    let place = flipped.len() - 3;
    let other = if &flipped[place..=place] == "A" {
        "B"
    } else {
        "A"
    };
    flipped.replace_range(place..=place, other);
    use Refused::*;
    vec![
        attempt("no credentials", MetadataMap::new(), Missing),
        attempt("an empty header", authorization(""), Malformed),
        attempt("a scheme without a token", authorization("Bearer"), Malformed),
        attempt("a scheme with nothing behind it", authorization("Bearer "), Malformed),
        attempt("a token without a scheme", authorization("admin"), Malformed),
        attempt("another scheme", authorization("Basic YWRtaW46YWRtaW4="), Malformed),
        attempt("two spaces", authorization("Bearer  admin"), Malformed),
        attempt("a space behind the token", authorization("Bearer admin "), Malformed),
        attempt("a tab", authorization("Bearer\tadmin"), Malformed),
        attempt("two tokens in one header", authorization("Bearer admin, Bearer admin"), Malformed),
        attempt("a null byte, as far as it can be sent", authorization("Bearer admin%00"), Malformed),
        attempt(
            "the header twice",
            metadata(&[("authorization", "Bearer admin"), ("authorization", "Bearer admin")]),
            Repeated,
        ),
        attempt(
            "a wrong one behind a good one",
            metadata(&[("authorization", "Bearer admin"), ("authorization", "Bearer x")]),
            Repeated,
        ),
        attempt("a name that looks like it", metadata(&[("auth0rization", "Bearer admin")]), Missing),
        attempt("another name like it", metadata(&[("authorizatlon", "Bearer admin")]), Missing),
        attempt("the header of a proxy", metadata(&[("x-authorization", "Bearer admin")]), Missing),
        attempt("an unknown token", bearer("nobody"), UnknownToken),
        attempt("an unknown token in capitals", authorization("BEARER nobody"), UnknownToken),
        attempt("the token in another case", bearer("Admin"), UnknownToken),
        attempt("a truncated token", bearer("admi"), UnknownToken),
        attempt("a longer token", bearer("adminn"), UnknownToken),
        attempt("the token of a caller that was removed", bearer("former"), UnknownToken),
        attempt(
            "the hash of a token",
            bearer("8c6976e5b5410415bde908bd4dee15dfb167a9c873fc4bb8a81f6f2ab448a918"),
            UnknownToken,
        ),
        attempt("the id of a token", bearer("admin-token"), UnknownToken),
        attempt("an endless token", bearer(&"a".repeat(9_000)), TooLong),
        attempt("a JWT of nothing", bearer(".."), MalformedToken),
        attempt("a JWT of nonsense", bearer("a.b.c"), MalformedToken),
        jwt("a truncated JWT", good[..good.len() - 42].to_owned(), SignatureInvalid),
        jwt("a JWT without its signature", format!("{signed}."), SignatureInvalid),
        jwt("a JWT of five parts", format!("{good}.a.b"), UnknownToken),
        jwt("a tampered payload", format!("{tampered}.{signature}"), SignatureInvalid),
        jwt("a tampered signature", flipped, SignatureInvalid),
        jwt("a stranger's signature", stranger.token("engine"), SignatureInvalid),
        claim("expired", "exp", json!(now - 61), Expired),
        claim("expired before 1970", "exp", json!(-5), ClaimMissing),
        claim("no expiry", "exp", json!(null), ClaimMissing),
        claim("an expiry in words", "exp", json!("tomorrow"), ClaimMissing),
        claim("not yet valid", "nbf", json!(now + 120), NotYetValid),
        claim("another audience", "aud", json!("other"), WrongAudience),
        claim("other audiences", "aud", json!(["other", "Verdict"]), WrongAudience),
        claim("no audience", "aud", json!(null), ClaimMissing),
        claim("another issuer", "iss", json!("https://login.example.org"), UnknownIssuer),
        claim("an issuer but for a slash", "iss", json!("https://login.example.com/"), UnknownIssuer),
        claim("several issuers", "iss", json!([super::issuer::ISSUER]), MalformedToken),
        claim("no issuer", "iss", json!(null), MalformedToken),
        claim("another subject", "sub", json!("intruder"), UnknownSubject),
        claim("no subject", "sub", json!(null), MalformedToken),
        header("an unknown key", json!({ "alg": "RS256", "kid": "other" }), UnknownKey),
        header("the key of an encryption", json!({ "alg": "RS256", "kid": "enc" }), UnknownKey),
        header("the key of another kind", json!({ "alg": "RS256", "kid": "ec" }), AlgorithmNotAllowed),
        header("an extension", json!({ "alg": "RS256", "kid": "rsa", "crit": ["b64"], "b64": false }), UnknownExtension),
        header("a compressed token", json!({ "alg": "RS256", "kid": "rsa", "zip": "DEF" }), UnknownExtension),
        header("a token for something else", json!({ "alg": "RS256", "kid": "rsa", "typ": "logout+jwt" }), MalformedToken),
        jwt(
            "a key that the token brings along",
            stranger.sign(
                &json!({ "alg": "RS256", "kid": "rsa", "jwk": serde_json::from_str::<serde_json::Value>(&stranger.jwks()).expect("keys")["keys"][0] }),
                &claims("engine"),
            ),
            SignatureInvalid,
        ),
        jwt("no algorithm", format!("{}.", unsigned(&json!({ "alg": "none" }), &claims("engine"))), MalformedToken),
        jwt("NONE", format!("{}.", unsigned(&json!({ "alg": "NONE", "kid": "rsa" }), &claims("engine"))), MalformedToken),
        jwt(
            "HS256 with the public key",
            with_secret(&json!({ "alg": "HS256", "kid": "rsa" }), &claims("engine"), &issuer.public_rsa()),
            AlgorithmNotAllowed,
        ),
        jwt(
            "HS256 with the set of keys",
            with_secret(&json!({ "alg": "HS256" }), &claims("engine"), issuer.jwks().as_bytes()),
            AlgorithmNotAllowed,
        ),
        jwt(
            "HS256 with a secret of the set",
            with_secret(&json!({ "alg": "HS256", "kid": "oct" }), &claims("engine"), b"everybody knows"),
            AlgorithmNotAllowed,
        ),
        jwt(
            "an algorithm that is not allowed",
            format!("{}.{signature}", unsigned(&json!({ "alg": "RS512", "kid": "rsa" }), &claims("engine"))),
            AlgorithmNotAllowed,
        ),
    ]
}

/// Everything that a call could have changed.
fn state(log: &dyn EventLog) -> (u64, Stats, usize) {
    (log.tail().end().0, log.stats(), log.consumers().len())
}

#[tokio::test]
async fn nothing_gets_in_with_wrong_credentials() {
    let directory = TempDir::new().expect("a directory");
    let issuer = Issuer::new();
    let everything = &[("ingest subscribe personal_data backfill admin", "")];
    let config = format!(
        "{}{}{}",
        caller("admin", everything),
        caller("engine", everything).replace(
            "[[callers.grants]]",
            "subjects = [{ issuer = \"corp\", subject = \"engine\" }]\n[[callers.grants]]"
        ),
        issuer.config(&directory.path().join("jwks.json"))
    );
    let house = House::open(&config).await;
    let before = state(house.log.as_ref());
    let rpcs = rpcs();
    let mut expected = BTreeMap::new();

    // One by one, so that each is seen to be refused for its own reason.
    let mut wrong = Vec::new();
    for attempt in attempts(&issuer) {
        let refused = house.call(&rpcs[0], attempt.metadata, Bytes::new()).await;
        check(attempt.name, &rpcs[0], refused);
        let before = expected.clone();
        *expected.entry(attempt.why.name()).or_insert(0) += 1;
        let counted = counts(&house);
        if counted != expected {
            let new = counted
                .iter()
                .filter(|(why, count)| before.get(*why) != Some(*count));
            wrong.push((
                attempt.name,
                attempt.why.name(),
                new.map(|(why, _)| *why).collect::<Vec<_>>(),
            ));
            expected = counted;
        }
    }
    assert!(wrong.is_empty(), "attempt, expected, counted: {wrong:#?}");
    // All together, because who fails too often is kept waiting.
    let calls = rpcs[1..].iter().flat_map(|rpc| {
        let attempts = attempts(&issuer).into_iter();
        attempts.map(move |attempt| (rpc, attempt))
    });
    let calls = calls.map(|(rpc, attempt)| {
        *expected.entry(attempt.why.name()).or_insert(0) += 1;
        let house = &house;
        async move {
            let refused = house.call(rpc, attempt.metadata, Bytes::new()).await;
            check(attempt.name, rpc, refused);
        }
    });
    let calls: Vec<_> = calls.collect();
    assert!(calls.len() > 800, "only {}", calls.len());
    future::join_all(calls).await;
    assert_eq!(counts(&house), expected);
    assert!(state(house.log.as_ref()) == before);

    // Who is an operator sees why.
    let request = super::by("admin", GetStatusRequest {});
    let status = house.admin.clone().get_status(request).await;
    let told = status.expect("a status").into_inner().refused_callers;
    let told = told.iter().map(|(why, count)| (why.as_str(), *count));
    assert_eq!(told.collect::<BTreeMap<_, _>>(), expected);

    // And those who may still get in.
    for good in ["admin", &issuer.token("engine")] {
        let path = "/verdict.v1.AdminService/ListSources";
        house
            .call(path, bearer(good), Bytes::new())
            .await
            .expect("a caller");
    }
    house.close().await;
}

fn counts(house: &House) -> BTreeMap<&'static str, u64> {
    let counts = house.refusals().into_iter();
    counts
        .map(|(reason, count)| (reason.name(), count))
        .collect()
}

fn check(name: &str, rpc: &str, refused: Result<(), tonic::Status>) {
    let refused = refused.expect_err(name);
    assert_eq!(
        refused.code(),
        Code::Unauthenticated,
        "{rpc}: {name}: {refused:?}"
    );
    assert_eq!(reason(&refused), "UNAUTHENTICATED");
    assert_eq!(
        refused.message(),
        "the credentials are missing or not valid"
    );
}
