//! The command line, as the real binary in a process of its own.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
};

use futures_util::StreamExt;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time;
use tonic::{Streaming, transport::Channel};
use verdict::{
    event,
    log::{Commit, Consumer, Position},
    proto::{
        CommitCursorRequest, IngestStatus, Reason, SubscribeMessage, SubscribeResponse,
        VerificationEvent, verdict_service_client::VerdictServiceClient,
        verification_event::Detail,
    },
};

use crate::{
    quarantine::{keeping, put},
    renormalize::store_misread,
    support::{
        PATIENCE, Server, connect, decode, fixture_source, from_earliest, gu1_body, memory_log,
        next, real_now, server_config,
    },
    troubled_log::TroubledLog,
};

pub(crate) fn verdict() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_verdict"));
    command
        .env_remove("VERDICT_CONFIG")
        .env_remove("VERDICT_ENDPOINT");
    command
}

pub(crate) fn run(command: &mut Command) -> Output {
    command.output().expect("the binary runs")
}

/// Runs a command against a server of this process.
pub(crate) async fn run_at(server: &Server, arguments: &[&str]) -> Output {
    let mut command = verdict();
    command.args(arguments).env("VERDICT_ENDPOINT", &server.url);
    let output = tokio::process::Command::from(command).output();
    output.await.expect("the binary runs")
}

