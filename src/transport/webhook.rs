//! The webhook edge: providers post here what callers would hand over by `Ingest`.

use axum::Router;

use super::Shared;

/// `POST /webhooks/{provider}[/{account}]`.
pub(super) fn router(_shared: &Shared) -> Router {
    Router::new()
}
