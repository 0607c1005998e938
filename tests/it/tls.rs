//! TLS from outside: what openssl and rustls can and cannot negotiate, and who is let in.

use std::{fs, path::Path, process::Stdio};

use futures_util::StreamExt;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
    time,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{ClientTlsConfig, server::Connected};
use verdict::{
    config,
    transport::{
        listener::{HTTP2, Limits, Listener},
        tls::{ServerTls, Tls},
    },
};

use crate::{
    pki::{Authority, Clients, Pair, self_signed_client, tls_config},
    support::{BoxError, PATIENCE, Server, connect_tls, from_earliest, gu1_body, next_event},
};

/// A server with TLS, its authority, and the directory of its files.
pub(crate) struct Place {
    pub(crate) server: Server,
    pub(crate) authority: Authority,
    pub(crate) directory: TempDir,
}

impl Place {
    pub(crate) async fn new(clients: Clients, certificate: fn(&Authority) -> Pair) -> Self {
        let directory = TempDir::new().unwrap();
        let authority = Authority::new("tests");
        certificate(&authority).write(directory.path(), "tls");
        fs::write(directory.path().join("ca.crt"), authority.pem()).unwrap();
        let config = tls_config(directory.path(), clients);
        let client = authority.trusted().identity(authority.client().identity());
        Self {
            server: Server::start_tls(config, client).await,
            authority,
            directory,
        }
    }

    pub(crate) async fn connect(&self, client: ClientTlsConfig) -> Result<(), BoxError> {
        connect_tls(&self.server.url, client).await.map(drop)
    }

    /// Runs `openssl s_client` against the server; returns whether it shook hands, and all that it said.
    async fn openssl(&self, arguments: &[&str]) -> (bool, String) {
        let ca_file = self.directory.path().join("ca.crt");
        let address = self.server.url.strip_prefix("https://").unwrap();
        let mut command = Command::new("openssl");
        command
            .args(["s_client", "-connect", address, "-verify_return_error"])
            .args(["-servername", "localhost", "-CAfile"])
            .arg(ca_file)
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = time::timeout(PATIENCE, command.output()).await.unwrap();
        let output = output.expect("the tests of TLS need openssl: apt-get install openssl");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        (output.status.success(), said)
    }
}

/// What a client learns of a refusal: every cause of the error.
fn causes(error: &BoxError) -> String {
    let mut causes = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        causes.push(error.to_string());
        cause = error.source();
    }
    causes.join(": ")
}

#[tokio::test]
async fn tls_1_3_and_1_2_are_spoken_and_nothing_older() {
    let place = Place::new(Clients::None, Authority::server).await;
    for (version, name) in [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")] {
        let (shaken, said) = place.openssl(&[version, "-alpn", "h2"]).await;
        assert!(shaken, "{said}");
        assert!(said.contains(&format!("New, {name}")), "{said}");
        assert!(said.contains("ALPN protocol: h2"), "{said}");
        assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
    }
    for version in ["-tls1_1", "-tls1"] {
        // The client would speak it: it is the server that says no.
        let weak = [version, "-cipher", "ALL:@SECLEVEL=0", "-alpn", "h2"];
        let (shaken, said) = place.openssl(&weak).await;
        assert!(!shaken, "{said}");
        assert!(said.contains("SSL alert number"), "{said}");
    }
}

#[tokio::test]
async fn sessions_are_not_resumed() {
    let place = Place::new(Clients::None, Authority::server).await;
    // It connects six times and would resume the first session.
    let (_, said) = place
        .openssl(&["-tls1_2", "-alpn", "h2", "-reconnect"])
        .await;
    assert_eq!(said.matches("New, TLSv1.2").count(), 6, "{said}");
    assert!(!said.contains("Reused, "), "{said}");
    let (_, said) = place.openssl(&["-tls1_3", "-alpn", "h2"]).await;
    assert!(!said.contains("New Session Ticket arrived"), "{said}");
}

#[tokio::test]
async fn another_protocol_than_http_2_is_refused() {
    let place = Place::new(Clients::None, Authority::server).await;
    let (shaken, said) = place.openssl(&["-alpn", "http/1.1"]).await;
    assert!(!shaken, "{said}");
    assert!(said.contains("alert no application protocol"), "{said}");
    // Who asks for none is closed after the handshake.
    let begun = time::Instant::now();
    let (_, said) = place.openssl(&["-ign_eof"]).await;
    assert!(said.contains("No ALPN negotiated"), "{said}");
    assert!(begun.elapsed() < PATIENCE / 2);
}

