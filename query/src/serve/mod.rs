//! HTTP on port 4680: SQL, events, the transparency log, health, a small page.

pub mod alerts;
pub mod events;
mod evidence;
pub mod flight;
mod flight_about;
mod flight_handshake;
mod flight_running;
mod flight_ticket;
mod foreign;
mod jaeger;
pub mod observe;
mod parameters;
mod replay;
mod sql;
mod stream;
pub mod tiles;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};

use crate::authorize;
use crate::caller::Caller;
use crate::engine::{Engine, QueryLimits};
use crate::error::{Error, ErrorKind};
use crate::recorder::{Exporter, Recorder};

/// What the handlers share.
#[derive(Clone)]
pub struct Served {
    engine: Engine,
    limits: QueryLimits,
    observer: Arc<dyn observe::Observer>,
    recorder: Option<Arc<dyn Recorder>>,
    exporter: Option<Arc<dyn Exporter>>,
    events: Arc<events::Events>,
}

impl Served {
    /// Serves an engine. The observer knows how the whole server is.
    pub fn new(engine: Engine, limits: QueryLimits, observer: Arc<dyn observe::Observer>) -> Self {
        Self { engine, limits, observer, recorder: None, exporter: None, events: Arc::default() }
    }

    /// With a way to append what is said through this port.
    pub fn with_recorder(mut self, recorder: Arc<dyn Recorder>) -> Self {
        self.recorder = Some(recorder);
        self
    }

    /// With a way to say in the log what is exported, and to sign it.
    pub fn with_exporter(mut self, exporter: Arc<dyn Exporter>) -> Self {
        self.exporter = Some(exporter);
        self
    }

    /// With what the events API needs beside the engine.
    pub fn with_events(mut self, events: events::Events) -> Self {
        self.events = Arc::new(events);
        self
    }

    /// The way to append; without one the server can only be read.
    pub fn recorder(&self) -> Option<&Arc<dyn Recorder>> {
        self.recorder.as_ref()
    }
}

/// The router of everything on this port.
pub fn router(served: Served) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/api/v1/sql", post(sql::answer))
        .route("/api/v1/queries", get(sql::queries))
        .route("/api/v1/evidence", post(evidence::answer))
        .merge(events::routes(&served))
        .merge(alerts::routes())
        .merge(jaeger::routes())
        .route("/api/v1/replay", get(replay::answer))
        .route("/checkpoint", get(tiles::checkpoint))
        .route("/checkpoint/witnessed", get(tiles::witnessed))
        .route("/tile/{*path}", get(tiles::tile))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(observe::ready))
        .route("/metrics", get(observe::metrics))
        .route("/openapi.json", get(openapi))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(1 << 20))
        .layer(axum::middleware::from_fn_with_state(served.clone(), authorized))
        .layer(axum::middleware::from_fn_with_state(served.clone(), observe::trace))
        .layer(axum::middleware::map_response(as_said))
        .with_state(served)
}

/// Lets in who has the role that the path needs.
async fn authorized(State(served): State<Served>, caller: Caller, request: Request, next: Next) -> Response {
    if foreign::is_foreign(&request) {
        let message = "a page of another site must not change anything here, and a browser sent this for one; a page of \
                       this server itself may, and so may any client that is no browser";
        return Error::new(ErrorKind::Forbidden, message).into_response();
    }
    match authorize::allow(&caller, request.method(), request.uri().path()) {
        Ok(()) => next.run(request).await,
        Err(error) => {
            served.engine.audit().refused(&caller, &error.message);
            error.into_response()
        }
    }
}

/// Who asks over gRPC.
fn called(extensions: &tonic::Extensions) -> Result<Caller, tonic::Status> {
    let unknown = || tonic::Status::permission_denied("nothing in front of this server says who is asking");
    extensions.get::<Caller>().cloned().ok_or_else(unknown)
}

/// A page with the head, the checkpoint and a box for SQL. It loads nothing from
/// elsewhere and shows data only as text.
async fn page() -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    let headers = [(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy))];
    (headers, Html(include_str!("page.html"))).into_response()
}

/// What an answer is, it says: a browser must not take what a sender wrote for a page.
async fn as_said(mut response: Response) -> Response {
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json")).into_response()
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

/// The status of an error.
fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::ReadOnly | ErrorKind::Forbidden => StatusCode::FORBIDDEN,
        ErrorKind::Busy => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::Timeout => StatusCode::REQUEST_TIMEOUT,
        ErrorKind::Resources => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = problem(status(self.kind), self.kind.code(), &self.message, self.position);
        if self.kind == ErrorKind::Busy {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
