//! Log lines: what stands in them, and who may change which there are.

use std::{fs, process::Stdio, time::Duration};

use serde_json::Value;
use tempfile::TempDir;
use tokio::time;
use tonic::{Code, Request};
use tonic_types::StatusExt;
use verdict::proto::{
    SetLogLevelsRequest, SetLogLevelsResponse, admin_service_client::AdminServiceClient,
    verdict_service_client::VerdictServiceClient,
};

use crate::{
    cli::{Place, run, verdict},
    ops::ask,
    otlp::Receiver,
    support::{PATIENCE, Server, connect, gu1_body, gu1_request},
};

/// A server whose lines are kept.
struct Logging {
    process: std::process::Child,
    directory: TempDir,
    url: String,
}

impl Logging {
    async fn start(place: &Place, log_format: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let stderr = fs::File::create(directory.path().join("stderr")).unwrap();
        let process = verdict()
            .args(["serve", "--config"])
            .arg(place.path("verdict.toml"))
            .env("VERDICT__TELEMETRY__LOG_FORMAT", log_format)
            .stderr(Stdio::from(stderr))
            .spawn()
            .unwrap();
        let mut logging = Self {
            process,
            directory,
            url: String::new(),
        };
        let line = logging.line("server.address").await;
        let (_, address) = line.split_once("server.address").unwrap();
        let is_of_address = |c: &char| c.is_ascii_digit() || ".:".contains(*c);
        let address: String = address
            .trim_start_matches(['"', ':', '='])
            .chars()
            .take_while(is_of_address)
            .collect();
        logging.url = format!("http://{address}");
        logging
    }

    fn text(&self) -> String {
        fs::read_to_string(self.directory.path().join("stderr")).unwrap()
    }

    /// The first line with this in it, as soon as it is written.
    async fn line(&self, part: &str) -> String {
        let found = async {
            loop {
                let text = self.text();
                // What stands in front of the last line's end is whole.
                let whole = text.rfind('\n').map_or("", |end| &text[..end]);
                if let Some(line) = whole.lines().find(|line| line.contains(part)) {
                    return line.to_owned();
                }
                time::sleep(Duration::from_millis(20)).await;
            }
        };
        time::timeout(PATIENCE, found).await.expect("it is logged")
    }

    async fn set(&self, levels: Option<&str>) -> SetLogLevelsResponse {
        let mut admin = AdminServiceClient::new(connect(&self.url).await);
        let levels = levels.map(str::to_owned);
        let set = admin.set_log_levels(SetLogLevelsRequest { levels }).await;
        set.expect("levels").into_inner()
    }

    /// Ingests an event that is part of a trace; returns its id.
    async fn ingest(&self, id: &str) -> String {
        self.ingest_in(id, "00").await
    }

