//! What operators and orchestrators ask over HTTP: `/metrics`, `/livez` and `/readyz`.
//!
//! Nobody is asked who they are, so nothing of this costs much, whoever asks and however often.

mod lookup;

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;

use self::lookup::Lookup;
use super::{
    Shared,
    health::{self, Readiness},
    observation,
    tls::ServerTls,
};
use crate::telemetry::{exposition::Format, process::ProcessMetrics};

/// The three paths.
pub(super) fn router(shared: &Shared, tls: &ServerTls, readiness: Readiness) -> Router {
    let scrapes = Scrapes {
        registry: Arc::new(registry(shared, tls, readiness.clone())),
        turn: Arc::new(Semaphore::new(1)),
    };
    let sources = shared.ingestor.sources().len();
    let readyz = get(async move || ready(*readiness.borrow(), sources));
    let metrics = get(metrics).with_state(scrapes);
    Router::new()
        .route("/metrics", metrics)
        .route(
            "/livez",
            get(async || plain(StatusCode::OK, "ok\n".to_owned())),
        )
        .route("/readyz", readyz)
}

/// Everything that is shown. It must not keep the log open, which its owner may close when the server has ended.
fn registry(shared: &Shared, tls: &ServerTls, readiness: Readiness) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ProcessMetrics));
    let verdict = registry.sub_registry_with_prefix("verdict");
    let metrics = &shared.telemetry.metrics;
    let sources = shared.ingestor.sources().iter();
    metrics.expect(sources.map(|source| source.provider.name()));
    observation::expect_streams(metrics);
    metrics.register(verdict);
    if let Some(measures) = shared.log.measures() {
        measures.register(verdict);
    }
    verdict.register_collector(Box::new(Lookup::new(shared, tls, readiness)));
    registry
}

/// What those who collect metrics are served from.
#[derive(Clone)]
struct Scrapes {
    registry: Arc<Registry>,
    /// One at a time: the others wait, and each connection has one at most.
    turn: Arc<Semaphore>,
}

async fn metrics(State(scrapes): State<Scrapes>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get_all(header::ACCEPT).iter();
    let format = Format::asked_for(accept.filter_map(|value| value.to_str().ok()));
    let Scrapes { registry, turn } = scrapes;
    let turn = turn.acquire_owned().await;
    // The system is asked too, and a disk may be slow to tell how much of it is free.
    let encoded = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        format.encode(&registry)
    });
    match encoded.await {
        Ok(Ok(text)) => answer(StatusCode::OK, format.content_type(), text),
        Ok(Err(_)) | Err(_) => {
            tracing::error!("the metrics could not be written");
            plain(StatusCode::INTERNAL_SERVER_ERROR, String::new())
        }
    }
}

/// Whether the server is to be sent calls and webhooks, check by check. gRPC health says the same.
fn ready(state: health::State, sources: usize) -> Answer {
    let log = match state.log_writable {
        true => "ok",
        false => "NOT READY: it cannot be written",
    };
    let draining = match state.draining {
        true => "NOT READY: the server is about to stop",
        false => "no",
    };
    let status = match state.is_ready() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    plain(
        status,
        format!("log: {log}\ndraining: {draining}\nsources: {sources} loaded\n"),
    )
}

type Answer = (StatusCode, [(header::HeaderName, &'static str); 2], String);

fn plain(status: StatusCode, text: String) -> Answer {
    answer(status, "text/plain; charset=utf-8", text)
}

/// An answer of now, which nobody is to keep.
fn answer(status: StatusCode, content_type: &'static str, text: String) -> Answer {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (status, headers, text)
}