fn json_lines(output: &Output) -> Vec<Value> {
    let lines = stdout(output);
    let lines = lines.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().expect("JSON lines")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// A directory with a configuration of all five providers, and with the log.
pub(crate) struct Place {
    directory: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self {
            directory: TempDir::new().expect("a directory"),
        };
        let mut config = format!(
            "[server]\ngrpc_listen = \"127.0.0.1:0\"\nwebhook_listen = \"\"\nops_listen = \"\"\n[log]\npath = \"{}\"\n",
            place.path("log").display()
        );
        let root = std::env::current_dir().expect("a current directory");
        for provider in verdict::provider::PROVIDERS {
            let source = crate::support::fixture_folder(provider.name()).join("source.toml");
            let source = fs::read_to_string(source).expect("a source");
            let absolute = format!("file = \"{}/tests", root.display());
            config.push_str(&source.replace("file = \"tests", &absolute));
        }
        fs::write(place.config(), config).expect("a file");
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self) -> PathBuf {
        self.path("verdict.toml")
    }

    /// Adds to the configuration.
    pub(crate) fn configure(&self, text: &str) {
        let config = fs::read_to_string(self.config()).expect("a file");
        fs::write(self.config(), format!("{config}\n{text}")).expect("a file");
    }

    /// Sets keys of the server.
    pub(crate) fn configure_server(&self, keys: &str) {
        let config = fs::read_to_string(self.config()).expect("a file");
        let config = config.replacen("[server]\n", &format!("[server]\n{keys}\n"), 1);
        fs::write(self.config(), config).expect("a file");
    }

    /// Has the next server listen for webhooks and for operators too.
    pub(crate) fn listen_for_http(&self) {
        let config = fs::read_to_string(self.config()).expect("a file");
        let config = config.replace("_listen = \"\"", "_listen = \"127.0.0.1:0\"");
        fs::write(self.config(), config).expect("a file");
    }

    /// Has the next server listen where an earlier one did.
    fn listen_on(&self, endpoint: &str) {
        let config = fs::read_to_string(self.config()).expect("a file");
        let address = endpoint.strip_prefix("http://").expect("a URL");
        fs::write(self.config(), config.replace("127.0.0.1:0", address)).expect("a file");
    }

    pub(crate) fn serve(&self) -> Serving {
        self.serve_with(&[])
    }

    /// A server with these variables in its environment.
    pub(crate) fn serve_with(&self, variables: &[(&str, &str)]) -> Serving {
        let mut process = verdict()
            .args(["serve", "--config"])
            .arg(self.config())
            .env_remove("VERDICT__TELEMETRY__LOG_LEVELS")
            .envs(variables.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut lines = BufReader::new(process.stderr.take().expect("piped")).lines();
        let serving = lines.by_ref().find_map(|line| {
            let line: Value =
                serde_json::from_str(&line.expect("UTF-8")).expect("logs in a pipe are JSON");
            line.get("server.address").is_some().then_some(line)
        });
        let serving = serving.expect("the server tells where it listens");
        let address = |key: &str| Some(serving.get(key)?.as_str()?.to_owned());
        let grpc = address("server.address").expect("an address");
        // Whoever writes to a pipe that nobody reads has to wait.
        std::thread::spawn(move || lines.for_each(drop));
        Serving {
            process,
            endpoint: format!("http://{grpc}"),
            webhook: address("server.webhook_address"),
            ops: address("server.ops_address"),
        }
    }
}

/// A running server, killed when it is dropped.
pub(crate) struct Serving {
    process: Child,
    pub(crate) endpoint: String,
    /// Where it listens for webhooks and for operators, if it does.
    pub(crate) webhook: Option<String>,
    pub(crate) ops: Option<String>,
}

impl Serving {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = verdict();
        command
            .args(arguments)
            .env("VERDICT_ENDPOINT", &self.endpoint);
        command
    }

    pub(crate) async fn client(&self) -> VerdictServiceClient<Channel> {
        VerdictServiceClient::new(connect(&self.endpoint).await)
    }

    /// SIGKILL: no handler runs, nothing is flushed.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("it can be killed");
        self.process.wait().expect("it ends");
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.process.id().to_string();
        let kill = run(Command::new("kill").args([signal, &pid]));
        assert!(kill.status.success());
    }

    pub(crate) fn end(&mut self, signal: &str) -> std::process::ExitStatus {
        self.signal(signal);
        self.process.wait().expect("it ends")
    }

    /// Resident memory.
    pub(crate) fn resident_bytes(&self) -> usize {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("Linux");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .expect("a line");
        let kib: usize = line
            .split_whitespace()
            .nth(1)
            .expect("a number")
            .parse()
            .expect("a number");
        kib << 10
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn the_demo_shows_every_provider_and_every_outcome() {
    let output = run(verdict().arg("demo"));
    assert!(output.status.success(), "{}", stderr(&output));
    let shown = stdout(&output);
    for provider in verdict::provider::PROVIDERS {
        assert!(shown.contains(provider.name()), "{shown}");
    }
    let samples: usize = verdict::provider::PROVIDERS
        .iter()
        .map(|p| p.samples().len())
        .sum();
    // A head, a row for each event, and what became of all.
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), samples + 2, "{shown}");
    let summary = format!(
        "{samples} accepted, 1 duplicate, 1 quarantined, 0 ignored, 1 refused (SIGNATURE_INVALID)"
    );
    assert_eq!(lines[lines.len() - 1], summary);
}

