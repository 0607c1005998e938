//! Files that change while the server runs.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use prost_types::Timestamp;
use tempfile::TempDir;
use tokio::time;
use tonic::transport::ClientTlsConfig;
use verdict::{
    config::{self, ServerConfig, Variables},
    ingest::proto_timestamp,
    proto::{IngestRequest, IngestStatus, ListSourcesRequest, SourceInfo},
    provider::{
        self,
        jwe::{self, DecryptionKey},
        signature::Secret,
    },
    source::Source,
};

use crate::{
    pki::{Authority, Clients, Pair, tls_config},
    support::{
        PATIENCE, Server, connect_tls, fixture_folder, from_earliest, gu1_body, memory_log,
        next_event, real_now, reason, request, server_config,
    },
    tls::Place,
};

/// Three times as long as it takes until a change is taken over.
const SETTLED: Duration = Duration::from_secs(6);

/// Waits until a client is let in.
async fn let_in(url: &str, client: ClientTlsConfig) {
    let let_in = async {
        while connect_tls(url, client.clone()).await.is_err() {
            time::sleep(Duration::from_millis(100)).await;
        }
    };
    time::timeout(PATIENCE, let_in)
        .await
        .expect("the new files are in use");
}

/// The version of a Secret, as Kubernetes mounts it: `<file> -> ..data/<file>`, `..data -> <version>`.
fn mount(directory: &Path, version: &str, pair: &Pair, ca: &str) {
    let of_version = directory.join(version);
    fs::create_dir(&of_version).unwrap();
    pair.write(&of_version, "tls");
    fs::write(of_version.join("ca.crt"), ca).unwrap();
    symlink(version, directory.join("..data_tmp")).unwrap();
    fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
    for file in ["tls.crt", "tls.key", "ca.crt"] {
        let _there_already = symlink(Path::new("..data").join(file), directory.join(file));
    }
}

#[tokio::test]
async fn new_connections_get_the_new_certificate_and_open_streams_go_on() {
    let directory = TempDir::new().unwrap();
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    mount(directory.path(), "..1", &old.server(), &old.pem());
    let config = tls_config(directory.path(), Clients::None);
    let server = Server::start_tls(config, old.trusted()).await;
    let mut stream = server.subscribe(from_earliest()).await;
    server.accept("1").await;
    next_event(&mut stream).await;
    connect_tls(&server.url, new.trusted())
        .await
        .expect_err("the old certificate");

    mount(directory.path(), "..2", &new.server(), &new.pem());
    let_in(&server.url, new.trusted()).await;
    connect_tls(&server.url, old.trusted())
        .await
        .expect_err("the new certificate");
    // The connection from before carries both a stream and new calls.
    let accepted = server.accept("2").await;
    assert_eq!(next_event(&mut stream).await.event_id, accepted.event_id);
}

#[tokio::test]
async fn files_that_cannot_be_used_leave_the_old_in_use() {
    let place = Place::new(Clients::None, Authority::server).await;
    let at = place.directory.path();
    let certificate = fs::read(at.join("tls.crt")).unwrap();
    let other = Authority::new("others");
    // A key without its certificate, half a certificate, none at all.
    fs::write(at.join("tls.key"), other.server().key).unwrap();
    time::sleep(SETTLED).await;
    place.connect(place.authority.trusted()).await.unwrap();
    fs::write(at.join("tls.crt"), &certificate[..100]).unwrap();
    fs::remove_file(at.join("tls.key")).unwrap();
    time::sleep(SETTLED).await;
    place.connect(place.authority.trusted()).await.unwrap();
    // And it has not given up looking.
    other.server().write(at, "tls");
    let_in(&place.server.url, other.trusted()).await;
}

#[tokio::test]
async fn client_authorities_are_rotated_by_trusting_both_for_a_while() {
    let place = Place::new(Clients::Required, Authority::server).await;
    let (old, new) = (&place.authority, Authority::new("new"));
    let client = |of: &Authority| old.trusted().identity(of.client().identity());
    place.connect(client(old)).await.unwrap();
    place.connect(client(&new)).await.expect_err("not yet");

    let ca_file = place.directory.path().join("ca.crt");
    fs::write(&ca_file, format!("{}{}", old.pem(), new.pem())).unwrap();
    let_in(&place.server.url, client(&new)).await;
    place.connect(client(old)).await.unwrap();

    fs::write(&ca_file, new.pem()).unwrap();
    let put_out = async {
        while place.connect(client(old)).await.is_ok() {
            time::sleep(Duration::from_millis(100)).await;
        }
    };
    time::timeout(PATIENCE, put_out).await.unwrap();
    place.connect(client(&new)).await.unwrap();
    // Who is in stays in.
    place.server.accept("1").await;
}

