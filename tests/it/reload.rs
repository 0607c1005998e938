//! Files that change while the server runs.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use tempfile::TempDir;
use tokio::time;
use tonic::transport::ClientTlsConfig;

use crate::{
    pki::{Authority, Clients, Pair, tls_config},
    support::{PATIENCE, Server, connect_tls, from_earliest, next_event},
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