    async fn ingest_in(&self, id: &str, flags: &str) -> String {
        let mut client = VerdictServiceClient::new(connect(&self.url).await);
        let mut request = Request::new(gu1_request(gu1_body(id)));
        let traceparent = format!("00-{TRACE}-b7ad6b7169203331-{flags}");
        let metadata = request.metadata_mut();
        metadata.insert("traceparent", traceparent.parse().unwrap());
        let answer = client.ingest(request).await.expect("a good webhook");
        answer.into_inner().event_id
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn traced_place(receiver: &Receiver) -> Place {
    let place = Place::new();
    place.configure(&format!(
        "[telemetry]\nlog_levels = \"debug\"\n[telemetry.otlp]\nendpoint = \"{}\"\n",
        receiver.url
    ));
    place
}

#[tokio::test]
async fn a_json_line_of_a_call_names_its_trace() {
    let receiver = Receiver::start();
    let place = traced_place(&receiver);
    let logging = Logging::start(&place, "auto").await;
    let event_id = logging.ingest("1").await;
    let line: Value = serde_json::from_str(&logging.line("event accepted").await).unwrap();
    assert_eq!(line["message"], "event accepted");
    assert_eq!(line["event.id"], *event_id);
    assert_eq!(line["trace_id"], TRACE);
    assert_eq!(line["span_id"].as_str().unwrap().len(), 16);
    // A line is one object, whatever it is about, and others are no part of a trace.
    for line in logging.text().lines() {
        let line: Value = serde_json::from_str(line).expect(line);
        assert!(line["message"].is_string(), "{line}");
        assert_eq!(
            line.get("trace_id").is_some(),
            line.get("span_id").is_some()
        );
    }
    let serving: Value = serde_json::from_str(&logging.line("\"serving\"").await).unwrap();
    assert_eq!(serving.get("trace_id"), None);
}

#[tokio::test]
async fn a_line_for_people_names_its_trace_too() {
    let receiver = Receiver::start();
    let place = traced_place(&receiver);
    let logging = Logging::start(&place, "text").await;
    logging.ingest("1").await;
    let line = logging.line("event accepted").await;
    assert!(line.contains(" DEBUG verdict::"), "{line}");
    let (_, ids) = line
        .split_once(&format!(" trace_id={TRACE} span_id="))
        .unwrap();
    assert_eq!(ids.len(), 16, "{line}");
    assert!(!line.contains('\u{1b}'), "no colors in a file: {line}");
}

#[tokio::test]
async fn what_is_refused_at_the_edge_is_told_and_a_wrong_fence_is_warned_of() {
    let place = Place::new();
    place.listen_for_http();
    fs::write(place.path("secret"), "s").unwrap();
    place.configure(&format!(
        "[[sources]]\nprovider = \"gu1\"\naccount = \"fenced\"\nsecrets = [{{ id = \"a\", file = {:?} }}]\n\
         allowed_ips = [\"203.0.113.0/24\"]\n[telemetry]\nlog_levels = \"debug\"\n",
        place.path("secret")
    ));
    let logging = Logging::start(&place, "json").await;
    let serving: Value = serde_json::from_str(&logging.line("\"serving\"").await).unwrap();
    let edge = serving["server.webhook_address"].as_str().unwrap();
    let edge = edge.parse().unwrap();
    let tale = "x-forwarded-for: made-up\r\ncontent-length: 0\r\n";
    for _ in 0..3 {
        let answer = ask(edge, "POST", "/webhooks/gu1/fenced", tale).await;
        assert_eq!(answer.status, 403);
    }
    ask(edge, "POST", "/webhooks/made-up", tale).await;
    let last: Value = serde_json::from_str(&logging.line("source_not_found").await).unwrap();
    assert_eq!(last["provider.name"], "unknown");

    let text = logging.text();
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let (warnings, lines): (Vec<_>, Vec<_>) = lines.partition(|line| line["level"] == "WARN");
    let refused = lines
        .iter()
        .filter(|line| line["reason"] == "address_not_allowed");
    let refused: Vec<_> = refused.collect();
    assert_eq!(refused.len(), 3, "{text}");
    assert_eq!(refused[0]["network.peer.address"], "127.0.0.1");
    assert_eq!(refused[0]["provider.name"], "gu1");
    let fence = warnings
        .iter()
        .filter(|line| line["source.account"] == "fenced");
    let fence: Vec<_> = fence.collect();
    assert_eq!(fence.len(), 1, "{text}");
    assert_eq!(fence[0]["network.peer.address"], "127.0.0.1");
    assert!(!text.contains("made-up"), "{text}");
}

#[tokio::test]
async fn that_traces_cannot_be_sent_is_told_without_what_is_sent_along() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let place = Place::new();
    fs::write(place.path("token"), "Bearer a-token-of-the-tests").unwrap();
    place.configure(&format!(
        "[telemetry]\nlog_levels = \"trace\"\n[telemetry.otlp]\nendpoint = \"http://{address}\"\ntimeout_seconds = 1\n\
         headers = {{ authorization = {{ file = {:?} }} }}\n",
        place.path("token")
    ));
    let logging = Logging::start(&place, "json").await;
    logging.ingest_in("1", "01").await;
    let line = logging.line("traces cannot be sent").await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["level"], "WARN");
    assert!(line["spans.lost"].as_u64().unwrap() > 0, "{line}");
    assert!(!logging.text().contains("a-token-of-the-tests"));
}

