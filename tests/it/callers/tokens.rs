//! Credentials that are good: opaque tokens, JWTs, and how both are replaced while the server runs.

use std::fs;

use bytes::Bytes;
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{self, Duration},
};
use tonic::{Code, metadata::MetadataMap};
use verdict::{
    caller::NewToken,
    config::ServerConfig,
    proto::{SubscribeMessage, SubscribeResponse},
};

use super::{
    House, bearer, by, caller,
    issuer::{Issuer, claims, claims_but},
    metadata,
};
use crate::support::{PATIENCE, from_earliest, real_now, reason};

const PATH: &str = "/verdict.v1.AdminService/ListSources";

async fn code(house: &House, metadata: MetadataMap) -> Code {
    let answered = house.call(PATH, metadata, Bytes::new()).await;
    answered.err().map_or(Code::Ok, |refused| refused.code())
}

/// A caller with this line of credentials.
fn with(credentials: &str) -> String {
    let text = caller("admin", &[("admin", "")]);
    text.replace(
        "[[callers.grants]]",
        &format!("{credentials}\n[[callers.grants]]"),
    )
}

const SUBJECT: &str = "subjects = [{ issuer = \"corp\", subject = \"engine\" }]";

#[tokio::test]
async fn a_jwt_is_taken_however_its_issuer_may_sign() {
    let directory = TempDir::new().expect("a directory");
    let issuer = Issuer::new();
    let jwks = directory.path().join("jwks.json");
    let house = House::open(&format!("{}{}", with(SUBJECT), issuer.config(&jwks))).await;
    let now = real_now().as_second();
    for header in [
        json!({ "alg": "RS256", "kid": "rsa" }),
        json!({ "alg": "RS256", "kid": "rsa", "typ": "at+jwt" }),
        json!({ "alg": "PS256", "kid": "rsa", "typ": "application/JWT" }),
        json!({ "alg": "ES256", "kid": "ec" }),
        json!({ "alg": "EdDSA", "kid": "ed" }),
        // One key fits, so it need not be named.
        json!({ "alg": "RS256" }),
        json!({ "alg": "ES256" }),
    ] {
        let token = issuer.sign(&header, &claims("engine"));
        assert_eq!(code(&house, bearer(&token)).await, Code::Ok, "{header}");
    }
    let header = json!({ "alg": "ES256", "kid": "ec" });
    for good in [
        claims_but("aud", json!(["other", "verdict"])),
        claims_but("exp", json!(now - 30)),
        claims_but("nbf", json!(now + 30)),
        claims_but("exp", json!(now as f64 + 10.5)),
    ] {
        let token = issuer.sign(&header, &good);
        assert_eq!(code(&house, bearer(&token)).await, Code::Ok, "{good}");
    }
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let value = format!("{scheme} admin");
        assert_eq!(
            code(&house, metadata(&[("authorization", &value)])).await,
            Code::Ok
        );
    }
    house.close().await;
}

#[tokio::test]
async fn the_keys_of_an_issuer_change_while_the_server_runs() {
    let directory = TempDir::new().expect("a directory");
    let issuer = Issuer::new();
    let jwks = directory.path().join("jwks.json");
    let config = format!("{}{}", with(SUBJECT), issuer.config(&jwks));
    let often = |server: &mut ServerConfig| server.reload_interval_seconds = 1;
    let house = House::open_with(&config, often).await;
    let header = json!({ "alg": "RS256", "kid": "rsa-2" });
    let next = Issuer::new();
    // Broken first: what is known stays in use.
    fs::write(&jwks, "{").expect("a file");
    let token = next.sign(&header, &claims("engine"));
    assert_eq!(code(&house, bearer(&token)).await, Code::Unauthenticated);
    assert_eq!(
        code(&house, bearer(&issuer.token("engine"))).await,
        Code::Ok
    );

    fs::write(&jwks, next.jwks().replace("\"rsa\"", "\"rsa-2\"")).expect("a file");
    let changed = async {
        while code(&house, bearer(&token)).await != Code::Ok {
            time::sleep(Duration::from_millis(200)).await;
        }
    };
    time::timeout(PATIENCE, changed)
        .await
        .expect("the new keys are seen");
    assert_eq!(
        code(&house, bearer(&issuer.token("engine"))).await,
        Code::Unauthenticated
    );
    // All keys are withdrawn.
    fs::write(&jwks, "{\"keys\":[]}").expect("a file");
    let withdrawn = async {
        while code(&house, bearer(&token)).await == Code::Ok {
            time::sleep(Duration::from_millis(200)).await;
        }
    };
    time::timeout(PATIENCE, withdrawn)
        .await
        .expect("that is seen");
    house.close().await;
}