#[test]
fn what_is_sent_is_read_back_if_it_has_become_an_event() {
    let place = Place::new();
    let config = place.config();
    let serving = place.serve();
    let send = |more: &[&str]| {
        let mut command = serving.command(&["send", "--provider", "gu1", "--read-back"]);
        run(command.arg("--config").arg(&config).args(more))
    };
    for status in ["INGEST_STATUS_ACCEPTED", "INGEST_STATUS_DUPLICATE"] {
        let output = send(&["--sample"]);
        assert!(output.status.success(), "{}", stderr(&output));
        let lines: Vec<Value> = stdout(&output)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let [answer, read] = &lines[..] else {
            panic!("an answer and an event: {lines:?}");
        };
        assert_eq!(answer["status"], status);
        assert_eq!(read["event"]["event_id"], answer["event_id"]);
        assert_eq!(read["event"]["source"]["provider"], "gu1");
    }

    let ignored =
        r#"{"event":"rule.triggered","timestamp":"2026-05-04T12:02:00Z","payload":{"id":"r-1"}}"#;
    let body = place.path("body.json");
    fs::write(&body, ignored).unwrap();
    let output = send(&[body.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    assert!(stderr(&output).contains("no event that could be read back"));
}

#[test]
fn a_webhook_is_sent_tailed_and_still_there_after_a_kill() {
    let place = Place::new();
    let config = place.config();
    let config = config.to_str().unwrap();
    let mut serving = place.serve();

    // A tail that was there before the webhook prints it, and goes on when the server is back.
    let mut tail = serving
        .command(&["tail", "--from", "earliest"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut tailed = BufReader::new(tail.stdout.take().unwrap()).lines();
    let mut next_tailed =
        || -> Value { serde_json::from_str(&tailed.next().unwrap().unwrap()).unwrap() };

    let mut sent = Vec::new();
    for provider in verdict::provider::PROVIDERS {
        let arguments = [
            "send",
            "--config",
            config,
            "--provider",
            provider.name(),
            "--sample",
        ];
        let output = run(&mut serving.command(&arguments));
        assert!(output.status.success(), "{}", stderr(&output));
        let answer: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(answer["status"], "INGEST_STATUS_ACCEPTED");
        assert_eq!(next_tailed()["event"]["event_id"], answer["event_id"]);
        sent.push(answer["event_id"].clone());
    }

    serving.kill();
    place.listen_on(&serving.endpoint);
    let serving = place.serve();
    let output = run(&mut serving.command(&["tail", "--from", "earliest", "--until-caught-up"]));
    let stored: Vec<Value> = stdout(&output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let stored: Vec<Value> = stored
        .iter()
        .map(|line| line["event"]["event_id"].clone())
        .collect();
    assert_eq!(stored, sent);

    let again = ["send", "--config", config, "--provider", "gu1", "--sample"];
    let answer: Value = serde_json::from_str(&stdout(&run(&mut serving.command(&again)))).unwrap();
    assert_eq!(answer["status"], "INGEST_STATUS_DUPLICATE");
    assert!(sent.contains(&answer["event_id"]));
    let arguments = [
        "send",
        "--provider",
        "gu1",
        "--config",
        config,
        "--format",
        "json",
    ];
    fs::write(place.path("body.json"), gu1_body("after the kill")).unwrap();
    let output = run(serving.command(&arguments).arg(place.path("body.json")));
    let answer: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(next_tailed()["event"]["event_id"], answer["event_id"]);
    tail.kill().unwrap();
    tail.wait().unwrap();

    let output = run(&mut serving.command(&["sources"]));
    let sources: Vec<Value> = stdout(&output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(sources.len(), verdict::provider::PROVIDERS.len());
    let gu1 = sources.iter().find(|source| source["provider"] == "gu1");
    assert_eq!(gu1.unwrap()["counts"]["duplicate"], "1");
    let table = stdout(&run(&mut serving.command(&["sources", "--format", "table"])));
    let row = |start: &str| table.lines().find(|line| line.starts_with(start)).unwrap();
    assert!(
        row("kayle/default            k1 (decryption key)").contains("20"),
        "{table}"
    );
    assert!(table.contains("not since the start"), "{table}");
    let filtered = [
        "tail",
        "--from",
        "earliest",
        "--until-caught-up",
        "--outcome",
        "approved",
        "--provider",
        "kayle",
        "--format",
        "table",
    ];
    let table = stdout(&run(&mut serving.command(&filtered)));
    assert_eq!(table.lines().count(), 2, "{table}");
    assert!(table.contains("APPROVED"));
}

#[test]
fn a_second_server_on_the_same_log_is_refused_in_one_line() {
    let place = Place::new();
    let _serving = place.serve();
    let output = run(verdict().args(["serve", "--config"]).arg(place.config()));
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("in use by another process"), "{said}");
}

#[tokio::test]
async fn a_signal_ends_the_server_in_order() {
    for signal in ["-TERM", "-INT"] {
        ended_by(signal).await;
    }
}

async fn ended_by(signal: &'static str) {
    let place = Place::new();
    let mut serving = place.serve();
    let mut client = serving.client().await;
    let mut stream = client
        .subscribe(from_earliest())
        .await
        .unwrap()
        .into_inner();
    next(&mut stream).await;
    let ended = tokio::task::spawn_blocking(move || serving.end(signal));
    assert!(matches!(
        next(&mut stream).await.message,
        Some(SubscribeMessage::Draining(_))
    ));
    let status = time::timeout(PATIENCE, ended).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn a_wrong_configuration_is_one_line_and_exit_code_2() {
    let place = Place::new();
    let good = run(verdict()
        .args(["check-config", "--config"])
        .arg(place.config()));
    assert!(good.status.success(), "{}", stderr(&good));
    assert!(
        stdout(&good)
            .contains("fyatu/default: accepts body_sign, body_sign_json, body_sign_php, header_v1")
    );

    fs::write(place.path("bad.toml"), "[server]\nport = 1\n").unwrap();
    for command in ["check-config", "serve"] {
        let bad = run(verdict()
            .args([command, "--config"])
            .arg(place.path("bad.toml")));
        assert_eq!(bad.status.code(), Some(2));
        let said = stderr(&bad);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(
            said.starts_with("error: configuration: ") && said.contains("port"),
            "{said}"
        );
    }
    let none = run(verdict().arg("serve"));
    assert_eq!(none.status.code(), Some(2));
}

#[test]
fn a_webhook_is_normalized_offline() {
    let file = |provider: &str, case: &str| crate::support::fixture_folder(provider).join(case);
    let normalize = |provider: &str, file: &Path| {
        run(verdict()
            .args(["normalize", "--provider", provider])
            .arg(file))
    };
    let output = normalize("gu1", &file("gu1", "kyc_approved.http"));
    let event: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(event["verification"]["outcome"], "OUTCOME_APPROVED");
    assert_eq!(event["personal_data"]["full_name"], "Erika Güeno");

    let output = normalize("gu1", &file("gu1", "unknown_event.http"));
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("kyc.validation_teleported is not known"));
    let output = normalize("gu1", &file("gu1", "alert.http"));
    assert!(output.status.success() && stdout(&output).is_empty());
    let output = normalize("no_such_provider", &file("gu1", "alert.http"));
    assert_eq!(output.status.code(), Some(2));
    let output = normalize("gu1", Path::new("nowhere.http"));
    assert_eq!(output.status.code(), Some(1));

    // Encrypted: with the keys of a configuration, and as plain JSON without any.
    let encrypted = file("kayle", "second_key.http");
    let place = Place::new();
    let output = run(verdict()
        .args(["normalize", "--provider", "kayle", "--config"])
        .arg(place.config())
        .arg(encrypted));
    let event: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(event["verification"]["outcome"], "OUTCOME_EXPIRED");
    let kayle = verdict::provider::find("kayle").unwrap();
    fs::write(place.path("body.json"), kayle.samples()[0].body).unwrap();
    let output = normalize("kayle", &place.path("body.json"));
    let event: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(event["verification"]["outcome"], "OUTCOME_APPROVED");
}

#[test]
fn a_signed_request_can_be_written_to_a_file_and_sent_as_it_is() {
    let place = Place::new();
    let serving = place.serve();
    let body = place.path("body.json");
    fs::write(&body, gu1_body("1")).unwrap();
    let send = |file: &Path, more: &[&str]| {
        let mut command = serving.command(&["send", "--provider", "gu1"]);
        run(command
            .args(more)
            .env("VERDICT_CONFIG", place.config())
            .arg(file))
    };
    let request = send(&body, &["--dry-run"]).stdout;
    assert!(request.ends_with(gu1_body("1").as_bytes()));
    let recorded = place.path("recorded.http");
    fs::write(&recorded, &request).unwrap();
    let accepted = send(&recorded, &["--format", "table"]);
    assert!(
        stdout(&accepted).starts_with("ACCEPTED "),
        "{}",
        stderr(&accepted)
    );
    let duplicate = send(&body, &["--format", "table"]);
    assert!(stdout(&duplicate).starts_with("DUPLICATE "));

    fs::write(&body, "{}").unwrap();
    let quarantined = send(&body, &[]);
    assert_eq!(quarantined.status.code(), Some(3));
    fs::write(&recorded, [&request[..], b" "].concat()).unwrap();
    let forged = send(&recorded, &[]);
    assert_eq!(forged.status.code(), Some(1));
    assert!(stderr(&forged).contains("SIGNATURE_INVALID"));
}

#[tokio::test]
async fn the_quarantine_is_listed_shown_and_redriven() {
    let log = memory_log();
    let server = Server::start_from(keeping(), server_config(), Arc::clone(&log)).await;
    let gu1 = fixture_source("gu1");
    // A body that would clear the screen.
    let unreadable = crate::support::gu1_request("{\u{1b}[2J Erika");
    let quarantined = server.ingest(unreadable).await.unwrap().quarantine_id;
    let mut forged = crate::support::gu1_request(gu1_body("1"));
    forged.payload = gu1_body("2").into();
    server.ingest(forged).await.unwrap_err();

    let listed = json_lines(&run_at(&server, &["quarantine", "list"]).await);
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["quarantine_id"], *quarantined);
    let table = [
        "quarantine",
        "list",
        "--format",
        "table",
        "--provider",
        "gu1",
    ];
    let table = stdout(&run_at(&server, &table).await);
    let row = table.lines().nth(1).unwrap();
    assert!(row.contains(&quarantined) && row.contains(" unparseable "));
    let other = ["quarantine", "list", "--provider", "fyatu"];
    assert_eq!(stdout(&run_at(&server, &other).await), "");
    let unverified = ["quarantine", "list", "--reason", "unverified"];
    let unverified = json_lines(&run_at(&server, &unverified).await);
    assert_eq!(unverified.len(), 1);
    assert_eq!(unverified[0]["detail"], "the signature matches no secret");

    let show = ["quarantine", "show", &quarantined];
    let shown = json_lines(&run_at(&server, &show).await);
    assert_eq!(shown[0]["reason"], "QUARANTINE_REASON_UNPARSEABLE");
    assert_eq!(shown[0]["delivery"], Value::Null);
    let table = ["--payload", "--format", "table"];
    let shown = stdout(&run_at(&server, &[&show[..], &table].concat()).await);
    assert!(shown.contains("gu1/default") && shown.contains("x-webhook-signature: "));
    assert!(
        shown.contains("{[2J Erika") && !shown.contains('\u{1b}'),
        "{shown:?}"
    );
    let id = unverified[0]["quarantine_id"].as_str().unwrap();
    let shown = ["quarantine", "show", id, "--format", "table"];
    let shown = stdout(&run_at(&server, &shown).await);
    assert!(shown.contains("not proved genuine"), "{shown}");

    let redriven = run_at(&server, &["quarantine", "redrive", &quarantined, id]).await;
    assert_eq!(redriven.status.code(), Some(3));
    let gone = "00000000-0000-4000-8000-000000000000";
    let with_one_gone = ["quarantine", "redrive", gone, &quarantined];
    let with_one_gone = run_at(&server, &with_one_gone).await;
    assert_eq!(with_one_gone.status.code(), Some(1));
    assert_eq!(json_lines(&with_one_gone).len(), 1);
    let said = stderr(&with_one_gone);
    assert!(
        said.contains(gone) && said.contains("1 of 2 calls failed"),
        "{said}"
    );
    assert!(stderr(&redriven).contains("2 of 2 deliveries are still in quarantine"));
    let statuses = json_lines(&redriven);
    assert_eq!(statuses[0]["status"], "INGEST_STATUS_QUARANTINED");
    assert_eq!(statuses[1]["status"], Value::Null);
    // An earlier version did not understand this one.
    let webhook = crate::support::sign(&gu1, gu1_body("3"));
    let id = put(&log, "gu1", &webhook, Some("hmac_sha256"), real_now()).await;
    let arguments = [
        "quarantine",
        "redrive",
        "--reason",
        "unknown-status",
        "--format",
        "table",
    ];
    let redriven = run_at(&server, &arguments).await;
    assert!(redriven.status.success(), "{}", stderr(&redriven));
    let said = stdout(&redriven);
    assert!(said.starts_with(&format!("ACCEPTED     {id} ")), "{said}");
    assert!(said.contains("1 deliveries have left the quarantine"));
}

#[tokio::test]
async fn nothing_is_discarded_by_accident() {
    let log = memory_log();
    let server = Server::start_from(keeping(), server_config(), Arc::clone(&log)).await;
    let gu1 = fixture_source("gu1");
    let mut ids = Vec::new();
    for (number, scheme) in [
        ("1", Some("hmac_sha256")),
        ("2", Some("hmac_sha256")),
        ("3", None),
    ] {
        let webhook = crate::support::sign(&gu1, gu1_body(number));
        ids.push(put(&log, "gu1", &webhook, scheme, real_now()).await);
    }
    let left = || {
        (
            log.stats().genuine.deliveries,
            log.stats().unverified.deliveries,
        )
    };
    for refused in [
        &["discard", "--all"][..],
        &["discard", "--provider", "gu1"],
        &["discard", "--yes"],
        &["discard", "--all", "--provider", "gu1", "--yes"],
        &["discard", &ids[0], "--all", "--yes"],
        &["discard", "--reason", "unspecified", "--yes"],
        &["discard", "not-an-id"],
        &["redrive"],
    ] {
        let output = run_at(&server, &[&["quarantine"], refused].concat()).await;
        assert_eq!(
            output.status.code(),
            Some(2),
            "{refused:?} {}",
            stderr(&output)
        );
    }
    assert_eq!(left(), (2, 1));
    let one = run_at(&server, &["quarantine", "discard", &ids[0]]).await;
    assert_eq!(json_lines(&one)[0]["discarded"], "1");
    let again = run_at(&server, &["quarantine", "discard", &ids[0]]).await;
    assert_eq!(again.status.code(), Some(1));
    let said = stderr(&again);
    assert!(
        said.contains(&ids[0]) && said.contains("DELIVERY_NOT_FOUND"),
        "{said}"
    );
    assert_eq!(left(), (1, 1));
    // One that is gone does not keep another waiting.
    let webhook = crate::support::sign(&gu1, gu1_body("4"));
    let fourth = put(&log, "gu1", &webhook, Some("hmac_sha256"), real_now()).await;
    let several = ["quarantine", "discard", &ids[0], &fourth];
    let several = run_at(&server, &several).await;
    assert_eq!(several.status.code(), Some(1));
    assert_eq!(json_lines(&several)[0]["discarded"], "1");
    assert!(stderr(&several).contains("1 of 2 calls failed"));
    assert_eq!(left(), (1, 1));
    let all = [
        "quarantine",
        "discard",
        "--all",
        "--yes",
        "--format",
        "table",
    ];
    assert_eq!(
        stdout(&run_at(&server, &all).await),
        "1 deliveries discarded\n"
    );
    assert_eq!(left(), (0, 1));
    let unverified = ["quarantine", "discard", "--reason", "unverified", "--yes"];
    assert!(run_at(&server, &unverified).await.status.success());
    assert_eq!(left(), (0, 0));
}

#[tokio::test]
async fn the_log_is_normalized_again_with_a_diff_for_people_and_programs() {
    let log = memory_log();
    let server = Server::start_with(server_config(), Arc::clone(&log)).await;
    let gu1 = fixture_source("gu1");
    for number in ["1", "2"] {
        let webhook = crate::support::sign(&gu1, gu1_body(number));
        let misread = |event: &mut VerificationEvent| {
            let Some(Detail::Verification(verification)) = &mut event.detail else {
                panic!("not a verification");
            };
            verification.level = "\u{9b}31m invented".to_owned();
            verification.reasons.push(Reason::default());
        };
        store_misread(&log, &gu1, webhook, misread).await;
    }
    server.accept("3").await;

    let dry_run = ["renormalize", "--dry-run", "--format", "table"];
    let table = stdout(&run_at(&server, &dry_run).await);
    assert!(
        table.contains(r#"verification.level: "31m invented" → (not set)"#),
        "{table}"
    );
    assert!(!table.contains('\u{9b}'));
    let total = table
        .lines()
        .find(|line| line.contains("verification.reasons[] "));
    assert!(total.unwrap().contains(" 2 {} → (not set)"), "{table}");
    let summary = "3 examined: 1 unchanged, 2 changed, 0 without a delivery, 0 corrections, \
                   0 damaged; 0 corrected events appended";
    assert_eq!(table.lines().last(), Some(summary));
    assert_eq!(log.tail().end().0, 3);

    let other = ["renormalize", "--dry-run", "--provider", "fyatu"];
    let other = json_lines(&run_at(&server, &other).await);
    assert_eq!(other.len(), 1);
    let unsure = run_at(&server, &["renormalize"]).await;
    assert_eq!(unsure.status.code(), Some(2));
    assert!(stderr(&unsure).contains("--dry-run") && stderr(&unsure).contains("--yes"));
    assert_eq!(log.tail().end().0, 3);
    let appended = json_lines(&run_at(&server, &["renormalize", "--yes"]).await);
    assert_eq!(appended.len(), 3);
    assert!(appended[0]["changed"]["corrected_event_id"].is_string());
    assert_eq!(appended[2]["summary"]["appended"], "2");
    assert_eq!(log.tail().end().0, 5);
}

#[tokio::test]
async fn the_status_is_told_to_people_and_programs() {
    let server = Server::start().await;
    let cursor = server.accept("1").await.cursor;
    let consumer = Consumer {
        name: "risk \u{1b}[31m".to_owned(),
        cursor: server.log.cursor(Position(0)),
        committed_at: Default::default(),
    };
    let commit = Commit {
        consumer,
        force: false,
    };
    server.log.commit(commit).await.unwrap();
    let status = json_lines(&run_at(&server, &["status"]).await).remove(0);
    assert_eq!(status["log"]["last_cursor"], *cursor);
    assert_eq!(status["consumers"][0]["lag_events"], "1");
    let table = stdout(&run_at(&server, &["status", "--format", "table"]).await);
    assert!(table.starts_with(&format!("verdict {}", event::NORMALIZER_VERSION)));
    assert!(
        table.contains("1 events") && table.contains("it can write"),
        "{table}"
    );
    assert!(
        table.contains("risk [31m") && !table.contains('\u{1b}'),
        "{table:?}"
    );
}

#[test]
fn nobody_there_is_said_so() {
    let output = run(verdict().args(["sources", "--endpoint", "http://127.0.0.1:9"]));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("is `verdict serve` running there?"),
        "{}",
        stderr(&output)
    );
}

/// Ingests so many events, numbered from `first`, many at a time.
async fn ingest(client: &VerdictServiceClient<Channel>, first: usize, count: usize) {
    let source = Arc::new(crate::support::fixture_source("gu1"));
    let ingested = futures_util::stream::iter(first..first + count)
        .map(|number| {
            let (mut client, source) = (client.clone(), Arc::clone(&source));
            async move {
                let webhook = crate::support::sign(&source, gu1_body(&number.to_string()));
                let request = crate::support::request("gu1", &webhook);
                let answer = client
                    .ingest(request)
                    .await
                    .expect("a good webhook")
                    .into_inner();
                assert_eq!(answer.status(), IngestStatus::Accepted);
            }
        })
        .buffer_unordered(256)
        .count();
    assert_eq!(ingested.await, count);
}

/// Reads events until so many have come; returns the last cursor.
async fn read(stream: &mut Streaming<SubscribeResponse>, count: usize) -> Vec<String> {
    let mut ids = Vec::with_capacity(count);
    while ids.len() < count {
        if let Some(SubscribeMessage::Event(event)) = next(stream).await.message {
            ids.push(
                decode(event)
                    .subject
                    .expect("a subject")
                    .provider_subject_id,
            );
        }
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_stops_reading_loses_nothing_and_costs_no_memory() {
    const EVENTS: usize = 100_000;
    let place = Place::new();
    let serving = place.serve();
    let client = serving.client().await;

    // What the log itself keeps in memory for so many events.
    ingest(&client, 0, EVENTS).await;
    let without = serving.resident_bytes();

    // On a connection of its own: its flow control must not hold up the others.
    let mut stalled = serving
        .client()
        .await
        .subscribe(from_earliest())
        .await
        .unwrap()
        .into_inner();
    let first = read(&mut stalled, 1).await;
    ingest(&client, EVENTS, EVENTS).await;
    let with = serving.resident_bytes();
    let grown = with.saturating_sub(without);
    let grown = grown >> 20;
    assert!(grown < 48, "{grown} MiB more than {} MiB", without >> 20);

    let rest = read(&mut stalled, 2 * EVENTS - 1).await;
    let mut seen: Vec<usize> = first
        .iter()
        .chain(&rest)
        .map(|id| id["ent-".len()..].parse().unwrap())
        .collect();
    seen.sort_unstable();
    assert!(
        seen.into_iter().eq(0..2 * EVENTS),
        "an event is missing or was sent twice"
    );
}

#[tokio::test]
async fn a_consumer_is_listed_followed_and_forgotten() {
    let server = Server::start().await;
    let first = server.accept("1").await;
    let second = server.accept("2").await;
    let commit = CommitCursorRequest {
        consumer: "risk".to_owned(),
        cursor: first.cursor,
        force: false,
    };
    server.client.clone().commit_cursor(commit).await.unwrap();
    let listed = json_lines(&run_at(&server, &["consumers", "list"]).await);
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (&listed[0]["consumer"], &listed[0]["lag_events"]),
        (&"risk".into(), &"1".into())
    );
    let table = run_at(&server, &["consumers", "list", "--format", "table"]).await;
    assert!(stdout(&table).contains("risk "), "{}", stdout(&table));

    let tail = ["tail", "--from", "committed", "--until-caught-up"];
    let unnamed = run_at(&server, &tail).await;
    assert_eq!(unnamed.status.code(), Some(2));
    let named = [&tail[..], &["--consumer", "risk"]].concat();
    let events = json_lines(&run_at(&server, &named).await);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["event"]["event_id"], *second.event_id);

    let delete = run_at(&server, &["consumers", "delete", "risk", "nobody"]).await;
    assert!(delete.status.success(), "{}", stderr(&delete));
    assert!(json_lines(&run_at(&server, &["consumers", "list"]).await).is_empty());
}

#[tokio::test]
async fn a_stream_that_cannot_go_on_says_why_and_what_to_do() {
    let log = TroubledLog::new();
    let server = Server::start_with(server_config(), log.clone()).await;
    let mut cursors = Vec::new();
    for id in ["1", "2", "3"] {
        cursors.push(server.accept(id).await.cursor);
    }
    log.retain_after(2);
    let late = run_at(&server, &["tail", "--from", &cursors[0]]).await;
    assert_eq!(late.status.code(), Some(1));
    let said = stderr(&late);
    assert!(
        said.contains("CURSOR_OUT_OF_RANGE") && said.contains(&format!("--from {}", cursors[1])),
        "{said}"
    );
    log.go_away();
    let gone = run_at(&server, &["tail", "--since", "2025-01-01T00:00:00Z"]).await;
    assert_eq!(gone.status.code(), Some(1));
    let said = stderr(&gone);
    assert!(
        said.contains("LOG_UNAVAILABLE") && !said.contains("connection lost"),
        "{said}"
    );
}
