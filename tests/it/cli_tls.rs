//! The command line through TLS and with a token, as the real binary.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::{Status, transport::Server, transport::server::TcpIncoming};

use crate::{
    pki::{Authority, Pair},
    support::PATIENCE,
};

const VARIABLES: [&str; 8] = [
    "VERDICT_CONFIG",
    "VERDICT_ENDPOINT",
    "VERDICT_CA",
    "VERDICT_CERT",
    "VERDICT_KEY",
    "VERDICT_TOKEN",
    "VERDICT_TOKEN_FILE",
    "VERDICT__TELEMETRY__LOG_LEVELS",
];

fn verdict(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_verdict"));
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    command.args(arguments);
    command
}

/// `verdict serve` with TLS, killed when it is dropped.
struct Serving {
    process: Child,
    directory: TempDir,
    authority: Authority,
    address: String,
    /// What it has logged.
    lines: Arc<Mutex<Vec<String>>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ended_already = self.process.kill();
        let _ended_already = self.process.wait();
    }
}

impl Serving {
    fn start(certificate: fn(&Authority) -> Pair, more: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let authority = Authority::new("tests");
        certificate(&authority).write(directory.path(), "tls");
        authority.client().write(directory.path(), "client");
        fs::write(directory.path().join("ca.crt"), authority.pem()).unwrap();
        fs::write(directory.path().join("secret"), "a secret value").unwrap();
        let config = format!(
            "[server]\ngrpc_listen = \"127.0.0.1:0\"\nwebhook_listen = \"\"\nops_listen = \"\"\nreload_interval_seconds = 1\n\
             [server.tls]\ncert_file = \"tls.crt\"\nkey_file = \"tls.key\"\n{more}\n\
             [[sources]]\nprovider = \"gu1\"\nsecrets = [{{ id = \"first\", file = \"secret\" }}]"
        );
        fs::write(directory.path().join("verdict.toml"), config).unwrap();
        let mut process = verdict(&["serve", "--config", "verdict.toml"])
            .current_dir(&directory)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = log.by_ref().find_map(|line| {
            let line: Value = serde_json::from_str(&line.unwrap()).expect("JSON");
            Some(line["server.address"].as_str()?.to_owned())
        });
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in log.map_while(Result::ok) {
                kept.lock().unwrap().push(line);
            }
        });
        Self {
            process,
            directory,
            authority,
            address: address.expect("it serves"),
            lines,
        }
    }

    fn at(&self, name: &str) -> String {
        let path = self.directory.path().join(name);
        path.to_str().unwrap().to_owned()
    }

    /// Runs a command that fails; returns the line that it says.
    fn failing(&self, arguments: &[&str]) -> String {
        let endpoint = format!("https://{}", self.address);
        let output = verdict(arguments)
            .env("VERDICT_ENDPOINT", endpoint)
            // Not what this machine happens to trust.
            .env("SSL_CERT_FILE", self.at("others.crt"))
            .env_remove("SSL_CERT_DIR")
            .output();
        failure(&output.unwrap())
    }

    /// Waits for a line in the log that holds all of these.
    fn logged(&self, parts: &[&str]) -> String {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let lines = self.lines.lock().unwrap().clone();
            let mut lines = lines.into_iter();
            if let Some(line) = lines.find(|line| parts.iter().all(|part| line.contains(part))) {
                return line;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("not logged: {parts:?}");
    }
}