#[tokio::test]
async fn keys_come_from_a_url_and_are_asked_for_at_once_when_one_is_unknown() {
    let issuer = Issuer::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/keys", listener.local_addr().expect("an address"));
    // It is away at first, then has one set of keys, then another.
    let next = Issuer::new();
    let second = next.jwks().replace("\"rsa\"", "\"rsa-2\"");
    let answers = [
        "HTTP/1.1 503 Away\r\ncontent-length: 0\r\n\r\n".to_owned(),
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}",
            issuer.jwks().len(),
            issuer.jwks()
        ),
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{second}",
            second.len()
        ),
    ];
    let asked = tokio::spawn(async move {
        for answer in answers {
            let (mut connection, _) = listener.accept().await.expect("a connection");
            let mut request = [0; 4096];
            let length = connection.read(&mut request).await.expect("a request");
            assert!(request[..length].starts_with(b"GET /keys HTTP/1.1\r\n"));
            connection
                .write_all(answer.as_bytes())
                .await
                .expect("an answer");
            let _ = connection.shutdown().await;
        }
        listener
    });
    let directory = TempDir::new().expect("a directory");
    let config = issuer.config(&directory.path().join("jwks.json"));
    let lines = config
        .lines()
        .map(|line| match line.starts_with("jwks_file") {
            true => format!("jwks_url = \"{url}\""),
            false => line.to_owned(),
        });
    let config: Vec<_> = lines.collect();
    let house = House::open(&format!("{}{}", with(SUBJECT), config.join("\n"))).await;
    let refused_at = |since: time::Instant| since.elapsed() < Duration::from_secs(10);
    let begin = time::Instant::now();
    // The first token of a key that is not known has the keys read.
    let first = issuer.token("engine");
    let known = async {
        while code(&house, bearer(&first)).await != Code::Ok {
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    time::timeout(PATIENCE, known)
        .await
        .expect("the keys are read");
    assert!(refused_at(begin), "it took too long");
    // The next one in half a minute does not: strangers must not make us ask as often as they like.
    let token = next.sign(
        &json!({ "alg": "RS256", "kid": "rsa-2" }),
        &claims("engine"),
    );
    let begin = time::Instant::now();
    for _ in 0..20 {
        assert_eq!(code(&house, bearer(&token)).await, Code::Unauthenticated);
    }
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(!asked.is_finished());
    asked.abort();
    house.close().await;
}

#[tokio::test]
async fn tokens_come_from_files_and_are_replaced_there() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("hash");
    let (old, new) = (
        NewToken::random().expect("bits"),
        NewToken::random().expect("bits"),
    );
    fs::write(&path, format!("{}\n", old.hash())).expect("a file");
    let text = caller("admin", &[("admin subscribe", "")]);
    let (before, _) = text.split_once("tokens").expect("tokens");
    let (_, after) = text.split_once("[[callers.grants]]").expect("grants");
    let config = format!(
        "{before}tokens = [{{ id = \"a\", file = \"{}\" }}]\n[[callers.grants]]{after}",
        path.display()
    );
    let often = |server: &mut ServerConfig| server.reload_interval_seconds = 1;
    let house = House::open_with(&config, often).await;
    assert_eq!(code(&house, bearer(old.expose())).await, Code::Ok);
    assert_eq!(
        code(&house, bearer(new.expose())).await,
        Code::Unauthenticated
    );
    // Nonsense is not taken for a hash.
    fs::write(&path, old.expose()).expect("a file");
    time::sleep(Duration::from_secs(3)).await;
    assert_eq!(code(&house, bearer(old.expose())).await, Code::Ok);
    let mut client = house.client.clone();
    let stream = client.subscribe(by(old.expose(), from_earliest())).await;
    let mut stream = stream.expect("a stream").into_inner();
    fs::write(&path, new.hash().to_string()).expect("a file");
    let replaced = async {
        while code(&house, bearer(new.expose())).await != Code::Ok {
            time::sleep(Duration::from_millis(200)).await;
        }
    };
    time::timeout(PATIENCE, replaced)
        .await
        .expect("the new hash is seen");
    assert_eq!(
        code(&house, bearer(old.expose())).await,
        Code::Unauthenticated
    );
    ends(&mut stream).await;
    house.close().await;
}