/// A source of gu1 whose secrets are in files of this directory.
fn gu1_source(directory: &Path, files: &[&str]) -> Source {
    let secret = |file: &&str| {
        let path = directory.join(file);
        format!("{{ id = {file:?}, file = {path:?} }}")
    };
    let secrets: Vec<String> = files.iter().map(secret).collect();
    source(&format!(
        "provider = \"gu1\"\nsecrets = [{}]",
        secrets.join(", ")
    ))
}

fn source(text: &str) -> Source {
    let config = config::parse(&format!("[[sources]]\n{text}"), &Variables::new());
    let mut loaded = config.unwrap().check(&Variables::new()).unwrap();
    loaded.sources.pop().unwrap()
}

async fn serve(source: Source) -> Server {
    let config = ServerConfig {
        reload_interval_seconds: 1,
        ..server_config()
    };
    Server::start_from(vec![source], config, memory_log()).await
}

/// A delivery that is signed with this secret.
fn signed(id: &str, secret: &str) -> IngestRequest {
    let secret = Secret::new("sender".to_owned(), secret.as_bytes().to_vec());
    let scheme = &provider::find("gu1").unwrap().schemes()[0];
    let webhook = scheme.sign(gu1_body(id).into(), &secret, real_now());
    request("gu1", &webhook.unwrap())
}

async fn source_info(server: &Server) -> SourceInfo {
    let mut admin = server.admin.clone();
    let response = admin.list_sources(ListSourcesRequest {}).await.unwrap();
    let mut sources = response.into_inner().sources;
    assert_eq!(sources.len(), 1);
    sources.pop().unwrap()
}

/// Waits until a delivery that is signed with this secret is taken.
async fn taken(server: &Server, id: &str, secret: &str) {
    let taken = async {
        while server.ingest(signed(id, secret)).await.is_err() {
            time::sleep(Duration::from_millis(100)).await;
        }
    };
    time::timeout(PATIENCE, taken)
        .await
        .expect("the new secret is in use");
}

#[tokio::test]
async fn secrets_are_rotated_under_a_running_sender_without_a_loss() {
    let directory = TempDir::new().unwrap();
    let at = |file: &str| directory.path().join(file);
    fs::write(at("new"), "s1\n").unwrap();
    fs::write(at("old"), "s0\n").unwrap();
    let server = serve(gu1_source(directory.path(), &["new", "old"])).await;
    let mut sent = 0;
    // The provider goes from s1 to s2 when we have both, and from s2 to s3 then. Both files are replaced each time, so that
    // each secret moves from one to the other: with half of a set there would be a moment at which it is in neither.
    for (secret, next) in [("s1", "s2"), ("s2", "s3")] {
        fs::write(at("new"), format!("{next}\n")).unwrap();
        fs::write(at("old"), format!("{secret}\n")).unwrap();
        let rotated = time::Instant::now() + SETTLED;
        while time::Instant::now() < rotated {
            sent += 1;
            let answer = server.ingest(signed(&sent.to_string(), secret)).await;
            assert_eq!(answer.expect("no loss").status(), IngestStatus::Accepted);
        }
    }
    sent += 1;
    let answer = server.ingest(signed(&sent.to_string(), "s3")).await;
    assert_eq!(answer.unwrap().status(), IngestStatus::Accepted);
    // What was retired is refused.
    for retired in ["s0", "s1"] {
        let refused = server.ingest(signed("x", retired)).await.unwrap_err();
        assert_eq!(reason(&refused), "SIGNATURE_INVALID");
    }
    let counts = source_info(&server).await.counts.unwrap();
    assert_eq!((counts.accepted, counts.signature_invalid), (sent, 2));
}

