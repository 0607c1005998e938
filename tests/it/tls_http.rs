//! TLS of the two HTTP listeners, from outside: what `openssl` sees of the real binary.

use std::{fs, process::Stdio};

use tokio::{io::AsyncWriteExt, process::Command, time};

use crate::{
    cli::{self, Serving},
    pki::{Authority, Pair},
    support::PATIENCE,
};

/// A server whose HTTP listeners have TLS; that for operators asks for certificates.
struct Place {
    place: cli::Place,
    authority: Authority,
    serving: Serving,
}

impl Place {
    fn new() -> Self {
        let place = cli::Place::new();
        let authority = Authority::new("tests");
        let directory = place.path("");
        authority.server().write(&directory, "tls");
        authority.client().write(&directory, "client");
        fs::write(place.path("ca.crt"), authority.pem()).unwrap();
        place.listen_for_http();
        place.configure_server("reload_interval_seconds = 1");
        let files = format!(
            "cert_file = \"{0}/tls.crt\"\nkey_file = \"{0}/tls.key\"",
            directory.display()
        );
        place.configure(&format!(
            "[server.webhook_tls]\n{files}\n[server.ops_tls]\n{files}\n\
             client_certificates = \"required\"\nclient_ca_file = \"{}/ca.crt\"\n",
            directory.display()
        ));
        Self {
            serving: place.serve(),
            place,
            authority,
        }
    }

    fn webhook(&self) -> &str {
        self.serving.webhook.as_deref().expect("it listens")
    }

    fn ops(&self) -> &str {
        self.serving.ops.as_deref().expect("it listens")
    }

    /// Sends a request through `openssl s_client`; returns all that it said.
    async fn openssl(&self, address: &str, arguments: &[&str]) -> String {
        let mut openssl = Command::new("openssl")
            .args(["s_client", "-connect", address, "-verify_return_error"])
            .args(["-servername", "localhost", "-ign_eof", "-CAfile"])
            .arg(self.place.path("ca.crt"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the tests of TLS need openssl: apt-get install openssl");
        let mut stdin = openssl.stdin.take().expect("piped");
        let request = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        // Who was refused reads no more.
        let _refused = stdin.write_all(request).await;
        let output = time::timeout(PATIENCE, openssl.wait_with_output()).await;
        let output = output.expect("an end in time").expect("it runs");
        drop(stdin);
        let said = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&said).into_owned()
    }

    /// The certificate that a webhook listener shows.
    async fn certificate(&self) -> String {
        let said = self.openssl(self.webhook(), &[]).await;
        let (_, rest) = said.split_once("-----BEGIN").expect("a certificate");
        let (certificate, _) = rest.split_once("-----END").expect("a certificate");
        certificate.to_owned()
    }
}

fn is_answered(said: &str) -> bool {
    said.contains("\nHTTP/1.1 ")
}

#[tokio::test]
async fn http_is_spoken_over_tls_1_3_and_1_2_and_nothing_older() {
    let place = Place::new();
    for version in ["-tls1_3", "-tls1_2"] {
        let said = place
            .openssl(place.webhook(), &[version, "-alpn", "http/1.1"])
            .await;
        assert!(is_answered(&said), "{said}");
        assert!(said.contains("ALPN protocol: http/1.1"), "{said}");
        assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
        // Older clients name no protocol.
        let said = place.openssl(place.webhook(), &[version]).await;
        assert!(is_answered(&said), "{said}");
    }
    let weak = ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"];
    let said = place.openssl(place.webhook(), &weak).await;
    assert!(said.contains("SSL alert number"), "{said}");
    assert!(!is_answered(&said), "{said}");
}

#[tokio::test]
async fn http_2_is_not_promised_to_who_asks_for_it() {
    let place = Place::new();
    let said = place.openssl(place.webhook(), &["-alpn", "h2"]).await;
    assert!(said.contains("alert no application protocol"), "{said}");
    let said = place
        .openssl(place.webhook(), &["-alpn", "h2,http/1.1"])
        .await;
    assert!(said.contains("ALPN protocol: http/1.1"), "{said}");
}

#[tokio::test]
async fn operators_show_a_certificate_and_providers_need_none() {
    let place = Place::new();
    // Within the handshake of TLS 1.2 the client is told.
    let said = place.openssl(place.ops(), &["-tls1_2"]).await;
    assert!(!is_answered(&said), "{said}");
    assert!(
        said.contains("Acceptable client certificate CA names"),
        "{said}"
    );
    let [certificate, key] =
        ["client.crt", "client.key"].map(|name| place.place.path(name).display().to_string());
    for version in ["-tls1_3", "-tls1_2"] {
        let said = place
            .openssl(place.ops(), &[version, "-cert", &certificate, "-key", &key])
            .await;
        assert!(is_answered(&said), "{said}");
    }
    let stranger = Authority::new("others").client();
    let (certificate, key) = stranger.write(&place.place.path(""), "stranger");
    let shown = [certificate, key].map(|path| path.display().to_string());
    let said = place
        .openssl(
            place.ops(),
            &["-tls1_2", "-cert", &shown[0], "-key", &shown[1]],
        )
        .await;
    assert!(!is_answered(&said), "{said}");
    assert!(is_answered(&place.openssl(place.webhook(), &[]).await));
}

#[tokio::test]
async fn a_new_certificate_of_the_edge_is_taken_over() {
    let place = Place::new();
    let old = place.certificate().await;
    let new: Pair = place.authority.server();
    new.write(&place.place.path(""), "tls");
    let changed = async {
        while place.certificate().await == old {
            time::sleep(std::time::Duration::from_millis(200)).await;
        }
    };
    time::timeout(PATIENCE, changed).await.expect("it changes");
    let shown = place.certificate().await;
    assert!(new.certificate.contains(shown.trim_matches('-').trim()));
}