fn failure(output: &Output) -> String {
    assert!(!output.status.success());
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

const REQUIRED: &str = "client_certificates = \"required\"\nclient_ca_file = \"ca.crt\"";

#[test]
fn a_client_that_is_known_is_let_in() {
    let serving = Serving::start(Authority::server, REQUIRED);
    let endpoint = format!("https://{}", serving.address);
    let (ca, cert, key) = (
        serving.at("ca.crt"),
        serving.at("client.crt"),
        serving.at("client.key"),
    );
    let flags = ["--ca", &ca, "--cert", &cert, "--key", &key];
    let by_flags = verdict(&["status", "--endpoint", &endpoint])
        .args(flags)
        .output()
        .unwrap();
    assert!(by_flags.status.success(), "{by_flags:?}");
    let by_variables = verdict(&["sources"])
        .env("VERDICT_ENDPOINT", &endpoint)
        .env("VERDICT_CA", &ca)
        .env("VERDICT_CERT", &cert)
        .env("VERDICT_KEY", &key)
        .output()
        .unwrap();
    assert!(by_variables.status.success(), "{by_variables:?}");
    // The issuers that this machine trusts, wherever those are.
    let by_machine = verdict(&["status", "--endpoint", &endpoint])
        .args(&flags[2..])
        .env("SSL_CERT_FILE", &ca)
        .output()
        .unwrap();
    assert!(by_machine.status.success(), "{by_machine:?}");
}

#[test]
fn what_is_wrong_with_a_connection_is_said_in_one_line() {
    let serving = Serving::start(Authority::server, REQUIRED);
    let directory = serving.directory.path();
    let others = Authority::new("others");
    fs::write(directory.join("others.crt"), others.pem()).unwrap();
    fs::write(directory.join("empty"), "").unwrap();
    others.client().write(directory, "stranger");
    serving
        .authority
        .expired_client()
        .write(directory, "expired");
    let at = |name: &str| serving.at(name);
    let ca = at("ca.crt");
    let trusting = |rest: &[&str]| {
        let all = [&["sources", "--ca", &ca], rest].concat();
        serving.failing(&all)
    };
    let shown = |name: &str| {
        let (cert, key) = (at(&format!("{name}.crt")), at(&format!("{name}.key")));
        trusting(&["--cert", &cert, "--key", &key])
    };
    let not_trusted = "not issued by anyone who is trusted; name its CA with --ca";
    let cases = [
        (serving.failing(&["sources"]), not_trusted),
        (
            serving.failing(&["sources", "--ca", &at("others.crt")]),
            not_trusted,
        ),
        (
            serving.failing(&["sources", "--ca", &at("empty")]),
            "no certificate in PEM",
        ),
        (
            serving.failing(&["sources", "--ca", &at("none")]),
            "cannot read ",
        ),
        (
            trusting(&[]),
            "the server requires a client certificate; give one with --cert and --key",
        ),
        (
            shown("stranger"),
            "does not trust the issuer of the client certificate",
        ),
        (shown("expired"), "the client certificate has expired"),
        (
            trusting(&["--cert", &at("client.crt"), "--key", &at("stranger.key")]),
            "client.crt with --key ",
        ),
        // A stream that would connect again and again if the connection were only lost.
        (
            serving.failing(&["tail", "--ca", &ca]),
            "the server requires a client certificate",
        ),
    ];
    for (said, expected) in cases {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    // Half of what is needed, and what needs TLS without it.
    let usage = |arguments: &[&str]| {
        let output = verdict(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(usage(&["sources", "--cert", "x"]).contains("--key"));
    let plain = ["sources", "--endpoint", "http://127.0.0.1:1", "--ca", &ca];
    assert!(usage(&plain).contains("need an endpoint with https://"));
    let bare = ["sources", "--endpoint", "127.0.0.1:1"];
    assert!(usage(&bare).contains("begins with http:// or https://"));
    // Plain text to TLS.
    let plain = verdict(&["sources", "--endpoint"])
        .arg(format!("http://{}", serving.address))
        .output();
    failure(&plain.unwrap());
}

#[test]
fn the_certificate_of_the_server_must_be_good() {
    let serving = Serving::start(Authority::expired_server, "");
    let ca = serving.at("ca.crt");
    let said = serving.failing(&["sources", "--ca", &ca]);
    assert!(
        said.contains("the server's certificate has expired"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_to_plain_text_is_told() {
    let server = crate::support::Server::start().await;
    let endpoint = server.url.replace("http://", "https://");
    let directory = TempDir::new().unwrap();
    let ca = directory.path().join("ca.crt");
    fs::write(&ca, Authority::new("tests").pem()).unwrap();
    let output = verdict(&["sources", "--endpoint", &endpoint, "--ca"])
        .arg(&ca)
        .output();
    let said = failure(&output.unwrap());
    assert!(said.contains("cannot connect to https://"), "{said}");
    assert!(said.contains("does not speak TLS there"), "{said}");
}

/// A server that refuses every call, and keeps the `authorization` of each.
async fn listening() -> (String, Arc<Mutex<Vec<Option<String>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    let service = tower::service_fn(move |request: http::Request<tonic::body::Body>| {
        let header = request.headers().get("authorization");
        let header = header.map(|value| value.to_str().unwrap().to_owned());
        kept.lock().unwrap().push(header);
        let refused = Status::unauthenticated("no").into_http::<tonic::body::Body>();
        async move { Ok::<_, std::convert::Infallible>(refused) }
    });
    let incoming = TcpIncoming::from(listener);
    tokio::spawn(Server::builder().serve_with_incoming(service, incoming));
    (endpoint, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_comes_from_a_file_or_the_environment_and_goes_with_each_call() {
    let (endpoint, seen) = listening().await;
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("token");
    fs::write(&file, "from-the-file\n").unwrap();
    let run = |command: &mut Command| {
        let said = failure(&command.env("VERDICT_ENDPOINT", &endpoint).output().unwrap());
        assert!(said.contains("Unauthenticated"), "{said}");
    };
    run(&mut verdict(&["status"]));
    run(verdict(&["status"]).env("VERDICT_TOKEN", "from-the-environment"));
    run(verdict(&["status"]).env("VERDICT_TOKEN_FILE", &file));
    run(verdict(&["consumers", "list", "--token-file"])
        .arg(&file)
        .env("VERDICT_TOKEN", "from-the-environment"));
    run(&mut verdict(&[
        "quarantine",
        "list",
        "--token-file",
        file.to_str().unwrap(),
    ]));
    let file = Some("Bearer from-the-file".to_owned());
    let environment = Some("Bearer from-the-environment".to_owned());
    let expected = [None, environment, file.clone(), file.clone(), file];
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[test]
fn a_token_is_never_sent_where_others_can_read_it_and_never_shown() {
    let token = "a-token-that-is-secret";
    for endpoint in ["http://192.0.2.1:1", "http://verdict.example:1"] {
        let mut command = verdict(&["status", "--endpoint", endpoint]);
        let begun = Instant::now();
        let output = command.env("VERDICT_TOKEN", token).output().unwrap();
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "it tried to connect"
        );
        assert_eq!(output.status.code(), Some(2));
        let said = failure(&output);
        assert!(said.contains("in plain text"), "{said}");
        assert!(!said.contains(token), "{said}");
    }
    for endpoint in ["http://localhost:1", "http://127.0.0.9:1", "http://[::1]:1"] {
        let mut command = verdict(&["status", "--endpoint", endpoint]);
        let said = failure(&command.env("VERDICT_TOKEN", token).output().unwrap());
        assert!(said.contains("cannot connect"), "{said}");
    }
    for bad in ["", " ", "a b", "a\u{e9}"] {
        let output = verdict(&["status"]).env("VERDICT_TOKEN", bad).output();
        let said = failure(&output.unwrap());
        assert!(said.contains("VERDICT_TOKEN: not a token"), "{said}");
    }
    // There is no way to write it where `ps` shows it.
    let output = verdict(&["status", "--token", token]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn what_cannot_be_reloaded_is_logged_by_name_and_never_by_value() {
    let serving = Serving::start(Authority::server, "");
    let at = |name: &str| Path::new(&serving.at(name)).to_owned();
    fs::write(at("secret"), "").unwrap();
    let line = serving.logged(&["ERROR", "gu1", "first", "the old stays in use"]);
    assert!(line.contains("is empty"), "{line}");
    fs::remove_file(at("secret")).unwrap();
    let line = serving.logged(&["ERROR", "first", "cannot read"]);
    assert!(line.contains("No such file"), "{line}");
    fs::write(at("secret"), "another secret value").unwrap();
    serving.logged(&["INFO", "gu1", "first", "a secret has changed"]);
    fs::write(at("tls.key"), Authority::new("others").server().key).unwrap();
    serving.logged(&["ERROR", "is not the key of the certificate", "tls.key"]);
    serving
        .authority
        .server()
        .write(serving.directory.path(), "tls");
    serving.logged(&["INFO", "the files of TLS have changed"]);
    std::thread::sleep(Duration::from_secs(3));
    let lines = serving.lines.lock().unwrap();
    assert_eq!(lines.len(), 5, "each is told once: {lines:#?}");
    for line in &*lines {
        assert!(
            !line.contains("secret value") && !line.contains("PRIVATE"),
            "{line}"
        );
    }
}

#[test]
fn an_open_listener_is_refused_and_if_insisted_on_warned_about_at_every_start() {
    let directory = TempDir::new().unwrap();
    let config =
        "[[sources]]\nprovider = \"gu1\"\nsecrets = [{ id = \"first\", env = \"SECRET\" }]";
    fs::write(directory.path().join("verdict.toml"), config).unwrap();
    let serve = || {
        let mut command = verdict(&["serve", "--config", "verdict.toml"]);
        command
            .current_dir(&directory)
            .env("SECRET", "s")
            .env("VERDICT__SERVER__GRPC_LISTEN", "0.0.0.0:0");
        command
    };
    let output = serve().output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = failure(&output);
    assert!(
        said.contains("configure [server.tls] and [[callers]], or set"),
        "{said}"
    );
    for _ in 0..2 {
        let mut process = serve()
            .env("VERDICT__SERVER__INSECURE", "true")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap()).lines();
        let lines = log.map(Result::unwrap);
        let before: Vec<String> = lines
            .take_while(|line| !line.contains("server.address"))
            .collect();
        process.kill().unwrap();
        process.wait().unwrap();
        let warned =
            |line: &String| line.contains("WARN") && line.contains("server.insecure is set");
        assert!(before.iter().any(warned), "{before:?}");
    }
}

#[test]
fn files_that_cannot_be_used_refuse_the_start_in_one_line() {
    let serving = Serving::start(Authority::server, "");
    fs::write(serving.at("tls.key"), "").unwrap();
    for command in ["serve", "check-config"] {
        let output = verdict(&[command, "--config", "verdict.toml"])
            .current_dir(&serving.directory)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        let said = failure(&output);
        assert!(
            said.contains("server.tls: tls.key: no private key"),
            "{said}"
        );
    }
}