#[tokio::test]
async fn no_weak_cipher_suite_can_be_negotiated() {
    let output = Command::new("openssl")
        .args(["ciphers", "-tls1_2", "ALL:COMPLEMENTOFALL:@SECLEVEL=0"])
        .output()
        .await
        .expect("the tests of TLS need openssl: apt-get install openssl");
    let all = String::from_utf8(output.stdout).unwrap();
    let all: Vec<&str> = all.trim().split(':').collect();
    for weak in ["AES128-SHA", "ECDHE-RSA-AES128-SHA", "AES128-GCM-SHA256"] {
        assert!(all.contains(&weak), "openssl cannot even try {weak}");
    }
    for certificate in [Authority::server, Authority::rsa_server] {
        let place = Place::new(Clients::None, certificate).await;
        let mut accepted = Vec::new();
        // All at once would be accepted if one of them were, so the good ones are found one by one.
        for suite in &all {
            let only = format!("{suite}:@SECLEVEL=0");
            let (shaken, _) = place
                .openssl(&["-tls1_2", "-alpn", "h2", "-cipher", &only])
                .await;
            if shaken {
                accepted.push(*suite);
            }
        }
        assert_eq!(accepted.len(), 3, "{accepted:?}");
        for suite in accepted {
            assert!(suite.starts_with("ECDHE-"), "{suite}");
            let authenticated = suite.contains("-GCM-") || suite.contains("CHACHA20-POLY1305");
            assert!(authenticated, "{suite}");
        }
    }
}

#[tokio::test]
async fn a_client_certificate_is_required_and_must_be_good() {
    let place = Place::new(Clients::Required, Authority::server).await;
    let trusted = || place.authority.trusted();
    place
        .connect(trusted().identity(place.authority.client().identity()))
        .await
        .expect("a good certificate");

    let none = place.connect(trusted()).await.unwrap_err();
    assert!(
        causes(&none).contains("CertificateRequired"),
        "{}",
        causes(&none)
    );
    let refused = [
        ("self-signed", self_signed_client(), "UnknownCA"),
        ("of another CA", Authority::new("tests").client(), ""),
        (
            "of another name",
            Authority::new("others").client(),
            "UnknownCA",
        ),
        (
            "expired",
            place.authority.expired_client(),
            "CertificateExpired",
        ),
        ("of a server", place.authority.server(), ""),
    ];
    for (case, pair, alert) in refused {
        let client = trusted().identity(pair.identity());
        let error = place.connect(client).await.expect_err(case);
        let causes = causes(&error);
        assert!(causes.contains("received fatal alert"), "{case}: {causes}");
        assert!(causes.contains(alert), "{case}: {causes}");
    }

    // And by openssl, which is told within the handshake of TLS 1.2.
    let (shaken, said) = place.openssl(&["-tls1_2", "-alpn", "h2"]).await;
    assert!(!shaken, "{said}");
    assert!(
        said.contains("Acceptable client certificate CA names"),
        "{said}"
    );
    let (certificate, key) = place.authority.client().write(place.directory.path(), "me");
    let shown = [
        ["-tls1_2", "-alpn", "h2"].as_slice(),
        &["-cert", certificate.to_str().unwrap()],
        &["-key", key.to_str().unwrap()],
    ];
    let (shaken, said) = place.openssl(&shown.concat()).await;
    assert!(shaken, "{said}");
}

#[tokio::test]
async fn an_optional_client_certificate_must_be_good_all_the_same() {
    let place = Place::new(Clients::Optional, Authority::server).await;
    let trusted = || place.authority.trusted();
    place.connect(trusted()).await.expect("none is needed");
    place
        .connect(trusted().identity(place.authority.client().identity()))
        .await
        .expect("a good certificate");
    let stranger = Authority::new("others").client();
    let refused = place.connect(trusted().identity(stranger.identity())).await;
    refused.expect_err("of another CA");
}

#[tokio::test]
async fn a_client_that_does_not_trust_the_server_goes_away() {
    let place = Place::new(Clients::None, Authority::server).await;
    let stranger = Authority::new("others");
    let error = place.connect(stranger.trusted()).await.unwrap_err();
    assert!(
        causes(&error).contains("UnknownIssuer"),
        "{}",
        causes(&error)
    );
    // The server goes on.
    place.connect(place.authority.trusted()).await.unwrap();
}