#[tokio::test]
async fn the_levels_are_changed_while_the_server_runs() {
    let place = Place::new();
    let logging = Logging::start(&place, "json").await;
    let configured = "info";
    let same = SetLogLevelsResponse {
        previous_levels: configured.to_owned(),
        levels: configured.to_owned(),
    };
    assert_eq!(logging.set(None).await, same);

    logging.ingest("1").await;
    let changed = logging.set(Some("warn,verdict::ending=debug")).await;
    assert_eq!(changed.previous_levels, configured);
    assert_eq!(changed.levels, "warn,verdict::ending=debug");
    let second = logging.ingest("2").await;
    let back = logging.set(Some("")).await;
    assert_eq!(back.previous_levels, "warn,verdict::ending=debug");
    assert_eq!(back.levels, configured);
    logging.ingest("3").await;
    logging.set(Some("debug")).await;
    let fourth = logging.ingest("4").await;
    logging.line(&fourth).await;

    let text = logging.text();
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let accepted = lines.filter(|line| line["message"] == "event accepted");
    let accepted: Vec<_> = accepted.map(|line| line["event.id"].clone()).collect();
    assert_eq!(accepted, [second, fourth]);
}

#[tokio::test]
async fn who_silences_the_log_is_told_in_it() {
    let place = Place::new();
    let logging = Logging::start(&place, "json").await;
    logging.set(Some("off")).await;
    let line: Value = serde_json::from_str(&logging.line("log levels").await).unwrap();
    assert_eq!(
        (&line["previous"], &line["levels"]),
        (&"info".into(), &"off".into())
    );
    logging.set(Some("debug")).await;
    logging.line(r#""previous":"off""#).await;
    // Each change is told once.
    logging.set(Some("debug")).await;
    logging.set(Some("info")).await;
    logging.line(r#""previous":"debug""#).await;
    assert_eq!(
        logging.text().matches("the log levels are changed").count(),
        3
    );
}

#[tokio::test]
async fn levels_that_mean_nothing_are_refused_and_named() {
    let server = Server::start().await;
    for bad in ["inof", "info,", "fjall", "[x]=info"] {
        let levels = Some(bad.to_owned());
        let set = server
            .admin
            .clone()
            .set_log_levels(SetLogLevelsRequest { levels })
            .await;
        let refused = set.expect_err(bad);
        assert_eq!(refused.code(), Code::InvalidArgument, "{bad}");
        let request = refused.get_details_bad_request().expect("details");
        assert_eq!(request.field_violations[0].field, "levels");
    }
    server.stop().await;
}

#[test]
fn levels_that_mean_nothing_are_refused_before_anything_is_opened() {
    let place = Place::new();
    for command in ["serve", "check-config"] {
        let output = run(verdict()
            .args([command, "--config"])
            .arg(place.path("verdict.toml"))
            .env("VERDICT__TELEMETRY__LOG_LEVELS", "verdict=loud"));
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(
            told.contains("telemetry.log_levels holds \"verdict=loud\""),
            "{told}"
        );
    }
    assert!(!place.path("log").exists());
}

#[tokio::test]
async fn the_levels_are_shown_and_set_from_the_command_line() {
    let place = Place::new();
    let logging = Logging::start(&place, "json").await;
    let log_levels = |arguments: &[&str]| {
        let output = run(verdict()
            .arg("log-levels")
            .args(arguments)
            .env("VERDICT_ENDPOINT", &logging.url));
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let configured = (Some(0), "info\n".to_owned());
    let table = ["--format", "table"];
    assert_eq!(log_levels(&table), configured);
    assert_eq!(
        log_levels(&["debug", "--format", "table"]),
        (Some(0), "debug\n".to_owned())
    );
    assert_eq!(log_levels(&["inof"]).0, Some(1));
    assert_eq!(log_levels(&[""]).0, Some(2));
    let (code, json) = log_levels(&["--configured"]);
    assert_eq!(code, Some(0));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["previous_levels"], "debug");
    assert_eq!(log_levels(&table), configured);
}