#[tokio::test]
async fn age_and_use_of_each_secret_are_told() {
    let directory = TempDir::new().unwrap();
    for file in ["a", "b"] {
        fs::write(directory.path().join(file), file).unwrap();
    }
    let started = proto_timestamp(real_now());
    let server = serve(gu1_source(directory.path(), &["a", "b"])).await;
    let seconds = |time: Option<Timestamp>| time.expect("a time").seconds;
    let of = async |id: &str| {
        let mut secrets = source_info(&server).await.secrets.into_iter();
        secrets.find(|secret| secret.id == id).unwrap()
    };
    for id in ["1", "2"] {
        server.ingest(signed(id, "b")).await.unwrap();
    }
    server.ingest(signed("3", "c")).await.unwrap_err();
    let (a, b) = (of("a").await, of("b").await);
    assert_eq!((a.uses, a.last_used_at), (0, None));
    assert_eq!(b.uses, 2);
    assert!(seconds(b.last_used_at) >= started.seconds);
    assert!(seconds(a.loaded_at) >= started.seconds);

    // The new value of a begins anew; b goes on.
    time::sleep(Duration::from_secs(1)).await;
    fs::write(directory.path().join("a"), "c").unwrap();
    taken(&server, "3", "c").await;
    let (new, same) = (of("a").await, of("b").await);
    assert_eq!(new.uses, 1);
    assert!(seconds(new.loaded_at) > seconds(a.loaded_at));
    assert_eq!(same, b);
}

#[tokio::test]
async fn a_secret_that_cannot_be_used_leaves_the_old_in_use_and_the_others_go_on() {
    let directory = TempDir::new().unwrap();
    let at = |file: &str| directory.path().join(file);
    for file in ["a", "b", "c"] {
        fs::write(at(file), file).unwrap();
    }
    let server = serve(gu1_source(directory.path(), &["a", "b", "c"])).await;
    fs::write(at("a"), "\n").unwrap();
    fs::remove_file(at("b")).unwrap();
    fs::write(at("c"), "new").unwrap();
    taken(&server, "1", "new").await;
    for (id, secret) in [("2", "a"), ("3", "b")] {
        server.ingest(signed(id, secret)).await.unwrap();
    }
    server.ingest(signed("4", "c")).await.unwrap_err();
    // When the file is good again, it counts.
    fs::write(at("b"), "again").unwrap();
    taken(&server, "5", "again").await;
    server.ingest(signed("6", "b")).await.unwrap_err();
}

#[tokio::test]
async fn decryption_keys_follow_their_files_too() {
    let directory = TempDir::new().unwrap();
    let (key_file, secret_file) = (
        directory.path().join("key.pem"),
        directory.path().join("secret"),
    );
    let pem = |name| fs::read_to_string(fixture_folder("kayle").join(name)).unwrap();
    let (first, second) = (pem("k1.pem"), pem("k2.pem"));
    fs::write(&key_file, &first).unwrap();
    fs::write(&secret_file, "s").unwrap();
    let text = format!(
        "provider = \"kayle\"\nsecrets = [{{ id = \"s\", file = {secret_file:?} }}]\n\
         decryption_keys = [{{ id = \"k\", file = {key_file:?} }}]"
    );
    let sender = source(&text);
    let send = |pem: &str, id: u32| {
        let key = DecryptionKey::from_pem("k".to_owned(), pem.as_bytes()).unwrap();
        let body = format!(
            r#"{{"type":"verification.session.expired","metadata":{{"contract_version":3,"event_id":"evt_{id}","verification_session_id":"vs_{id}"}},"data":{{}}}}"#
        );
        let body = jwe::encrypt(body.as_bytes(), &key).unwrap();
        let keys = sender.keys();
        let webhook = sender.schemes[0].sign(body.into(), &keys.secrets[0], real_now());
        request("kayle", &webhook.unwrap())
    };
    let server = serve(source(&text)).await;
    let status = async |pem: &str, id| server.ingest(send(pem, id)).await.unwrap().status();
    assert_eq!(status(&first, 1).await, IngestStatus::Accepted);
    assert_eq!(status(&second, 2).await, IngestStatus::Quarantined);
    assert_eq!(source_info(&server).await.decryption_keys[0].uses, 1);

    fs::write(&key_file, "not a key").unwrap();
    time::sleep(SETTLED).await;
    assert_eq!(status(&first, 3).await, IngestStatus::Accepted);

    fs::write(&key_file, &second).unwrap();
    let taken = async {
        let mut id = 100;
        while status(&second, id).await != IngestStatus::Accepted {
            id += 1;
            time::sleep(Duration::from_millis(200)).await;
        }
    };
    time::timeout(PATIENCE, taken).await.unwrap();
    assert_eq!(source_info(&server).await.decryption_keys[0].uses, 1);
    assert_eq!(status(&first, 4).await, IngestStatus::Quarantined);
}