#[test]
fn the_command_prints_a_token_and_what_to_configure() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_verdict"));
    let output = command
        .args(["token", "new", "--id", "2026-06"])
        .output()
        .expect("a process");
    assert!(output.status.success());
    let token = String::from_utf8(output.stdout).expect("text");
    let token = token.strip_suffix('\n').expect("one line");
    let line = String::from_utf8(output.stderr).expect("text");
    assert!(!line.contains(token));
    let (_, line) = line
        .split_once("tokens = ")
        .expect("a line for the configuration");
    let hash =
        base16ct::lower::encode_string(&verdict::provider::signature::sha256(token.as_bytes()));
    assert_eq!(
        line.trim_end(),
        format!("[{{ id = \"2026-06\", sha256 = \"{hash}\" }}]")
    );
}

/// A stream of a subscriber is told to end, and so cannot outlive the proof of who opened it.
async fn ends(stream: &mut tonic::Streaming<SubscribeResponse>) {
    let ending = async {
        let mut is_told = false;
        loop {
            match stream.message().await {
                Ok(Some(response)) => {
                    is_told |= matches!(response.message, Some(SubscribeMessage::Draining(_)));
                }
                Ok(None) => panic!("it ends without an error"),
                Err(ended) => return (is_told, reason(&ended)),
            }
        }
    };
    let ended = time::timeout(PATIENCE, ending).await.expect("it ends");
    assert_eq!(ended, (true, "DRAINING".to_owned()));
}

#[tokio::test]
async fn a_stream_ends_when_the_jwt_expires_that_opened_it() {
    let directory = TempDir::new().expect("a directory");
    let issuer = Issuer::new();
    let jwks = directory.path().join("jwks.json");
    let config = with(SUBJECT).replace("\"admin\"]", "\"admin\", \"subscribe\"]");
    let house = House::open(&format!("{config}{}", issuer.config(&jwks))).await;
    let header = json!({ "alg": "ES256", "kid": "ec" });
    // The leeway is 60 s.
    let exp = real_now().as_second() - 58;
    let token = issuer.sign(&header, &claims_but("exp", json!(exp)));
    let mut client = house.client.clone();
    let open = |token: &str| by(token, from_earliest());
    let lasting = client.subscribe(open(&issuer.token("engine"))).await;
    let mut lasting = lasting.expect("a stream").into_inner();
    let short = client.subscribe(open(&token)).await;
    let mut short = short.expect("a stream").into_inner();
    ends(&mut short).await;
    let again = client.subscribe(open(&token)).await;
    assert_eq!(again.expect_err("expired").code(), Code::Unauthenticated);
    let message = time::timeout(Duration::from_millis(200), lasting.message()).await;
    assert!(!matches!(message, Ok(Err(_))), "the other one goes on");
    house.close().await;
}
