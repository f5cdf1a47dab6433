//! HTTP on port 4680: SQL, events, the transparency log, health, a small page.

mod events;
pub mod flight;
mod sql;
pub mod tiles;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};

use crate::engine::{Engine, QueryLimits};
use crate::error::{Error, ErrorKind};

/// What the handlers share.
#[derive(Clone)]
pub struct Served {
    engine: Engine,
    limits: QueryLimits,
    metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

impl Served {
    /// Serves an engine. `metrics` renders what others count, for Prometheus.
    pub fn new(engine: Engine, limits: QueryLimits, metrics: impl Fn() -> String + Send + Sync + 'static) -> Self {
        Self { engine, limits, metrics: Arc::new(metrics) }
    }
}

/// The router of everything on this port.
pub fn router(served: Served) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/api/v1/sql", post(sql::answer))
        .route("/api/v1/events", get(events::answer))
        .route("/checkpoint", get(tiles::checkpoint))
        .route("/checkpoint/witnessed", get(tiles::witnessed))
        .route("/tile/{*path}", get(tiles::tile))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(1 << 20))
        .with_state(served)
}

/// A page with the head, the checkpoint and a box for SQL. It loads nothing from
/// elsewhere and shows data only as text.
async fn page() -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    let headers = [
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (headers, Html(include_str!("page.html"))).into_response()
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json")).into_response()
}

/// Ready once queries see what was durable at the start; not when the projection has stopped.
async fn ready(State(served): State<Served>) -> Response {
    let projection = served.engine.projection();
    let (visible, size) = (projection.snapshot().size, projection.reader().head().size);
    let text = format!("visible {visible} of {size}\n");
    let status = if projection.is_well() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, text).into_response()
}

async fn metrics(State(served): State<Served>) -> Response {
    let projection = served.engine.projection();
    let (visible, size) = (projection.snapshot().size, projection.reader().head().size);
    let mut text = (served.metrics)();
    text.push_str(&format!(
        "# HELP custody_log_size Records in the log.\n# TYPE custody_log_size gauge\ncustody_log_size {size}\n\
         # HELP custody_projection_lag_records Durable records that queries do not see yet.\n\
         # TYPE custody_projection_lag_records gauge\ncustody_projection_lag_records {}\n",
        size.saturating_sub(visible)
    ));
    let (segments, bytes, in_memory) = projection.snapshot().extent();
    text.push_str(&format!(
        "# HELP custody_segments Ranges of the log whose rows are sealed.\n# TYPE custody_segments gauge\n\
         custody_segments {segments}\n\
         # HELP custody_segment_bytes Bytes of their files.\n# TYPE custody_segment_bytes gauge\n\
         custody_segment_bytes {bytes}\n\
         # HELP custody_rows_in_memory_bytes Bytes of rows that are not sealed, about.\n\
         # TYPE custody_rows_in_memory_bytes gauge\ncustody_rows_in_memory_bytes {in_memory}\n"
    ));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn unknown(uri: Uri) -> Response {
    let message = format!("there is nothing at {}; /openapi.json lists what there is", uri.path());
    problem(StatusCode::NOT_FOUND, "not_found", &message, None)
}

async fn wrong_method(uri: Uri) -> Response {
    let message = format!("{} does not take this method; /openapi.json says which it takes", uri.path());
    problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", &message, None)
}

/// An error as JSON: code, message, and the position in a query.
fn problem(status: StatusCode, code: &str, message: &str, position: Option<(u64, u64)>) -> Response {
    let position = position.map(|(line, column)| serde_json::json!({"line": line, "column": column}));
    let body = serde_json::json!({"code": code, "message": message, "position": position});
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = match self.kind {
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::ReadOnly => StatusCode::FORBIDDEN,
            ErrorKind::Timeout => StatusCode::REQUEST_TIMEOUT,
            ErrorKind::Resources => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        problem(status, self.kind.code(), &self.message, self.position)
    }
}