#[tokio::test]
async fn plain_text_to_a_port_with_tls_is_closed() {
    let place = Place::new(Clients::None, Authority::server).await;
    let address = place.server.url.strip_prefix("https://").unwrap();
    for beginning in [
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let mut plain = TcpStream::connect(address).await.unwrap();
        plain.write_all(beginning.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let end = time::timeout(PATIENCE, plain.read_to_end(&mut answer)).await;
        let _closed = end.expect("the server closes");
        // An alert at most; no HTTP.
        assert!(answer.len() <= 7, "{answer:?}");
    }
    place.connect(place.authority.trusted()).await.unwrap();
}

#[tokio::test]
async fn the_names_of_a_client_are_those_of_its_certificate() {
    let place = Place::new(Clients::Optional, Authority::server).await;
    let config = tls_config(place.directory.path(), Clients::Optional);
    let tls = Tls::load(config.tls.unwrap(), HTTP2).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", tcp.local_addr().unwrap());
    let limits = Limits {
        max_connections: 2,
        handshake_timeout: PATIENCE,
        proof_timeout: None,
        write_timeout: PATIENCE,
        max_age: PATIENCE,
        grace: PATIENCE,
    };
    let mut listener = Listener::new(
        tcp,
        Some(tls.into()),
        HTTP2,
        limits,
        CancellationToken::new(),
    );
    let with = place.authority.client();
    for (client, expected) in [
        (place.authority.trusted(), None),
        (
            place.authority.trusted().identity(with.identity()),
            Some(["spiffe://tests/gateway", "gateway.tests"]),
        ),
    ] {
        let connecting = tokio::spawn({
            let url = url.clone();
            async move { connect_tls(&url, client).await.map(drop) }
        });
        let opened = time::timeout(PATIENCE, listener.next()).await.unwrap();
        let info = opened.unwrap().unwrap().connect_info();
        assert!(info.peer.ip().is_loopback());
        let names = info.certificate.map(|shown| shown.names.clone());
        let expected = expected.map(|names| names.map(str::to_owned).to_vec());
        assert_eq!(names, expected);
        connecting.abort();
    }
}

#[tokio::test]
async fn everything_works_through_tls() {
    let place = Place::new(Clients::Required, Authority::server).await;
    let mut stream = place.server.subscribe(from_earliest()).await;
    for id in ["1", "2", "3"] {
        let accepted = place.server.accept(id).await;
        assert_eq!(next_event(&mut stream).await.event_id, accepted.event_id);
    }
    // A webhook that takes many TLS records.
    let large = gu1_body("4").replace('{', &format!("{{{}", " ".repeat(200_000)));
    let response = place
        .server
        .ingest(crate::support::gu1_request(large))
        .await;
    assert!(!response.unwrap().event_id.is_empty());
}

/// What is said about files that cannot be used.
fn refusal(directory: &Path, clients: Clients) -> String {
    let refused = ServerTls::load(&tls_config(directory, clients));
    let refused = refused.err().expect("unusable files").to_string();
    assert!(!refused.contains('\n'), "more than one line: {refused}");
    assert!(refused.contains(directory.to_str().unwrap()), "{refused}");
    refused
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let directory = TempDir::new().unwrap();
    let at = directory.path();
    let authority = Authority::new("tests");
    let (good, other) = (authority.server(), authority.server());
    let restore = || {
        good.write(at, "tls");
        fs::write(at.join("ca.crt"), authority.pem()).unwrap();
        let usable = ServerTls::load(&tls_config(at, Clients::Required));
        assert!(usable.is_ok());
    };
    restore();
    let encrypted = good.key.replace("PRIVATE", "ENCRYPTED PRIVATE");
    let broken = good.certificate.replace("MII", "MAA");
    let cases = [
        (
            "tls.key",
            Some(&*other.key),
            "is not the key of the certificate in",
        ),
        ("tls.key", Some(&*good.certificate), "no private key in PEM"),
        ("tls.key", Some(&*encrypted), "that is not encrypted"),
        ("tls.key", Some(""), "no private key in PEM"),
        ("tls.key", None, "No such file"),
        ("tls.crt", Some(""), "no certificate in PEM"),
        ("tls.crt", Some(&*good.key), "no certificate in PEM"),
        (
            "tls.crt",
            Some("-----BEGIN CERTIFICATE-----\nMII"),
            "no certificate in PEM",
        ),
        ("tls.crt", Some(&*broken), "tls.crt"),
        ("ca.crt", Some(""), "no certificate in PEM"),
        ("ca.crt", Some(&*broken), "not the certificate of an issuer"),
        ("ca.crt", None, "No such file"),
    ];
    for (file, content, expected) in cases {
        match content {
            Some(content) => fs::write(at.join(file), content).unwrap(),
            None => fs::remove_file(at.join(file)).unwrap(),
        }
        let said = refusal(at, Clients::Required);
        assert!(said.contains(expected), "{file} {content:?}: {said}");
        assert!(said.contains(file), "{file}: {said}");
        restore();
    }
}

#[test]
fn keys_of_the_configuration_that_do_not_go_together_are_refused() {
    let parse = |tls: &str| {
        let files = "cert_file = \"c\"\nkey_file = \"k\"";
        let text = format!("[server.tls]\n{files}\n{tls}");
        let parsed = config::parse(&text, &config::Variables::new());
        parsed.map(|config| config.server.tls.unwrap().client_certificates)
    };
    let ca_file = Path::new("a").to_owned();
    let good = [
        ("", config::ClientCertificates::None),
        (
            "client_certificates = \"optional\"\nclient_ca_file = \"a\"",
            config::ClientCertificates::Optional {
                ca_file: ca_file.clone(),
            },
        ),
        (
            "client_certificates = \"required\"\nclient_ca_file = \"a\"",
            config::ClientCertificates::Required { ca_file },
        ),
    ];
    for (text, expected) in good {
        assert_eq!(parse(text).unwrap(), expected);
    }
    let bad = [
        ("client_certificates = \"required\"", "needs client_ca_file"),
        ("client_certificates = \"optional\"", "needs client_ca_file"),
        ("client_ca_file = \"a\"", "does nothing unless"),
        ("client_certificates = \"always\"", "always"),
        ("ca_file = \"a\"", "ca_file"),
    ];
    for (text, expected) in bad {
        let said = parse(text).unwrap_err().to_string();
        assert!(said.contains(expected), "{text}: {said}");
    }
}
