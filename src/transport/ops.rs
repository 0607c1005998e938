//! What operators and orchestrators ask over HTTP: `/metrics`, `/livez` and `/readyz`.

use axum::Router;

use super::{Shared, health::Readiness};

/// The three paths.
pub(super) fn router(_shared: &Shared, _readiness: Readiness) -> Router {
    Router::new()
}
